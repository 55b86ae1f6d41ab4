//! Names of VMs, in few bytes.
//!
//! VMs come in kinds: `httpd-1`, `httpd-2`, … A name is kept as its *stem*, which all VMs of the kind share, and the number behind it:
//! 8 bytes for each VM.

use alloc::{string::String, vec::Vec};
use core::{fmt::Write, hash::BuildHasher};
use hashbrown::{DefaultHashBuilder, HashTable};

/// A name in [`Names`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Name {
    stem: u32,
    /// [`NO_NUMBER`]: there is none.
    number: u32,
}

const NO_NUMBER: u32 = u32::MAX;

/// A stem, and how many names have it.
#[derive(Debug)]
struct Stem {
    text: String,
    names: u32,
}

/// The names that are in use.
#[derive(Debug, Default)]
pub struct Names {
    stems: Vec<Stem>,
    by_text: HashTable<u32>,
    free: Vec<u32>,
    hasher: DefaultHashBuilder,
}

/// Takes a name apart: the longest number at its end that is written as it would be printed.
fn split(name: &str) -> (&str, u32) {
    let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
    for at in name.len() - digits..name.len() {
        let (stem, number) = name.split_at(at);
        let plain = number == "0" || !number.starts_with('0');
        if let Ok(value) = number.parse()
            && plain
            && value != NO_NUMBER
        {
            return (stem, value);
        }
    }
    (name, NO_NUMBER)
}

impl Names {
    /// Keeps a name until it is given back by [`Names::remove`].
    pub fn add(&mut self, name: &str) -> Name {
        let (text, number) = split(name);
        let hash = self.hasher.hash_one(text);
        let is_it = |stem: &u32| self.stems.get(*stem as usize).is_some_and(|stem| stem.text == text);
        if let Some(stem) = self.by_text.find(hash, is_it).copied() {
            if let Some(known) = self.stems.get_mut(stem as usize) {
                known.names += 1;
            }
            return Name { stem, number };
        }
        let new = Stem { text: String::from(text), names: 1 };
        let stem = match self.free.pop() {
            Some(stem) => {
                self.stems[stem as usize] = new;
                stem
            }
            None => {
                self.stems.push(new);
                (self.stems.len() - 1) as u32
            }
        };
        let (stems, hasher) = (&self.stems, &self.hasher);
        let hash_of = |stem: &u32| stems.get(*stem as usize).map_or(0, |stem| hasher.hash_one(stem.text.as_str()));
        self.by_text.insert_unique(hash, stem, hash_of);
        Name { stem, number }
    }

    /// Gives a name back.
    pub fn remove(&mut self, name: Name) {
        let Some(stem) = self.stems.get_mut(name.stem as usize) else { return };
        stem.names = stem.names.saturating_sub(1);
        if stem.names == 0 {
            let text = core::mem::take(&mut stem.text);
            if let Ok(entry) = self.by_text.find_entry(self.hasher.hash_one(text.as_str()), |other| *other == name.stem)
            {
                entry.remove();
                self.free.push(name.stem);
            }
        }
    }

    /// The name in full.
    pub fn text(&self, name: Name) -> String {
        let mut text = self.stems.get(name.stem as usize).map_or(String::new(), |stem| stem.text.clone());
        if name.number != NO_NUMBER {
            let _ = write!(text, "{}", name.number);
        }
        text
    }

    /// Stems.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.by_text.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_at_the_end_cost_nothing() {
        let mut names = Names::default();
        let many: Vec<_> = (1..=1000).map(|number| names.add(&alloc::format!("web-{number}"))).collect();
        assert_eq!((names.len(), size_of::<Name>()), (1, 8));
        assert_eq!(names.text(many[41]), "web-42");
        many.into_iter().for_each(|name| names.remove(name));
        assert_eq!(names.len(), 0);
    }

    #[test]
    fn odd_numbers_are_taken_apart_rightly() {
        let cases = [
            ("a", "a", NO_NUMBER),
            ("a1", "a", 1),
            ("a007", "a00", 7),
            ("a0", "a", 0),
            ("a00", "a0", 0),
            ("42", "", 42),
            ("", "", NO_NUMBER),
            ("x4294967295", "x4", 294967295),
            ("x99999999999", "x99", 999999999),
        ];
        for (name, stem, number) in cases {
            assert_eq!(split(name), (stem, number), "{name}");
        }
    }

    proptest! {
        #[test]
        fn names_come_back_as_they_were(steps in prop::collection::vec(("[a-c]{0,2}[0-9]{0,11}", any::<prop::sample::Index>(), any::<bool>()), 1..100)) {
            let mut names = Names::default();
            let mut there: Vec<(String, Name)> = Vec::new();
            for (name, index, add) in steps {
                if add || there.is_empty() {
                    there.push((name.clone(), names.add(&name)));
                } else {
                    let (_, name) = there.swap_remove(index.index(there.len()));
                    names.remove(name);
                }
                for (text, name) in &there {
                    prop_assert_eq!(&names.text(*name), text);
                }
                prop_assert!(names.len() <= there.len());
            }
        }
    }
}
