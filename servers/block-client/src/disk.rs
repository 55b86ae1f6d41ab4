//! Slots, requests, answers.

use crate::{Driver, OpenError};
use alloc::{collections::VecDeque, vec, vec::Vec};
use core::mem::offset_of;
use protocol::service::block_driver::{
    BUFFER, Completion, Operation, RingPage, SLOTS, SlotRequest, Status, buffer, slots,
};
use server_runtime::mmio::{self, Region};

/// What is known of the partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Info {
    /// Its blocks.
    pub blocks: u64,
    /// Its own GUID.
    pub partition: [u8; 16],
    /// Whether it cannot be written.
    pub read_only: bool,
}

/// A slot: a number below [`Disk::slots`].
pub type Slot = usize;

/// What became of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Free,
    /// The user's, who may write to its buffer.
    Taken,
    /// Put up and not answered. The number says in which order.
    Submitted(SlotRequest, u64),
}

/// Whether there is somebody to put requests up for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Session {
    /// Open.
    Open,
    /// Not open (yet, or after a restart): requests are kept until it is.
    Waiting,
    /// There is no such disk any more: requests fail.
    Lost,
}

/// A partition, by a driver.
pub struct Disk<D> {
    driver: D,
    shared: Region,
    states: Vec<State>,
    free: Vec<Slot>,
    session: Session,
    info: Option<Info>,
    /// Requests put up and answers taken, in this session.
    submitted: u32,
    completed: u32,
    /// Requests put up so far.
    order: u64,
    /// Whether requests were put up that the driver was not told of.
    added: bool,
    /// Answers that the user was not given yet.
    answers: VecDeque<(Slot, Status)>,
    /// Answers that made no sense.
    nonsense: u64,
}

impl<D: Driver> Disk<D> {
    /// A disk by the memory shared with its driver. It is not open.
    pub fn new(driver: D, shared: Region) -> Result<Disk<D>, OpenError> {
        let count = slots(shared.length());
        if count == 0 {
            return Err(OpenError::NoMemory);
        }
        Ok(Disk {
            driver,
            shared,
            states: vec![State::Free; count],
            free: (0..count).rev().collect(),
            session: Session::Waiting,
            info: None,
            submitted: 0,
            completed: 0,
            order: 0,
            added: false,
            answers: VecDeque::with_capacity(count),
            nonsense: 0,
        })
    }

    /// Opens the disk and submits what is not answered. Returns at once but for the time that the driver takes to end what a former
    /// self of this server had under way.
    ///
    /// Errors: see [`OpenError`]. After one that [`OpenError::is_passing`], requests are kept and this should be called again;
    /// after another one they are answered `Failed`, and so are all later ones until the disk can be opened again. How long to keep on
    /// after passing errors is for the user to say, by [`Disk::give_up`].
    pub fn open(&mut self) -> Result<Info, OpenError> {
        // What the old driver had answered before it died counts.
        self.drain();
        self.session = Session::Waiting;
        let found = self.driver.open().and_then(|found| match self.info {
            Some(old) if old.partition != found.partition || old.blocks > found.blocks => {
                Err(OpenError::OtherPartition)
            }
            _ => Ok(found),
        });
        match found {
            Ok(found) => {
                self.info = Some(found);
                self.session = Session::Open;
                (self.submitted, self.completed) = (0, 0);
                self.submit_again();
                Ok(found)
            }
            Err(error) => {
                if !error.is_passing() {
                    self.session = Session::Lost;
                    self.fail_all();
                }
                Err(error)
            }
        }
    }

    /// To be called when a peer was restarted ([`protocol::domain::line::PEER_RESTARTED`]), and again after a passing error: if it was
    /// this disk's driver, opens anew as [`Disk::open`]. `None` if it was not.
    pub fn restarted(&mut self) -> Option<Result<Info, OpenError>> {
        (self.session != Session::Open || self.driver.was_restarted()).then(|| self.open())
    }

    /// Ends the wait for a driver that does not come back: everything is answered `Failed`, now and until the disk can be opened again.
    pub fn give_up(&mut self) {
        self.drain();
        self.session = Session::Lost;
        self.fail_all();
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        self.session == Session::Open
    }

    /// The partition as it was when it was last opened.
    pub fn info(&self) -> Option<Info> {
        self.info
    }

    /// The way to the driver.
    pub fn driver(&mut self) -> &mut D {
        &mut self.driver
    }

    /// Slots in all.
    pub fn slots(&self) -> usize {
        self.states.len()
    }

    /// Slots that are free.
    pub fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// Requests that are not answered.
    pub fn under_way(&self) -> usize {
        self.states.iter().filter(|state| matches!(state, State::Submitted(..))).count()
    }

    /// Takes a free slot.
    pub fn take(&mut self) -> Option<Slot> {
        let slot = self.free.pop()?;
        self.states[slot] = State::Taken;
        Some(slot)
    }

    /// Gives a slot back that was taken, or whose answer was taken. Panics if its request is not answered.
    #[track_caller]
    pub fn give(&mut self, slot: Slot) {
        assert_eq!(self.states[slot], State::Taken, "slot {slot} is not the user's to give");
        self.states[slot] = State::Free;
        self.free.push(slot);
    }

    /// The buffer of a slot: [`BUFFER`] bytes.
    pub fn buffer(&self, slot: Slot) -> Region {
        assert!(slot < self.states.len(), "there is no slot {slot}");
        self.shared.part(buffer(slot), BUFFER)
    }

    /// Puts up the request of a slot that was taken: `count` blocks from `block` on (both 0 for a flush). The buffer is the driver's until
    /// the answer; after a [`Operation::Zero`] its contents are undefined. The driver learns of it by [`Disk::notify`].
    #[track_caller]
    pub fn submit(&mut self, slot: Slot, operation: Operation, block: u64, count: u32) {
        assert_eq!(self.states[slot], State::Taken, "slot {slot} is not the user's to submit");
        let request = SlotRequest { operation: operation as u32, count, block };
        self.states[slot] = State::Submitted(request, self.order);
        self.order += 1;
        match self.session {
            Session::Open => self.put(slot, request),
            Session::Waiting => {}
            Session::Lost => self.answer(slot, Status::Failed),
        }
    }

    /// Tells the driver of the requests that were put up since the last time.
    pub fn notify(&mut self) {
        if core::mem::take(&mut self.added) {
            self.driver.raise();
        }
    }

    /// The next answer. Its slot is the user's again: to be submitted once more, or given back.
    pub fn poll(&mut self) -> Option<(Slot, Status)> {
        if self.answers.is_empty() && self.session == Session::Open {
            self.drain();
        }
        self.answers.pop_front()
    }

    /// Whether answers were taken from the ring, or made up for requests that failed at once, that [`Disk::poll`] has not given yet.
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Things that the driver wrote and that made no sense.
    pub fn nonsense(&self) -> u64 {
        self.nonsense
    }

    /// Takes all answers from the ring.
    fn drain(&mut self) {
        if self.session != Session::Open {
            return;
        }
        let completed = self.shared.read_u32(offset_of!(RingPage, completed));
        let count = completed.wrapping_sub(self.completed) as usize;
        if count > self.states.len() {
            self.nonsense += 1;
            return;
        }
        for _ in 0..count {
            let at = offset_of!(RingPage, completion) + self.completed as usize % SLOTS * size_of::<Completion>();
            let slot = usize::from(self.shared.read_u16(at + offset_of!(Completion, slot)));
            let status = self.shared.read_u16(at + offset_of!(Completion, status));
            self.completed = self.completed.wrapping_add(1);
            match self.states.get(slot) {
                Some(State::Submitted(..)) => self.answer(slot, Status::from_u32(status.into())),
                _ => self.nonsense += 1,
            }
        }
    }

    fn answer(&mut self, slot: Slot, status: Status) {
        self.states[slot] = State::Taken;
        self.answers.push_back((slot, status));
    }

    /// Writes a request into the ring.
    fn put(&mut self, slot: Slot, request: SlotRequest) {
        let at = offset_of!(RingPage, requests) + slot * size_of::<SlotRequest>();
        self.shared.write_u32(at + offset_of!(SlotRequest, operation), request.operation);
        self.shared.write_u32(at + offset_of!(SlotRequest, count), request.count);
        self.shared.write_u64(at + offset_of!(SlotRequest, block), request.block);
        let entry = self.submitted as usize % SLOTS;
        self.shared.write_u32(offset_of!(RingPage, submission) + entry * size_of::<u32>(), slot as u32);
        self.submitted = self.submitted.wrapping_add(1);
        mmio::full_fence();
        self.shared.write_u32(offset_of!(RingPage, submitted), self.submitted);
        self.added = true;
    }

    /// Requests that are not answered, in the order in which they were put up.
    fn unanswered(&self) -> Vec<(u64, Slot, SlotRequest)> {
        let states = self.states.iter().enumerate();
        let mut unanswered: Vec<_> = states
            .filter_map(|(slot, state)| match state {
                State::Submitted(request, order) => Some((*order, slot, *request)),
                _ => None,
            })
            .collect();
        unanswered.sort_unstable_by_key(|(order, ..)| *order);
        unanswered
    }

    fn submit_again(&mut self) {
        for (_, slot, request) in self.unanswered() {
            self.put(slot, request);
        }
        self.notify();
    }

    fn fail_all(&mut self) {
        for (_, slot, _) in self.unanswered() {
            self.answer(slot, Status::Failed);
        }
    }
}
