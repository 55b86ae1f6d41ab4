//! The queue page of a VM's disks, read as what a stranger wrote.

use protocol::disk::{
    BLOCK, BLOCKS_MAX, COMPLETED, COMPLETION_ENTRIES, COMPLETIONS, Completion, ENTRIES, Kind, REQUESTS, Request, Status,
};

/// Bytes of the page up to the end of the requests.
pub const REQUEST_PART: usize = COMPLETIONS;
/// Bytes of the page that are used.
pub const WHOLE: usize = COMPLETIONS + COMPLETION_ENTRIES * size_of::<Completion>();

/// The part of a VM's memory in which its queue page and buffers lie; the queue page comes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// First byte.
    pub address: u64,
    /// Bytes.
    pub length: u64,
}

impl Window {
    /// Whether a buffer lies within. It may lie in the queue page; a VM that has its own queues overwritten harms only itself.
    pub fn holds(&self, address: u64, length: u64) -> bool {
        let end = address.checked_sub(self.address).and_then(|offset| offset.checked_add(length));
        address.checked_add(length).is_some() && end.is_some_and(|end| end <= self.length)
    }
}

/// What the server knows of a queue: of the last [`ENTRIES`] requests up to `taken`, which are not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Own {
    /// Requests looked at.
    pub taken: u32,
    /// Requests answered.
    pub completed: u32,
    /// Entries whose request is to be carried out (again), a bit each, by entry number.
    pub again: u32,
    /// Entries whose request is under way or whose answer is not written yet.
    pub open: u32,
}

impl Own {
    /// The next request to begin, by index; `submitted` is what the VM has put up. It is marked as open. `None` if there is none, or
    /// if the VM has used an entry whose request is not answered (it waits for that).
    pub fn next(&mut self, submitted: u32) -> Option<u32> {
        if self.again != 0 {
            // The oldest one: they lie in the ENTRIES requests before `taken`.
            let first = self.taken.wrapping_sub(ENTRIES as u32);
            let index =
                (0..ENTRIES as u32).map(|n| first.wrapping_add(n)).find(|index| self.again & bit(*index) != 0)?;
            self.again &= !bit(index);
            self.open |= bit(index);
            return Some(index);
        }
        if self.taken == submitted || self.open & bit(self.taken) != 0 {
            return None;
        }
        let index = self.taken;
        self.open |= bit(index);
        self.taken = index.wrapping_add(1);
        Some(index)
    }

    /// An open request is to be begun anew.
    pub fn put_back(&mut self, index: u32) {
        self.open &= !bit(index);
        self.again |= bit(index);
    }

    /// Whether `next` would find something.
    pub fn has_more(&self, submitted: u32) -> bool {
        let mut own = *self;
        own.next(submitted).is_some()
    }
}

/// The bit of a request's entry.
const fn bit(index: u32) -> u32 {
    1 << (index % ENTRIES as u32)
}

/// The bit of a request's entry, for those who keep their own books.
pub const fn entry_bit(index: u32) -> u32 {
    bit(index)
}

const _: () = assert!(ENTRIES == u32::BITS as usize, "a set of entries is one word");

/// A copy of a queue page, or of its first [`REQUEST_PART`] bytes.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a>(pub &'a [u8]);

impl Page<'_> {
    fn word(&self, offset: usize) -> u32 {
        self.0.get(offset..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    fn long(&self, offset: usize) -> u64 {
        u64::from(self.word(offset)) | u64::from(self.word(offset + 4)) << 32
    }

    /// Requests put up.
    pub fn submitted(&self) -> u32 {
        self.word(0)
    }

    /// The request at an index.
    pub fn request(&self, index: u32) -> Request {
        let offset = REQUESTS + index as usize % ENTRIES * size_of::<Request>();
        Request {
            kind: self.word(offset),
            disk: self.word(offset + 4),
            block: self.long(offset + 8),
            address: self.long(offset + 16),
            count: self.word(offset + 24),
            reserved: self.word(offset + 28),
        }
    }

    /// Where an earlier incarnation of the server left off; needs the [`WHOLE`] page. The VM may have changed it, to its own harm.
    ///
    /// So many requests are not answered as `submitted` is ahead of `completed`, and they are the youngest that are not among the last
    /// answers. The places that `completed` has not reached yet hold none, unless it has wrapped: then the ring holds an index of the upper
    /// half. (If answers to requests from beyond the wrap have filled all places before it, those that they overtook came after it.)
    ///
    /// That incarnation may have died after it wrote answers and before it counted them. They lie in the places from `completed` on, and are
    /// as many as there are more answers than should be: their requests are carried out again.
    pub fn own(&self) -> Own {
        let (submitted, completed) = (self.submitted(), self.word(COMPLETED));
        let mut missing = submitted.wrapping_sub(completed);
        let mut own = Own { taken: submitted, completed, ..Own::default() };
        if missing as usize > ENTRIES {
            return own;
        }
        let mut answered = 0u32;
        let first = submitted.wrapping_sub(ENTRIES as u32);
        let answer = |place: usize| self.word(COMPLETIONS + place * size_of::<Completion>());
        let has_wrapped = (0..COMPLETION_ENTRIES).any(|place| answer(place) > u32::MAX / 2);
        let places = if has_wrapped { COMPLETION_ENTRIES } else { COMPLETION_ENTRIES.min(completed as usize) };
        let is_recent = |index: &u32| (index.wrapping_sub(first) as usize) < ENTRIES;
        for index in (0..places).map(answer).filter(is_recent) {
            answered |= bit(index);
        }
        let mut excess = (answered.count_ones() + missing).saturating_sub(ENTRIES as u32);
        let after = (0..ENTRIES as u32).map(|n| completed.wrapping_add(n) as usize % COMPLETION_ENTRIES);
        for index in after.filter(|place| *place < places).map(answer).filter(is_recent) {
            if excess > 0 && answered & bit(index) != 0 {
                answered &= !bit(index);
                excess -= 1;
            }
        }
        for back in 1..=ENTRIES as u32 {
            let index = submitted.wrapping_sub(back);
            if missing > 0 && answered & bit(index) == 0 {
                own.again |= bit(index);
                missing -= 1;
            }
        }
        own
    }
}

/// An answer's offset in the page.
pub fn completion(completed: u32) -> usize {
    COMPLETIONS + completed as usize % COMPLETION_ENTRIES * size_of::<Completion>()
}

/// A request that makes sense by itself; whether the disk has such blocks is another matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checked {
    /// What to do.
    pub kind: Kind,
    /// Disk of the VM.
    pub disk: usize,
    /// First block.
    pub block: u64,
    /// Blocks; 0 for a flush.
    pub count: u32,
    /// The buffer.
    pub address: u64,
}

impl Checked {
    /// Bytes of the buffer.
    pub fn length(&self) -> u64 {
        u64::from(self.count) * BLOCK as u64
    }
}

/// Checks a request of a VM with this window and so many disks.
pub fn check(request: Request, window: Window, disks: usize) -> Result<Checked, Status> {
    let Request { kind, disk, block, address, count, reserved } = request;
    let kind = Kind::from_u32(kind).filter(|_| reserved == 0).ok_or(Status::BadRequest)?;
    let checked = Checked { kind, disk: disk as usize, block, count, address };
    let sensible = match kind {
        Kind::Flush => (block, address, count) == (0, 0, 0),
        Kind::Read | Kind::Write => {
            (1..=BLOCKS_MAX).contains(&count) && address.is_multiple_of(8) && window.holds(address, checked.length())
        }
    };
    match sensible {
        false => Err(Status::BadRequest),
        true if checked.disk >= disks => Err(Status::NoDisk),
        true => Ok(checked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    const WINDOW: Window = Window { address: 0x20_4000, length: 0x2_0000 };
    const GOOD: Request = Request { kind: 1, disk: 1, block: 7, address: 0x20_5000, count: 16, reserved: 0 };

    #[test]
    fn requests_are_checked() {
        let status = |request| check(request, WINDOW, 2).err();
        assert_eq!(status(GOOD), None);
        assert_eq!(status(Request { kind: 3, ..GOOD }), Some(Status::BadRequest));
        assert_eq!(status(Request { reserved: 1, ..GOOD }), Some(Status::BadRequest));
        assert_eq!(status(Request { count: 0, ..GOOD }), Some(Status::BadRequest));
        assert_eq!(status(Request { count: 17, ..GOOD }), Some(Status::BadRequest));
        assert_eq!(status(Request { address: 0x20_5004, ..GOOD }), Some(Status::BadRequest));
        assert_eq!(status(Request { address: 0x20_3ff8, ..GOOD }), Some(Status::BadRequest));
        assert_eq!(status(Request { address: 0x21_4008, ..GOOD }), Some(Status::BadRequest));
        assert_eq!(status(Request { address: u64::MAX - 7, ..GOOD }), Some(Status::BadRequest));
        assert_eq!(status(Request { disk: 2, ..GOOD }), Some(Status::NoDisk));
        assert_eq!(status(Request { kind: 2, ..GOOD }), Some(Status::BadRequest));
        let flush = Request { kind: 2, disk: 0, ..Request::default() };
        assert_eq!(status(flush), None);
        assert_eq!(check(flush, WINDOW, 0), Err(Status::NoDisk));
    }

    /// A page as VM and server leave it behind.
    struct Left {
        page: Vec<u8>,
        own: Own,
        submitted: u32,
    }

    impl Left {
        fn new(start: u32) -> Left {
            let own = Own { taken: start, completed: start, ..Own::default() };
            Left { page: vec![0; WHOLE], own, submitted: start }
        }

        fn put(&mut self, offset: usize, word: u32) {
            self.page[offset..offset + 4].copy_from_slice(&word.to_le_bytes());
        }

        fn submit(&mut self, open: &[u32]) -> bool {
            let free = !open.iter().any(|index| bit(*index) == bit(self.submitted));
            if free {
                self.submitted = self.submitted.wrapping_add(1);
                self.put(0, self.submitted);
            }
            free
        }

        fn answer(&mut self, index: u32) {
            self.put(completion(self.own.completed), index);
            self.own.completed = self.own.completed.wrapping_add(1);
            self.put(COMPLETED, self.own.completed);
            self.own.open &= !bit(index);
        }
    }

    proptest! {
        /// Whatever was answered in whatever order: a restarted server finds exactly the requests that were not.
        #[test]
        fn a_restart_finds_what_is_not_answered(
            start in prop_oneof![Just(0u32), u32::MAX - 200..u32::MAX, any::<u32>().prop_map(|n| n | 1 << 20)],
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>(), 0usize..4), 0..300),
        ) {
            let mut left = Left::new(start);
            if start != 0 {
                // What was before: so many answers that the ring is full of them.
                left = Left::new(start.wrapping_sub(64));
                for _ in 0..64 {
                    prop_assert!(left.submit(&[]));
                    left.answer(left.submitted.wrapping_sub(1));
                }
            }
            let mut open: Vec<u32> = Vec::new();
            for (submit, which, uncounted) in steps {
                if submit {
                    if left.submit(&open) {
                        open.push(left.submitted.wrapping_sub(1));
                    }
                } else if !open.is_empty() {
                    let index = open.remove(which.index(open.len()));
                    left.answer(index);
                }
                // It died when it had written some more answers.
                let mut page = Left { page: left.page.clone(), ..left };
                for (n, index) in open.iter().rev().take(uncounted).enumerate() {
                    page.put(completion(left.own.completed.wrapping_add(n as u32)), *index);
                }
                let mut own = Page(&page.page).own();
                prop_assert_eq!((own.taken, own.completed), (left.submitted, left.own.completed));
                let mut found: Vec<u32> = core::iter::from_fn(|| own.next(left.submitted)).collect();
                prop_assert!(found.is_sorted_by_key(|index| index.wrapping_sub(left.submitted)));
                let mut wanted = open.clone();
                found.sort_unstable();
                wanted.sort_unstable();
                prop_assert_eq!(found, wanted);
            }
        }

        #[test]
        fn any_page_is_survived(page in prop::collection::vec(any::<u8>(), 0..=WHOLE), steps in 0usize..100) {
            let page = Page(&page);
            let mut own = page.own();
            for _ in 0..steps {
                let Some(index) = own.next(page.submitted()) else { break };
                if let Ok(checked) = check(page.request(index), WINDOW, 4) {
                    prop_assert!(checked.disk < 4 && checked.count <= BLOCKS_MAX);
                    prop_assert!(checked.kind == Kind::Flush || WINDOW.holds(checked.address, checked.length()));
                }
            }
            prop_assert!(own.open.count_ones() as usize <= ENTRIES);
        }
    }
}
