//! The machine: the block driver's ring, and copies by the kernel's `transfer`. The only `unsafe` of the server.

use alloc::{boxed::Box, vec, vec::Vec};
use block_client::{Channel, Disk};
use hypercall::transfer_all;
use protocol::{
    abi::{Error, Target},
    memory::TransferOperation,
    service::{
        VmNumber, VmRef,
        block_driver::{Operation, Status},
        pager::{self, Pager},
    },
};
use server_runtime::{CallError, Client, hypercall, pool::Pool};
use vdisk::machine::{BlockDevice, Brought, Copy, Fate, Guests, Place, SCRATCH, Slot};

/// The machine.
pub struct Kernel {
    /// The disk that the store is on.
    pub disk: Option<Disk<Channel>>,
    scratch: Box<[u8]>,
    /// The pool of VMs, with the right to their disk windows and lines.
    vms: Pool,
    pager: Option<Client<Pager>>,
    operations: Vec<TransferOperation>,
}

impl Kernel {
    /// For the VMs of the pool `vms`; `pager`: slot of the channel to their pager.
    pub fn new(vms: Pool, pager: Option<u8>) -> Kernel {
        let scratch = vec![0; SCRATCH].into_boxed_slice();
        Kernel { disk: None, scratch, vms, pager: pager.map(Client::new), operations: Vec::new() }
    }

    /// The next VMs that the pager has brought; empty if there is none, or no answer.
    pub fn brought(&mut self) -> Vec<VmNumber> {
        match self.pager.as_mut().map(|pager| pager.call(&pager::Request::Brought)) {
            Some(Ok(pager::Response::Brought(vms))) => vms,
            _ => Vec::new(),
        }
    }

    fn target(&self, vm: VmRef) -> Target {
        self.vms.target(vm)
    }

    /// The kernel's name for a place with `length` bytes. Panics if the server has planned beyond its own memory.
    fn side(&mut self, place: Place, length: usize) -> (u64, u64) {
        match place {
            Place::Vm { vm, address } => (self.target(vm).0, address),
            Place::Scratch(offset) => {
                (Target::OWN.0, self.scratch[offset..offset + length].as_mut_ptr().expose_provenance() as u64)
            }
            Place::Buffer(slot, offset) => {
                let disk = self.disk.as_ref().expect("a slot is one of a disk");
                let part = disk.buffer(slot.into()).part(offset, length);
                (Target::OWN.0, part.base().as_ptr().expose_provenance() as u64)
            }
        }
    }

    fn operation(&mut self, copy: &Copy) -> TransferOperation {
        let (from, from_address) = self.side(copy.from, copy.length);
        let (to, to_address) = self.side(copy.to, copy.length);
        TransferOperation { from, from_address, to, to_address, length: copy.length as u32, ..Default::default() }
    }
}

/// What a refusal by the kernel means for a VM that was here when its doorbell was collected, or that the pager said is here.
fn fate(status: u32) -> Fate {
    match u8::try_from(status).ok().and_then(Error::from_u8) {
        None if status == 0 => Fate::Done,
        // A VM that has left memory is nowhere: its frame is free, another's, or (`Denied`) none of the pool at all.
        Some(Error::NotPresent | Error::Gone | Error::Denied) => Fate::Missing,
        _ => Fate::Failed,
    }
}

/// Makes copies; returns how many were looked at.
fn make(operations: &mut [TransferOperation]) -> usize {
    // SAFETY: own memory in `operations` is the scratch memory, which is borrowed by nobody as `Guests::copy` has the only
    // reference to the machine, and memory shared with the driver, to which there never are references.
    unsafe { transfer_all(operations) }
}

impl Guests for Kernel {
    fn copy(&mut self, copies: &[Copy], fates: &mut Vec<Fate>) {
        let mut operations = core::mem::take(&mut self.operations);
        operations.clear();
        operations.extend(copies.iter().map(|copy| self.operation(copy)));
        let made = make(&mut operations);
        fates.extend(operations.iter().take(made).map(|operation| fate(operation.status)));
        // A call was refused: nothing of the rest can be made.
        fates.extend(copies.iter().skip(made).map(|_| Fate::Failed));
        self.operations = operations;
    }

    fn scratch(&mut self) -> &mut [u8] {
        &mut self.scratch
    }

    fn raise(&mut self, vm: VmRef) -> Fate {
        hypercall::raise(self.target(vm)).map_or_else(|error| fate(error as u32), |()| Fate::Done)
    }

    fn bring(&mut self, vm: VmNumber, address: u64, length: u32, write: bool) -> Brought {
        let Some(pager) = &mut self.pager else { return Brought::NotFound };
        match pager.call(&pager::Request::Bring { vm, address, length, write }) {
            Ok(pager::Response::Here(at)) => Brought::Here(at),
            Ok(pager::Response::Later) => Brought::Later,
            Ok(_) => Brought::NotFound,
            Err(_) => Brought::Unreachable,
        }
    }

    fn exists(&mut self, vm: VmNumber) -> bool {
        let Some(pager) = &mut self.pager else { return false };
        let mut answer = pager.call(&pager::Request::Usage(vm));
        if answer == Err(CallError::Restarted) {
            answer = pager.call(&pager::Request::Usage(vm));
        }
        answer != Ok(pager::Response::NotFound)
    }
}

impl BlockDevice for Kernel {
    fn slots(&self) -> usize {
        self.disk.as_ref().map_or(0, Disk::slots)
    }

    fn take(&mut self) -> Option<Slot> {
        self.disk.as_mut()?.take().map(|slot| slot as Slot)
    }

    fn give_back(&mut self, slot: Slot) {
        if let Some(disk) = &mut self.disk {
            disk.give(slot.into());
        }
    }

    fn submit(&mut self, slot: Slot, operation: Operation, block: u64, count: u32) {
        if let Some(disk) = &mut self.disk {
            disk.submit(slot.into(), operation, block, count);
        }
    }

    fn completed(&mut self) -> Option<(Slot, Status)> {
        self.disk.as_mut()?.poll().map(|(slot, status)| (slot as Slot, status))
    }

    fn read_buffer(&self, slot: Slot, bytes: &mut [u8]) {
        if let Some(disk) = &self.disk {
            disk.buffer(slot.into()).copy_out(0, bytes);
        }
    }

    fn write_buffer(&mut self, slot: Slot, bytes: &[u8]) {
        if let Some(disk) = &self.disk {
            disk.buffer(slot.into()).copy_in(0, bytes);
        }
    }
}
