//! The loader: VMs by name, for the operator.

use super::Service;
use alloc::{string::String, vec::Vec};
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// The loader's service.
pub struct Loader;

/// What is asked of the loader.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Request<'a> {
    /// VMs from number `from` on, as many as fit into an answer.
    List {
        /// First number.
        from: u64,
    },
    /// Creates and starts a VM of the manifest that is not running.
    Start(&'a str),
    /// Destroys a VM.
    Stop(&'a str),
    /// Starts VMs whose names begin so and that are not running, from number `from` on; as many as one answer has time for.
    StartAll {
        /// Beginning of the names.
        prefix: &'a str,
        /// First number.
        from: u64,
    },
    /// Destroys such VMs that are running, likewise.
    StopAll {
        /// Beginning of the names.
        prefix: &'a str,
        /// First number.
        from: u64,
    },
    /// Figures of memory and swap space.
    Memory,
}

/// A VM in a list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub struct VmInfo {
    /// Number.
    pub number: u64,
    /// Name.
    pub name: String,
    /// Image.
    pub image: String,
    /// IPv4 address.
    pub address: [u8; 4],
    /// KiB of memory it was given as its size.
    pub memory: u64,
    /// KiB it uses.
    pub used: u64,
    /// Nanoseconds of processor time.
    pub cpu_time: u64,
    /// `None` while it runs; else why it stopped.
    pub stopped: Option<String>,
}

/// Memory of all VMs. Sizes are in KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, Schema)]
pub struct MemoryInfo {
    /// The pool: all.
    pub total: u64,
    /// What new VMs and images can get of it.
    pub free: u64,
    /// Swap space: all; 0: there is none.
    pub swap_total: u64,
    /// What no VM has of it.
    pub swap_free: u64,
    /// VMs.
    pub vms: u64,
    /// Those of them that have left memory whole.
    pub suspended: u64,
    /// Those that wait for memory.
    pub waiting: u64,
    /// Pages read from swap space since boot.
    pub page_ins: u64,
    /// Pages written to swap space since boot.
    pub page_outs: u64,
}

/// What the loader answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Response {
    /// Done.
    Done,
    /// VMs, and the number to go on from if there are more.
    Vms(Vec<VmInfo>, Option<u64>),
    /// So many VMs were started or destroyed, so many could not be started, and the number to go on from if there may be more.
    Many {
        /// Started or destroyed.
        done: u64,
        /// Could not be started; the log says why.
        refused: u64,
        /// Where to go on.
        next: Option<u64>,
    },
    /// Figures of memory and swap space.
    Memory(MemoryInfo),
    /// No VM has this name.
    Unknown,
    /// It is running, or not running.
    WrongState,
    /// It could not be started.
    Failed(String),
}

impl Service for Loader {
    const NAME: &'static str = "loader";
    type Request<'a> = Request<'a>;
    type Response = Response;
}
