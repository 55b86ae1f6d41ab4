//! Swap space: every VM's region, contiguous and striped over all swap disks.
//!
//! Swap space is one row of *units* of 64 KiB; unit `u` lies on disk `u % disks`, as its unit `u / disks`. A region is a range of units, so a
//! large read or write of one VM goes to all disks, and what describes the region is its first unit and, by the size of the VM, its length
//! (the original: 20 bytes). With disks of different sizes, as much of each is used as the smallest has.
//!
//! A region has a fixed place for each page of the VM's memory, and behind them room for the VM *suspended*: its state, its page map
//! and the pages that were in memory, in one piece (see [`crate::suspended`]). It is allocated whole when the VM is created, so
//! swap space can never run out later.

use crate::{map, space::Space, suspended};
use alloc::vec::Vec;
use protocol::service::block_driver::BUFFER_BLOCKS;

/// Blocks of a unit: the longest read or write of a disk.
pub const UNIT_BLOCKS: u32 = BUFFER_BLOCKS;

/// How swap space lies on the disks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stripes {
    /// Disks.
    pub disks: u32,
    /// Units in all.
    pub units: u32,
}

impl Stripes {
    /// Swap space on disks with so many blocks each.
    pub fn new(blocks: &[u64]) -> Stripes {
        let smallest = blocks.iter().min().copied().unwrap_or(0) / u64::from(UNIT_BLOCKS);
        let disks = blocks.len() as u32;
        let units = smallest.saturating_mul(u64::from(disks)).min(u64::from(u32::MAX - 1)) as u32;
        Stripes { disks, units }
    }

    /// Where block `block` of the region that begins with unit `first` lies: disk, and block there.
    pub fn place(&self, first: u32, block: u64) -> (u32, u64) {
        let unit = u64::from(first) + block / u64::from(UNIT_BLOCKS);
        let disks = u64::from(self.disks.max(1));
        ((unit % disks) as u32, unit / disks * u64::from(UNIT_BLOCKS) + block % u64::from(UNIT_BLOCKS))
    }
}

/// Units for the pages of a VM.
pub fn page_units(space: Space) -> u32 {
    space.pages().div_ceil(UNIT_BLOCKS)
}

/// Units of the region of a VM.
pub fn units(space: Space) -> u32 {
    page_units(space) + suspended::segments_max(space.pages(), map::parts(space.pages()))
}

/// The free part of swap space: ranges of units, in order.
#[derive(Debug, Default)]
pub struct Regions {
    free: Vec<(u32, u32)>,
    left: u32,
}

impl Regions {
    /// All of `units` units free.
    pub fn new(units: u32) -> Regions {
        let free = if units == 0 { Vec::new() } else { Vec::from([(0, units)]) };
        Regions { free, left: units }
    }

    /// Units that are free.
    pub const fn left(&self) -> u32 {
        self.left
    }

    /// Makes sure that a release never lacks memory: each region in use may end as a hole of its own.
    pub fn reserve(&mut self) -> bool {
        self.free.try_reserve(self.free.len() / 2 + 2).is_ok()
    }

    /// Whether there are `count` free units in a row.
    pub fn has(&self, count: u32) -> bool {
        self.free.iter().any(|(_, length)| *length >= count)
    }

    /// Takes `count` units in a row: the first.
    pub fn allocate(&mut self, count: u32) -> Option<u32> {
        let index = self.free.iter().position(|(_, length)| *length >= count)?;
        let (first, length) = self.free.get_mut(index)?;
        let taken = *first;
        (*first, *length) = (*first + count, *length - count);
        if *length == 0 {
            self.free.remove(index);
        }
        self.left -= count;
        Some(taken)
    }

    /// Takes these units, found in use by a restarted pager. `false` if they are not free.
    pub fn claim(&mut self, first: u32, count: u32) -> bool {
        let Some(end) = first.checked_add(count) else { return false };
        let found = self.free.iter().position(|(start, length)| *start <= first && end - start <= *length);
        let Some(index) = found.filter(|_| count > 0) else { return false };
        let (start, length) = self.free.remove(index);
        if start + length > end {
            self.free.insert(index, (end, start + length - end));
        }
        if start < first {
            self.free.insert(index, (start, first - start));
        }
        self.left -= count;
        true
    }

    /// Gives units back.
    pub fn release(&mut self, first: u32, count: u32) {
        if count == 0 {
            return;
        }
        self.left += count;
        let index = self.free.partition_point(|(start, _)| *start < first);
        let joins_after = self.free.get(index).is_some_and(|(start, _)| *start == first + count);
        let joins_before =
            index.checked_sub(1).and_then(|before| self.free.get(before)).is_some_and(|(s, l)| s + l == first);
        match (joins_before, joins_after) {
            (true, true) => {
                let (_, after) = self.free.remove(index);
                if let Some((_, length)) = self.free.get_mut(index - 1) {
                    *length += count + after;
                }
            }
            (true, false) => {
                if let Some((_, length)) = self.free.get_mut(index - 1) {
                    *length += count;
                }
            }
            (false, true) => {
                if let Some((start, length)) = self.free.get_mut(index) {
                    (*start, *length) = (first, *length + count);
                }
            }
            (false, false) => self.free.insert(index, (first, count)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::BTreeSet, vec::Vec};

    #[test]
    fn neighbours_lie_on_different_disks() {
        let stripes = Stripes::new(&[1000, 999, 2000]);
        assert_eq!(stripes, Stripes { disks: 3, units: 186 });
        assert_eq!(stripes.place(0, 0), (0, 0));
        assert_eq!(stripes.place(0, 17), (1, 1));
        assert_eq!(stripes.place(2, 16), (0, 16));
        assert_eq!(Stripes::new(&[]).units, 0);
        let all: BTreeSet<_> = (0..u64::from(stripes.units) * 16).map(|block| stripes.place(0, block)).collect();
        assert_eq!(all.len(), 186 * 16);
        assert!(all.iter().all(|(disk, block)| *block < [1000, 999, 2000][*disk as usize]));
    }

    proptest! {
        #[test]
        fn regions_never_overlap(steps in prop::collection::vec((any::<bool>(), 1u32..20, any::<prop::sample::Index>()), 0..200)) {
            let mut regions = Regions::new(100);
            let mut used: Vec<(u32, u32)> = Vec::new();
            for (allocate, count, which) in steps {
                if allocate {
                    let has = regions.has(count);
                    let taken = regions.allocate(count);
                    prop_assert_eq!(taken.is_some(), has);
                    if let Some(first) = taken {
                        prop_assert!(first + count <= 100);
                        prop_assert!(used.iter().all(|(f, c)| f + c <= first || first + count <= *f));
                        used.push((first, count));
                    }
                } else if !used.is_empty() {
                    let (first, count) = used.swap_remove(which.index(used.len()));
                    regions.release(first, count);
                }
                prop_assert_eq!(regions.left(), 100 - used.iter().map(|(_, count)| count).sum::<u32>());
                // A restarted pager finds the same free ranges.
                let mut again = Regions::new(100);
                prop_assert!(used.iter().all(|(first, count)| again.claim(*first, *count)));
                prop_assert_eq!(&again.free, &regions.free);
                prop_assert!(used.iter().all(|(first, count)| !again.claim(*first, *count)));
            }
        }
    }
}
