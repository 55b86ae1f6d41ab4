//! Copies between VMs, the switch and the packet memory of the network driver.

use protocol::service::{VmNumber, VmRef};

/// Where bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In a VM's NIC window.
    Vm {
        /// The VM.
        vm: VmNumber,
        /// Where it is.
        at: VmRef,
        /// Address in its memory.
        address: u64,
    },
    /// In the scratch memory of the switch, from this offset.
    Scratch(usize),
    /// In the packet memory shared with the driver, from this offset.
    Uplink(usize),
}

impl Place {
    /// The place `bytes` further on.
    #[must_use]
    pub fn after(self, bytes: usize) -> Place {
        match self {
            Place::Vm { vm, at, address } => Place::Vm { vm, at, address: address.wrapping_add(bytes as u64) },
            Place::Scratch(offset) => Place::Scratch(offset + bytes),
            Place::Uplink(offset) => Place::Uplink(offset + bytes),
        }
    }
}

/// One copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copy {
    /// From here.
    pub from: Place,
    /// To there.
    pub to: Place,
    /// Bytes; not 0.
    pub length: usize,
}

/// What became of a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It was made.
    Done,
    /// It could not be made, because of where it was to come from.
    SourceFailed,
    /// It could not be made, because of where it was to go.
    DestinationFailed,
}

/// Who makes the copies.
pub trait Memory {
    /// Makes copies, in order, as few calls of the kernel as can be; pages of VMs that are not in memory are brought. A
    /// failure does not stop the others. Appends a fate for each to `fates`.
    fn copy(&mut self, copies: &[Copy], fates: &mut alloc::vec::Vec<Fate>);

    /// The scratch memory.
    fn scratch(&mut self) -> &mut [u8];

    /// Raises a VM's NIC line.
    fn raise(&mut self, vm: VmRef);
}
