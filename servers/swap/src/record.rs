//! The record of a VM, and the table of them.
//!
//! Records lie in frames of the pool, taken as places are used, so the table costs what is used of it and **survives this server**. A
//! record is the VM: what it says of `state` is what a restarted pager believes ([`crate::pager::recover`](crate::pager)), so `state` is written
//! last. The fields below the line are made anew then. A VM that has left memory is nothing but this record.

use crate::{frames::List, space::Space};
use alloc::{format, string::String, vec::Vec};
use protocol::{
    layout::PAGE,
    service::{VmNumber, VmRef, pager::Stop, place},
};

/// Where a VM stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// There is no VM at this place.
    Free = 0,
    /// Being created; nobody knows it yet.
    Creating = 1,
    /// Created, not yet started.
    Created = 2,
    /// Runs, or waits for a fault to be served, or is being suspended.
    Running = 3,
    /// Said `ready` and waits for `Start`.
    Ready = 4,
    /// Ended or stopped for good.
    Stopped = 5,
    /// Has left memory; what it was is in its region. It may be on its way back.
    Suspended = 6,
    /// Being destroyed; the kernel may still have it.
    Dying = 7,
}

/// How a page is to be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Touch {
    /// Read.
    Read,
    /// Written.
    Write,
    /// An instruction is fetched from it.
    Execute,
}

/// Flag: the loader was told why it stopped.
pub const TOLD: u8 = 1;
/// Flag: it stands in the queue of stops.
pub const QUEUED: u8 = 2;
/// Flag: it is being suspended or resumed.
pub const MOVING: u8 = 4;
/// Flag: somebody wants it in memory.
pub const WANTED: u8 = 8;
/// Flag: it stands in the gatekeeper's queue.
pub const AT_GATE: u8 = 16;
/// Flag: its fault stands in the queue of those that wait for a frame or a slot.
pub const STALLED: u8 = 32;
/// Flag: what it had in memory is still being given back.
pub const LEAVING: u8 = 64;

/// Flag: it is a clone that has needed nothing since it was made, and has what it began with.
pub const FRESH: u8 = 128;

/// A VM.
#[derive(Debug, Default)]
#[repr(C)]
pub struct VmRecord {
    /// Its number; its low bits are its place.
    pub number: VmNumber,
    /// First instruction.
    pub entry: u64,
    /// When it is to be woken, suspended as it is, in nanoseconds since kernel entry.
    pub wake: u64,
    /// Number of the write of its first segment, suspended as it is.
    pub counter: u64,
    /// Tag of that segment.
    pub tag: [u8; crate::crypt::TAG],
    /// Control block, while it is in memory; 0: nowhere.
    pub frame: u32,
    /// Image.
    pub image: u32,
    /// Pages of memory.
    pub pages: u32,
    /// First unit of its region + 1; 0: it has none.
    pub region: u32,
    /// Pages that are in its region only, but for those of its suspended piece.
    pub swapped: u32,
    /// Frames promised to it, if there is no swap space.
    pub promised: u32,
    /// Generation of the control block.
    pub generation: u32,
    /// Segments, suspended as it is.
    pub segments: u16,
    state: u8,
    /// Chunks of its last segment, suspended as it is.
    pub last: u8,
    /// Frames that it is to find free when it comes back, or has waited for one, in [`ROOM_UNIT`]s: the more, the oftener it had to leave in the middle of
    /// its work or to wait.
    pub room: u8,

    // -- made anew by a restarted pager --
    /// Free frames that are kept for it, for a while after it has come back.
    pub grace: u16,
    /// Its frames.
    pub frames: List,
    /// Its neighbours among those in memory (places + 1).
    pub ring: [u32; 2],
    /// Since when it is in memory, in ticks since kernel entry.
    pub since: u32,
    /// Times that it had been switched to when the clock last came by.
    pub seen: u32,
    /// The page that it waits for.
    pub fault_page: u32,
    /// Faults served.
    pub faults: u32,
    /// Instruction and address of its last fault that took nothing to serve, mixed.
    idle_place: u16,
    /// Reads and writes of its region that are under way.
    pub under_way: u16,
    /// Its virtual time when it came into memory, in ticks; what it has used since counts, and is little.
    pub came: u16,
    /// How it touched the page that it waits for, + 1; 0: it waits for none.
    pub fault: u8,
    /// Flags.
    pub flags: u8,
    /// Clients that wait for pages of it, a bit each.
    pub waiting: u8,
    idle_faults: u8,
    /// Writes of its region that failed in a row.
    pub failures: u8,
    /// Laps of the clock in which it did nothing.
    pub quiet: u8,
}

/// Frames of a unit of [`VmRecord::room`].
pub const ROOM_UNIT: u32 = 8;
/// Units of room that a VM is to find at the first time, and at most.
const ROOM_MIN: u8 = 2;
const ROOM_MAX: u8 = 128;
/// Most faults in a row at one place that may take nothing to serve.
const IDLE_FAULTS_MAX: u8 = 16;

impl VmRecord {
    /// Where it stands.
    pub const fn state(&self) -> State {
        match self.state {
            1 => State::Creating,
            2 => State::Created,
            3 => State::Running,
            4 => State::Ready,
            5 => State::Stopped,
            6 => State::Suspended,
            7 => State::Dying,
            _ => State::Free,
        }
    }

    /// Changes that. All that is written before is there before.
    pub fn set_state(&mut self, state: State) {
        core::sync::atomic::fence(core::sync::atomic::Ordering::Release);
        self.state = state as u8;
    }

    /// Where it is, if it is in memory.
    pub fn at(&self) -> Option<VmRef> {
        (self.frame != 0).then_some(VmRef { frame: self.frame, generation: self.generation })
    }

    /// Says where it is.
    pub fn set_at(&mut self, at: Option<VmRef>) {
        (self.frame, self.generation) = at.map_or((0, 0), |at| (at.frame, at.generation));
    }

    /// Its memory.
    pub const fn space(&self) -> Space {
        Space::of_pages(self.pages)
    }

    /// Whether it is there for its clients.
    pub fn is_live(&self) -> bool {
        !matches!(self.state(), State::Free | State::Creating | State::Dying)
    }

    /// Whether a flag is set.
    pub const fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sets or clears a flag; what it was.
    pub fn set(&mut self, flag: u8, on: bool) -> bool {
        let was = self.is(flag);
        self.flags = self.flags & !flag | if on { flag } else { 0 };
        was
    }

    /// The page that it waits for, and how it touched it.
    pub const fn fault(&self) -> Option<(u32, Touch)> {
        match self.fault {
            1 => Some((self.fault_page, Touch::Read)),
            2 => Some((self.fault_page, Touch::Write)),
            3 => Some((self.fault_page, Touch::Execute)),
            _ => None,
        }
    }

    /// Notes the page that it waits for.
    pub fn set_fault(&mut self, fault: Option<(u32, Touch)>) {
        (self.fault_page, self.fault) = match fault {
            None => (0, 0),
            Some((page, Touch::Read)) => (page, 1),
            Some((page, Touch::Write)) => (page, 2),
            Some((page, Touch::Execute)) => (page, 3),
        };
    }

    /// Counts a fault on a page that is there and may be used so; whether that is one too many.
    ///
    /// One such fault is in order: the page was brought meanwhile, or another processor remembered what was mapped before. But a VM
    /// whose instruction is refused again and again would turn for ever, with the pager, and nobody would be told. (An
    /// emulator does that: QEMU makes far calls and returns in ring 3 touch the stack as the kernel would, which SMAP forbids.)
    pub fn count_idle(&mut self, address: u64, instruction: u64) -> bool {
        let mixed = address ^ instruction.rotate_left(32);
        let mixed = mixed ^ mixed >> 32;
        let place = (mixed ^ mixed >> 16) as u16;
        self.idle_faults = if place == self.idle_place { self.idle_faults.saturating_add(1) } else { 1 };
        self.idle_place = place;
        self.idle_faults > IDLE_FAULTS_MAX
    }

    /// It had to leave in the middle of its work, or to wait for a frame.
    pub fn more_room(&mut self) {
        self.room = self.room.saturating_mul(4).clamp(ROOM_MIN, ROOM_MAX);
    }

    /// A fault took something to serve: the VM makes progress.
    pub fn made_progress(&mut self) {
        self.idle_faults = 0;
    }

    /// Forgets all that is made anew.
    pub fn forget(&mut self) {
        (self.frames, self.ring, self.since, self.seen, self.faults) = (List::default(), [0; 2], 0, 0, 0);
        (self.under_way, self.flags, self.waiting, self.failures, self.quiet) = (0, 0, 0, 0, 0);
        (self.idle_place, self.idle_faults, self.grace, self.came) = (0, 0, 0, 0);
        self.set_fault(None);
    }
}

// What a VM costs in this server, however little of it is in memory: this, and for each frame it has 28 bytes of the frame table.
const _: () = assert!(size_of::<VmRecord>() == 128);

/// Why a VM stopped: [`Stop`], without a heap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// [`Stop::Exit`].
    Exit(u32),
    /// [`Stop::Ready`].
    Ready,
    /// [`Stop::BadAccess`].
    BadAccess {
        /// Address.
        address: u64,
        /// Instruction pointer.
        instruction: u64,
        /// How.
        touch: Touch,
    },
    /// [`Stop::Exception`].
    Exception {
        /// Vector.
        vector: u32,
        /// Error code.
        error: u64,
        /// Instruction pointer.
        instruction: u64,
    },
    /// [`Stop::Pager`]: an instruction faults again and again on a page that it may use.
    Stuck {
        /// Address.
        address: u64,
        /// Instruction pointer.
        instruction: u64,
    },
    /// [`Stop::Pager`].
    Pager(&'static str),
    /// [`Stop::Pager`]: what it is, and what became of the read or write of its region.
    Swap(&'static str, protocol::service::block_driver::Status),
}

impl From<Cause> for Stop {
    fn from(cause: Cause) -> Stop {
        match cause {
            Cause::Exit(code) => Stop::Exit(code),
            Cause::Ready => Stop::Ready,
            Cause::BadAccess { address, instruction, touch } => {
                Stop::BadAccess { address, instruction, write: touch == Touch::Write, execute: touch == Touch::Execute }
            }
            Cause::Exception { vector, error, instruction } => Stop::Exception { vector, error, instruction },
            Cause::Stuck { address, instruction } => {
                Stop::Pager(format!("instruction {instruction:#x} keeps faulting at {address:#x}, which it may use"))
            }
            Cause::Pager(text) => Stop::Pager(String::from(text)),
            Cause::Swap(text, status) => Stop::Pager(format!("{text}: {status}")),
        }
    }
}

/// Records in a frame.
pub const PER_FRAME: u32 = (PAGE as usize / size_of::<VmRecord>()) as u32;

/// The table: records by place.
#[derive(Debug, Default)]
pub struct VmTable {
    parts: Vec<Option<&'static mut [VmRecord]>>,
}

impl VmTable {
    /// What is left of it when its server dies: parts by number.
    #[cfg(test)]
    pub fn abandon(self) -> impl Iterator<Item = (u32, &'static mut [VmRecord])> {
        (0..).zip(self.parts).filter_map(|(number, part)| Some((number, part?)))
    }

    /// The part of the table that a place is in.
    pub const fn part(place: u32) -> u32 {
        place / PER_FRAME
    }

    /// Whether a part is there.
    pub fn has(&self, part: u32) -> bool {
        self.parts.get(part as usize).is_some_and(Option::is_some)
    }

    /// Makes sure that [`VmTable::add`] of a part has room for it. `false`: no memory.
    pub fn reserve(&mut self, part: u32) -> bool {
        let missing = (part as usize + 1).saturating_sub(self.parts.len());
        self.parts.try_reserve(missing).is_ok()
    }

    /// Adds a part.
    pub fn add(&mut self, part: u32, records: &'static mut [VmRecord]) {
        while self.parts.len() <= part as usize {
            self.parts.push(None);
        }
        if let Some(place) = self.parts.get_mut(part as usize) {
            *place = Some(records);
        }
    }

    /// One more than the largest place that there is room for.
    pub fn end(&self) -> u32 {
        self.parts.len() as u32 * PER_FRAME
    }

    /// The record at a place.
    pub fn get(&self, place: u32) -> Option<&VmRecord> {
        self.parts.get((place / PER_FRAME) as usize)?.as_ref()?.get((place % PER_FRAME) as usize)
    }

    /// The record at a place, to change.
    pub fn get_mut(&mut self, place: u32) -> Option<&mut VmRecord> {
        self.parts.get_mut((place / PER_FRAME) as usize)?.as_mut()?.get_mut((place % PER_FRAME) as usize)
    }

    /// The place of a VM that is there for its clients.
    pub fn find(&self, number: VmNumber) -> Option<u32> {
        let place = place(number);
        self.get(place).is_some_and(|vm| vm.number == number && vm.is_live()).then_some(place)
    }
}
