//! A VM as the pager knows it.

use crate::{frames::List, space::Space};
use alloc::{format, string::String, vec::Vec};
use protocol::service::{
    VmNumber, VmRef,
    pager::{ImageNumber, Stop},
};

/// Where a VM stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Created, not yet started.
    Created,
    /// Runs, or waits for a fault to be served.
    Running,
    /// Said `ready` and waits for `Start`.
    Ready,
    /// Ended or stopped for good.
    Stopped,
    /// Being destroyed; the kernel still has it.
    Dying,
    /// Gone from the kernel; its frames are being given back.
    Dead,
}

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
        /// Whether it wrote.
        write: bool,
        /// Whether it fetched an instruction.
        execute: bool,
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
}

impl From<Cause> for Stop {
    fn from(cause: Cause) -> Stop {
        match cause {
            Cause::Exit(code) => Stop::Exit(code),
            Cause::Ready => Stop::Ready,
            Cause::BadAccess { address, instruction, write, execute } => {
                Stop::BadAccess { address, instruction, write, execute }
            }
            Cause::Exception { vector, error, instruction } => Stop::Exception { vector, error, instruction },
            Cause::Stuck { address, instruction } => {
                Stop::Pager(format!("instruction {instruction:#x} keeps faulting at {address:#x}, which it may use"))
            }
            Cause::Pager(text) => Stop::Pager(String::from(text)),
        }
    }
}

/// A VM.
#[derive(Debug)]
pub struct Vm {
    /// Its name to the kernel and to clients.
    pub reference: VmRef,
    /// Its number.
    pub tag: VmNumber,
    /// First instruction.
    pub entry: u64,
    /// Image.
    pub image: ImageNumber,
    /// Memory.
    pub space: Space,
    /// State.
    pub state: State,
    /// Whether it waits in the queue of stops.
    pub queued: bool,
    /// Whether the loader was told of `stop`.
    pub told: bool,
    /// Why it stopped.
    pub stop: Option<Cause>,
    /// Its frames: private pages, page tables, control block.
    pub frames: List,
    /// Frames promised to it; it never has more.
    pub reserved: u32,
    /// A bit for each data page of its image: mapped shared.
    pub shared: Vec<u64>,
    /// Pages mapped shared.
    pub shared_count: u32,
    /// Faults served.
    pub faults: u64,
    /// Faults in a row that took nothing to serve, and where.
    pub idle_faults: IdleFaults,
}

/// Most faults in a row at one place that may take nothing to serve.
const IDLE_FAULTS_MAX: u8 = 16;

/// Counts faults on pages that are there and may be used so.
///
/// One such fault is in order: the page was brought meanwhile, or another processor remembered what was mapped before. But a VM
/// whose instruction is refused again and again would turn for ever, with the pager, and nobody would be told. (An
/// emulator does that: QEMU makes far calls and returns in ring 3 touch the stack as the kernel would, which SMAP forbids.)
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IdleFaults {
    /// Instruction and address, mixed.
    place: u32,
    count: u8,
}

impl IdleFaults {
    /// Counts one; whether that is too many.
    pub fn count(&mut self, address: u64, instruction: u64) -> bool {
        let mixed = address ^ instruction.rotate_left(32);
        let place = (mixed ^ mixed >> 32) as u32;
        self.count = if place == self.place { self.count.saturating_add(1) } else { 1 };
        self.place = place;
        self.count > IDLE_FAULTS_MAX
    }
}

impl Vm {
    /// Whether data page `bit` of the image is mapped shared.
    pub fn is_shared(&self, bit: u32) -> bool {
        self.shared.get(bit as usize / 64).is_some_and(|word| word >> (bit % 64) & 1 != 0)
    }

    /// Notes that data page `bit` of the image is now mapped shared, or not.
    pub fn set_shared(&mut self, bit: u32, shared: bool) {
        let was = self.is_shared(bit);
        if let Some(word) = self.shared.get_mut(bit as usize / 64) {
            *word = *word & !(1 << (bit % 64)) | u64::from(shared) << (bit % 64);
            self.shared_count = self.shared_count + u32::from(shared) - u32::from(was);
        }
    }

    /// Whether it is there for its clients.
    pub const fn is_live(&self) -> bool {
        !matches!(self.state, State::Dying | State::Dead)
    }
}

// A VM costs this, a bit for each data page of its image, and 20 bytes for each frame it has.
const _: () = assert!(size_of::<Vm>() <= 168);
