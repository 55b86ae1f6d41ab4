//! What VMs are called and where their console pages are, in few bytes.
//!
//! VMs come in kinds: `httpd-1`, `httpd-2`, … are made from one image, so their console pages are at the same address. What they share is
//! kept once: the *stem* of the name and the page. For each VM remain its kind and the number behind the stem, 8 bytes.

use alloc::{string::String, vec::Vec};
use core::{fmt::Write, hash::BuildHasher};
use hashbrown::{DefaultHashBuilder, HashTable};
use protocol::numbered;

/// A VM's kind, and its number among those.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name {
    kind: u32,
    /// [`NO_NUMBER`]: there is none.
    number: u32,
}

const NO_NUMBER: u32 = u32::MAX;

/// A kind, and how many VMs are of it.
#[derive(Debug)]
struct Kind {
    stem: String,
    page: u32,
    vms: u32,
}

impl Kind {
    /// Whether VMs of this stem and page are of it. One that nobody is of is none.
    fn is(&self, stem: &str, page: u32) -> bool {
        self.vms > 0 && self.page == page && self.stem == stem
    }
}

/// The kinds that are in use.
#[derive(Debug, Default)]
pub struct Kinds {
    kinds: Vec<Kind>,
    by_value: HashTable<u32>,
    free: Vec<u32>,
    /// That of the VM that was added last: the next one is probably of the same.
    last: u32,
    hasher: DefaultHashBuilder,
}

impl Name {
    /// The name of no VM.
    pub const NOBODY: Name = Name { kind: u32::MAX, number: NO_NUMBER };
}

impl Kinds {
    /// Keeps the name of a VM, and the number of its console page, until it is given back by [`Kinds::remove`].
    pub fn add(&mut self, name: &str, page: u32) -> Name {
        let (stem, number) = match numbered::split(name) {
            (stem, Some(number)) if number != NO_NUMBER => (stem, number),
            _ => (name, NO_NUMBER),
        };
        if let Some(last) = self.kinds.get_mut(self.last as usize).filter(|last| last.is(stem, page)) {
            last.vms += 1;
            return Name { kind: self.last, number };
        }
        let hash = self.hasher.hash_one((stem, page));
        let is_it = |kind: &u32| self.kinds.get(*kind as usize).is_some_and(|kind| kind.is(stem, page));
        if let Some(kind) = self.by_value.find(hash, is_it).copied() {
            if let Some(known) = self.kinds.get_mut(kind as usize) {
                known.vms += 1;
            }
            self.last = kind;
            return Name { kind, number };
        }
        let new = Kind { stem: String::from(stem), page, vms: 1 };
        let kind = match self.free.pop() {
            Some(kind) => {
                self.kinds[kind as usize] = new;
                kind
            }
            None => {
                self.kinds.push(new);
                (self.kinds.len() - 1) as u32
            }
        };
        let (kinds, hasher) = (&self.kinds, &self.hasher);
        let hash_of =
            |kind: &u32| kinds.get(*kind as usize).map_or(0, |kind| hasher.hash_one((kind.stem.as_str(), kind.page)));
        self.by_value.insert_unique(hash, kind, hash_of);
        self.last = kind;
        Name { kind, number }
    }

    /// Gives a name back.
    pub fn remove(&mut self, name: Name) {
        let Some(kind) = self.kinds.get_mut(name.kind as usize) else { return };
        kind.vms = kind.vms.saturating_sub(1);
        if kind.vms == 0 {
            let stem = core::mem::take(&mut kind.stem);
            let hash = self.hasher.hash_one((stem.as_str(), kind.page));
            if let Ok(entry) = self.by_value.find_entry(hash, |other| *other == name.kind) {
                entry.remove();
                self.free.push(name.kind);
            }
        }
    }

    /// The name in full.
    pub fn text(&self, name: Name) -> String {
        let mut text = self.kinds.get(name.kind as usize).map_or(String::new(), |kind| kind.stem.clone());
        if name.number != NO_NUMBER {
            let _ = write!(text, "{}", name.number);
        }
        text
    }

    /// The number of the console page.
    pub fn page(&self, name: Name) -> u32 {
        self.kinds.get(name.kind as usize).map_or(0, |kind| kind.page)
    }

    /// Kinds.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.by_value.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_at_the_end_cost_nothing() {
        let mut names = Kinds::default();
        let many: Vec<_> = (1..=1000).map(|number| names.add(&alloc::format!("web-{number}"), 7)).collect();
        assert_eq!((names.len(), size_of::<Name>()), (1, 8));
        assert_eq!(names.text(many[41]), "web-42");
        let last = names.add("web-4294967295", 7);
        assert_eq!(names.text(last), "web-4294967295");
        names.remove(last);
        many.into_iter().for_each(|name| names.remove(name));
        assert_eq!(names.len(), 0);
    }

    proptest! {
        #[test]
        fn names_come_back_as_they_were(steps in prop::collection::vec(("[a-c]{0,2}[0-9]{0,11}", any::<prop::sample::Index>(), any::<bool>()), 1..100)) {
            let mut names = Kinds::default();
            let mut there: Vec<(String, u32, Name)> = Vec::new();
            for (name, index, add) in steps {
                if add || there.is_empty() {
                    let page = name.len() as u32 % 3;
                    there.push((name.clone(), page, names.add(&name, page)));
                } else {
                    let (_, _, name) = there.swap_remove(index.index(there.len()));
                    names.remove(name);
                }
                for (text, page, name) in &there {
                    prop_assert_eq!((&names.text(*name), names.page(*name)), (text, *page));
                }
                prop_assert!(names.len() <= there.len());
            }
        }
    }
}
