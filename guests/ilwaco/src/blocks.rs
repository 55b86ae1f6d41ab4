//! Bookkeeping of a VM's disks: which request is under way, and which buffers are in use.
//!
//! A request takes the next entry of the ring and as many neighbouring buffers as it has blocks. Whoever asked has a [`Ticket`]; who gives it
//! up before the answer ([`Blocks::abandon`]) leaves buffers and entry to the server until it has answered.

use crate::disk_window::{BUFFERS_MAX, Pages};
use alloc::vec::Vec;
use core::{sync::atomic::Ordering, task::Waker};
use protocol::disk::{BLOCK, BLOCKS_MAX, COMPLETION_ENTRIES, ENTRIES, Kind, Request, Status};

/// A request that was put up.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket(usize);

/// What an entry of the ring is used for.
#[derive(Debug)]
enum Entry {
    Free,
    /// The request with this index is under way.
    Open(u32, Option<Waker>),
    /// It is, and nobody waits for it.
    Abandoned(u32),
    /// It is answered, and the answer not taken.
    Done(Status),
}

/// The books.
#[derive(Debug)]
pub struct Blocks {
    pages: Pages,
    submitted: u32,
    completed: u32,
    entries: [Entry; ENTRIES],
    /// Buffers of each entry: first and number.
    buffers: [(usize, usize); ENTRIES],
    /// Buffers in use, a bit each.
    used: [u64; BUFFERS_MAX / 64],
    /// Those who wait for an entry or for buffers.
    waiting: Vec<Waker>,
}

impl Blocks {
    /// Takes over a window.
    pub fn new(pages: Pages) -> Blocks {
        Blocks {
            pages,
            submitted: 0,
            completed: 0,
            entries: [const { Entry::Free }; ENTRIES],
            buffers: [(0, 0); ENTRIES],
            used: [0; BUFFERS_MAX / 64],
            waiting: Vec::new(),
        }
    }

    /// Puts up a read of up to `count` blocks: as many as there are neighbouring free buffers for. `None`: no entry or no buffer is free.
    pub fn read(&mut self, disk: u32, block: u64, count: usize) -> Option<(Ticket, usize)> {
        let (first, count) = self.free_run(count)?;
        Some((self.submit(Kind::Read, disk, block, first, count)?, count))
    }

    /// Puts up a write of the first blocks of `bytes`, likewise.
    pub fn write(&mut self, disk: u32, block: u64, bytes: &[u8]) -> Option<(Ticket, usize)> {
        let (first, count) = self.free_run(bytes.len() / BLOCK)?;
        self.pages.fill(first, &bytes[..count * BLOCK]);
        Some((self.submit(Kind::Write, disk, block, first, count)?, count))
    }

    /// Puts up a flush. `None`: no entry is free.
    pub fn flush(&mut self, disk: u32) -> Option<Ticket> {
        self.has_entry().then(|| self.submit(Kind::Flush, disk, 0, 0, 0))?
    }

    fn has_entry(&self) -> bool {
        matches!(self.entries[self.submitted as usize % ENTRIES], Entry::Free)
    }

    /// Neighbouring free buffers: as many as wanted, or else as many as there are; and an entry for them.
    fn free_run(&self, wanted: usize) -> Option<(usize, usize)> {
        let wanted = wanted.min(BLOCKS_MAX as usize);
        let (mut best, mut run) = ((0, 0), 0);
        for buffer in 0..self.pages.count() {
            run = if self.used[buffer / 64] & 1 << (buffer % 64) == 0 { run + 1 } else { 0 };
            if run > best.1 {
                best = (buffer + 1 - run, run);
            }
            if run >= wanted {
                break;
            }
        }
        (best.1 > 0 && wanted > 0 && self.has_entry()).then_some(best)
    }

    fn mark(&mut self, (first, count): (usize, usize), used: bool) {
        for buffer in first..first + count {
            let bit = 1 << (buffer % 64);
            if used {
                self.used[buffer / 64] |= bit;
            } else {
                self.used[buffer / 64] &= !bit;
            }
        }
    }

    fn submit(&mut self, kind: Kind, disk: u32, block: u64, first: usize, count: usize) -> Option<Ticket> {
        let place = self.submitted as usize % ENTRIES;
        let address = if count > 0 { self.pages.address(first) } else { 0 };
        let request = Request { kind: kind as u32, disk, block, address, count: count as u32, reserved: 0 };
        self.mark((first, count), true);
        self.buffers[place] = (first, count);
        self.entries[place] = Entry::Open(self.submitted, None);
        self.pages.queue().requests[place].set(request);
        self.submitted = self.submitted.wrapping_add(1);
        // Release: buffers and request are written before the server may see them counted.
        self.pages.queue().submitted.store(self.submitted, Ordering::Release);
        Some(Ticket(place))
    }

    /// Takes the answers that have come, and wakes those who wait for them.
    pub fn collect(&mut self) {
        // Acquire: what the server wrote before it advanced `completed` is visible after this.
        let completed = self.pages.queue().completed.load(Ordering::Acquire);
        // More answers than requests cannot be: then the queue page is not what it should be, and nothing is taken.
        if completed.wrapping_sub(self.completed) as usize > ENTRIES {
            return;
        }
        while self.completed != completed {
            let answer = &self.pages.queue().completions[self.completed as usize % COMPLETION_ENTRIES];
            let (index, status) = (answer.index.load(Ordering::Relaxed), answer.status.load(Ordering::Relaxed));
            self.completed = self.completed.wrapping_add(1);
            self.answered(index, Status::from_u32(status));
        }
    }

    fn answered(&mut self, index: u32, status: Status) {
        let place = index as usize % ENTRIES;
        match &mut self.entries[place] {
            Entry::Open(open, waker) if *open == index => {
                let waker = waker.take();
                self.entries[place] = Entry::Done(status);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Entry::Abandoned(open) if *open == index => self.free(place),
            // A request that was carried out again after a restart of the server and is answered twice.
            _ => {}
        }
    }

    fn free(&mut self, place: usize) {
        self.mark(self.buffers[place], false);
        self.entries[place] = Entry::Free;
        self.waiting.drain(..).for_each(Waker::wake);
    }

    /// The answer to a request, once it has come; else `waker` is woken by it. What was read is in the ticket's buffers
    /// until [`Blocks::end`].
    pub fn poll(&mut self, ticket: &Ticket, waker: &Waker) -> Option<Status> {
        match &mut self.entries[ticket.0] {
            Entry::Done(status) => Some(*status),
            Entry::Open(_, waiting) => {
                *waiting = Some(waker.clone());
                None
            }
            // A ticket has its entry until it is given up.
            Entry::Free | Entry::Abandoned(_) => Some(Status::Failed),
        }
    }

    /// Copies what was read, and frees entry and buffers.
    pub fn end(&mut self, ticket: Ticket, bytes: &mut [u8]) {
        let (first, count) = self.buffers[ticket.0];
        let length = bytes.len().min(count * BLOCK);
        if length > 0 {
            self.pages.take(first, &mut bytes[..length]);
        }
        self.free(ticket.0);
    }

    /// Gives up a request.
    pub fn abandon(&mut self, ticket: Ticket) {
        match self.entries[ticket.0] {
            Entry::Open(index, _) => self.entries[ticket.0] = Entry::Abandoned(index),
            _ => self.free(ticket.0),
        }
    }

    /// Wakes `waker` when an entry or a buffer is free again.
    pub fn wait_for_room(&mut self, waker: &Waker) {
        if !self.waiting.iter().any(|other| other.will_wake(waker)) {
            self.waiting.push(waker.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DiskWindow;
    use proptest::prelude::*;
    use std::{boxed::Box, collections::BTreeSet, vec};

    const COUNT: usize = 24;

    /// A server as the protocol has it, with one disk.
    struct Server {
        pages: Pages,
        taken: u32,
        completed: u32,
        open: Vec<(u32, Request)>,
        disk: Vec<u8>,
    }

    impl Server {
        fn new() -> (Server, Blocks) {
            let window: &'static DiskWindow<COUNT> = Box::leak(Box::new(DiskWindow::new()));
            let server = Server {
                pages: Pages::of(window),
                taken: 0,
                completed: 0,
                open: Vec::new(),
                disk: vec![0; 64 * BLOCK],
            };
            (server, Blocks::new(Pages::of(window)))
        }

        fn take(&mut self) {
            let queue = self.pages.queue();
            while self.taken != queue.submitted.load(Ordering::Acquire) {
                self.open.push((self.taken, queue.requests[self.taken as usize % ENTRIES].get()));
                self.taken = self.taken.wrapping_add(1);
                assert!(self.open.len() <= ENTRIES);
            }
        }

        /// Answers one of the open requests.
        fn answer(&mut self, which: usize, status: Status) {
            if self.open.is_empty() {
                return;
            }
            let (index, request) = self.open.remove(which % self.open.len());
            let buffer = (request.address.saturating_sub(self.pages.address(0)) / BLOCK as u64) as usize;
            let at = request.block as usize * BLOCK..(request.block as usize + request.count as usize) * BLOCK;
            match Kind::from_u32(request.kind).unwrap() {
                Kind::Read => self.pages.fill(buffer, &self.disk[at]),
                Kind::Write => self.pages.take(buffer, &mut self.disk[at]),
                Kind::Flush => assert_eq!((request.block, request.count, request.address), (0, 0, 0)),
            }
            let queue = self.pages.queue();
            let place = &queue.completions[self.completed as usize % COMPLETION_ENTRIES];
            place.index.store(index, Ordering::Relaxed);
            place.status.store(status as u32, Ordering::Relaxed);
            self.completed = self.completed.wrapping_add(1);
            queue.completed.store(self.completed, Ordering::Release);
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let (mut server, mut blocks) = Server::new();
        let data: Vec<u8> = (0..5 * BLOCK).map(|n| n as u8 ^ (n >> 12) as u8).collect();
        let (ticket, count) = blocks.write(0, 7, &data).unwrap();
        assert_eq!((count, blocks.poll(&ticket, Waker::noop())), (5, None));
        server.take();
        server.answer(0, Status::Ok);
        blocks.collect();
        assert_eq!(blocks.poll(&ticket, Waker::noop()), Some(Status::Ok));
        blocks.end(ticket, &mut []);
        let (ticket, count) = blocks.read(0, 6, 40).unwrap();
        assert_eq!(count, 16);
        server.take();
        server.answer(0, Status::Ok);
        blocks.collect();
        let mut bytes = vec![1; 16 * BLOCK];
        blocks.end(ticket, &mut bytes);
        assert!(bytes[..BLOCK].iter().all(|byte| *byte == 0) && bytes[BLOCK..6 * BLOCK] == data);
        assert_eq!(blocks.read(0, 0, 0), None);
    }

    #[test]
    fn there_is_room_for_so_many() {
        let (mut server, mut blocks) = Server::new();
        let (first, _) = blocks.read(0, 0, 16).unwrap();
        // Not all that is wanted, but what there is.
        assert_eq!(blocks.read(0, 0, 16).unwrap().1, COUNT - 16);
        assert_eq!(blocks.read(0, 0, 1), None);
        for _ in 0..ENTRIES - 2 {
            assert!(blocks.flush(0).is_some());
        }
        assert_eq!(blocks.flush(0), None);
        server.take();
        server.answer(1, Status::Ok);
        blocks.collect();
        // The ring goes on at the first entry, which is not answered.
        assert_eq!(blocks.flush(0), None);
        blocks.abandon(first);
        assert_eq!(blocks.flush(0), None);
        server.answer(0, Status::Failed);
        blocks.collect();
        assert!(blocks.flush(0).is_some());
    }

    #[test]
    fn nonsense_of_the_server_is_not_believed() {
        let (server, mut blocks) = Server::new();
        let ticket = blocks.flush(0).unwrap();
        let queue = server.pages.queue();
        queue.completed.store(1000, Ordering::Relaxed);
        blocks.collect();
        assert_eq!(blocks.poll(&ticket, Waker::noop()), None);
        queue.completions[0].index.store(5, Ordering::Relaxed);
        queue.completed.store(1, Ordering::Relaxed);
        blocks.collect();
        assert_eq!(blocks.poll(&ticket, Waker::noop()), None);
        queue.completions[1].index.store(0, Ordering::Relaxed);
        queue.completions[1].status.store(77, Ordering::Relaxed);
        queue.completed.store(2, Ordering::Relaxed);
        blocks.collect();
        assert_eq!(blocks.poll(&ticket, Waker::noop()), Some(Status::Failed));
    }

    proptest! {
        /// Whatever is asked, given up and answered in whatever order: no buffer is in two requests, none is lost.
        #[test]
        fn no_buffer_is_lost_or_used_twice(steps in prop::collection::vec((0u8..6, 0usize..40), 0..300)) {
            let (mut server, mut blocks) = Server::new();
            let mut tickets: Vec<Ticket> = Vec::new();
            for (what, number) in steps {
                match what {
                    0 | 1 => tickets.extend(blocks.read(0, 0, 1 + number % 20).map(|(ticket, _)| ticket)),
                    2 => tickets.extend(blocks.flush(0)),
                    3 => {
                        server.take();
                        server.answer(number, Status::Ok);
                    }
                    4 if !tickets.is_empty() => blocks.abandon(tickets.swap_remove(number % tickets.len())),
                    _ => {
                        blocks.collect();
                        let done = tickets.iter().position(|ticket| blocks.poll(ticket, Waker::noop()).is_some());
                        if let Some(done) = done {
                            blocks.end(tickets.swap_remove(done), &mut [0; BLOCK]);
                        }
                    }
                }
                let mut seen = BTreeSet::new();
                for (place, entry) in blocks.entries.iter().enumerate().filter(|(_, entry)| !matches!(entry, Entry::Free)) {
                    let (first, count) = blocks.buffers[place];
                    prop_assert!((first..first + count).all(|buffer| buffer < COUNT && seen.insert(buffer)), "{entry:?}");
                }
                prop_assert_eq!(blocks.used.iter().map(|word| word.count_ones() as usize).sum::<usize>(), seen.len());
            }
            server.take();
            while !server.open.is_empty() {
                server.answer(0, Status::Ok);
                blocks.collect();
            }
            blocks.collect();
            tickets.drain(..).for_each(|ticket| blocks.abandon(ticket));
            prop_assert_eq!(blocks.used, [0; BUFFERS_MAX / 64]);
        }
    }
}
