//! The Ethernet switch between the VMs and the network.

use super::{Service, VmNumber, VmRef};
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// The switch service.
pub struct Switch;

/// What the loader asks of the switch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Request {
    /// Gives a VM a port. Frames that it sends must have this source MAC, and IPv4 and ARP this source address.
    Attach {
        /// The VM.
        vm: VmNumber,
        /// Where it is now.
        at: VmRef,
        /// Its MAC address.
        mac: [u8; 6],
        /// Its IPv4 address.
        address: [u8; 4],
        /// Address of its queue page: the beginning of its NIC window.
        queue: u64,
        /// Bytes of its NIC window.
        length: u64,
    },
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
