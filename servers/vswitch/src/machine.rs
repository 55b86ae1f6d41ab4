//! Copies by the kernel's `transfer`, and calls of the pager. The only `unsafe` of the switch.

use alloc::{boxed::Box, vec, vec::Vec};
use hypercall::transfer_all;
use protocol::{
    abi::{Error, Target},
    memory::{DESTINATION_MISSING, TransferOperation},
    service::{
        VmNumber, VmRef,
        pager::{Pager, Request, Response},
    },
};
use server_runtime::{CallError, Client, clock, hypercall, mmio::Region, pool::Pool};
use vswitch::{
    memory::{Answer, Copy, Memory, Need, Outcome, Place},
    switch::SCRATCH,
};

/// The machine.
pub struct Machine {
    scratch: Box<[u8]>,
    /// Packet memory shared with the driver.
    uplink: Option<Region>,
    /// The pool of VMs, with the right to their NIC windows and lines.
    vms: Pool,
    pager: Option<Client<Pager>>,
    operations: Vec<TransferOperation>,
}

impl Machine {
    /// For the VMs of the pool `vms`; `pager`: slot of the channel to their pager.
    pub fn new(vms: Pool, pager: Option<u8>, uplink: Option<Region>) -> Machine {
        let scratch = vec![0; SCRATCH].into_boxed_slice();
        Machine { scratch, uplink, vms, pager: pager.map(Client::new), operations: Vec::new() }
    }

    fn target(&self, vm: VmRef) -> Target {
        self.vms.target(vm)
    }

    /// The kernel's name for a place with `length` bytes.
    fn side(&mut self, place: Place, length: usize) -> (u64, u64) {
        match place {
            Place::Vm { at, address, .. } => (self.target(at).0, address),
            // Both panic if the switch has planned beyond its own memory.
            Place::Scratch(offset) => {
                (Target::OWN.0, self.scratch[offset..offset + length].as_mut_ptr().expose_provenance() as u64)
            }
            Place::Uplink(offset) => {
                let part =
                    self.uplink.expect("no packet is planned for an uplink that does not exist").part(offset, length);
                (Target::OWN.0, part.base().as_ptr().expose_provenance() as u64)
            }
        }
    }

    fn operation(&mut self, copy: &Copy) -> TransferOperation {
        let (from, from_address) = self.side(copy.from, copy.length);
        let (to, to_address) = self.side(copy.to, copy.length);
        TransferOperation { from, from_address, to, to_address, length: copy.length as u32, ..Default::default() }
    }

    /// The next VMs that the pager has brought; none when there is no more, or nobody to ask.
    pub fn brought(&mut self) -> Vec<VmNumber> {
        match self.pager.as_mut().map(|pager| pager.call(&Request::Brought)) {
            Some(Ok(Response::Brought(vms))) => vms,
            _ => Vec::new(),
        }
    }
}

/// Makes copies; returns how many were looked at.
fn make(operations: &mut [TransferOperation]) -> usize {
    // SAFETY: own memory in `operations` is the scratch memory, which is borrowed by nobody as `Memory::copy` has the only
    // reference to the machine, and shared packet memory, to which there never are references.
    unsafe { transfer_all(operations) }
}

/// What the kernel has said of a copy.
fn outcome(operation: &TransferOperation, copy: &Copy) -> Outcome {
    let nowhere = |place| matches!(place, Place::Vm { at: VmRef::NOWHERE, .. });
    match Error::from_u8(operation.status as u8) {
        None => Outcome::Done,
        Some(Error::NotPresent) if operation.done & DESTINATION_MISSING != 0 => Outcome::DestinationMissing,
        Some(Error::NotPresent) => Outcome::SourceMissing,
        Some(Error::Gone) => Outcome::Gone,
        // That frame is in nobody's extent.
        Some(Error::Denied) if nowhere(copy.from) || nowhere(copy.to) => Outcome::Gone,
        Some(_) => Outcome::Failed,
    }
}

impl Memory for Machine {
    fn copy(&mut self, copies: &[Copy], outcomes: &mut Vec<Outcome>) {
        let mut operations = core::mem::take(&mut self.operations);
        operations.clear();
        operations.extend(copies.iter().map(|copy| self.operation(copy)));
        let made = make(&mut operations);
        outcomes.extend(operations.iter().take(made).zip(copies).map(|(operation, copy)| outcome(operation, copy)));
        // A call was refused: nothing of the rest can be made.
        outcomes.extend(copies.iter().skip(made).map(|_| Outcome::Failed));
        self.operations = operations;
    }

    fn bring(&mut self, need: Need) -> Answer {
        let Some(pager) = &mut self.pager else {
            return Answer::Never;
        };
        let Need { vm, address, length, write } = need;
        match pager.call(&Request::Bring { vm, address, length, write }) {
            Ok(Response::Here(at)) => Answer::Here(at),
            // A pager that is being restarted is asked again when it is back.
            Ok(Response::Later) | Err(CallError::Restarted | CallError::Gone) => Answer::Later,
            _ => Answer::Never,
        }
    }

    fn scratch(&mut self) -> &mut [u8] {
        &mut self.scratch
    }

    fn raise(&mut self, at: VmRef) -> bool {
        at != VmRef::NOWHERE && hypercall::raise(self.target(at)).is_ok()
    }

    fn now(&mut self) -> u64 {
        clock::now()
    }
}
