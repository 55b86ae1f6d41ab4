//! The server of virtual disks: named, of a fixed size, kept on the `vdisk` partition.

use super::{Service, VmNumber, VmRef};
use alloc::{string::String, vec::Vec};
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// Longest name of a disk, in bytes.
pub const NAME_MAX: usize = 63;

/// The service of virtual disks.
pub struct Vdisk;

/// A disk that a VM is to have.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub struct Wanted {
    /// Name.
    pub name: String,
    /// Without the right to write: any number of VMs may have it so, and nobody else may write it meanwhile.
    pub read_only: bool,
}

/// A disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub struct DiskInfo {
    /// Name.
    pub name: String,
    /// Blocks of 4 KiB.
    pub blocks: u64,
    /// VMs that have it.
    pub users: u32,
    /// Whether one of them may write it.
    pub written: bool,
}

/// What is asked of the server. Attaching and detaching is for the loader; creating and deleting for the supervisor and the loader.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Request {
    /// Gives a VM its disks, numbered in this order, at most [`crate::disk::DISKS`].
    Attach {
        /// The VM.
        vm: VmNumber,
        /// Where it is now.
        at: VmRef,
        /// Address of its queue page: the beginning of its disk window.
        queue: u64,
        /// Bytes of its disk window.
        length: u64,
        /// The disks.
        disks: Vec<Wanted>,
    },
    /// The VM is no more: what it has under way is carried out, its disks are free then.
    Detach(VmNumber),
    /// Whether a VM is attached; asked by the loader after a restart.
    IsAttached(VmNumber),
    /// Makes a disk that reads as zeros. Answered when it is there for good.
    Create {
        /// Name, 1 to [`NAME_MAX`] bytes: letters, digits, `-`, `_`, `.`.
        name: String,
        /// Blocks of 4 KiB.
        blocks: u64,
    },
    /// Deletes a disk that no VM has.
    Delete(String),
    /// One disk.
    Find(String),
    /// Disks, as many as fit into an answer, from position `from` on (0 at first).
    List {
        /// Position.
        from: u32,
    },
    /// Room on the partition.
    Space,
}

/// What the server answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Response {
    /// Done.
    Done,
    /// A disk.
    Disk(DiskInfo),
    /// Disks, and the position to go on from if there are more.
    Disks(Vec<DiskInfo>, Option<u32>),
    /// Blocks of the partition that disks can have: all, free.
    Space(u64, u64),
    /// No such disk or VM.
    NotFound,
    /// There is a disk of this name already.
    Exists,
    /// A VM has the disk, in a way that excludes this.
    InUse,
    /// No room for a disk of this size, or for another disk.
    Full,
    /// The name or the size makes no sense, or there are too many disks.
    BadArgument,
    /// There is no disk drive, no partition for virtual disks, or none that can be used; and why.
    NoStore(String),
    /// The drive could not do it.
    Failed(String),
    /// The request is not allowed to this client.
    Denied,
}

impl Service for Vdisk {
    const NAME: &'static str = "vdisk";
    type Request<'a> = Request;
    type Response = Response;
}
