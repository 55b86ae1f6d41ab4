//! Copies between VMs, the switch and the packet memory of the network driver, and the pager that brings what is not in memory.

use protocol::service::{VmNumber, VmRef};

/// Where bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In a VM's NIC window.
    Vm {
        /// The VM.
        vm: VmNumber,
        /// Where it was when it was last heard of.
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

/// What the kernel says of a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was made.
    Done,
    /// A page that it comes from is not in memory.
    SourceMissing,
    /// A page that it goes to is not in memory, or cannot be written yet.
    DestinationMissing,
    /// One of the VMs is not where it was.
    Gone,
    /// It cannot be made.
    Failed,
}

/// What became of a copy in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It was made.
    Done,
    /// It could not be made, because of where it was to come from.
    SourceFailed,
    /// It could not be made, because of where it was to go.
    DestinationFailed,
    /// It cannot be made yet: what it comes from is not in memory.
    SourceAway,
    /// It cannot be made yet: where it goes is not in memory.
    DestinationAway,
}

/// A part of a VM's memory that has to be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Need {
    /// The VM.
    pub vm: VmNumber,
    /// First byte.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// Whether it has to be writable.
    pub write: bool,
}

/// What the pager says of a need.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// All of it is in memory, and the VM is there.
    Here(VmRef),
    /// Not yet; it will tell ([`crate::switch::Switch::brought`]), or cannot be asked now.
    Later,
    /// Never: there is no such VM or no such memory, or it is broken.
    Never,
}

/// Who makes the copies.
pub trait Memory {
    /// Makes copies, in order, in as few calls of the kernel as can be. A copy that cannot be made does not stop the others.
    /// Appends an outcome for each to `outcomes`.
    fn copy(&mut self, copies: &[Copy], outcomes: &mut alloc::vec::Vec<Outcome>);

    /// Asks the pager for a part of a VM's memory. Never waits.
    fn bring(&mut self, need: Need) -> Answer;

    /// The scratch memory.
    fn scratch(&mut self) -> &mut [u8];

    /// Raises the NIC line of the VM there. `false` if there is none.
    fn raise(&mut self, at: VmRef) -> bool;

    /// Nanoseconds since kernel entry.
    fn now(&mut self) -> u64;
}
