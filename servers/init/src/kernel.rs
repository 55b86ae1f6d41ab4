//! The kernel, as [`Machine`] wants it, and the bundle as bytes.

use core::fmt::Arguments;
use hypercall::MapError;
use init::machine::{Capability, Machine};
use protocol::{
    abi::{Error, Target},
    boot::{BootInfo, slot},
    capability::{Narrow, Rights},
    domain::{Control, DomainParameters, Event, TRAP_QUEUE, Usage},
    memory::{Access, BATCH, MapOperation, TRANSFER_BYTES, TransferOperation},
};
use server_runtime::{clock, hypercall, log, memory, slots};

/// Transfers that one call carries out whole: it copies at most 256 KiB.
const AT_ONCE: usize = 4;
const _: () = assert!(AT_ONCE <= BATCH);

/// The system calls.
pub struct Kernel {
    /// An empty slot for capabilities used once.
    scratch: Option<u8>,
}

impl Kernel {
    /// The kernel that this program runs on.
    pub fn new() -> Kernel {
        Kernel { scratch: slots::alloc() }
    }
}

impl Machine for Kernel {
    fn create(&mut self, slot: u8, frame: u64, parameters: &DomainParameters) -> Result<Target, Error> {
        hypercall::domain_create(slot, frame, parameters)
    }

    fn control(&mut self, domain: Target, control: Control, arguments: [u64; 3]) -> Result<(), Error> {
        hypercall::domain_control(domain, control, arguments)
    }

    fn map(&mut self, domain: Target, operations: &[MapOperation]) -> Result<(), MapError> {
        if domain == Target::OWN {
            return Err(MapError { error: Error::BadArgument, operations: 0, pages: 0 });
        }
        // SAFETY: this is not our own address space, as just checked.
        unsafe { hypercall::map(domain, operations) }
    }

    fn copy(&mut self, bytes: &[u8], slot: u8, physical: u64) -> Result<(), Error> {
        let address = bytes.as_ptr().expose_provenance() as u64;
        transfer(Target::OWN, address, slot, physical, bytes.len() as u64)
    }

    fn zero(&mut self, slot: u8, physical: u64, length: u64) -> Result<(), Error> {
        transfer(Target::ZERO, 0, slot, physical, length)
    }

    fn grant(&mut self, domain: Target, slot: u8, from: Capability, narrow: Option<&Narrow>) -> Result<(), Error> {
        match from {
            Capability::Slot(own) => hypercall::capability_copy(domain, slot, own, narrow),
            Capability::Domain(other) => hypercall::capability_for_domain(domain, slot, other, narrow),
        }
    }

    fn raise(&mut self, domain: Target, line: u8) -> Result<(), Error> {
        let scratch = self.scratch.ok_or(Error::Exhausted)?;
        let narrow = Narrow { rights: Rights::RAISE.bits(), line, ..Narrow::default() };
        hypercall::capability_for_domain(Target::OWN, scratch, domain, Some(&narrow))?;
        let raised = hypercall::raise(Target::slot(scratch));
        hypercall::capability_delete(scratch)?;
        raised
    }

    fn usage(&self, domain: Target) -> Result<Usage, Error> {
        hypercall::domain_usage(domain)
    }

    fn collect(&mut self, events: &mut [Event]) -> Result<usize, Error> {
        hypercall::collect(TRAP_QUEUE, events)
    }

    fn now(&self) -> u64 {
        clock::now()
    }

    fn log(&mut self, line: Arguments) {
        log!("{line}");
    }
}

/// Copies `length` bytes to a physical address in the extent in `slot`, in as many calls as it takes.
fn transfer(from: Target, mut source: u64, slot: u8, mut physical: u64, mut length: u64) -> Result<(), Error> {
    while length > 0 {
        let mut operations = [TransferOperation::default(); AT_ONCE];
        let mut used = 0;
        while used < AT_ONCE && length > 0 {
            let part = length.min(u64::from(TRANSFER_BYTES));
            operations[used] = TransferOperation {
                from: from.0,
                from_address: source,
                to: Target::slot(slot).0,
                to_address: physical,
                length: part as u32,
                ..TransferOperation::default()
            };
            used += 1;
            (physical, length) = (physical + part, length - part);
            if from != Target::ZERO {
                source += part;
            }
        }
        let mut left = &mut operations[..used];
        while !left.is_empty() {
            // SAFETY: the destination is memory of an extent that is not ours to run in: nothing of it is mapped here.
            let done = unsafe { hypercall::transfer(left) }?;
            let (looked_at, rest) = left.split_at_mut_checked(done.max(1)).ok_or(Error::BadArgument)?;
            for operation in looked_at {
                if operation.status != 0 {
                    return Err(Error::from_u8(operation.status as u8).unwrap_or(Error::BadArgument));
                }
            }
            left = rest;
        }
    }
    Ok(())
}

/// Maps the bundle read-only, for good.
pub fn map_bundle(boot: &BootInfo) -> Result<&'static [u8], Error> {
    let base = memory::map_extent(slot::BUNDLE, boot.bundle.first, boot.bundle.count, Access::empty())?;
    let length = usize::try_from(boot.bundle_length).map_err(|_| Error::BadArgument)?;
    if length as u64 > boot.bundle.count * protocol::layout::PAGE {
        return Err(Error::BadArgument);
    }
    // SAFETY: the pages were mapped just now and are never unmapped; nobody holds a writable mapping of the bundle.
    Ok(unsafe { core::slice::from_raw_parts(base.as_ptr(), length) })
}
