//! Copies by the kernel's `transfer`. The only `unsafe` of the switch.

use alloc::{boxed::Box, vec, vec::Vec};
use hypercall::transfer;
use protocol::{
    abi::{Error, Target},
    memory::{BATCH, DESTINATION_MISSING, TransferOperation},
    service::{
        VmRef,
        pager::{self, Pager},
    },
};
use server_runtime::{Client, hypercall, mmio::Region};
use vswitch::{
    memory::{Copy, Fate, Memory, Place},
    switch::SCRATCH,
};

/// Pages that one copy may have to be brought: two at each side, and each may be gone again once.
const ATTEMPTS: usize = 6;

/// The machine.
pub struct Machine {
    scratch: Box<[u8]>,
    /// Packet memory shared with the driver.
    uplink: Option<Region>,
    /// The pool of VMs, with the right to their NIC windows and lines.
    vms: u8,
    pager: Option<Client<Pager>>,
    operations: Vec<TransferOperation>,
}

impl Machine {
    /// The VMs of the pool in slot `vms`; `pager`: slot of the channel to their pager.
    pub fn new(vms: u8, pager: Option<u8>, uplink: Option<Region>) -> Machine {
        let scratch = vec![0; SCRATCH].into_boxed_slice();
        Machine { scratch, uplink, vms, pager: pager.map(Client::new), operations: Vec::new() }
    }

    fn target(&self, vm: VmRef) -> Target {
        Target::pool(self.vms, vm.frame, vm.generation)
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

    /// Has the pages of one side of a copy brought. `false` if they cannot be.
    fn bring(&mut self, place: Place, length: usize, write: bool) -> bool {
        let (Place::Vm { vm, at, address }, Some(pager)) = (place, &mut self.pager) else {
            return false;
        };
        let request = pager::Request::Bring { vm, address, length: length as u32, write };
        // It is where it was: nothing leaves memory.
        matches!(pager.call(&request), Ok(pager::Response::Here(here)) if here == at)
    }

    /// Repeats a copy that met a missing page, until all its pages are there.
    fn again(&mut self, copy: &Copy, mut operation: TransferOperation) -> Fate {
        for _ in 0..ATTEMPTS {
            let destination = operation.done & DESTINATION_MISSING != 0;
            let (side, failed) = match destination {
                true => (copy.to, Fate::DestinationFailed),
                false => (copy.from, Fate::SourceFailed),
            };
            let missing = operation.status == Error::NotPresent as u32;
            if !missing || !self.bring(side, copy.length, destination) {
                return failed;
            }
            operation = self.operation(copy);
            if make(core::slice::from_mut(&mut operation)) == 0 {
                return failed;
            }
            if operation.status == 0 {
                return Fate::Done;
            }
        }
        Fate::SourceFailed
    }
}

/// Makes copies; returns how many were looked at.
fn make(operations: &mut [TransferOperation]) -> usize {
    // SAFETY: own memory in `operations` is the scratch memory, which is borrowed by nobody as `Memory::copy` has the only
    // reference to the machine, and shared packet memory, to which there never are references.
    unsafe { transfer(operations) }.unwrap_or(0).min(operations.len())
}

impl Memory for Machine {
    fn copy(&mut self, copies: &[Copy], fates: &mut Vec<Fate>) {
        for copies in copies.chunks(BATCH) {
            let mut operations = core::mem::take(&mut self.operations);
            operations.clear();
            operations.extend(copies.iter().map(|copy| self.operation(copy)));
            let mut made = 0;
            while made < copies.len() {
                // The kernel stops early when it has copied much; it is called again with the rest.
                let count = make(&mut operations[made..]);
                let done = operations[made..made + count].iter().zip(&copies[made..]);
                for (operation, copy) in done {
                    fates.push(if operation.status == 0 { Fate::Done } else { self.again(copy, *operation) });
                }
                made += count;
                if count == 0 {
                    // The call itself was refused: nothing of the rest can be made.
                    fates.extend(copies[made..].iter().map(|_| Fate::SourceFailed));
                    break;
                }
            }
            self.operations = operations;
        }
    }

    fn scratch(&mut self) -> &mut [u8] {
        &mut self.scratch
    }

    fn raise(&mut self, vm: VmRef) {
        // A VM that is gone is told nothing.
        let _ = hypercall::raise(self.target(vm));
    }
}
