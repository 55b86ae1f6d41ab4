//! What the pager needs of the kernel: the seam behind which tests put a model of it.

use crate::frames::Frame;
use protocol::{
    abi::{Error, Target},
    domain::{Control, DomainParameters},
    layout::PAGE,
    memory::{MapOperation, TransferOperation},
    service::VmRef,
};

pub use hypercall::MapError;

/// The kernel's calls, as [`hypercall`] has them, on domains and frames of the pool.
pub trait Machine {
    /// Creates a domain, stopped, with its control block in `frame`.
    fn create(&mut self, frame: Frame, parameters: &DomainParameters) -> Result<VmRef, Error>;
    /// Performs a control operation.
    fn control(&mut self, vm: VmRef, control: Control, arguments: [u64; 3]) -> Result<(), Error>;
    /// Applies at most [`protocol::memory::BATCH`] operations.
    fn map(&mut self, vm: VmRef, operations: &[MapOperation]) -> Result<(), MapError>;
    /// Performs at most [`protocol::memory::BATCH`] transfers between frames, zeros and lent ranges; how many were looked at.
    fn transfer(&mut self, operations: &mut [TransferOperation]) -> Result<usize, Error>;
    /// Copies from `offset` of a lent range.
    fn read_lent(&mut self, lent: Target, offset: u64, into: &mut [u8]) -> Result<(), Error>;
    /// Fills a frame.
    fn write_frame(&mut self, frame: Frame, page: &[u8; PAGE as usize]) -> Result<(), Error>;
    /// Nanoseconds of processor time that a VM used.
    fn cpu_time(&mut self, vm: VmRef) -> u64;
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
