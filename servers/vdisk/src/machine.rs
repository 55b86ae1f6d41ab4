//! What the server needs of the machine.

use alloc::vec::Vec;
use protocol::service::{
    VmNumber, VmRef,
    block_driver::{Operation, Status},
};

/// Number of a slot: one request to the block device, and its buffer of 64 KiB.
pub type Slot = u16;

/// A block device with many requests under way. Positions count in blocks of the partition.
pub trait BlockDevice {
    /// Slots there are.
    fn slots(&self) -> usize;
    /// Takes a free slot.
    fn take(&mut self) -> Option<Slot>;
    /// Gives back a slot that is not under way.
    fn give_back(&mut self, slot: Slot);
    /// Puts a request up. The slot is under way until [`BlockDevice::completed`] names it; then it is taken still.
    fn submit(&mut self, slot: Slot, operation: Operation, block: u64, count: u32);
    /// The next request that is done.
    fn completed(&mut self) -> Option<(Slot, Status)>;
    /// Reads the buffer of a slot that is not under way.
    fn read_buffer(&self, slot: Slot, bytes: &mut [u8]);
    /// Writes it.
    fn write_buffer(&mut self, slot: Slot, bytes: &[u8]);
}

/// Where bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In a VM's disk window.
    Vm {
        /// The VM.
        vm: VmRef,
        /// Address in its memory.
        address: u64,
    },
    /// In the buffer of a slot, from this offset.
    Buffer(Slot, usize),
    /// In the server's scratch memory ([`Guests::scratch`]), from this offset.
    Scratch(usize),
}

/// One copy between a VM and the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copy {
    /// From here.
    pub from: Place,
    /// To there.
    pub to: Place,
    /// Bytes, 1 to 65,536.
    pub length: usize,
}

impl Copy {
    /// The VM's side: address, and whether it is written.
    pub fn vm_side(&self) -> Option<(u64, bool)> {
        match (self.from, self.to) {
            (Place::Vm { address, .. }, _) => Some((address, false)),
            (_, Place::Vm { address, .. }) => Some((address, true)),
            _ => None,
        }
    }

    /// The same copy, with the VM elsewhere.
    #[must_use]
    pub fn with_vm(self, at: VmRef) -> Copy {
        let moved = |place| match place {
            Place::Vm { address, .. } => Place::Vm { vm: at, address },
            place => place,
        };
        Copy { from: moved(self.from), to: moved(self.to), ..self }
    }
}

/// What became of a copy or of an interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It was made.
    Done,
    /// The VM's page, or the whole VM, is not in memory: to be brought by the pager.
    Missing,
    /// It cannot be made: the VM has no such memory.
    Failed,
}

/// What the pager says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Brought {
    /// It is in memory now.
    Here(VmRef),
    /// Not yet; the pager will tell ([`crate::serve::Server::brought`]).
    Later,
    /// The pager cannot be asked now, and will not tell: try again in a while.
    Unreachable,
    /// There is no such VM, or it has no such memory.
    NotFound,
}

/// The VMs.
pub trait Guests {
    /// Makes copies in order. A failure does not stop the others. Appends a fate for each to `fates`.
    fn copy(&mut self, copies: &[Copy], fates: &mut Vec<Fate>);
    /// Memory of the server that copies reach, of [`SCRATCH`] bytes.
    fn scratch(&mut self) -> &mut [u8];
    /// Raises a VM's disk line.
    fn raise(&mut self, vm: VmRef) -> Fate;
    /// Asks the pager for memory of a VM.
    fn bring(&mut self, vm: VmNumber, address: u64, length: u32, write: bool) -> Brought;
    /// Whether the pager knows a VM.
    fn exists(&mut self, vm: VmNumber) -> bool;
}

/// Bytes of scratch memory.
pub const SCRATCH: usize = crate::serve::SCRATCH;

/// Both.
pub trait Machine: BlockDevice + Guests {}
impl<M: BlockDevice + Guests> Machine for M {}
