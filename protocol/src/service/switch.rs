//! The Ethernet switch between the VMs and the network.

use super::{Service, VmNumber, VmRef};
use alloc::vec::Vec;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// The switch service.
pub struct Switch;

/// A port for a VM. Frames that it sends must have this source MAC, and IPv4 and ARP this source address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub struct Attachment {
    /// The VM.
    pub vm: VmNumber,
    /// Where it is now; [`VmRef::NOWHERE`] if it has not run yet, or does not exist yet.
    pub at: VmRef,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its IPv4 address.
    pub address: [u8; 4],
    /// Address of its queue page: the beginning of its NIC window.
    pub queue: u64,
    /// Bytes of its NIC window.
    pub length: u64,
}

/// What the loader asks of the switch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Request {
    /// Gives VMs ports, as many as fit into a message. Answered `Attached`.
    Attach(Vec<Attachment>),
    /// Takes the port away.
    Detach(VmNumber),
    /// Whether it has a port. What the port counted stands in the VM's queue page ([`crate::nic::Indices`]).
    IsAttached(VmNumber),
}

/// What the switch answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Response {
    /// Done, or so it is.
    Done,
    /// No port for this VM.
    NotFound,
    /// What became of each port that was asked for, in order.
    Attached(Vec<Attached>),
}

/// What became of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Attached {
    /// The VM has it.
    Done,
    /// The MAC or IPv4 address has a port already.
    Clash,
    /// No room for another port.
    Full,
    /// The window is none that a VM can have.
    BadWindow,
}

impl Service for Switch {
    const NAME: &'static str = "switch";
    type Request<'a> = Request;
    type Response = Response;
}
