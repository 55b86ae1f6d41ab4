//! The rings shared with the clients, from the driver's side.
//!
//! What a client writes is read once and checked against the driver's own account of it: a client that writes nonsense is
//! not followed and harms only its own requests. Every request is bound to the client's partition when it is taken.
//!
//! Requests are given to the device one from each client in turn, so a client that always has many waiting delays another one's
//! next request by no more than what the device is doing already. A long [`Operation::Zero`] goes in steps, each waiting for its turn.

mod client;

use crate::{BlockDriver, Dma, Failure, Problem, Request, gpt::Extent};
use alloc::{vec, vec::Vec};
use client::{Accepted, Client, Stage, accept};
use core::mem::offset_of;
use protocol::service::block_driver::{
    BLOCK, BUFFER_BLOCKS, Completion, Operation, RingPage, SLOTS, SlotRequest, Status, buffer,
};
use server_runtime::mmio;

/// What the driver counted since it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Requests answered.
    pub requests: u64,
    /// Blocks read.
    pub read: u64,
    /// Blocks written, those zeroed among them.
    pub written: u64,
    /// Requests that failed or timed out.
    pub failed: u64,
    /// Times that the device was reset because it did not answer.
    pub resets: u64,
    /// Things that a client or the device wrote and that made no sense.
    pub nonsense: u64,
}

/// A request that the device has.
#[derive(Clone, Copy, Debug)]
struct Job {
    client: usize,
    slot: u16,
    accepted: Accepted,
    /// Blocks of this step.
    step: u32,
    /// When the device got it, in nanoseconds.
    started: u64,
    /// Of a session that is over: nobody is answered.
    orphan: bool,
}

/// The rings and the device behind them.
pub struct Rings<D> {
    device: D,
    clients: Vec<Client>,
    /// By tag.
    jobs: Vec<Option<Job>>,
    free: Vec<usize>,
    /// Whose turn it is.
    turn: usize,
    /// Nanoseconds that the device may take for a request.
    timeout: u64,
    zero_most: u32,
    read_only: bool,
    /// The device cannot be reset: nothing is asked of it any more.
    lost: bool,
    /// Clients whose opening is over.
    opened: Vec<usize>,
    counters: Counters,
}

/// How a session begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opening {
    /// It has begun.
    Begun,
    /// It begins when the client's former requests are over ([`Rings::take_opened`]).
    Later,
    /// The client has no memory or no partition here.
    Denied,
}

impl<D: BlockDriver> Rings<D> {
    /// Rings without clients. The device was reset and is idle. `timeout` is in nanoseconds.
    pub fn new(device: D, timeout: u64) -> Rings<D> {
        let tags = device.tags().max(1);
        let geometry = device.geometry();
        Rings {
            device,
            clients: Vec::new(),
            jobs: vec![None; tags],
            free: (0..tags).rev().collect(),
            turn: 0,
            timeout,
            zero_most: geometry.zero_most,
            read_only: geometry.read_only,
            lost: false,
            opened: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Adds a client by the memory shared with it. Returns its number; `None` if that memory has not even room for one slot.
    pub fn add(&mut self, shared: Dma) -> Option<usize> {
        let client = Client::new(shared);
        if client.slots == 0 {
            return None;
        }
        self.clients.push(client);
        Some(self.clients.len() - 1)
    }

    /// Gives a client its partition. No two may have the same one.
    pub fn set_extent(&mut self, client: usize, extent: Extent) {
        if let Some(client) = self.clients.get_mut(client) {
            client.extent = Some(extent);
        }
    }

    /// A client's partition.
    pub fn extent(&self, client: usize) -> Option<Extent> {
        self.clients.get(client)?.extent
    }

    /// The device.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }

    /// Whether the device is lost.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether the disk cannot be written.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Ends a client's session: what waits is dropped, what is under way goes on without an answer.
    pub fn close(&mut self, number: usize) {
        let Some(client) = self.clients.get_mut(number) else {
            return;
        };
        client.stage = Stage::Closed;
        client.waiting.clear();
        client.unpublished = false;
        for job in self.jobs.iter_mut().flatten().filter(|job| job.client == number) {
            job.orphan = true;
        }
        self.opened.retain(|opened| *opened != number);
    }

    /// Begins a session, at once or when what is under way of a former one is over.
    pub fn open(&mut self, number: usize) -> Opening {
        self.close(number);
        match self.clients.get_mut(number) {
            Some(client) if client.extent.is_none() => Opening::Denied,
            Some(client) if client.under_way > 0 => {
                client.stage = Stage::Draining;
                Opening::Later
            }
            Some(client) => {
                client.begin();
                Opening::Begun
            }
            None => Opening::Denied,
        }
    }

    /// A client whose session has begun after it had to wait.
    pub fn take_opened(&mut self) -> Option<usize> {
        self.opened.pop()
    }

    /// When [`Rings::expired`] should be asked, in nanoseconds.
    pub fn deadline(&self) -> Option<u64> {
        self.jobs.iter().flatten().map(|job| job.started.saturating_add(self.timeout)).min()
    }

    /// Moves everything that can move. `now` is in nanoseconds.
    pub fn work(&mut self, now: u64) {
        self.reap();
        for number in 0..self.clients.len() {
            self.take(number);
        }
        self.dispatch_all(now);
    }

    /// Gives the device what waits, until it has finished nothing more: what needs nothing of the medium is over at once, and no interrupt
    /// tells of it. It ends, because nothing new is taken from clients meanwhile.
    fn dispatch_all(&mut self, now: u64) {
        while self.dispatch(now) && self.reap() {}
    }

    /// Whether a request has taken too long, after a last look at what is finished.
    pub fn expired(&mut self, now: u64) -> bool {
        self.reap();
        self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Resets the device because of requests that took too long: they are answered `TimedOut`, the others start again. Returns how many
    /// took too long. On an error the device is lost, and all requests are answered `Failed` from here on.
    pub fn reset(&mut self, now: u64) -> Result<usize, Problem> {
        self.counters.resets += 1;
        let result = self.device.reset();
        self.lost = result.is_err();
        let mut late = 0;
        for tag in 0..self.jobs.len() {
            let Some(job) = self.jobs[tag].take() else {
                continue;
            };
            self.free.push(tag);
            self.left(job.client);
            if job.orphan {
                continue;
            }
            if job.started.saturating_add(self.timeout) <= now {
                late += 1;
                self.answer(job.client, job.slot, Status::TimedOut);
            } else {
                self.clients[job.client].waiting.push_front((job.slot, job.accepted));
            }
        }
        self.dispatch_all(now);
        result.map(|()| late)
    }

    /// Shows clients their answers; returns whom of them (a bit for each number) to tell. To be called after the others.
    pub fn publish(&mut self) -> u64 {
        mmio::full_fence();
        let mut told = 0;
        for (number, client) in self.clients.iter_mut().enumerate() {
            if core::mem::take(&mut client.unpublished) {
                client.shared.memory.write_u32(offset_of!(RingPage, completed), client.completed);
                told |= 1u64.checked_shl(number as u32).unwrap_or(0);
            }
        }
        told
    }

    /// Takes what a client has put up.
    fn take(&mut self, number: usize) {
        let client = &mut self.clients[number];
        if client.stage != Stage::Open {
            return;
        }
        let ring = client.shared.memory;
        let submitted = ring.read_u32(offset_of!(RingPage, submitted));
        let count = submitted.wrapping_sub(client.submitted);
        if count as usize > client.slots {
            self.counters.nonsense += 1;
            return;
        }
        for _ in 0..count {
            let client = &mut self.clients[number];
            let entry = client.submitted as usize % SLOTS;
            client.submitted = client.submitted.wrapping_add(1);
            let slot = ring.read_u32(offset_of!(RingPage, submission) + entry * 4) as usize;
            if slot >= client.slots || core::mem::replace(&mut client.busy[slot], true) {
                self.counters.nonsense += 1;
                continue;
            }
            let at = offset_of!(RingPage, requests) + slot * size_of::<SlotRequest>();
            let request = SlotRequest {
                operation: ring.read_u32(at + offset_of!(SlotRequest, operation)),
                count: ring.read_u32(at + offset_of!(SlotRequest, count)),
                block: ring.read_u64(at + offset_of!(SlotRequest, block)),
            };
            let blocks = client.extent.map_or(0, |extent| extent.blocks);
            match accept(request, blocks, self.read_only) {
                Ok(accepted) => client.waiting.push_back((slot as u16, accepted)),
                Err(status) => self.answer(number, slot as u16, status),
            }
        }
    }

    /// Gives the device what waits, one request from each client in turn. Returns whether there was any.
    fn dispatch(&mut self, now: u64) -> bool {
        let mut any = false;
        let mut idle = 0;
        while idle < self.clients.len() && (self.lost || !self.free.is_empty()) {
            let number = self.turn;
            self.turn = (self.turn + 1) % self.clients.len();
            match self.clients[number].waiting.pop_front() {
                Some((slot, _)) if self.lost => self.answer(number, slot, Status::Failed),
                Some((slot, accepted)) => {
                    self.start(number, slot, accepted, now);
                    any = true;
                }
                None => {
                    idle += 1;
                    continue;
                }
            }
            idle = 0;
        }
        if any {
            self.device.notify();
        }
        any
    }

    fn start(&mut self, number: usize, slot: u16, accepted: Accepted, now: u64) {
        let client = &mut self.clients[number];
        let (Some(extent), Some(tag)) = (client.extent, self.free.pop()) else {
            return;
        };
        // Both lie in the partition, as was checked when the request was taken.
        let block = extent.first + accepted.block + u64::from(accepted.done);
        let left = accepted.count - accepted.done;
        let buffer = |blocks: u32| client.shared.part(buffer(slot.into()), blocks as usize * BLOCK);
        let (request, step) = match accepted.operation {
            Operation::Read => (Request::Read { block, buffer: buffer(left) }, left),
            Operation::Write => (Request::Write { block, buffer: buffer(left) }, left),
            Operation::Flush => (Request::Flush, 0),
            Operation::Zero if self.zero_most > 0 => {
                let step = left.min(self.zero_most);
                (Request::Zero { block, count: step }, step)
            }
            Operation::Zero => {
                // The slot's own buffer is free. Who writes to it meanwhile spoils the own partition.
                let step = left.min(BUFFER_BLOCKS);
                let zeros = buffer(step);
                zeros.memory.zero(0, zeros.memory.length());
                (Request::Write { block, buffer: zeros }, step)
            }
        };
        client.under_way += 1;
        self.jobs[tag] = Some(Job { client: number, slot, accepted, step, started: now, orphan: false });
        self.device.submit(tag, request);
    }

    /// Takes back what the device has finished. Returns whether there was any.
    fn reap(&mut self) -> bool {
        let mut any = false;
        // A device that makes up requests without end is not listened to for longer than it can hold.
        for _ in 0..self.jobs.len() {
            let Some((tag, result)) = self.device.finished() else {
                break;
            };
            any = true;
            match self.jobs.get_mut(tag).and_then(Option::take) {
                Some(job) => {
                    self.free.push(tag);
                    self.finish(job, result);
                    self.left(job.client);
                }
                None => self.counters.nonsense += 1,
            }
        }
        any
    }

    fn finish(&mut self, job: Job, result: Result<(), Failure>) {
        let mut accepted = job.accepted;
        if result.is_ok() {
            accepted.done += job.step;
            match accepted.operation {
                Operation::Read => self.counters.read += u64::from(job.step),
                Operation::Write | Operation::Zero => self.counters.written += u64::from(job.step),
                Operation::Flush => {}
            }
        }
        let is_zero = accepted.operation == Operation::Zero;
        let again = match result {
            Ok(()) => is_zero && accepted.done < accepted.count,
            Err(Failure::Unsupported) if is_zero && self.zero_most > 0 => {
                self.zero_most = 0;
                true
            }
            // It was given to the device before that was known.
            Err(Failure::Unsupported) => is_zero && job.step > BUFFER_BLOCKS,
            Err(Failure::Failed) => false,
        };
        if job.orphan {
        } else if again {
            self.clients[job.client].waiting.push_back((job.slot, accepted));
        } else {
            let status = if result.is_ok() { Status::Ok } else { Status::Failed };
            self.answer(job.client, job.slot, status);
        }
    }

    /// The device has one request less of a client.
    fn left(&mut self, number: usize) {
        let client = &mut self.clients[number];
        client.under_way -= 1;
        if client.under_way == 0 && client.stage == Stage::Draining {
            client.begin();
            self.opened.push(number);
        }
    }

    fn answer(&mut self, number: usize, slot: u16, status: Status) {
        self.counters.requests += 1;
        self.counters.failed += u64::from(matches!(status, Status::Failed | Status::TimedOut));
        let client = &mut self.clients[number];
        let entry = client.completed as usize % SLOTS;
        let at = offset_of!(RingPage, completion) + entry * size_of::<Completion>();
        client.shared.memory.write_u16(at + offset_of!(Completion, slot), slot);
        client.shared.memory.write_u16(at + offset_of!(Completion, status), status as u32 as u16);
        client.completed = client.completed.wrapping_add(1);
        client.unpublished = true;
        client.busy[usize::from(slot)] = false;
    }
}

#[cfg(test)]
mod tests;
