//! The frame table: who has which frame of the pool, and which frame a VM has at a page.
//!
//! It is an *inverted page table*: one 24-byte [`Record`] for each frame, found by owner and number through hash chains
//! that run through the records, so that its size is fixed by the pool alone (28 bytes a frame, hash heads included), a
//! fault never allocates, and everything is O(1). The records of one owner are chained too, so that they can be
//! given back a few at a time and looked at in turn. Free frames are chained through the same link.
//!
//! The table lies in the first frames of the pool itself. Zeroed memory is an empty table.
//!
//! **It survives this server.** What a frame is (`owner`, `key`) is true at every moment: the key is written last when a frame
//! is given out and first when it is taken back. Everything else, chains and lists, is made anew from that by
//! [`FrameTable::recover`]. So a frame is never given out with a key that says more than is in it: a page that is still being filled or
//! read is [`Usage::Incoming`] or [`Usage::Filling`], and becomes a [`Usage::Page`] when its contents are there.

use core::sync::atomic::{AtomicU32, Ordering};
use protocol::layout::PAGE;

/// A physical frame number.
pub type Frame = u32;

/// What a frame is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Usage {
    /// The control block of a VM.
    Control,
    /// The root page table of a VM.
    Root,
    /// The pager's own.
    Own,
    /// A page table above leaf tables; the number of the GiB of addresses.
    Directory(u32),
    /// A leaf page table; the number of the 2 MiB of addresses.
    Leaf(u32),
    /// A private page of a VM; the number of the page in its memory.
    Page(u32),
    /// What is to be a private page once its contents are there: they are being read.
    Incoming(u32),
    /// The same: it is being filled, and nobody looks for it meanwhile.
    Filling(u32),
    /// A part of a VM's page map; its number.
    Map(u32),
    /// A page of an image; the number of the page in a VM's memory.
    Image(u32),
    /// What an image is made of.
    ImageRecord,
    /// A part of the table of VMs; its number.
    Records(u32),
    /// May hold a domain that nobody can name any more: never used again.
    Lost,
}

/// Bits of a number in a [`Usage`].
const NUMBER_BITS: u32 = 28;
const NUMBER: u32 = (1 << NUMBER_BITS) - 1;

impl Usage {
    const fn key(self) -> u32 {
        let (kind, number) = match self {
            Usage::Control => (1, 0),
            Usage::Root => (2, 0),
            Usage::Own => (3, 0),
            Usage::Directory(number) => (4, number),
            Usage::Leaf(number) => (5, number),
            Usage::Page(number) => (6, number),
            Usage::Incoming(number) => (7, number),
            Usage::Map(number) => (8, number),
            Usage::Image(number) => (9, number),
            Usage::ImageRecord => (10, 0),
            Usage::Records(number) => (11, number),
            Usage::Lost => (12, 0),
            Usage::Filling(number) => (13, number),
        };
        kind << NUMBER_BITS | number & NUMBER
    }

    const fn from_key(key: u32) -> Option<Usage> {
        let number = key & NUMBER;
        Some(match key >> NUMBER_BITS {
            1 => Usage::Control,
            2 => Usage::Root,
            3 => Usage::Own,
            4 => Usage::Directory(number),
            5 => Usage::Leaf(number),
            6 => Usage::Page(number),
            7 => Usage::Incoming(number),
            8 => Usage::Map(number),
            9 => Usage::Image(number),
            10 => Usage::ImageRecord,
            11 => Usage::Records(number),
            12 => Usage::Lost,
            13 => Usage::Filling(number),
            _ => return None,
        })
    }

    /// Whether [`FrameTable::find`] finds it.
    const fn is_found(self) -> bool {
        !matches!(self, Usage::Own | Usage::Lost | Usage::Filling(_) | Usage::Records(_) | Usage::Control | Usage::Root)
    }
}

/// In [`Record::stamp`]: a write of the page is under way.
const BUSY: u32 = 1 << 31;
/// In [`Record::stamp`]: the page is on its way out, and in no page table.
const LEAVING: u32 = 1 << 30;
const STAMP: u32 = LEAVING - 1;

/// What the table knows of a frame. Links are indices + 1; 0 ends a chain.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Record {
    /// Place of the VM, or number of the image.
    owner: u32,
    /// [`Usage::key`]; 0: free.
    key: AtomicU32,
    /// Next record of the same hash.
    chain: u32,
    /// Next record of the same owner, or next free one.
    next: u32,
    /// The one before it of the same owner.
    previous: u32,
    /// Its owner's virtual time when it was last seen in use, and two flags.
    stamp: u32,
}

impl Record {
    fn key(&self) -> u32 {
        self.key.load(Ordering::Relaxed)
    }
}

/// The frames of one owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
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
    /// First and last free record + 1; 0: none. The one that has been free for the longest time is taken first, so that a frame which held a domain
    /// does not soon hold another: old names of the domain stay old for as long as can be.
    free: u32,
    last_free: u32,
    /// Records from this one on were never used.
    fresh: u32,
    used: u32,
    reserved: u32,
    /// Secret odd factor of the hash, so that no guest can choose pages that share a chain.
    factor: u64,
}

/// The lists of those who have frames, for [`FrameTable::recover`].
pub trait Owners {
    /// The list that a frame with this owner and use belongs to; `None`: it is nobody's any more.
    fn list(&mut self, owner: u32, usage: Usage) -> Option<&mut List>;
}

impl<'a> FrameTable<'a> {
    /// A table over `records` and `heads` (their lengths as in `layout`) of a pool whose first frame is `first`. It is empty if they are
    /// zeroed; else [`FrameTable::recover`] must come before anything else.
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
            last_free: 0,
            fresh: reserved,
            used: reserved,
            reserved,
            factor: seed | 1,
        })
    }

    /// What is left of it when its server dies.
    #[cfg(test)]
    pub fn abandon(self) -> (&'a mut [Record], &'a mut [u32]) {
        (self.records, self.heads)
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

    /// Frames that nobody has.
    pub fn free(&self) -> u32 {
        self.total() - self.used
    }

    fn head(&self, owner: u32, key: u32) -> usize {
        let value = (u64::from(owner) << 32 | u64::from(key)).wrapping_add(self.factor.rotate_left(32));
        // Two rounds: the first alone would leave keys that differ in high bits only in the same chain.
        let mixed = value.wrapping_mul(self.factor);
        let mixed = (mixed ^ mixed >> 32).wrapping_mul(self.factor);
        (mixed >> 32) as usize & (self.heads.len() - 1)
    }

    fn record(&self, frame: Frame) -> Option<&Record> {
        self.records.get(frame.checked_sub(self.first)? as usize)
    }

    fn record_mut(&mut self, frame: Frame) -> Option<&mut Record> {
        self.records.get_mut(frame.checked_sub(self.first)? as usize)
    }

    /// Gives `owner` a free frame and puts it on its list; `None` if there is none. Its contents are whatever was there.
    pub fn take(&mut self, list: &mut List, owner: u32, usage: Usage) -> Option<Frame> {
        let index = if self.fresh < self.total() {
            self.fresh += 1;
            self.fresh - 1
        } else {
            let index = self.free.checked_sub(1)?;
            self.free = self.records.get(index as usize)?.next;
            if self.free == 0 {
                self.last_free = 0;
            }
            index
        };
        let record = self.records.get_mut(index as usize)?;
        (record.owner, record.chain, record.stamp) = (owner, 0, 0);
        record.key.store(usage.key(), Ordering::Release);
        self.enchain(index);
        self.enlist(list, index);
        self.used += 1;
        Some(self.first + index)
    }

    /// Makes a page of what was [`Usage::Incoming`] or [`Usage::Filling`]: its contents are there.
    pub fn promote(&mut self, frame: Frame) {
        if let Some(Usage::Incoming(page) | Usage::Filling(page)) = self.usage(frame) {
            self.turn(frame, Usage::Page(page));
        }
    }

    /// Makes something of what was [`Usage::Incoming`] or [`Usage::Filling`]: its contents are there.
    pub fn turn(&mut self, frame: Frame, usage: Usage) {
        let Some(index) = frame.checked_sub(self.first) else { return };
        if !matches!(self.usage(frame), Some(Usage::Incoming(_) | Usage::Filling(_))) {
            return;
        }
        self.unchain(index);
        if let Some(record) = self.records.get(index as usize) {
            record.key.store(usage.key(), Ordering::Release);
        }
        self.enchain(index);
    }

    /// The frame that `owner` uses so.
    pub fn find(&self, owner: u32, usage: Usage) -> Option<Frame> {
        let key = usage.key();
        let mut link = *self.heads.get(self.head(owner, key))?;
        while let Some(index) = link.checked_sub(1) {
            let record = self.records.get(index as usize)?;
            if record.owner == owner && record.key() == key {
                return Some(self.first + index);
            }
            link = record.chain;
        }
        None
    }

    /// What a frame is used for; `None`: it is free.
    pub fn usage(&self, frame: Frame) -> Option<Usage> {
        Usage::from_key(self.record(frame)?.key())
    }

    /// Whether a frame is in use by this owner.
    pub fn belongs(&self, frame: Frame, owner: u32) -> bool {
        self.record(frame).is_some_and(|record| record.key() != 0 && record.owner == owner)
    }

    /// The first frame of a list.
    pub fn first_of(&self, list: &List) -> Option<Frame> {
        Some(self.first + list.head.checked_sub(1)?)
    }

    /// The frame behind this one in the list of its owner.
    pub fn next_of(&self, frame: Frame) -> Option<Frame> {
        Some(self.first + self.record(frame)?.next.checked_sub(1)?)
    }

    /// Its owner's virtual time when a page was last seen in use.
    pub fn stamp(&self, frame: Frame) -> u32 {
        self.record(frame).map_or(0, |record| record.stamp & STAMP)
    }

    /// Notes that a page was seen in use.
    pub fn set_stamp(&mut self, frame: Frame, time: u32) {
        if let Some(record) = self.record_mut(frame) {
            record.stamp = record.stamp & !STAMP | time & STAMP;
        }
    }

    /// Whether a write of the page is under way.
    pub fn is_busy(&self, frame: Frame) -> bool {
        self.record(frame).is_some_and(|record| record.stamp & BUSY != 0)
    }

    /// Notes that a write of the page is under way, or over.
    pub fn set_busy(&mut self, frame: Frame, busy: bool) {
        if let Some(record) = self.record_mut(frame) {
            record.stamp = record.stamp & !BUSY | if busy { BUSY } else { 0 };
        }
    }

    /// Whether the page is on its way out.
    pub fn is_leaving(&self, frame: Frame) -> bool {
        self.record(frame).is_some_and(|record| record.stamp & LEAVING != 0)
    }

    /// Notes that the page is on its way out, or that it was wanted back.
    pub fn set_leaving(&mut self, frame: Frame, leaving: bool) {
        if let Some(record) = self.record_mut(frame) {
            record.stamp = record.stamp & !LEAVING | if leaving { LEAVING } else { 0 };
        }
    }

    /// Frees one frame of a list.
    pub fn give(&mut self, list: &mut List, frame: Frame) {
        let Some(index) = frame.checked_sub(self.first) else { return };
        let Some((next, previous)) =
            self.record(frame).filter(|record| record.key() != 0).map(|r| (r.next, r.previous))
        else {
            return;
        };
        match previous.checked_sub(1) {
            Some(before) => {
                if let Some(before) = self.records.get_mut(before as usize) {
                    before.next = next;
                }
            }
            None => list.head = next,
        }
        if let Some(after) = next.checked_sub(1).and_then(|after| self.records.get_mut(after as usize)) {
            after.previous = previous;
        }
        list.count = list.count.saturating_sub(1);
        self.drop_record(index);
    }

    /// Frees up to `limit` frames of a list; how many.
    pub fn release(&mut self, list: &mut List, limit: u32) -> u32 {
        let mut released = 0;
        while released < limit
            && let Some(first) = self.first_of(list)
        {
            self.give(list, first);
            released += 1;
        }
        released
    }

    /// Makes a record free that is in no list any more.
    fn drop_record(&mut self, index: u32) {
        self.unchain(index);
        if let Some(record) = self.records.get_mut(index as usize) {
            record.key.store(0, Ordering::Release);
            (record.next, record.previous, record.chain) = (0, 0, 0);
            self.enqueue_free(index);
        }
    }

    /// Puts a free record behind the other free ones.
    fn enqueue_free(&mut self, index: u32) {
        match self.last_free.checked_sub(1).and_then(|last| self.records.get_mut(last as usize)) {
            Some(last) => last.next = index + 1,
            None => self.free = index + 1,
        }
        self.last_free = index + 1;
        self.used -= 1;
    }

    /// Puts a record into its hash chain.
    fn enchain(&mut self, index: u32) {
        let Some((owner, key)) = self.records.get(index as usize).map(|record| (record.owner, record.key())) else {
            return;
        };
        if !Usage::from_key(key).is_some_and(Usage::is_found) {
            return;
        }
        let head = self.head(owner, key);
        if let (Some(head), Some(record)) = (self.heads.get_mut(head), self.records.get_mut(index as usize)) {
            record.chain = core::mem::replace(head, index + 1);
        }
    }

    /// Takes a record out of its hash chain, if it is in one.
    fn unchain(&mut self, index: u32) {
        let Some((owner, key, next)) = self.records.get(index as usize).map(|r| (r.owner, r.key(), r.chain)) else {
            return;
        };
        if !Usage::from_key(key).is_some_and(Usage::is_found) {
            return;
        }
        let head = self.head(owner, key);
        let Some(first) = self.heads.get_mut(head) else { return };
        if *first == index + 1 {
            *first = next;
            return;
        }
        let mut link = *first;
        while let Some(at) = link.checked_sub(1)
            && let Some(other) = self.records.get_mut(at as usize)
        {
            link = other.chain;
            if link == index + 1 {
                other.chain = next;
                return;
            }
        }
    }

    /// Puts a record at the beginning of a list.
    fn enlist(&mut self, list: &mut List, index: u32) {
        if let Some(after) = list.head.checked_sub(1).and_then(|head| self.records.get_mut(head as usize)) {
            after.previous = index + 1;
        }
        if let Some(record) = self.records.get_mut(index as usize) {
            (record.next, record.previous) = (list.head, 0);
        }
        list.head = index + 1;
        list.count += 1;
    }

    /// Looks at every frame that an earlier incarnation of this server has left: its owner and use.
    pub fn each(&self, mut look: impl FnMut(Frame, u32, Usage)) {
        for (index, record) in self.records.iter().enumerate().skip(self.reserved as usize) {
            if let Some(usage) = Usage::from_key(record.key()) {
                look(self.first + index as u32, record.owner, usage);
            }
        }
    }

    /// Makes chains, lists and the free list anew from what every frame is; the lists of `owners` must be empty. Frames that are nobody's
    /// become free.
    pub fn recover(&mut self, owners: &mut impl Owners) {
        self.heads.fill(0);
        (self.free, self.last_free, self.fresh, self.used) = (0, 0, self.total(), self.total());
        for index in self.reserved..self.total() {
            let Some(record) = self.records.get_mut(index as usize) else { return };
            (record.chain, record.next, record.previous) = (0, 0, 0);
            record.stamp &= STAMP;
            let (owner, usage) = (record.owner, Usage::from_key(record.key()));
            match usage.and_then(|usage| owners.list(owner, usage)) {
                Some(list) => {
                    self.enlist(list, index);
                    self.enchain(index);
                }
                None => {
                    record.key.store(0, Ordering::Release);
                    self.enqueue_free(index);
                }
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

    fn records(count: usize) -> Vec<Record> {
        (0..count).map(|_| Record::default()).collect()
    }

    #[test]
    fn layouts_fit() {
        for frames in [16, 100, 4096, 65_536, 1 << 20, 1 << 24] {
            let layout = Layout::new(0x1000, frames).unwrap();
            assert_eq!(u64::from(layout.frames), frames);
            let share = f64::from(layout.reserved()) / frames as f64;
            assert!(frames < 1000 || share < 0.009, "{share} of {frames} frames");
        }
        assert_eq!(Layout::new(0, 1), None);
        assert_eq!(Layout::new(u64::MAX, 100), None);
        assert_eq!(Layout::new(u64::from(u32::MAX) - 50, 100).unwrap().frames, 50);
    }

    #[test]
    fn chains_stay_short() {
        let layout = Layout::new(0, 1 << 16).unwrap();
        let (mut records, mut heads) = (records(1 << 16), vec![0; layout.heads as usize]);
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

    #[derive(Clone, Debug)]
    enum Step {
        Take(u32, u32),
        Promote(u32, u32),
        Give(u32, u32),
        Release(u32, u32),
        /// The server dies and finds its table again; this owner is no more.
        Recover(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0u32..4, 0u32..40).prop_map(|(owner, page)| Step::Take(owner, page)),
            4 => (0u32..4, 0u32..40).prop_map(|(owner, page)| Step::Promote(owner, page)),
            3 => (0u32..4, 0u32..40).prop_map(|(owner, page)| Step::Give(owner, page)),
            1 => (0u32..4, 1u32..6).prop_map(|(owner, limit)| Step::Release(owner, limit)),
            1 => (0u32..6).prop_map(Step::Recover),
        ]
    }

    struct Lists([List; 4], u32);

    impl Owners for Lists {
        fn list(&mut self, owner: u32, _: Usage) -> Option<&mut List> {
            if owner == self.1 { None } else { self.0.get_mut(owner as usize) }
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(steps in proptest::collection::vec(step(), 1..400), seed: u64) {
            const FIRST: u32 = 7000;
            let layout = Layout::new(u64::from(FIRST), 64).unwrap();
            let (mut records, mut heads) = (records(64), vec![0; layout.heads as usize]);
            let mut table = FrameTable::new(FIRST, &layout, &mut records, &mut heads, seed).unwrap();
            let mut lists = Lists(Default::default(), 9);
            // Frame, and whether it is a page already.
            let mut model: BTreeMap<(u32, u32), (Frame, bool)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Take(owner, page) if !model.contains_key(&(owner, page)) => {
                        match table.take(&mut lists.0[owner as usize], owner, Usage::Incoming(page)) {
                            Some(frame) => {
                                prop_assert!((FIRST + table.reserved()..FIRST + 64).contains(&frame));
                                model.insert((owner, page), (frame, false));
                            }
                            None => prop_assert_eq!(model.len() as u32, 64 - table.reserved()),
                        }
                    }
                    Step::Promote(owner, page) => {
                        if let Some((frame, is_page)) = model.get_mut(&(owner, page)) {
                            table.promote(*frame);
                            *is_page = true;
                        }
                    }
                    Step::Give(owner, page) => {
                        if let Some((frame, _)) = model.remove(&(owner, page)) {
                            table.give(&mut lists.0[owner as usize], frame);
                        }
                    }
                    Step::Release(owner, limit) => {
                        let list = &mut lists.0[owner as usize];
                        let before = list.len();
                        prop_assert_eq!(table.release(list, limit), before.min(limit));
                        model.retain(|(o, _), (frame, _)| *o != owner || table.usage(*frame).is_some());
                    }
                    Step::Recover(gone) => {
                        lists = Lists(Default::default(), gone);
                        table.recover(&mut lists);
                        model.retain(|(owner, _), _| *owner != gone);
                    }
                    Step::Take(..) => {}
                }
                prop_assert_eq!(table.used() - table.reserved(), model.len() as u32);
                let frames: BTreeSet<_> = model.values().collect();
                prop_assert_eq!(frames.len(), model.len());
                for owner in 0..4 {
                    let mut listed = BTreeSet::new();
                    let mut at = table.first_of(&lists.0[owner as usize]);
                    while let Some(frame) = at {
                        prop_assert!(listed.insert(frame));
                        at = table.next_of(frame);
                    }
                    let wanted: BTreeSet<_> = model.iter().filter(|((o, _), _)| *o == owner).map(|(_, (f, _))| *f).collect();
                    prop_assert_eq!(lists.0[owner as usize].len() as usize, listed.len());
                    prop_assert_eq!(listed, wanted);
                    for page in 0..40 {
                        let known = model.get(&(owner, page)).copied();
                        let found = |usage| table.find(owner, usage);
                        prop_assert_eq!(found(Usage::Page(page)), known.filter(|(_, page)| *page).map(|(frame, _)| frame));
                        prop_assert_eq!(found(Usage::Incoming(page)), known.filter(|(_, page)| !*page).map(|(frame, _)| frame));
                    }
                }
            }
        }
    }
}
