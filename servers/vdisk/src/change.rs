//! Making and deleting disks: one change at a time, step by step, while requests of VMs go on.
//!
//! ```text
//!  mount:   read ─▶ flush
//!  create:  zero the blocks ─▶ flush ─▶ write the table ─▶ flush ─▶ answer
//!  delete:                              write the table ─▶ flush ─▶ answer
//! ```
//!
//! Why in this order is said in [`crate::store`]. A change that fails while the table is written leaves the store unsettled: then the
//! table is written again before the next change or attachment.

use crate::{
    machine::{BlockDevice, Machine, Slot},
    serve::Server,
    store::{BLOCK, DATA_FIRST, Disk, Extent, Store, Table, table::Unmade},
};
use alloc::{
    collections::VecDeque,
    format,
    string::{String, ToString},
    vec::Vec,
};
use protocol::service::{
    block_driver::{BUFFER_BLOCKS, Operation, Status},
    vdisk::{Request, Response},
};

/// Blocks zeroed by one request to the device: short enough that requests of VMs do not wait long behind it.
const ZERO_AT_ONCE: u64 = 4096;

/// How the store is.
#[derive(Debug)]
pub enum State {
    /// There is none, and why.
    Closed(String),
    /// It is being read.
    Opening,
    /// It is there.
    Open(Store),
}

/// What a change is for.
#[derive(Clone, Debug)]
enum Goal<T> {
    /// Reads the store.
    Mount(u64),
    /// Writes the table of a new partition.
    Format,
    /// Writes the table as it is, after a change that failed.
    Settle,
    /// Makes a disk.
    Create(T),
    /// Deletes this disk.
    Delete(T, String),
}

/// The step at work.
#[derive(Debug)]
enum Step {
    Read { bytes: Vec<u8> },
    FlushRead { bytes: Vec<u8> },
    Zero { disk: Disk, done: u64, piece: u64 },
    FlushZeros,
    Write { first: u64, bytes: Vec<u8>, done: usize },
    FlushTable,
}

/// A change under way.
#[derive(Debug)]
struct Job<T> {
    goal: Goal<T>,
    /// The table as it is to be.
    table: Table,
    step: Step,
    /// The slot of the request under way.
    slot: Option<Slot>,
}

/// The store, the change under way, and those that wait.
#[derive(Debug)]
pub struct Changes<T> {
    state: State,
    job: Option<Job<T>>,
    pending: VecDeque<(T, Request)>,
    /// Attachments that wait for a VM to leave.
    waiting: Vec<(T, Request)>,
    /// What the operator is to be told.
    notes: Vec<String>,
}

impl<T> Default for Changes<T> {
    fn default() -> Self {
        let state = State::Closed(String::from("there is no disk drive"));
        Changes { state, job: None, pending: VecDeque::new(), waiting: Vec::new(), notes: Vec::new() }
    }
}

impl<T: Copy> Changes<T> {
    /// How the store is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The store, if it is there.
    pub fn store(&self) -> Option<&Store> {
        match &self.state {
            State::Open(store) => Some(store),
            _ => None,
        }
    }

    /// Whether a disk is being deleted.
    pub fn is_deleting(&self, name: &str) -> bool {
        matches!(&self.job, Some(Job { goal: Goal::Delete(_, deleted), .. }) if deleted == name)
    }

    /// A request waits until the store is there and settled and no other change is under way.
    pub fn queue(&mut self, ticket: T, request: Request) {
        self.pending.push_back((ticket, request));
    }

    /// A request waits until some disk is free.
    pub fn wait_for_leaving(&mut self, ticket: T, request: Request) {
        self.waiting.push((ticket, request));
    }

    /// Some disk is free.
    pub fn disk_is_free(&mut self) {
        self.pending.extend(self.waiting.drain(..));
    }

    /// Lines for the operator.
    pub fn take_notes(&mut self) -> Vec<String> {
        core::mem::take(&mut self.notes)
    }

    fn is_settled(&self) -> bool {
        self.store().is_some_and(|store| !store.is_unsettled())
    }

    fn begin(&mut self, goal: Goal<T>, table: Table, step: Step) {
        self.job = Some(Job { goal, table, step, slot: None });
    }

    /// The step that writes a table.
    fn write(&self, table: &Table) -> Step {
        let (first, bytes) = self.store().map_or((0, Vec::new()), |store| store.next(table));
        Step::Write { first, bytes, done: 0 }
    }
}

impl<T: Copy> Server<T> {
    /// It is not known yet whether there is a store: requests wait.
    pub fn wait_for_store(&mut self) {
        self.changes.state = State::Opening;
    }

    /// The device is open, with a partition of so many blocks: reads the store.
    pub fn mount(&mut self, blocks: u64) {
        self.changes.state = State::Opening;
        self.changes.begin(Goal::Mount(blocks), Table::new(blocks), Step::Read { bytes: Vec::new() });
    }

    /// There is no store, and why.
    pub fn close(&mut self, why: String) {
        // Its request to the device, if one is under way, is nobody's when it is done.
        if let Some(Job { goal: Goal::Create(ticket) | Goal::Delete(ticket, _), .. }) = self.changes.job.take() {
            self.done.push((ticket, Response::NoStore(why.clone())));
        }
        self.changes.state = State::Closed(why);
    }

    /// Lines for the operator.
    pub fn notes(&mut self) -> Vec<String> {
        self.changes.take_notes()
    }

    /// Begins and goes on with changes.
    pub(crate) fn change(&mut self, machine: &mut impl Machine) {
        while self.changes.job.is_none() {
            if matches!(self.changes.state, State::Opening) || self.changes.pending.is_empty() {
                return;
            }
            if self.changes.store().is_some() && !self.changes.is_settled() {
                let Some(table) = self.changes.store().map(|store| store.table.clone()) else { return };
                let step = self.changes.write(&table);
                self.changes.begin(Goal::Settle, table, step);
                break;
            }
            let Some((ticket, request)) = self.changes.pending.pop_front() else { return };
            if let Some(response) = self.perform(machine, ticket, request) {
                self.done.push((ticket, response));
            }
        }
        self.submit_step(machine);
    }

    /// Begins a change. `Some` if it is answered at once.
    pub(crate) fn begin_change(&mut self, ticket: T, request: &Request) -> Option<Response> {
        let mut table = self.changes.store()?.table.clone();
        match request {
            Request::Create { name, blocks } => {
                let disk = match table.create(name, *blocks) {
                    Ok(disk) => disk.clone(),
                    Err(Unmade::Exists) => return Some(Response::Exists),
                    Err(Unmade::Full) => return Some(Response::Full),
                    Err(Unmade::BadArgument) => return Some(Response::BadArgument),
                };
                self.changes.begin(Goal::Create(ticket), table, Step::Zero { disk, done: 0, piece: 0 });
            }
            Request::Delete(name) => {
                if table.get(name).is_none() {
                    return Some(Response::NotFound);
                }
                if self.vms.is_used(name) {
                    return Some(Response::InUse);
                }
                table.delete(name);
                let step = self.changes.write(&table);
                self.changes.begin(Goal::Delete(ticket, name.clone()), table, step);
            }
            _ => return Some(Response::BadArgument),
        }
        None
    }

    /// Asks the device for what the step needs next.
    fn submit_step(&mut self, machine: &mut impl BlockDevice) {
        let Some(job) = self.changes.job.as_mut().filter(|job| job.slot.is_none()) else { return };
        let Some(slot) = machine.take() else { return };
        job.slot = Some(slot);
        match &mut job.step {
            Step::Read { bytes } => {
                let done = (bytes.len() / BLOCK) as u64;
                machine.submit(slot, Operation::Read, done, piece(DATA_FIRST - done));
            }
            Step::Zero { disk, done, piece } => {
                let next = disk.place(*done, ZERO_AT_ONCE.min(disk.blocks - *done));
                let Extent { first, count } = next.unwrap_or(Extent { first: 0, count: 0 });
                *piece = count;
                machine.submit(slot, Operation::Zero, first, count as u32);
            }
            Step::Write { first, bytes, done } => {
                let rest = &bytes[*done..];
                let count = piece((rest.len() / BLOCK) as u64);
                machine.write_buffer(slot, &rest[..count as usize * BLOCK]);
                machine.submit(slot, Operation::Write, *first + (*done / BLOCK) as u64, count);
            }
            Step::FlushRead { .. } | Step::FlushZeros | Step::FlushTable => {
                machine.submit(slot, Operation::Flush, 0, 0)
            }
        }
    }

    /// If the device has done a request of the change: goes on. `false` if it was not that.
    pub(crate) fn change_completed(&mut self, machine: &mut impl BlockDevice, slot: Slot, status: Status) -> bool {
        let Some(mut job) = self.changes.job.take_if(|job| job.slot == Some(slot)) else { return false };
        job.slot = None;
        if status != Status::Ok {
            machine.give_back(slot);
            self.change_failed(&job, status);
            return true;
        }
        match &mut job.step {
            Step::Read { bytes } => {
                let done = bytes.len();
                let count = piece(DATA_FIRST - (done / BLOCK) as u64) as usize;
                bytes.resize(done + count * BLOCK, 0);
                machine.read_buffer(slot, &mut bytes[done..]);
                machine.give_back(slot);
                if bytes.len() as u64 == DATA_FIRST * BLOCK as u64 {
                    job.step = Step::FlushRead { bytes: core::mem::take(bytes) };
                }
            }
            Step::FlushRead { .. } => {
                machine.give_back(slot);
                self.mounted(&job);
                return true;
            }
            Step::Zero { disk, done, piece } => {
                machine.give_back(slot);
                *done += *piece;
                if *done >= disk.blocks {
                    job.step = Step::FlushZeros;
                }
            }
            Step::FlushZeros => {
                machine.give_back(slot);
                job.step = self.changes.write(&job.table);
            }
            Step::Write { bytes, done, .. } => {
                machine.give_back(slot);
                *done += piece(((bytes.len() - *done) / BLOCK) as u64) as usize * BLOCK;
                if *done >= bytes.len() {
                    job.step = Step::FlushTable;
                }
            }
            Step::FlushTable => {
                machine.give_back(slot);
                self.changed(job);
                return true;
            }
        }
        self.changes.job = Some(job);
        true
    }

    /// All of the table was read, and is safe.
    fn mounted(&mut self, job: &Job<T>) {
        let (Goal::Mount(blocks), Step::FlushRead { bytes }) = (&job.goal, &job.step) else { return };
        match Store::read(bytes, *blocks) {
            Ok(Some(store)) => {
                let ((all, free), count) = (store.table.space(), store.table.len());
                self.changes.notes.push(format!("{count} disks, {free} of {all} blocks free"));
                self.changes.state = State::Open(store);
            }
            Ok(None) => {
                let store = Store::format(*blocks);
                let table = store.table.clone();
                self.changes.state = State::Open(store);
                let step = self.changes.write(&table);
                self.changes.begin(Goal::Format, table, step);
            }
            Err(refusal) => {
                self.changes.notes.push(format!("no virtual disks: {refusal}"));
                self.changes.state = State::Closed(refusal.to_string());
            }
        }
    }

    /// A table was written and is safe.
    fn changed(&mut self, job: Job<T>) {
        let blocks = job.table.space().0;
        if let State::Open(store) = &mut self.changes.state {
            store.settle(job.table);
        }
        match job.goal {
            Goal::Create(ticket) | Goal::Delete(ticket, _) => self.done.push((ticket, Response::Done)),
            Goal::Format => {
                self.changes.notes.push(format!("a new partition for virtual disks, with {blocks} blocks"));
            }
            Goal::Settle | Goal::Mount(_) => {}
        }
    }

    fn change_failed(&mut self, job: &Job<T>, status: Status) {
        if matches!(job.step, Step::Write { .. } | Step::FlushTable)
            && let State::Open(store) = &mut self.changes.state
        {
            store.unsettle();
        }
        match &job.goal {
            Goal::Mount(_) => {
                let what = if matches!(job.step, Step::FlushRead { .. }) { "made safe" } else { "read" };
                let why = format!("the table of disks cannot be {what}: {status}");
                self.changes.notes.push(format!("no virtual disks: {why}"));
                self.changes.state = State::Closed(why);
            }
            Goal::Format => {
                let why = format!("a new partition cannot be written: {status}");
                self.changes.notes.push(format!("no virtual disks: {why}"));
                self.changes.state = State::Closed(why);
            }
            Goal::Create(ticket) | Goal::Delete(ticket, _) => {
                self.complain(&format!("changing the table of disks: {status}"));
                self.done.push((*ticket, Response::Failed(status.to_string())));
            }
            Goal::Settle => {
                self.complain(&format!("writing the table of disks again: {status}"));
                // Who wanted it is told; the next one tries again.
                if let Some((ticket, _)) = self.changes.pending.pop_front() {
                    self.done.push((ticket, Response::Failed(status.to_string())));
                }
            }
        }
    }

    /// Whether an attachment can rely on the table.
    pub(crate) fn is_settled(&self) -> bool {
        self.changes.is_settled()
    }
}

/// Blocks of the next piece of so many.
fn piece(blocks: u64) -> u32 {
    blocks.min(u64::from(BUFFER_BLOCKS)) as u32
}
