//! The disks of a VM: one queue page and buffers, all in the VM's own memory.
//!
//! The queue page is the first page of the disk window; buffers lie anywhere in the window. A VM has up to
//! [`DISKS`] disks, numbered from 0; the virtual register page says how long each is and whether it can be written.
//!
//! * The VM fills `requests[submitted % ENTRIES]`, advances `submitted`, rings the doorbell (once for a batch). It uses an
//!   entry again only when the request in it was answered; so no request is more than [`ENTRIES`] ahead of one that was not.
//! * The disk server carries requests out in any order, writes `completions[completed % COMPLETION_ENTRIES]`, advances `completed`
//!   and raises line [`crate::domain::line::DISK`].
//!
//! A write that was answered with [`Status::Ok`] is read back by every later read. [`Kind::Flush`] makes all writes of
//! the disk *answered before it was submitted* safe against power loss. Requests under way at the same time are in no order.
//!
//! The server reads entries once, checks the copy and trusts none of it; a VM that writes nonsense loses its own requests.
//!
//! After a restart of the disk server, requests that were not answered are carried out again: a write may be carried out twice. The
//! server finds them in the rings: the last answers tell which of the last [`ENTRIES`] requests were answered.

/// Entries of the ring of requests.
pub const ENTRIES: usize = 32;
/// Entries of the ring of answers: so many that the answer to none of the last [`ENTRIES`] requests is ever overwritten. (After a request
/// was answered, at most the 31 before it and the 31 behind it are, before its entry can be used again.)
pub const COMPLETION_ENTRIES: usize = 64;
/// Bytes of a block, the unit of all positions and lengths.
pub const BLOCK: usize = 4096;
/// Most blocks of one request.
pub const BLOCKS_MAX: u32 = 16;
/// Most disks of a VM.
pub const DISKS: usize = 4;

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    /// Reads `count` blocks from `block` on to `address`.
    Read = 0,
    /// Writes `count` blocks from `address` to `block` on.
    Write = 1,
    /// Makes all writes answered so far safe against power loss. `block`, `count` and `address` are 0.
    Flush = 2,
}

impl Kind {
    /// The kind with this code, if there is one.
    pub const fn from_u32(code: u32) -> Option<Kind> {
        Some(match code {
            0 => Kind::Read,
            1 => Kind::Write,
            2 => Kind::Flush,
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
    /// The disk could not do it; what it holds there after a write is undefined.
    Failed = 1,
    /// Beyond the end of the disk.
    OutOfRange = 2,
    /// The disk cannot be written.
    ReadOnly = 3,
    /// Not a request that makes sense: unknown kind, no or too many blocks, a buffer outside the window or not 8-aligned.
    BadRequest = 4,
    /// The VM has no such disk.
    NoDisk = 5,
}

impl Status {
    /// The status with this code; what is unknown is a failure.
    pub const fn from_u32(code: u32) -> Status {
        match code {
            0 => Status::Ok,
            2 => Status::OutOfRange,
            3 => Status::ReadOnly,
            4 => Status::BadRequest,
            5 => Status::NoDisk,
            _ => Status::Failed,
        }
    }
}

/// A request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Request {
    /// [`Kind`].
    pub kind: u32,
    /// Disk, 0 to 3.
    pub disk: u32,
    /// First block.
    pub block: u64,
    /// Address of the buffer, within the window, a multiple of 8.
    pub address: u64,
    /// Blocks, 1 to [`BLOCKS_MAX`].
    pub count: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// An answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Completion {
    /// The request's index, as it was counted by `submitted`.
    pub index: u32,
    /// [`Status`].
    pub status: u32,
}

/// First 64 bytes of the queue page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Indices {
    /// VM: requests put up.
    pub submitted: u32,
    /// Unused by the VM.
    pub reserved: [u32; 7],
    /// Server: requests answered.
    pub completed: u32,
    /// Unused by the server.
    pub reserved2: [u32; 7],
}

/// The queue page.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
pub struct QueuePage {
    /// Indices.
    pub indices: Indices,
    /// Requests.
    pub requests: [Request; ENTRIES],
    /// Answers.
    pub completions: [Completion; COMPLETION_ENTRIES],
}

impl QueuePage {
    /// Empty queues.
    pub const EMPTY: QueuePage = QueuePage {
        indices: Indices { submitted: 0, reserved: [0; 7], completed: 0, reserved2: [0; 7] },
        requests: [Request { kind: 0, disk: 0, block: 0, address: 0, count: 0, reserved: 0 }; ENTRIES],
        completions: [Completion { index: 0, status: 0 }; COMPLETION_ENTRIES],
    };
}

/// Offset in the queue page of the index that the server writes.
pub const COMPLETED: usize = core::mem::offset_of!(Indices, completed);
/// Offset of the ring of requests.
pub const REQUESTS: usize = core::mem::offset_of!(QueuePage, requests);
/// Offset of the ring of answers.
pub const COMPLETIONS: usize = core::mem::offset_of!(QueuePage, completions);

const _: () = assert!(size_of::<QueuePage>() == 4096 && size_of::<Indices>() == 64);
const _: () = assert!(size_of::<Request>() == 32 && size_of::<Completion>() == 8);
const _: () = assert!(COMPLETED == 32 && REQUESTS == 64 && COMPLETIONS == 64 + 32 * ENTRIES);
