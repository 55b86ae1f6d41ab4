//! The VMs of the manifest and where each stands.
//!
//! ```text
//!               start                     stop, exit, forbidden access
//!  Stopped(why) ─────▶ Running(VM, guest) ───────────────────────────▶ Stopped(why)
//! ```
//!
//! A VM's *number* is unique since boot and says which entry of the manifest it was made from: its place, the low 24 bits, is
//! entry + 1, and above are the starts of that entry before. So a restarted loader knows its VMs again by their numbers.

use crate::guest::Guest;
use alloc::{borrow::ToOwned, collections::BTreeMap, string::String, vec::Vec};
use protocol::service::{PLACE_BITS, VmNumber, VmRef, place};

/// Restarts of the loader leave room for this many starts of each VM before it.
const STARTS_BETWEEN_RESTARTS: u64 = 1 << 20;

/// A VM that is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Running {
    /// The VM.
    pub vm: VmNumber,
    /// Where it was when the loader last heard of it; servers find out where it is now.
    pub at: VmRef,
    /// What it was made from.
    pub guest: Guest,
}

/// Where a VM stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// It is there.
    Running(Running),
    /// It is not, and why.
    Stopped(String),
}

/// The table.
#[derive(Debug)]
pub struct Table {
    states: Vec<State>,
    by_name: BTreeMap<String, usize>,
    /// Starts so far, of all entries: none is used twice.
    starts: Vec<u64>,
}

impl Table {
    /// Entries for VMs with these names, none of them there. `incarnation`: restarts of the loader.
    pub fn new<'a>(names: impl Iterator<Item = &'a str>, incarnation: u32) -> Table {
        let by_name: BTreeMap<_, _> = names.enumerate().map(|(index, name)| (name.to_owned(), index)).collect();
        let count = by_name.values().max().map_or(0, |last| last + 1);
        Table {
            states: (0..count).map(|_| State::Stopped(String::from("not started"))).collect(),
            by_name,
            starts: (0..count).map(|_| u64::from(incarnation) * STARTS_BETWEEN_RESTARTS).collect(),
        }
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// The entry with this name.
    pub fn named(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The state of an entry.
    pub fn state(&self, index: usize) -> Option<&State> {
        self.states.get(index)
    }

    /// The VM of an entry, if it is there.
    pub fn running(&self, index: usize) -> Option<&Running> {
        match self.states.get(index)? {
            State::Running(running) => Some(running),
            State::Stopped(_) => None,
        }
    }

    /// The entry of a VM that is there.
    pub fn of(&self, vm: VmNumber) -> Option<usize> {
        let index = self.entry_of(vm)?;
        (self.running(index)?.vm == vm).then_some(index)
    }

    /// A number for a new VM of an entry.
    pub fn number(&mut self, index: usize) -> VmNumber {
        let Some(starts) = self.starts.get_mut(index) else { return 0 };
        let number = *starts << PLACE_BITS | (index as u64 + 1);
        *starts += 1;
        number
    }

    /// The entry that the VM with this number was made from.
    pub fn entry_of(&self, number: VmNumber) -> Option<usize> {
        Some(place(number).checked_sub(1)? as usize).filter(|index| *index < self.states.len())
    }

    /// Notes that the VM of an entry is there.
    pub fn set_running(&mut self, index: usize, running: Running) {
        if let Some(state) = self.states.get_mut(index) {
            *state = State::Running(running);
        }
    }

    /// Notes that the VM of an entry is not there, and why; gives back what was.
    pub fn set_stopped(&mut self, index: usize, why: String) -> Option<Running> {
        match core::mem::replace(self.states.get_mut(index)?, State::Stopped(why)) {
            State::Running(running) => Some(running),
            State::Stopped(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::BTreeSet, string::ToString};

    fn guest() -> Guest {
        Guest { entry: 0, memory: 0, parts: Vec::new(), offset: 0, pages: 0, windows: [(0, 0); 3] }
    }

    #[test]
    fn finds_by_name_and_number() {
        let mut table = Table::new(["a", "b"].into_iter(), 0);
        assert_eq!((table.len(), table.named("b"), table.named("c")), (2, Some(1), None));
        let vm = table.number(1);
        table.set_running(1, Running { vm, at: VmRef { frame: 9, generation: 4 }, guest: guest() });
        assert_eq!(table.of(vm), Some(1));
        let next = table.number(1);
        assert_eq!((table.of(next), table.of(0), table.of(3)), (None, None, None));
        assert_eq!(table.set_stopped(1, "x".to_string()).unwrap().vm, vm);
        assert_eq!(table.of(vm), None);
        assert_eq!(table.state(1), Some(&State::Stopped("x".to_string())));
        assert_eq!(table.set_stopped(1, "y".to_string()), None);
        assert_eq!(table.set_stopped(7, "y".to_string()), None);
    }

    proptest! {
        #[test]
        fn numbers_are_unique_and_name_their_entry(count in 1usize..9, picks in proptest::collection::vec(0usize..9, 0..60)) {
            let names: Vec<_> = (0..count).map(|n| n.to_string()).collect();
            let mut seen = BTreeSet::new();
            for incarnation in 0..3 {
                let mut table = Table::new(names.iter().map(String::as_str), incarnation);
                for pick in &picks {
                    let index = pick % count;
                    let number = table.number(index);
                    prop_assert!(number > 0 && seen.insert(number));
                    prop_assert_eq!(table.entry_of(number), Some(index));
                }
            }
            prop_assert_eq!(Table::new([].into_iter(), 0).entry_of(5), None);
        }
    }
}
