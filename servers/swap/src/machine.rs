//! What the pager needs of the kernel and of the disks: the seams behind which tests put models of them.

use crate::{frames::Frame, record::VmRecord};
use protocol::{
    abi::{Error, Target},
    domain::{Control, DomainParameters, SavedDomain, Usage},
    layout::PAGE,
    memory::{MapOperation, Scan, TransferOperation},
    service::{
        VmRef,
        block_driver::{Operation, Status},
    },
};

pub use hypercall::MapError;

/// The kernel's calls, as [`hypercall`] has them, on domains and frames of the pool.
pub trait Machine: Disks {
    /// Creates a domain, stopped, with its control block in `frame`.
    fn create(&mut self, frame: Frame, parameters: &DomainParameters) -> Result<VmRef, Error>;
    /// Performs a control operation.
    fn control(&mut self, vm: VmRef, control: Control, arguments: [u64; 3]) -> Result<(), Error>;
    /// Reads the state of a held domain.
    fn save(&mut self, vm: VmRef, state: &mut SavedDomain) -> Result<(), Error>;
    /// Gives a stopped domain a state.
    fn restore(&mut self, vm: VmRef, state: &SavedDomain) -> Result<(), Error>;
    /// Figures of a domain.
    fn usage(&mut self, vm: VmRef) -> Result<Usage, Error>;
    /// Looks at pages of a domain.
    fn scan(&mut self, vm: VmRef, address: u64, states: &mut [u8], action: Scan) -> Result<(), Error>;
    /// Applies at most [`protocol::memory::BATCH`] operations.
    fn map(&mut self, vm: VmRef, operations: &[MapOperation]) -> Result<(), MapError>;
    /// Performs at most [`protocol::memory::BATCH`] transfers between frames, zeros and lent ranges; how many were looked at.
    fn transfer(&mut self, operations: &mut [TransferOperation]) -> Result<usize, Error>;
    /// Copies from `offset` of a lent range.
    fn read_lent(&mut self, lent: Target, offset: u64, into: &mut [u8]) -> Result<(), Error>;
    /// Copies out of a frame, from `offset` on. What is asked lies within it.
    fn read_frame(&mut self, frame: Frame, offset: usize, into: &mut [u8]) -> Result<(), Error>;
    /// Copies into a frame, from `offset` on. What is given fits.
    fn write_frame(&mut self, frame: Frame, offset: usize, from: &[u8]) -> Result<(), Error>;
    /// Maps a frame of the pool for good as a part of the table of VMs: zeroed first if `fresh`, else as it is.
    fn map_records(&mut self, frame: Frame, fresh: bool) -> Option<&'static mut [VmRecord]>;
    /// Nanoseconds since kernel entry.
    fn now(&mut self) -> u64;
}

/// The swap disks: each with slots, a buffer for each, and requests under way. A disk serves requests in any order; what became of one
/// is told to [`crate::pager::Pager::completed`].
pub trait Disks {
    /// Takes a free slot of a disk.
    fn take_slot(&mut self, disk: u32) -> Option<u16>;
    /// Gives a slot back.
    fn give_slot(&mut self, disk: u32, slot: u16);
    /// Copies into the buffer of a slot that was taken.
    fn fill_buffer(&mut self, disk: u32, slot: u16, offset: usize, from: &[u8]);
    /// Copies out of the buffer of a slot that was taken.
    fn read_buffer(&mut self, disk: u32, slot: u16, offset: usize, into: &mut [u8]);
    /// Puts a request up, in a slot that was taken.
    fn submit(&mut self, disk: u32, slot: u16, operation: Operation, block: u64, count: u32);
}

/// What a completed request had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completed {
    /// Disk.
    pub disk: u32,
    /// Slot.
    pub slot: u16,
    /// What became of it.
    pub status: Status,
}

/// Applies all operations, going on where the kernel stopped to stay preemptible.
pub fn map_all(machine: &mut impl Machine, vm: VmRef, operations: &mut [MapOperation]) -> Result<(), Error> {
    let mut rest = operations;
    while !rest.is_empty() {
        let batch = rest.len().min(protocol::memory::BATCH);
        let done = match machine.map(vm, &rest[..batch]) {
            Ok(()) => batch,
            Err(MapError { error: Error::Again, operations, pages }) if operations > 0 || pages > 0 => {
                let done = operations.min(batch);
                if let Some(next) = rest.get_mut(done) {
                    next.count = next.count.saturating_sub(pages);
                    next.address += u64::from(pages) * PAGE;
                    next.frame += u64::from(pages);
                }
                done
            }
            Err(MapError { error, .. }) => return Err(error),
        };
        rest = &mut rest[done..];
    }
    Ok(())
}

/// Performs all transfers; each has its own status then.
pub fn transfer_all(machine: &mut impl Machine, operations: &mut [TransferOperation]) -> Result<(), Error> {
    let mut rest = operations;
    while !rest.is_empty() {
        let batch = rest.len().min(protocol::memory::BATCH);
        let done = machine.transfer(&mut rest[..batch])?.min(batch);
        if done == 0 {
            return Err(Error::Exhausted);
        }
        rest = &mut rest[done..];
    }
    Ok(())
}
