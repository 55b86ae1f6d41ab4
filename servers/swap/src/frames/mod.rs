//! The frame table: who has which frame of the pool, and which frame a VM has at a page.
//!
//! It is an *inverted page table*: one 24-byte [`Record`] for each frame, found by owner and number through hash chains
//! that run through the records, so that its size is fixed by the pool alone (28 bytes a frame, hash heads included), a
//! fault never allocates, and everything is O(1). The records of one owner are chained too, so that they can be
//! given back a few at a time and looked at in turn. Free frames are chained through the same link.
//!
//! The table lies in the first frames of the pool itself. Zeroed memory is an empty table. The pool may be several extents of memory: a record's
//! place is the frame's [`Pool::index`].
//!
//! **It survives this server.** What a frame is (`owner`, `key`) is true at every moment: the key is written last when a frame
//! is given out and first when it is taken back. Everything else, chains and lists, is made anew from that by
//! [`FrameTable::recover`]. So a frame is never given out with a key that says more than is in it: a page that is still being filled or
//! read is [`Usage::Incoming`] or [`Usage::Filling`], and becomes a [`Usage::Page`] when its contents are there.

mod layout;
mod usage;

use core::sync::atomic::{AtomicU32, Ordering};

pub use layout::Layout;
pub use server_runtime::pool::Pool;
pub use usage::Usage;

/// A physical frame number.
pub type Frame = u32;

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

/// The table.
#[derive(Debug)]
pub struct FrameTable<'a> {
    /// The pool without what lies before the table.
    pool: Pool,
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
    /// A table over `records` and `heads` (their lengths as in `layout`) of a pool at whose beginning it lies. It is empty if they are
    /// zeroed; else [`FrameTable::recover`] must come before anything else.
    pub fn new(
        pool: Pool,
        layout: &Layout,
        records: &'a mut [Record],
        heads: &'a mut [u32],
        seed: u64,
    ) -> Option<FrameTable<'a>> {
        let fits = records.len() == layout.frames as usize && heads.len() == layout.heads as usize;
        let sane = heads.len().is_power_of_two() && layout.frames == pool.frames();
        let reserved = layout.reserved();
        (fits && sane).then_some(FrameTable {
            pool,
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

    /// Slot of the extent that a frame is in.
    pub fn slot(&self, frame: Frame) -> u8 {
        self.pool.slot(frame)
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
        self.records.get(self.pool.index(frame)? as usize)
    }

    fn record_mut(&mut self, frame: Frame) -> Option<&mut Record> {
        self.records.get_mut(self.pool.index(frame)? as usize)
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
        self.pool.frame(index)
    }

    /// Makes a page of what was [`Usage::Incoming`] or [`Usage::Filling`]: its contents are there.
    pub fn promote(&mut self, frame: Frame) {
        if let Some(Usage::Incoming(page) | Usage::Filling(page)) = self.usage(frame) {
            self.turn(frame, Usage::Page(page));
        }
    }

    /// Makes something of what was [`Usage::Incoming`] or [`Usage::Filling`]: its contents are there.
    pub fn turn(&mut self, frame: Frame, usage: Usage) {
        let Some(index) = self.pool.index(frame) else { return };
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
                return self.pool.frame(index);
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
        self.pool.frame(list.head.checked_sub(1)?)
    }

    /// The frame behind this one in the list of its owner.
    pub fn next_of(&self, frame: Frame) -> Option<Frame> {
        self.pool.frame(self.record(frame)?.next.checked_sub(1)?)
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
        let Some(index) = self.pool.index(frame) else { return };
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
            if let (Some(usage), Some(frame)) = (Usage::from_key(record.key()), self.pool.frame(index as u32)) {
                look(frame, record.owner, usage);
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
mod tests;
