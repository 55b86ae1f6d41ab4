//! Who is served when, and the way of a request.
//!
//! ```text
//!  write:  turn ─▶ slot ─▶ copy VM → buffer ─▶ device ─▶ answer
//!  read:   turn ─▶ slot ─▶ device ─▶ copy buffer → VM ─▶ answer
//!  flush:  turn ─▶ wait for the flush that is under way ─▶ one flush of the device for all that wait ─▶ answers
//! ```
//!
//! VMs that rang their doorbell wait in a queue; a turn begins up to [`PER_TURN`] requests of one. While no slot of the device is free the
//! requests wait in the VMs' own rings: nothing in the server grows with what VMs ask.
//!
//! When a copy meets memory that is not there, the pager is asked. If it says *later*, the VM is **parked**: a write that has not begun
//! goes back into its ring and gives its slot away; blocks that were read are held, but only in a quarter of the slots, and
//! are read again otherwise; answers wait. All others are served on. When the pager has brought the VM it goes on from there.

mod answer;
mod transfer;

use crate::{
    change::Changes,
    flight::{Flight, FlightId, Flights},
    machine::{Copy, Fate, Machine, Place, Slot},
    queue::{Checked, Own, Page, REQUEST_PART, WHOLE, check},
    vms::{Session, Vms},
};
use alloc::{
    collections::VecDeque,
    format,
    string::{String, ToString},
    vec::Vec,
};
use protocol::{
    disk::{Completion, ENTRIES, Kind, Status},
    service::{
        VmNumber, VmRef,
        block_driver::{self, Operation},
        vdisk::Response,
    },
};

/// VMs in a round.
pub const TURNS: usize = 8;
/// Requests of a VM in a round.
pub const PER_TURN: usize = 8;
/// VMs that are answered in a round.
const ANSWERS: usize = 16;
/// Times that one copy is tried: its pages may be gone again before it is made.
const ATTEMPTS: usize = 4;
/// Nanoseconds between two reports of trouble.
const REPORT_PAUSE: u64 = 1_000_000_000;

// The scratch memory: queue pages of a round, then answers and indices.
const ANSWER: usize = ENTRIES * size_of::<Completion>();
const ANSWERS_AT: usize = TURNS * WHOLE;
const INDICES_AT: usize = ANSWERS_AT + ANSWERS * ANSWER;
/// Bytes of it.
pub const SCRATCH: usize = INDICES_AT + ANSWERS * 4;

/// What became of a copy in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Done,
    /// The VM is parked.
    Parked,
    Failed,
}

/// Trouble to tell the operator of, a line a second at most.
#[derive(Debug, Default)]
struct Trouble {
    first: Option<String>,
    more: u64,
    next: u64,
}

/// The server. `T` is what a client's request is answered by.
#[derive(Debug)]
pub struct Server<T> {
    /// VMs.
    pub(crate) vms: Vms,
    /// The store and its changes.
    pub(crate) changes: Changes<T>,
    /// Responses to send.
    pub(crate) done: Vec<(T, Response)>,
    flights: Flights,
    /// The flight of each slot.
    by_slot: Vec<Option<FlightId>>,
    /// VMs with requests, and those with answers.
    ready: VecDeque<Session>,
    answering: VecDeque<Session>,
    /// Flights whose data is to be copied to the device's buffer, and from it.
    load: Vec<FlightId>,
    deliver: Vec<FlightId>,
    /// The flush under way: its slot, and who waits for it. Then those who wait for the next one.
    flushing: Option<(Slot, Vec<FlightId>)>,
    flush_next: Vec<FlightId>,
    /// Slots held for parked VMs.
    held: usize,
    /// Whether VMs are parked of which the pager will not tell.
    retry: bool,
    trouble: Trouble,
    copies: Vec<Copy>,
    fates: Vec<Fate>,
}

impl<T: core::marker::Copy> Default for Server<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: core::marker::Copy> Server<T> {
    /// A server without a store ([`Server::mount`]).
    pub fn new() -> Server<T> {
        Server {
            vms: Vms::default(),
            changes: Changes::default(),
            done: Vec::new(),
            flights: Flights::default(),
            by_slot: Vec::new(),
            ready: VecDeque::new(),
            answering: VecDeque::new(),
            load: Vec::new(),
            deliver: Vec::new(),
            flushing: None,
            flush_next: Vec::new(),
            held: 0,
            retry: false,
            trouble: Trouble::default(),
            copies: Vec::new(),
            fates: Vec::new(),
        }
    }

    /// Requests under way.
    pub fn under_way(&self) -> usize {
        self.flights.len()
    }

    /// A response to send, with what its request is answered by.
    pub fn response(&mut self) -> Option<(T, Response)> {
        self.done.pop()
    }

    /// Trouble to report, if there is some and the last report is long enough ago.
    pub fn report(&mut self, now: u64) -> Option<String> {
        if now < self.trouble.next {
            return None;
        }
        let first = self.trouble.first.take()?;
        self.trouble.next = now.saturating_add(REPORT_PAUSE);
        match core::mem::take(&mut self.trouble.more) {
            0 => Some(first),
            more => Some(format!("{first}; {more} more since then")),
        }
    }

    /// Whether there is trouble to report, and when.
    pub fn report_due(&self) -> Option<u64> {
        self.trouble.first.as_ref().map(|_| self.trouble.next)
    }

    /// True once if VMs are parked of which the pager will not tell: call [`Server::unpark_all`] in a while.
    pub fn take_retry(&mut self) -> bool {
        core::mem::take(&mut self.retry)
    }

    /// A VM has rung its doorbell; it is here now.
    pub fn rung(&mut self, number: VmNumber, at: VmRef) {
        if let Some(session) = self.vms.of(number) {
            if let Some(vm) = self.vms.get_mut(session) {
                vm.at = at;
            }
            self.enqueue(session);
        }
    }

    /// The pager has brought a VM.
    pub fn brought(&mut self, number: VmNumber) {
        if let Some(session) = self.vms.of(number) {
            self.unpark(session);
        }
    }

    /// All parked VMs are tried again: the pager was restarted, or could not be asked.
    pub fn unpark_all(&mut self) {
        for session in self.vms.sessions() {
            self.unpark(session);
        }
    }

    fn unpark(&mut self, session: Session) {
        let Some(vm) = self.vms.get_mut(session).filter(|vm| vm.parked) else { return };
        vm.parked = false;
        let held = core::mem::take(&mut vm.held);
        let answers = vm.raise || !vm.answers.is_empty();
        self.held -= held.len();
        self.deliver.extend(held);
        if answers {
            self.enqueue_answers(session);
        }
        self.enqueue(session);
    }

    /// A VM is to be looked at.
    pub(crate) fn enqueue(&mut self, session: Session) {
        if let Some(vm) = self.vms.get_mut(session).filter(|vm| !vm.queued && !vm.parked && !vm.leaving) {
            vm.queued = true;
            self.ready.push_back(session);
        }
    }

    fn enqueue_answers(&mut self, session: Session) {
        if let Some(vm) = self.vms.get_mut(session).filter(|vm| !vm.answering && !vm.leaving) {
            vm.answering = true;
            self.answering.push_back(session);
        }
    }

    /// A VM leaves: nothing of it is begun any more, and what is under way is carried out.
    pub(crate) fn leave(&mut self, machine: &mut impl Machine, number: VmNumber) -> bool {
        let Some(session) = self.vms.leave(number) else { return false };
        self.unpark(session);
        // What was read for it is of no use any more.
        self.transfer(machine);
        self.forget(session);
        true
    }

    fn forget(&mut self, session: Session) {
        if self.vms.forget(session) {
            self.changes.disk_is_free();
        }
    }

    /// One round. Returns whether there is more to do at once; otherwise something will tell: the device, a doorbell, the pager.
    pub fn work(&mut self, machine: &mut impl Machine) -> bool {
        self.completions(machine);
        self.transfer(machine);
        self.change(machine);
        self.begin_flush(machine);
        let turns = self.turns(machine);
        self.transfer(machine);
        self.begin_flush(machine);
        let answers = self.answers(machine);
        turns || answers
    }

    /// Takes what the device has done.
    fn completions(&mut self, machine: &mut impl Machine) {
        for _ in 0..machine.slots() {
            let Some((slot, status)) = machine.completed() else { break };
            if self.change_completed(machine, slot, status) {
                continue;
            }
            if let Some((_, waiting)) = self.flushing.take_if(|(flush, _)| *flush == slot) {
                machine.give_back(slot);
                if status != block_driver::Status::Ok {
                    self.complain(&format!("flush for {} requests: {status}", waiting.len()));
                }
                let status = if status == block_driver::Status::Ok { Status::Ok } else { Status::Failed };
                waiting.into_iter().for_each(|flight| self.finish(machine, flight, status));
                continue;
            }
            let flight = self.by_slot.get_mut(usize::from(slot)).and_then(Option::take);
            match flight {
                Some(id) if status == block_driver::Status::Ok => self.piece_done(machine, id),
                Some(id) => {
                    self.complain_of(id, status);
                    self.finish(machine, id, Status::Failed);
                }
                None => machine.give_back(slot),
            }
        }
    }

    /// The device has carried out a piece of a request.
    fn piece_done(&mut self, machine: &mut impl Machine, id: FlightId) {
        match self.flights.get(id).map(|flight| flight.request.kind) {
            Some(Kind::Read) => self.deliver.push(id),
            _ => self.go_on(machine, id),
        }
    }

    /// A piece is done with: the next one, or the end.
    fn go_on(&mut self, machine: &mut impl Machine, id: FlightId) {
        let Some(flight) = self.flights.get_mut(id) else { return };
        flight.done += core::mem::take(&mut flight.piece);
        if flight.done >= flight.request.count {
            return self.finish(machine, id, Status::Ok);
        }
        self.begin_piece(machine, id);
    }

    /// Begins the next piece of a flight that has a slot.
    fn begin_piece(&mut self, machine: &mut impl Machine, id: FlightId) {
        let Some(flight) = self.flights.get_mut(id) else { return };
        let Some((_, count)) = flight.next_piece() else {
            // The table and the check of the request say that there is one.
            return self.finish(machine, id, Status::OutOfRange);
        };
        flight.piece = count;
        match flight.request.kind {
            Kind::Write => self.load.push(id),
            _ => self.submit(machine, id, Operation::Read),
        }
    }

    fn submit(&mut self, machine: &mut impl Machine, id: FlightId, operation: Operation) {
        let Some((flight, slot)) = self.flights.get(id).and_then(|flight| Some((flight, flight.slot?))) else { return };
        let Some((block, count)) = flight.next_piece() else { return };
        let index = usize::from(slot);
        if self.by_slot.len() <= index {
            self.by_slot.resize(index + 1, None);
        }
        self.by_slot[index] = Some(id);
        machine.submit(slot, operation, block, count);
    }

    /// Ends a flight with an answer to its VM.
    fn finish(&mut self, machine: &mut impl Machine, id: FlightId, status: Status) {
        let Some(flight) = self.flights.remove(id) else { return };
        if let Some(slot) = flight.slot {
            machine.give_back(slot);
        }
        if let Some(vm) = self.vms.get_mut(flight.session) {
            vm.flights -= 1;
        }
        self.answer(flight.session, flight.index, status);
        self.forget(flight.session);
    }

    /// Puts a request back into its VM's ring, to be begun anew.
    fn put_back(&mut self, machine: &mut impl Machine, id: FlightId) {
        let Some(flight) = self.flights.remove(id) else { return };
        if let Some(slot) = flight.slot {
            machine.give_back(slot);
        }
        if let Some(vm) = self.vms.get_mut(flight.session) {
            vm.flights -= 1;
            if let Some(own) = &mut vm.own {
                own.put_back(flight.index);
            }
        }
        self.forget(flight.session);
    }

    fn answer(&mut self, session: Session, index: u32, status: Status) {
        if let Some(vm) = self.vms.get_mut(session).filter(|vm| !vm.leaving) {
            vm.answers.push(Completion { index, status: status as u32 });
            self.enqueue_answers(session);
        }
    }

    /// One flush of the device for all who wait for one. What was answered before they asked was answered before it begins.
    fn begin_flush(&mut self, machine: &mut impl Machine) {
        if self.flushing.is_none()
            && !self.flush_next.is_empty()
            && let Some(slot) = machine.take()
        {
            self.flushing = Some((slot, core::mem::take(&mut self.flush_next)));
            machine.submit(slot, Operation::Flush, 0, 0);
        }
    }

    /// Begins requests of the VMs whose turn it is. Returns whether others wait that could be served at once.
    fn turns(&mut self, machine: &mut impl Machine) -> bool {
        let Some(spare) = machine.take() else { return false };
        machine.give_back(spare);
        let mut turns: Vec<Session> = Vec::new();
        let mut copies = Vec::new();
        while turns.len() < TURNS
            && let Some(session) = self.ready.pop_front()
        {
            let Some(vm) = self.vms.get_mut(session) else { continue };
            vm.queued = false;
            if !vm.parked && !vm.leaving {
                let length = if vm.own.is_some() { REQUEST_PART } else { WHOLE };
                let from = Place::Vm { vm: vm.at, address: vm.window.address };
                copies.push(Copy { from, to: Place::Scratch(turns.len() * WHOLE), length });
                turns.push(session);
            }
        }
        let mut fates = core::mem::take(&mut self.fates);
        fates.clear();
        machine.copy(&copies, &mut fates);
        let mut has_room = true;
        for (place, session) in turns.into_iter().enumerate() {
            let fate = fates.get(place).copied().unwrap_or(Fate::Failed);
            if self.persist(machine, session, copies[place], fate) == Outcome::Done {
                has_room &= self.turn(machine, session, place * WHOLE, copies[place].length);
            }
        }
        self.fates = fates;
        has_room && !self.ready.is_empty()
    }

    /// Begins requests of a VM whose queue page is in the scratch memory. Returns whether the device had room for them.
    fn turn(&mut self, machine: &mut impl Machine, session: Session, offset: usize, length: usize) -> bool {
        let mut page = [0; WHOLE];
        page[..length].copy_from_slice(&machine.scratch()[offset..offset + length]);
        let page = Page(&page[..length]);
        let Some(vm) = self.vms.get_mut(session) else { return true };
        vm.submitted = page.submitted();
        let is_new = vm.own.is_none();
        let own = vm.own.get_or_insert_with(|| page.own());
        // An earlier incarnation may have died after its last answer and before the interrupt.
        let tell = is_new && own.completed != 0;
        if vm.submitted.wrapping_sub(own.taken) as usize > ENTRIES {
            // The index makes no sense: all that it stands for is lost.
            *own = Own { taken: vm.submitted, again: 0, ..*own };
        }
        if tell {
            vm.raise = true;
            self.enqueue_answers(session);
        }
        let mut has_room = true;
        for _ in 0..PER_TURN {
            let Some(vm) = self.vms.get_mut(session) else { return true };
            let Some(own) = &mut vm.own else { return true };
            let Some(index) = own.next(vm.submitted) else { break };
            let checked = check(page.request(index), vm.window, vm.disks.len());
            match checked.and_then(|request| self.admit(session, request)) {
                Err(status) => self.answer(session, index, status),
                Ok(flight) if flight.request.kind == Kind::Flush => {
                    let id = self.add(Flight { index, ..flight });
                    self.flush_next.push(id);
                }
                Ok(flight) => match machine.take() {
                    Some(slot) => {
                        let id = self.add(Flight { index, slot: Some(slot), ..flight });
                        self.begin_piece(machine, id);
                    }
                    None => {
                        has_room = false;
                        if let Some(own) = self.vms.get_mut(session).and_then(|vm| vm.own.as_mut()) {
                            own.put_back(index);
                        }
                        break;
                    }
                },
            }
        }
        let more = self.vms.get(session).is_some_and(|vm| vm.own.is_some_and(|own| own.has_more(vm.submitted)));
        if more {
            self.enqueue(session);
        }
        has_room
    }

    fn add(&mut self, flight: Flight) -> FlightId {
        if let Some(vm) = self.vms.get_mut(flight.session) {
            vm.flights += 1;
        }
        self.flights.add(flight)
    }

    /// Whether a VM may do this to its disk.
    fn admit(&self, session: Session, request: Checked) -> Result<Flight, Status> {
        let vm = self.vms.get(session).ok_or(Status::NoDisk)?;
        let disk = vm.disks.get(request.disk).ok_or(Status::NoDisk)?;
        if !disk.disk.holds(request.block, u64::from(request.count)) {
            return Err(Status::OutOfRange);
        }
        match request.kind {
            Kind::Write if disk.read_only => Err(Status::ReadOnly),
            // Nobody can have written it.
            Kind::Flush if disk.read_only => Err(Status::Ok),
            _ => Ok(Flight { session, index: 0, request, disk: disk.disk.clone(), done: 0, piece: 0, slot: None }),
        }
    }

    pub(crate) fn complain(&mut self, text: &str) {
        match self.trouble.first {
            Some(_) => self.trouble.more += 1,
            None => self.trouble.first = Some(text.to_string()),
        }
    }

    fn complain_of(&mut self, id: FlightId, status: block_driver::Status) {
        let Some(flight) = self.flights.get(id) else { return };
        let vm = self.vms.get(flight.session);
        let (number, name) =
            vm.map_or((0, ""), |vm| (vm.number, vm.disks.get(flight.request.disk).map_or("", |disk| &*disk.name)));
        let Checked { kind, block, count, .. } = flight.request;
        let what = if kind == Kind::Read { "reading" } else { "writing" };
        let text = format!("disk {name}: {what} {count} blocks from {block} on for VM {number}: {status}");
        self.complain(&text);
    }
}
