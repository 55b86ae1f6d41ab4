//! Free ranges of numbers: frames of an extent, pages of an address space.

use alloc::collections::BTreeMap;

/// A set of free ranges. Ranges that touch are joined.
#[derive(Clone, Debug, Default)]
pub struct Ranges {
    /// First number → numbers.
    free: BTreeMap<u64, u64>,
}

impl Ranges {
    /// `count` free numbers from `first` on.
    pub fn new(first: u64, count: u64) -> Ranges {
        let mut ranges = Ranges::default();
        ranges.insert(first, count);
        ranges
    }

    /// Takes `count` numbers that follow each other, the first a multiple of `align` (at least 1), from the lowest range
    /// that has them; `None` if there is none.
    pub fn take(&mut self, count: u64, align: u64) -> Option<u64> {
        self.take_below(count, align, u64::MAX)
    }

    /// The same, all of them below `limit`.
    pub fn take_below(&mut self, count: u64, align: u64, limit: u64) -> Option<u64> {
        if count == 0 || align == 0 {
            return None;
        }
        let (first, length, start) = self.free.iter().find_map(|(first, length)| {
            let start = first.checked_next_multiple_of(align)?;
            let end = start.checked_add(count)?;
            (end <= limit && end <= first + length).then_some((*first, *length, start))
        })?;
        self.free.remove(&first);
        self.insert(first, start - first);
        self.insert(start + count, first + length - (start + count));
        Some(start)
    }

    /// Takes exactly these numbers; `false`, and nothing is taken, if they are none or not all free.
    pub fn take_exactly(&mut self, first: u64, count: u64) -> bool {
        let range = self.free.range(..=first).next_back().map(|(first, length)| (*first, *length));
        let (Some((start, length)), Some(end)) = (range, first.checked_add(count)) else {
            return false;
        };
        if count == 0 || end > start + length {
            return false;
        }
        self.free.remove(&start);
        self.insert(start, first - start);
        self.insert(end, start + length - end);
        true
    }

    /// Takes the largest range.
    pub fn take_largest(&mut self) -> Option<(u64, u64)> {
        let (first, count) =
            self.free.iter().max_by_key(|(_, count)| **count).map(|(first, count)| (*first, *count))?;
        self.free.remove(&first);
        Some((first, count))
    }

    /// Frees a range. What of it is free already stays free; a range beyond the last number is cut.
    pub fn insert(&mut self, first: u64, count: u64) {
        let mut start = first;
        let mut end = first.saturating_add(count);
        if start == end {
            return;
        }
        // Every range that overlaps or touches begins at or before `end`; walk them from the last.
        while let Some((other, length)) = self.free.range(..=end).next_back().map(|(other, length)| (*other, *length)) {
            if other + length < start {
                break;
            }
            self.free.remove(&other);
            start = start.min(other);
            end = end.max(other + length);
        }
        self.free.insert(start, end - start);
    }

    /// How many numbers are free.
    pub fn total(&self) -> u64 {
        self.free.values().sum()
    }

    /// The free ranges, lowest first: first number and how many.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.free.iter().map(|(first, count)| (*first, *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_the_lowest_and_joins_again() {
        let mut ranges = Ranges::new(10, 100);
        assert_eq!(ranges.take(10, 1), Some(10));
        assert_eq!(ranges.take(16, 16), Some(32));
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(20, 12), (48, 62)]);
        assert_eq!(ranges.take(70, 1), None);
        ranges.insert(32, 16);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(20, 90)]);
        assert_eq!(ranges.take_below(10, 1, 29), None);
        assert_eq!(ranges.take_largest(), Some((20, 90)));
        assert_eq!(ranges.take(1, 1), None);
    }

    #[test]
    fn the_edges_do_no_harm() {
        let mut ranges = Ranges::new(u64::MAX - 4, 100);
        assert_eq!(ranges.total(), 4);
        assert_eq!(ranges.take(1, 1 << 63), None);
        assert_eq!(ranges.take(0, 1), None);
        assert_eq!(ranges.take(1, 0), None);
        assert_eq!(ranges.take(4, 1), Some(u64::MAX - 4));
        assert_eq!(ranges.take_largest(), None);
    }

    proptest! {
        /// Against a set of single numbers: never handed out twice, nothing lost.
        #[test]
        fn is_a_set(steps in proptest::collection::vec((0u8..3, 0u64..64, 0u64..20, 1u64..8), 0..60)) {
            let mut ranges = Ranges::default();
            let mut model = std::collections::BTreeSet::new();
            for (what, first, count, align) in steps {
                if what == 0 {
                    ranges.insert(first, count);
                    model.extend(first..first + count);
                } else if what == 1 {
                    let free = count > 0 && (first..first + count).all(|number| model.contains(&number));
                    prop_assert_eq!(ranges.take_exactly(first, count), free);
                    if free {
                        (first..first + count).for_each(|number| _ = model.remove(&number));
                    }
                } else if let Some(start) = ranges.take(count, align) {
                    prop_assert_eq!(start % align, 0);
                    for number in start..start + count {
                        prop_assert!(model.remove(&number));
                    }
                } else {
                    let fits = |start: u64| start.is_multiple_of(align) && (start..start + count).all(|n| model.contains(&n));
                    prop_assert!(count == 0 || !(0..100).any(fits));
                }
                prop_assert_eq!(ranges.total(), model.len() as u64);
                prop_assert!(ranges.iter().all(|(first, count)| (first..first + count).all(|n| model.contains(&n))));
                prop_assert!(ranges.iter().zip(ranges.iter().skip(1)).all(|(a, b)| a.0 + a.1 < b.0));
            }
        }
    }
}
