//! The pager's calls of the kernel.

use server_runtime::{
    hypercall::{self, MapError},
    protocol::{
        abi::{Error, Target, TargetKind},
        domain::{Control, DomainParameters},
        layout::PAGE,
        memory::{MapOperation, TransferOperation},
        service::VmRef,
    },
};
use swap::{
    frames::Frame,
    machine::{self, Machine},
};

/// The kernel, with the pool in a slot.
#[derive(Debug)]
pub struct Kernel {
    /// Slot of the pool.
    pub slot: u8,
}

impl Kernel {
    /// Performs transfers between frames, zeros and lent ranges; the first error of any.
    pub fn transfer_whole(&mut self, operations: &mut [TransferOperation]) -> Result<(), Error> {
        machine::transfer_all(self, operations)?;
        operations.iter().try_for_each(status)
    }

    const fn target(&self, vm: VmRef) -> Target {
        Target::pool(self.slot, vm.frame, vm.generation)
    }
}

/// The error of a transfer that the kernel looked at.
fn status(operation: &TransferOperation) -> Result<(), Error> {
    match u8::try_from(operation.status) {
        Ok(0) => Ok(()),
        Ok(code) => Err(Error::from_u8(code).unwrap_or(Error::BadArgument)),
        Err(_) => Err(Error::BadArgument),
    }
}

/// Performs one transfer from or to own memory. It is at most a page: one call does it.
///
/// # Safety
/// As [`hypercall::transfer`].
unsafe fn transfer_own(operation: TransferOperation) -> Result<(), Error> {
    let mut operations = [operation];
    // SAFETY: passed on to the caller.
    let looked_at = unsafe { hypercall::transfer(&mut operations) }?;
    if looked_at == 1 { status(&operations[0]) } else { Err(Error::Exhausted) }
}

impl Machine for Kernel {
    fn create(&mut self, frame: Frame, parameters: &DomainParameters) -> Result<VmRef, Error> {
        let target = hypercall::domain_create(self.slot, u64::from(frame), parameters)?;
        match target.kind() {
            Some(TargetKind::Pool { frame, generation, .. }) => Ok(VmRef { frame, generation }),
            _ => Err(Error::BadArgument),
        }
    }

    fn control(&mut self, vm: VmRef, control: Control, arguments: [u64; 3]) -> Result<(), Error> {
        hypercall::domain_control(self.target(vm), control, arguments)
    }

    fn map(&mut self, vm: VmRef, operations: &[MapOperation]) -> Result<(), MapError> {
        // SAFETY: the target is a VM of the pool, never this program, whose memory is not in the pool.
        unsafe { hypercall::map(self.target(vm), operations) }
    }

    fn transfer(&mut self, operations: &mut [TransferOperation]) -> Result<usize, Error> {
        if operations.iter().any(|operation| operation.to == Target::OWN.0) {
            return Err(Error::BadArgument);
        }
        // SAFETY: no destination is own memory but frames of the pool, and the pager writes none of the frames of its own table.
        unsafe { hypercall::transfer(operations) }
    }

    fn read_lent(&mut self, lent: Target, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        let operation = TransferOperation {
            from: lent.0,
            from_address: offset,
            to: Target::OWN.0,
            to_address: into.as_mut_ptr().expose_provenance() as u64,
            length: u32::try_from(into.len()).map_err(|_| Error::TooLong)?,
            ..TransferOperation::default()
        };
        // SAFETY: the destination is `into`, borrowed mutably and not used until the call returns.
        unsafe { transfer_own(operation) }
    }

    fn write_frame(&mut self, frame: Frame, page: &[u8; PAGE as usize]) -> Result<(), Error> {
        let operation = TransferOperation {
            from: Target::OWN.0,
            from_address: page.as_ptr().expose_provenance() as u64,
            to: Target::slot(self.slot).0,
            to_address: u64::from(frame) * PAGE,
            length: PAGE as u32,
            ..TransferOperation::default()
        };
        // SAFETY: the destination is a frame of the pool that the pager has just taken, never one of its own table.
        unsafe { transfer_own(operation) }
    }

    fn cpu_time(&mut self, vm: VmRef) -> u64 {
        hypercall::domain_usage(self.target(vm)).map_or(0, |usage| usage.cpu_time)
    }
}
