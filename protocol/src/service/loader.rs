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
    /// Figures of the pool of memory.
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

/// What the loader answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Response {
    /// Done.
    Done,
    /// VMs, and the number to go on from if there are more.
    Vms(Vec<VmInfo>, Option<u64>),
    /// Memory of the pool in KiB: all, free.
    Memory(u64, u64),
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
