//! Which frames go to whom.
//!
//! Servers and shared memory are put into the smallest extent that has room, so that the largest stays whole: what is
//! left of it, and what is left of the others, is the pool of the VMs. Nothing is ever given back: a server that is restarted keeps its frames.

use alloc::vec::Vec;
use protocol::layout::POOL_EXTENTS;
use server_runtime::ranges::Ranges;

/// Frames of the smallest extent of a pool that has others: 1 MiB.
const POOL_MIN: u64 = 256;

/// Frames of the memory capability in `slot`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Own slot of `init`.
    pub slot: u8,
    /// First frame.
    pub first: u64,
    /// Frames.
    pub count: u64,
}

/// All memory that is free.
#[derive(Clone, Debug, Default)]
pub struct Extents {
    list: Vec<(u8, Ranges)>,
}

impl Extents {
    /// The extents, each behind its slot.
    pub fn new(places: impl IntoIterator<Item = Place>) -> Extents {
        let ranges = |place: Place| (place.slot, Ranges::new(place.first, place.count));
        Extents { list: places.into_iter().map(ranges).collect() }
    }

    /// Takes `count` frames in a row, all below frame `limit`.
    pub fn take_below(&mut self, count: u64, limit: u64) -> Option<Place> {
        let mut order: Vec<_> = self.list.iter_mut().collect();
        order.sort_by_key(|(_, ranges)| ranges.total());
        order.into_iter().find_map(|(slot, ranges)| {
            let first = ranges.take_below(count, 1, limit)?;
            Some(Place { slot: *slot, first, count })
        })
    }

    /// Takes `count` frames in a row.
    pub fn take(&mut self, count: u64) -> Option<Place> {
        self.take_below(count, u64::MAX)
    }

    /// Takes what the pool of the VMs is made of: the largest ranges that are left, the largest first. Ranges below [`POOL_MIN`] are not worth a
    /// slot in every server that reaches VMs.
    pub fn take_pool(&mut self) -> Vec<Place> {
        let mut pool = Vec::new();
        while pool.len() < POOL_EXTENTS
            && let Some(place) = self.take_largest(if pool.is_empty() { 1 } else { POOL_MIN })
        {
            pool.push(place);
        }
        pool
    }

    /// Takes the largest range that is left, if it has at least so many frames.
    fn take_largest(&mut self, least: u64) -> Option<Place> {
        let largest = |ranges: &Ranges| ranges.iter().map(|(_, count)| count).max().unwrap_or(0);
        let (slot, ranges) = self.list.iter_mut().max_by_key(|(_, ranges)| largest(ranges))?;
        if largest(ranges) < least {
            return None;
        }
        let (first, count) = ranges.take_largest()?;
        Some(Place { slot: *slot, first, count })
    }

    /// Frames that are free.
    pub fn total(&self) -> u64 {
        self.list.iter().map(|(_, ranges)| ranges.total()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_largest_extent_stays_whole_as_long_as_possible() {
        let place = |slot, first, count| Place { slot, first, count };
        let mut extents = Extents::new([place(1, 0x10_0000, 1000), place(8, 0, 100), place(9, 0x800, 300)]);
        assert_eq!(extents.take(50), Some(place(8, 0, 50)));
        assert_eq!(extents.take(60), Some(place(9, 0x800, 60)));
        assert_eq!(extents.take_below(500, 0x10_0000), None);
        assert_eq!(extents.take(500), Some(place(1, 0x10_0000, 500)));
        assert_eq!(extents.take_largest(1), Some(place(1, 0x10_0000 + 500, 500)));
        assert_eq!(extents.take_largest(241), None);
        assert_eq!(extents.take_largest(240), Some(place(9, 0x800 + 60, 240)));
        assert_eq!(extents.total(), 50);
    }

    #[test]
    fn the_pool_is_of_few_large_extents() {
        let place = |slot, first, count| Place { slot, first, count };
        let all = [place(1, 0x10_0000, 9000), place(8, 0, 100), place(9, 0x800, 300), place(10, 0x1000, 700)];
        let mut extents = Extents::new(all);
        assert_eq!(extents.take_pool(), [all[0], all[3], all[2]]);
        assert_eq!(extents.total(), 100);
        // What is all there is, is the pool, however small.
        assert_eq!(extents.take_pool(), [all[1]]);
        assert_eq!(extents.take_pool(), []);
        let mut many = Extents::new((0..9).map(|slot| place(slot, u64::from(slot) * 1000, 500)));
        assert_eq!(many.take_pool().len(), POOL_EXTENTS);
    }

    proptest! {
        #[test]
        fn no_frame_is_given_twice(takes in proptest::collection::vec((1u64..50, 0u64..400), 0..30)) {
            let places = [(1, 100, 200), (2, 0, 60), (3, 310, 80)].map(|(slot, first, count)| Place { slot, first, count });
            let mut extents = Extents::new(places);
            let mut given = std::collections::BTreeMap::new();
            for (count, limit) in takes {
                let Some(place) = extents.take_below(count, limit) else { continue };
                prop_assert!(place.first + place.count <= limit);
                for frame in place.first..place.first + place.count {
                    let home = places.iter().find(|p| (p.first..p.first + p.count).contains(&frame)).unwrap();
                    prop_assert_eq!(home.slot, place.slot);
                    prop_assert_eq!(given.insert(frame, place), None);
                }
            }
            prop_assert_eq!(extents.total() + given.len() as u64, 340);
        }
    }
}
