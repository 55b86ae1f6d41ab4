//! The pool of the VMs: a few extents of memory, each behind a slot of its own. Whoever holds the pool, or a device of all VMs in it, finds
//! the slot of a frame here.

use protocol::{
    abi::Target,
    layout::POOL_EXTENTS,
    manifest::{Resource, Startup},
    service::VmRef,
};

/// Frames of a pool are below this one: as many as the [`Target`] of a VM can name (1 TiB).
const FRAMES_END: u64 = 1 << 28;

/// A part of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Extent {
    /// Slot of its capability.
    pub slot: u8,
    /// First frame.
    pub first: u32,
    /// Frames.
    pub count: u32,
}

/// The extents of a pool, in the order in which `init` gives them, the largest first. Its frames are counted through them: the *index* of a
/// frame says how many come before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pool {
    extents: [Extent; POOL_EXTENTS],
}

impl Pool {
    /// Of extents, each its slot, first frame and frames. What is beyond [`POOL_EXTENTS`] or the last frame that can be named is left out.
    pub fn new(extents: impl IntoIterator<Item = (u8, u64, u64)>) -> Pool {
        let mut pool = Pool::default();
        let mut used = 0;
        for (slot, first, count) in extents {
            let end = first.saturating_add(count).min(FRAMES_END);
            let (Some(count @ 1..), Some(place)) = (end.checked_sub(first), pool.extents.get_mut(used)) else {
                continue;
            };
            // Both are at most `FRAMES_END`.
            let extent = Extent { slot, first: first as u32, count: count as u32 };
            *place = extent;
            used += 1;
        }
        pool
    }

    /// That which the server has as this resource: [`Resource::Pool`], or [`Resource::Devices`]. Without extents if it has none.
    pub fn of(startup: &Startup, resource: &Resource) -> Pool {
        let held = startup.resources.iter().filter(|held| held.resource == *resource);
        Pool::new(held.map(|held| (held.slot, held.first, held.count)))
    }

    /// The same without what goes beyond `frames` frames.
    pub fn cut(mut self, frames: u64) -> Pool {
        let mut left = frames;
        for extent in &mut self.extents {
            extent.count = u64::from(extent.count).min(left) as u32;
            left -= u64::from(extent.count);
        }
        self
    }

    /// Takes `count` frames from the beginning of the first extent; `None` if it has no more than those.
    pub fn take_first(&mut self, count: u32) -> Option<Extent> {
        let [extent, ..] = &mut self.extents;
        let left = extent.count.checked_sub(count).filter(|left| *left > 0)?;
        let taken = Extent { count, ..*extent };
        (extent.first, extent.count) = (extent.first + count, left);
        Some(taken)
    }

    /// The extents.
    pub fn extents(&self) -> impl Iterator<Item = Extent> {
        self.extents.into_iter().filter(|extent| extent.count > 0)
    }

    /// Frames in all.
    pub fn frames(&self) -> u32 {
        self.extents.iter().map(|extent| extent.count).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.frames() == 0
    }

    /// The extent with a frame.
    fn extent_of(&self, frame: u32) -> Option<Extent> {
        let has = |extent: &&Extent| frame.checked_sub(extent.first).is_some_and(|offset| offset < extent.count);
        self.extents.iter().find(has).copied()
    }

    /// How many frames come before this one; `None` if it is none of the pool.
    #[inline]
    pub fn index(&self, frame: u32) -> Option<u32> {
        // Most frames are of the first extent, the largest.
        let [first, ..] = &self.extents;
        let offset = frame.wrapping_sub(first.first);
        if offset < first.count { Some(offset) } else { self.index_of_others(frame) }
    }

    #[inline(never)]
    fn index_of_others(&self, frame: u32) -> Option<u32> {
        let mut before = 0;
        for extent in &self.extents {
            match frame.checked_sub(extent.first) {
                Some(offset) if offset < extent.count => return Some(before + offset),
                _ => before += extent.count,
            }
        }
        None
    }

    /// The frame that so many come before.
    #[inline]
    pub fn frame(&self, index: u32) -> Option<u32> {
        let [first, ..] = &self.extents;
        if index < first.count { Some(first.first + index) } else { self.frame_of_others(index) }
    }

    #[inline(never)]
    fn frame_of_others(&self, index: u32) -> Option<u32> {
        let mut offset = index;
        for extent in &self.extents {
            if offset < extent.count {
                return Some(extent.first + offset);
            }
            offset -= extent.count;
        }
        None
    }

    /// The slot whose extent has a frame. For one that is not of the pool, the first: the kernel refuses it as it refuses any frame that is in
    /// nobody's extent.
    pub fn slot(&self, frame: u32) -> u8 {
        let [first, ..] = self.extents;
        self.extent_of(frame).unwrap_or(first).slot
    }

    /// The kernel's name of a VM.
    pub fn target(&self, vm: VmRef) -> Target {
        Target::pool(self.slot(vm.frame), vm.frame, vm.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_and_slots_of_two_extents() {
        let pool = Pool::new([(5, 0x10_0000, 100), (9, 0x800, 50)]);
        assert_eq!((pool.frames(), pool.is_empty()), (150, false));
        assert_eq!((pool.frame(0), pool.frame(99)), (Some(0x10_0000), Some(0x10_0063)));
        assert_eq!((pool.frame(100), pool.frame(149), pool.frame(150)), (Some(0x800), Some(0x831), None));
        assert_eq!((pool.slot(0x10_0063), pool.slot(0x800), pool.slot(0x832)), (5, 9, 5));
        assert_eq!(pool.target(VmRef { frame: 0x801, generation: 7 }), Target::pool(9, 0x801, 7));
        assert_eq!(pool.target(VmRef::NOWHERE), Target::pool(5, u32::MAX, 0));
    }

    #[test]
    fn a_pool_is_cut_and_taken_from() {
        let mut pool = Pool::new([(5, 1000, 100), (9, 0, 50)]);
        assert_eq!(pool.take_first(10), Some(Extent { slot: 5, first: 1000, count: 10 }));
        assert_eq!((pool.frames(), pool.frame(0), pool.index(1005)), (140, Some(1010), None));
        assert_eq!(pool.take_first(90), None);
        assert_eq!((pool.cut(100).frames(), pool.cut(100).frame(99)), (100, Some(9)));
        assert_eq!((pool.cut(7).frames(), pool.cut(7).extents().count()), (7, 1));
        assert!(pool.cut(0).is_empty());
    }

    #[test]
    fn what_cannot_be_named_is_left_out() {
        assert!(Pool::new([]).is_empty());
        assert!(Pool::new([(1, FRAMES_END, 9), (2, u64::MAX, u64::MAX), (3, 7, 0)]).is_empty());
        assert_eq!(Pool::new([(1, FRAMES_END - 3, 9)]).frames(), 3);
        let many = (0..POOL_EXTENTS as u64 + 3).map(|number| (number as u8, number * 100, 10));
        assert_eq!(Pool::new(many).extents().count(), POOL_EXTENTS);
    }

    proptest! {
        #[test]
        fn every_frame_has_one_index(counts in proptest::collection::vec(1u64..60, 0..=POOL_EXTENTS)) {
            // Later extents lie lower.
            let place = |number: usize| (number as u8, 10_000 - 100 * number as u64, counts[number]);
            let pool = Pool::new((0..counts.len()).map(place));
            prop_assert_eq!(u64::from(pool.frames()), counts.iter().sum::<u64>());
            for index in 0..pool.frames() {
                let frame = pool.frame(index).unwrap();
                prop_assert_eq!(pool.index(frame), Some(index));
                let (slot, first, count) = place(usize::from(pool.slot(frame)));
                prop_assert!((first..first + count).contains(&u64::from(frame)), "slot {}", slot);
            }
            prop_assert_eq!(pool.frame(pool.frames()), None);
        }
    }
}
