//! Where each VM of the manifest stands.
//!
//! ```text
//!               start                     stop, exit, forbidden access
//!  Stopped(why) ─────▶ Running(number) ───────────────────────────────▶ Stopped(why)
//! ```
//!
//! A VM's *number* is unique since boot and says which entry of the manifest it was made from: its place, the low 24 bits, is
//! entry + 1, and above are the starts of that entry before. So a restarted loader knows its VMs again by their numbers.
//!
//! What a VM was made from is not kept but looked up: in the manifest, in its image. So a VM that runs, or sleeps, costs little.

use alloc::{collections::BTreeMap, string::String, vec, vec::Vec};
use protocol::service::{PLACE_BITS, VmNumber, place};

/// Restarts of the loader leave room for this many starts of each VM before it.
const STARTS_BETWEEN_RESTARTS: u32 = 1 << 20;

/// Bytes that a VM that runs costs in this table: its count of starts, and a bit in a byte.
pub const VM_COST: usize = size_of::<u32>() + 1;

/// Where a VM stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State<'a> {
    /// It is there, under this number.
    Running(VmNumber),
    /// It is not, and why.
    Stopped(&'a str),
}

/// The table.
#[derive(Debug)]
pub struct Table {
    /// The first start of each entry that no VM had.
    starts: Vec<u32>,
    /// A bit for each entry whose VM is there: that of the last start.
    running: Vec<u64>,
    /// Why those are not there that once were, or could not be started.
    reasons: BTreeMap<u32, String>,
}

impl Table {
    /// `count` entries, no VM there. `incarnation`: restarts of the loader.
    pub fn new(count: usize, incarnation: u32) -> Table {
        let first = incarnation.saturating_mul(STARTS_BETWEEN_RESTARTS);
        Table { starts: vec![first; count], running: vec![0; count.div_ceil(64)], reasons: BTreeMap::new() }
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The state of an entry.
    pub fn state(&self, index: usize) -> Option<State<'_>> {
        self.starts.get(index)?;
        Some(match self.running(index) {
            Some(vm) => State::Running(vm),
            None => State::Stopped(self.reasons.get(&(index as u32)).map_or("not started", String::as_str)),
        })
    }

    /// The VM of an entry, if it is there.
    pub fn running(&self, index: usize) -> Option<VmNumber> {
        let start = self.starts.get(index)?.checked_sub(1)?;
        let there = self.running.get(index / 64)? >> (index % 64) & 1 != 0;
        there.then(|| number(index, start))
    }

    /// The entry of a VM that is there.
    pub fn of(&self, vm: VmNumber) -> Option<usize> {
        let index = self.entry_of(vm)?;
        (self.running(index) == Some(vm)).then_some(index)
    }

    /// A number for a new VM of an entry; `None` when there is none left.
    pub fn number(&mut self, index: usize) -> Option<VmNumber> {
        let start = self.starts.get_mut(index)?;
        let (this, next) = (*start, start.checked_add(1)?);
        *start = next;
        Some(number(index, this))
    }

    /// The entry that the VM with this number was made from.
    pub fn entry_of(&self, vm: VmNumber) -> Option<usize> {
        Some(place(vm).checked_sub(1)? as usize).filter(|index| *index < self.len())
    }

    /// Notes that the VM of an entry is there.
    pub fn set_running(&mut self, index: usize, vm: VmNumber) {
        let next = u32::try_from(vm >> PLACE_BITS).unwrap_or(u32::MAX).saturating_add(1);
        if let (Some(start), Some(word)) = (self.starts.get_mut(index), self.running.get_mut(index / 64)) {
            *start = next;
            *word |= 1 << (index % 64);
            self.reasons.remove(&(index as u32));
        }
    }

    /// Notes that the VM of an entry is not there, and why; gives back which was.
    pub fn set_stopped(&mut self, index: usize, why: String) -> Option<VmNumber> {
        self.starts.get(index)?;
        let was = self.running(index);
        if let Some(word) = self.running.get_mut(index / 64) {
            *word &= !(1 << (index % 64));
        }
        self.reasons.insert(index as u32, why);
        was
    }
}

fn number(index: usize, start: u32) -> VmNumber {
    u64::from(start) << PLACE_BITS | (index as u64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::BTreeSet, string::ToString};

    #[test]
    fn a_vm_is_small() {
        assert_eq!(VM_COST, 5);
    }

    #[test]
    fn finds_by_number() {
        let mut table = Table::new(2, 0);
        assert_eq!((table.len(), table.state(1), table.state(2)), (2, Some(State::Stopped("not started")), None));
        let vm = table.number(1).unwrap();
        table.set_running(1, vm);
        assert_eq!((table.of(vm), table.state(1)), (Some(1), Some(State::Running(vm))));
        assert_eq!((table.of(1 << PLACE_BITS | vm), table.of(0), table.of(3)), (None, None, None));
        assert_eq!(table.set_stopped(1, "x".to_string()), Some(vm));
        assert_eq!((table.of(vm), table.state(1)), (None, Some(State::Stopped("x"))));
        assert_eq!((table.set_stopped(1, "y".to_string()), table.set_stopped(7, "y".to_string())), (None, None));
        assert_eq!((table.number(7), Table::new(1, u32::MAX).number(0)), (None, None), "no number is left");
    }

    proptest! {
        #[test]
        fn numbers_are_unique_and_name_their_entry(count in 1usize..99, picks in proptest::collection::vec((0usize..99, 0u8..4), 0..60)) {
            let mut seen = BTreeSet::new();
            let mut there: Vec<VmNumber> = Vec::new();
            for incarnation in 0..3 {
                let mut table = Table::new(count, incarnation);
                there.iter().for_each(|vm| table.set_running(table.entry_of(*vm).unwrap(), *vm));
                for (pick, what) in &picks {
                    let index = pick % count;
                    if *what == 0 {
                        table.set_stopped(index, String::new());
                        continue;
                    }
                    if table.running(index).is_some() {
                        continue;
                    }
                    let number = table.number(index).unwrap();
                    prop_assert!(number > 0 && seen.insert(number));
                    prop_assert_eq!(table.entry_of(number), Some(index));
                    // Some are not created after all.
                    if *what == 1 {
                        table.set_running(index, number);
                        prop_assert_eq!(table.of(number), Some(index));
                    }
                }
                there = (0..count).filter_map(|index| table.running(index)).collect();
            }
            prop_assert_eq!(Table::new(0, 0).entry_of(5), None);
        }
    }
}
