//! The frame table: who has which frame of the pool, and which frame a VM has at a page.
//!
//! It is an *inverted page table*: one 16-byte [`Record`] for each frame, found by owner and page through hash chains
//! that run through the records, so that its size is fixed by the pool alone (20 bytes a frame, hash heads included), a
//! fault never allocates, and everything is O(1). The records of one owner are chained too, so that they can be
//! given back a few at a time. Free frames are chained through the same link.
//!
//! The table lies in the first frames of the pool itself. Zeroed memory is an empty table.

use protocol::layout::PAGE;

/// A physical frame number.
pub type Frame = u32;

/// What a frame is used for. Only pages and page tables are found by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Usage {
    /// The control block of a VM.
    Control,
    /// The root page table of a VM.
    Root,
    /// A page of an image.
    Image,
    /// A page table above leaf tables; the number of the GiB of addresses.
    Directory(u32),
    /// A leaf page table; the number of the 2 MiB of addresses.
    Leaf(u32),
    /// A private page of a VM; the number of the page in its memory.
    Page(u32),
}

/// Bits of a number in a [`Usage`].
const NUMBER_BITS: u32 = 28;
/// First of the kinds that are in hash chains.
const FIRST_FOUND: u32 = 4;

impl Usage {
    const fn key(self) -> u32 {
        let (kind, number) = match self {
            Usage::Control => (1, 0),
            Usage::Root => (2, 0),
            Usage::Image => (3, 0),
            Usage::Directory(number) => (4, number),
            Usage::Leaf(number) => (5, number),
            Usage::Page(number) => (6, number),
        };
        kind << NUMBER_BITS | number & ((1 << NUMBER_BITS) - 1)
    }

    /// Whether [`FrameTable::find`] finds it.
    const fn is_found(self) -> bool {
        matches!(self, Usage::Directory(_) | Usage::Leaf(_) | Usage::Page(_))
    }
}

/// What the table knows of a frame. Links are indices + 1; 0 ends a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Record {
    /// Number of the VM or image.
    owner: u32,
    /// [`Usage::key`]; 0: free.
    key: u32,
    /// Next record of the same hash.
    chain: u32,
    /// Next record of the same owner, or next free one.
    next: u32,
}

/// The frames of one owner.
#[derive(Debug, Default)]
pub struct List {
    head: u32,
    count: u32,
}

impl List {
    /// Frames in it.
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// How the frames of a pool are divided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Frames that the table knows: all of the pool that fits into 32-bit frame numbers.
    pub frames: u32,
    /// Heads of hash chains.
    pub heads: u32,
    /// Frames at the beginning of the pool that hold the records.
    pub record_frames: u32,
    /// Frames after those that hold the heads.
    pub head_frames: u32,
}

impl Layout {
    /// Most frames of a pool (1 TiB).
    pub const FRAMES_MAX: u64 = 1 << 28;

    /// For a pool of `frames` frames from `first`; `None` if it is too small to hold its own table, or beyond 32-bit frame numbers.
    pub fn new(first: u64, frames: u64) -> Option<Layout> {
        let beyond = u64::from(u32::MAX).checked_sub(first)?;
        let frames = u32::try_from(frames.min(Self::FRAMES_MAX).min(beyond)).ok()?;
        // At most two records to a chain on average.
        let heads = (frames / 2 + 1).next_power_of_two();
        let pages = |bytes: u64| u32::try_from(bytes.div_ceil(PAGE)).ok();
        let record_frames = pages(u64::from(frames) * size_of::<Record>() as u64)?;
        let head_frames = pages(u64::from(heads) * size_of::<u32>() as u64)?;
        let layout = Layout { frames, heads, record_frames, head_frames };
        (layout.reserved() < frames).then_some(layout)
    }

    /// Frames that the table itself takes.
    pub const fn reserved(&self) -> u32 {
        self.record_frames + self.head_frames
    }
}

/// The table.
#[derive(Debug)]
pub struct FrameTable<'a> {
    first: Frame,
    records: &'a mut [Record],
    heads: &'a mut [u32],
    /// First free record + 1; 0: none.
    free: u32,
    /// Records from this one on were never used.
    fresh: u32,
    used: u32,
    reserved: u32,
    /// Secret odd factor of the hash, so that no guest can choose pages that share a chain.
    factor: u64,
}

impl<'a> FrameTable<'a> {
    /// An empty table over zeroed `records` and `heads` (their lengths as in `layout`) of a pool whose first frame is `first`.
    pub fn new(
        first: Frame,
        layout: &Layout,
        records: &'a mut [Record],
        heads: &'a mut [u32],
        seed: u64,
    ) -> Option<FrameTable<'a>> {
        let fits = records.len() == layout.frames as usize && heads.len() == layout.heads as usize;
        let sane = heads.len().is_power_of_two() && first.checked_add(layout.frames).is_some();
        let reserved = layout.reserved();
        (fits && sane).then_some(FrameTable {
            first,
            records,
            heads,
            free: 0,
            fresh: reserved,
            used: reserved,
            reserved,
            factor: seed | 1,
        })
    }

    /// Frames of the pool.
    pub fn total(&self) -> u32 {
        self.records.len() as u32
    }

    /// Frames that the table itself takes.
    pub const fn reserved(&self) -> u32 {
        self.reserved
    }

    /// Frames in use, the table's own included.
    pub const fn used(&self) -> u32 {
        self.used
    }

    fn head(&self, owner: u32, key: u32) -> usize {
        let value = (u64::from(owner) << 32 | u64::from(key)).wrapping_add(self.factor.rotate_left(32));
        // Two rounds: the first alone would leave keys that differ in high bits only in the same chain.
        let mixed = value.wrapping_mul(self.factor);
        let mixed = (mixed ^ mixed >> 32).wrapping_mul(self.factor);
        (mixed >> 32) as usize & (self.heads.len() - 1)
    }

    /// Gives `owner` a free frame and puts it on its list; `None` if there is none. Its contents are whatever was there.
    pub fn take(&mut self, list: &mut List, owner: u32, usage: Usage) -> Option<Frame> {
        let index = match self.free.checked_sub(1) {
            Some(index) => {
                self.free = self.records.get(index as usize)?.next;
                index
            }
            None if self.fresh < self.total() => {
                self.fresh += 1;
                self.fresh - 1
            }
            None => return None,
        };
        let key = usage.key();
        let mut record = Record { owner, key, chain: 0, next: list.head };
        if usage.is_found() {
            let head = self.head(owner, key);
            record.chain = core::mem::replace(self.heads.get_mut(head)?, index + 1);
        }
        *self.records.get_mut(index as usize)? = record;
        list.head = index + 1;
        list.count += 1;
        self.used += 1;
        Some(self.first + index)
    }

    /// The frame that `owner` uses so.
    pub fn find(&self, owner: u32, usage: Usage) -> Option<Frame> {
        let key = usage.key();
        let mut link = *self.heads.get(self.head(owner, key))?;
        while let Some(index) = link.checked_sub(1) {
            let record = self.records.get(index as usize)?;
            if record.owner == owner && record.key == key {
                return Some(self.first + index);
            }
            link = record.chain;
        }
        None
    }

    /// The VM whose control block this frame is.
    pub fn control_owner(&self, frame: Frame) -> Option<u32> {
        let record = self.records.get(frame.checked_sub(self.first)? as usize)?;
        (record.key == Usage::Control.key()).then_some(record.owner)
    }

    /// Frees up to `limit` frames of a list; how many.
    pub fn release(&mut self, list: &mut List, limit: u32) -> u32 {
        let mut released = 0;
        while released < limit
            && let Some(index) = list.head.checked_sub(1)
            && let Some(record) = self.records.get(index as usize).copied()
        {
            self.unchain(index, &record);
            list.head = record.next;
            list.count -= 1;
            if let Some(record) = self.records.get_mut(index as usize) {
                *record = Record { next: self.free, ..Record::default() };
            }
            self.free = index + 1;
            self.used -= 1;
            released += 1;
        }
        released
    }

    /// Takes a record out of its hash chain, if it is in one.
    fn unchain(&mut self, index: u32, record: &Record) {
        if record.key >> NUMBER_BITS < FIRST_FOUND {
            return;
        }
        let head = self.head(record.owner, record.key);
        let Some(first) = self.heads.get_mut(head) else { return };
        if *first == index + 1 {
            *first = record.chain;
            return;
        }
        let mut link = *first;
        while let Some(at) = link.checked_sub(1)
            && let Some(other) = self.records.get_mut(at as usize)
        {
            link = other.chain;
            if link == index + 1 {
                other.chain = record.chain;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::{vec, vec::Vec};

    #[test]
    fn layouts_fit() {
        for frames in [16, 100, 4096, 65_536, 1 << 20, 1 << 24] {
            let layout = Layout::new(0x1000, frames).unwrap();
            assert_eq!(u64::from(layout.frames), frames);
            let share = f64::from(layout.reserved()) / frames as f64;
            assert!(frames < 1000 || share < 0.006, "{share} of {frames} frames");
        }
        assert_eq!(Layout::new(0, 1), None);
        assert_eq!(Layout::new(u64::MAX, 100), None);
        assert_eq!(Layout::new(u64::from(u32::MAX) - 50, 100).unwrap().frames, 50);
    }

    #[test]
    fn chains_stay_short() {
        let layout = Layout::new(0, 1 << 16).unwrap();
        let (mut records, mut heads) = (vec![Record::default(); 1 << 16], vec![0; layout.heads as usize]);
        let mut table = FrameTable::new(0, &layout, &mut records, &mut heads, 0x9e37_79b9_7f4a_7c15).unwrap();
        let mut list = List::default();
        let mut taken = 0;
        // Pages a power of two apart: what a hostile guest would try first.
        while table.take(&mut list, taken >> 10, Usage::Page((taken & 1023) << 12)).is_some() {
            taken += 1;
        }
        let longest = table.heads.iter().map(|head| {
            let (mut link, mut length) = (*head, 0);
            while link != 0 {
                (link, length) = (table.records[link as usize - 1].chain, length + 1);
            }
            length
        });
        assert!(longest.max().unwrap() < 20);
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(
            steps in proptest::collection::vec((0u32..4, 0u32..40, any::<bool>(), 1u32..6), 1..400),
            seed: u64,
        ) {
            const FIRST: u32 = 7000;
            let layout = Layout::new(u64::from(FIRST), 64).unwrap();
            let (mut records, mut heads) = (vec![Record::default(); 64], vec![0; layout.heads as usize]);
            let mut table = FrameTable::new(FIRST, &layout, &mut records, &mut heads, seed).unwrap();
            let mut lists: [List; 4] = Default::default();
            let mut model: BTreeMap<(u32, u32), Frame> = BTreeMap::new();
            for (owner, page, take, limit) in steps {
                let list = &mut lists[owner as usize];
                if take && !model.contains_key(&(owner, page)) {
                    match table.take(list, owner, Usage::Page(page)) {
                        Some(frame) => {
                            prop_assert!((FIRST + table.reserved()..FIRST + 64).contains(&frame));
                            model.insert((owner, page), frame);
                        }
                        None => prop_assert_eq!(model.len() as u32, 64 - table.reserved()),
                    }
                } else if !take {
                    let before = list.len();
                    prop_assert_eq!(table.release(list, limit), before.min(limit));
                    prop_assert_eq!(list.len(), before - before.min(limit));
                    model.retain(|(o, page), frame| {
                        *o != owner || table.find(owner, Usage::Page(*page)).inspect(|f| assert_eq!(f, frame)).is_some()
                    });
                    prop_assert_eq!(model.keys().filter(|(o, _)| *o == owner).count() as u32, list.len());
                }
                prop_assert_eq!(table.used() - table.reserved(), model.len() as u32);
                let frames: BTreeSet<_> = model.values().collect();
                prop_assert_eq!(frames.len(), model.len());
                for owner in 0..4 {
                    for page in 0..40 {
                        let found = table.find(owner, Usage::Page(page));
                        prop_assert_eq!(found, model.get(&(owner, page)).copied());
                    }
                }
                let none: Vec<_> = (0..64).filter_map(|f| table.control_owner(FIRST + f)).collect();
                prop_assert!(none.is_empty());
            }
        }
    }
}
