//! The pager's calls of the kernel.

use crate::{disks::SwapDisks, memory};
use server_runtime::{
    clock,
    hypercall::{self, MapError},
    protocol::{
        abi::{Error, Target, TargetKind},
        domain::{Control, DomainParameters, SavedDomain, Usage},
        layout::PAGE,
        memory::{MapOperation, Scan, TransferOperation},
        service::{VmRef, block_driver::Operation},
    },
};
use swap::{
    frames::{Frame, Pool},
    machine::{self, Disks, Machine},
    record::VmRecord,
};

/// The kernel, with the pool, and the swap disks.
pub struct Kernel {
    pool: Pool,
    /// The disks.
    pub disks: SwapDisks,
}

impl Kernel {
    /// With this pool.
    pub const fn new(pool: Pool, disks: SwapDisks) -> Kernel {
        Kernel { pool, disks }
    }

    /// The pool.
    pub const fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Performs transfers between frames, zeros and lent ranges; the first error of any.
    pub fn transfer_whole(&mut self, operations: &mut [TransferOperation]) -> Result<(), Error> {
        machine::transfer_all(self, operations)?;
        operations.iter().try_for_each(status)
    }

    fn target(&self, vm: VmRef) -> Target {
        self.pool.target(vm)
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

/// Copies from `from` to own memory.
fn read(from: Target, address: u64, into: &mut [u8]) -> Result<(), Error> {
    let operation = TransferOperation {
        from: from.0,
        from_address: address,
        to: Target::OWN.0,
        to_address: into.as_mut_ptr().expose_provenance() as u64,
        length: u32::try_from(into.len()).map_err(|_| Error::TooLong)?,
        ..TransferOperation::default()
    };
    // SAFETY: the destination is `into`, borrowed mutably and not used until the call returns.
    unsafe { transfer_own(operation) }
}

impl Machine for Kernel {
    fn create(&mut self, frame: Frame, parameters: &DomainParameters) -> Result<VmRef, Error> {
        let target = hypercall::domain_create(self.pool.slot(frame), u64::from(frame), parameters)?;
        match target.kind() {
            Some(TargetKind::Pool { frame, generation, .. }) => Ok(VmRef { frame, generation }),
            _ => Err(Error::BadArgument),
        }
    }

    fn control(&mut self, vm: VmRef, control: Control, arguments: [u64; 3]) -> Result<(), Error> {
        hypercall::domain_control(self.target(vm), control, arguments)
    }

    fn save(&mut self, vm: VmRef, state: &mut SavedDomain) -> Result<(), Error> {
        hypercall::domain_save(self.target(vm), state)
    }

    fn restore(&mut self, vm: VmRef, state: &SavedDomain) -> Result<(), Error> {
        hypercall::domain_restore(self.target(vm), state)
    }

    fn usage(&mut self, vm: VmRef) -> Result<Usage, Error> {
        hypercall::domain_usage(self.target(vm))
    }

    fn scan(&mut self, vm: VmRef, address: u64, states: &mut [u8], action: Scan) -> Result<(), Error> {
        hypercall::scan(self.target(vm), address, states, action)
    }

    fn map(&mut self, vm: VmRef, operations: &[MapOperation]) -> Result<(), MapError> {
        // SAFETY: the target is a VM of the pool, never this program, whose memory is not in the pool.
        unsafe { hypercall::map(self.target(vm), operations) }
    }

    fn transfer(&mut self, operations: &mut [TransferOperation]) -> Result<usize, Error> {
        if operations.iter().any(|operation| operation.to == Target::OWN.0) {
            return Err(Error::BadArgument);
        }
        // SAFETY: no destination is own memory but frames of the pool, and the pager writes none of the frames of its own tables.
        unsafe { hypercall::transfer(operations) }
    }

    fn read_lent(&mut self, lent: Target, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        read(lent, offset, into)
    }

    fn read_frame(&mut self, frame: Frame, offset: usize, into: &mut [u8]) -> Result<(), Error> {
        read(Target::slot(self.pool.slot(frame)), u64::from(frame) * PAGE + offset as u64, into)
    }

    fn write_frame(&mut self, frame: Frame, offset: usize, from: &[u8]) -> Result<(), Error> {
        let operation = TransferOperation {
            from: Target::OWN.0,
            from_address: from.as_ptr().expose_provenance() as u64,
            to: Target::slot(self.pool.slot(frame)).0,
            to_address: u64::from(frame) * PAGE + offset as u64,
            length: u32::try_from(from.len()).map_err(|_| Error::TooLong)?,
            ..TransferOperation::default()
        };
        // SAFETY: the destination is a frame of the pool that the pager has taken, never one of its own tables.
        unsafe { transfer_own(operation) }
    }

    fn map_records(&mut self, frame: Frame, fresh: bool) -> Option<&'static mut [VmRecord]> {
        memory::records(self, frame, fresh).ok()
    }

    fn now(&mut self) -> u64 {
        clock::now()
    }
}

impl Disks for Kernel {
    fn take_slot(&mut self, disk: u32) -> Option<u16> {
        self.disks.take_slot(disk)
    }

    fn give_slot(&mut self, disk: u32, slot: u16) {
        self.disks.give_slot(disk, slot);
    }

    fn fill_buffer(&mut self, disk: u32, slot: u16, offset: usize, from: &[u8]) {
        self.disks.fill_buffer(disk, slot, offset, from);
    }

    fn read_buffer(&mut self, disk: u32, slot: u16, offset: usize, into: &mut [u8]) {
        self.disks.read_buffer(disk, slot, offset, into);
    }

    fn submit(&mut self, disk: u32, slot: u16, operation: Operation, block: u64, count: u32) {
        self.disks.submit(disk, slot, operation, block, count);
    }
}
