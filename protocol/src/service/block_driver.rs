//! A block driver: a ring in memory shared with each client, and a few requests.
//!
//! A driver serves the partitions of one disk. Each client (`swap`, `vdisk`) has one partition, named for it in the
//! driver's options of the system file, and one memory shared with the driver alone, called as [`shared_name`] says.
//! That memory begins with a [`RingPage`]; buffers of [`BUFFER`] bytes follow, one for each *slot*. A request is a slot:
//! its parameters are in [`RingPage::requests`], its data in the buffer of the same number. So there are as many
//! requests under way as there are slots, and nobody ever waits for room.
//!
//! * The client fills a free slot, writes its number at `submission[submitted % SLOTS]`, advances `submitted`, and raises
//!   the driver's line once for a batch.
//! * The driver carries requests out in any order, writes slot and [`Status`] at `completion[completed % SLOTS]`, advances
//!   `completed`, and raises the client's line once for a batch.
//!
//! Indices count up freely (wrapping at 2^32); each has one writer, each side keeps its own private copy and checks what it
//! reads. All numbers of blocks count from the beginning of the client's partition: no request reaches outside it.
//!
//! A write that was answered is in the device; [`Operation::Flush`] makes all writes *answered before it was submitted*
//! safe against power loss. Requests under way at the same time are in no order.
//!
//! When the *driver* was restarted ([`crate::domain::line::PEER_RESTARTED`]) the client opens again and submits anew what was
//! not answered. When the *client* was restarted, `Open` is answered only after all that its former self had under way is
//! over: nothing old can overtake the new.

use super::Service;
use alloc::{format, string::String};
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// Bytes of a block, the unit of all positions and lengths.
pub const BLOCK: usize = 4096;
/// Bytes of the buffer of a slot: the longest read or write.
pub const BUFFER: usize = 64 * 1024;
/// Blocks of a buffer.
pub const BUFFER_BLOCKS: u32 = (BUFFER / BLOCK) as u32;
/// Most slots.
pub const SLOTS: usize = 128;

/// Slots in shared memory of this many bytes.
pub const fn slots(bytes: usize) -> usize {
    let slots = bytes.saturating_sub(size_of::<RingPage>()) / BUFFER;
    if slots < SLOTS { slots } else { SLOTS }
}

/// Offset in the shared memory of the buffer of a slot.
pub const fn buffer(slot: usize) -> usize {
    size_of::<RingPage>() + slot * BUFFER
}

/// Name of the memory shared by a client and a driver.
pub fn shared_name(client: &str, driver: &str) -> String {
    format!("{client}-{driver}")
}

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Operation {
    /// Reads `count` blocks from `block` on into the buffer.
    Read = 0,
    /// Writes `count` blocks from the buffer to `block` on.
    Write = 1,
    /// Makes all writes answered so far safe against power loss. `block` and `count` are 0.
    Flush = 2,
    /// Makes `count` blocks from `block` on read as zeros; here `count` may be more than a buffer. The buffer's contents are undefined afterwards.
    Zero = 3,
}

impl Operation {
    /// The operation with this code, if there is one.
    pub const fn from_u32(code: u32) -> Option<Operation> {
        Some(match code {
            0 => Operation::Read,
            1 => Operation::Write,
            2 => Operation::Flush,
            3 => Operation::Zero,
            _ => return None,
        })
    }
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The device could not do it: what it holds there is undefined after a write.
    Failed = 1,
    /// Outside the partition.
    OutOfRange = 2,
    /// Not a request that makes sense.
    BadRequest = 3,
    /// The device did not answer in time and was reset: the request may have been carried out or not.
    TimedOut = 4,
    /// The device cannot be written.
    ReadOnly = 5,
}

impl Status {
    /// The status with this code; what is unknown is a failure.
    pub const fn from_u32(code: u32) -> Status {
        match code {
            0 => Status::Ok,
            2 => Status::OutOfRange,
            3 => Status::BadRequest,
            4 => Status::TimedOut,
            5 => Status::ReadOnly,
            _ => Status::Failed,
        }
    }
}

impl core::fmt::Display for Status {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Status::Ok => "done",
            Status::Failed => "input/output error",
            Status::OutOfRange => "outside the partition",
            Status::BadRequest => "bad request",
            Status::TimedOut => "the disk does not answer",
            Status::ReadOnly => "the disk cannot be written",
        })
    }
}

/// A request, in the place of its slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct SlotRequest {
    /// [`Operation`].
    pub operation: u32,
    /// Blocks.
    pub count: u32,
    /// First block, from the beginning of the partition.
    pub block: u64,
}

/// An answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Completion {
    /// The slot, free again.
    pub slot: u16,
    /// [`Status`].
    pub status: u16,
}

/// First page of the shared memory.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
pub struct RingPage {
    /// Client: requests put up.
    pub submitted: u32,
    /// Padding to a cache line of its own.
    pub reserved: [u32; 15],
    /// Driver: requests answered.
    pub completed: u32,
    /// Padding.
    pub reserved2: [u32; 15],
    /// Client: slots, in the order in which they were put up.
    pub submission: [u32; SLOTS],
    /// Driver: answers.
    pub completion: [Completion; SLOTS],
    /// Client: requests, by slot.
    pub requests: [SlotRequest; SLOTS],
}

const _: () = assert!(size_of::<RingPage>() == 4096 && size_of::<SlotRequest>() == 16 && size_of::<Completion>() == 4);

/// A kind of partition, by its GPT partition type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Partition {
    /// Swap regions: of no use after the machine was switched off.
    Swap,
    /// Virtual disks.
    Vdisk,
    /// For whoever measures: what is on it is worth nothing.
    Scratch,
}

impl Partition {
    /// All kinds.
    pub const ALL: [Partition; 3] = [Partition::Swap, Partition::Vdisk, Partition::Scratch];

    /// What the options of a driver and the builder call it.
    pub const fn name(self) -> &'static str {
        match self {
            Partition::Swap => "swap",
            Partition::Vdisk => "vdisk",
            Partition::Scratch => "scratch",
        }
    }

    /// The kind called so.
    pub fn named(name: &str) -> Option<Partition> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The GPT partition type, as the text form of a GUID.
    pub const fn guid(self) -> &'static str {
        match self {
            Partition::Swap => "d3a11001-5c7b-4f0e-9e57-64656e616c69",
            Partition::Vdisk => "d3a11002-5c7b-4f0e-9e57-64656e616c69",
            Partition::Scratch => "d3a11003-5c7b-4f0e-9e57-64656e616c69",
        }
    }
}

/// The service of every block driver.
pub struct BlockDriver;

/// What a client asks of a block driver.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Request {
    /// Begins: the ring is empty and both sides count from zero. Answered once nothing of the client is under way any more.
    Open,
    /// What the device counts.
    Statistics,
}

/// What a block driver answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Response {
    /// Opened.
    Opened {
        /// Blocks of the partition.
        blocks: u64,
        /// The partition's own GUID: tells it from any other.
        partition: [u8; 16],
        /// Whether it cannot be written.
        read_only: bool,
    },
    /// Counters since the driver started.
    Statistics {
        /// Requests answered.
        requests: u64,
        /// Blocks read.
        read: u64,
        /// Blocks written.
        written: u64,
        /// Requests that failed.
        failed: u64,
        /// Times that the device was reset because it did not answer.
        resets: u64,
    },
    /// There is no device, or it does not work.
    NoDevice,
    /// The disk has no partition table, or a damaged one, or no partition of the kind that this client is to have.
    NoPartition,
    /// The system file gives this client no partition of this disk, or no memory shared with it.
    Denied,
}

impl Service for BlockDriver {
    const NAME: &'static str = "block-driver";
    type Request<'a> = Request;
    type Response = Response;
}
