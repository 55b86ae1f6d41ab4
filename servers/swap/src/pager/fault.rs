//! What happened to VMs, taken in batches: faults are decided first, then all frames filled in one call of the kernel,
//! then each VM's pages mapped and the VM let go on.

use super::{Pager, Response};
use crate::{
    decide::{Decision, Present, Touch, decide},
    frames::{Frame, Usage},
    image::{Content, Found},
    machine::{self, Machine},
    space,
    vm::{Cause, IdleFaults, Vm},
};
use alloc::vec::Vec;
use protocol::{
    domain::{Control, Event, EventKind},
    memory::{MapKind, MapOperation, TransferOperation},
    service::VmRef,
};

/// Most events taken at once.
pub const BATCH: usize = 64;
/// Most bytes of one `Bring`.
const BRING_MAX: u32 = 64 * 1024;
/// Most pages of a read-only part mapped for one fault: sharing them costs nothing, and the next pages are likely next.
const AROUND: u32 = 16;

/// What is to be done for one VM.
#[derive(Debug)]
struct Plan {
    vm: VmRef,
    /// End of its operations; they begin where the plan before ends.
    operations: usize,
    /// Its entry in the copies.
    copy: Option<usize>,
    /// Whether it waits to go on.
    resume: bool,
}

/// The lists of a batch, kept so that no fault allocates.
#[derive(Debug, Default)]
pub(super) struct Batch {
    plans: Vec<Plan>,
    operations: Vec<MapOperation>,
    copies: Vec<TransferOperation>,
}

impl Batch {
    pub(super) fn new() -> Batch {
        // For a page: two tables, the page it replaces, the page.
        let operations = Vec::with_capacity(BATCH * 4);
        Batch { plans: Vec::with_capacity(BATCH), operations, copies: Vec::with_capacity(BATCH) }
    }

    fn clear(&mut self) {
        self.plans.clear();
        self.operations.clear();
        self.copies.clear();
    }
}

impl Pager<'_> {
    /// Takes up to [`BATCH`] events of VMs. Those that may go on do; the others are kept for the loader.
    pub fn events(&mut self, machine: &mut impl Machine, events: &[Event]) {
        let mut batch = core::mem::take(&mut self.batch);
        for event in events.iter().take(BATCH) {
            self.event(&mut batch, event);
        }
        self.carry_out(machine, &mut batch);
        self.batch = batch;
    }

    fn event(&mut self, batch: &mut Batch, event: &Event) {
        let vm = VmRef { frame: event.frame, generation: event.generation as u16 };
        // Events of VMs that were destroyed meanwhile are void.
        let Some(number) = self.find(vm) else { return };
        let instruction = event.instruction;
        match EventKind::from_u32(event.kind) {
            Some(EventKind::PageFault) => {
                let touch = Touch::from_code(event.code);
                let bad = Cause::BadAccess {
                    address: event.address,
                    instruction,
                    write: touch == Touch::Write,
                    execute: touch == Touch::Execute,
                };
                let page = self.vms.get_mut(number).and_then(|vm| {
                    vm.faults += 1;
                    vm.space.page(event.address)
                });
                let before = batch.operations.len();
                let plan = |page| self.plan(batch, (vm, number), (page, touch), true, bad);
                let planned = page.map_or(Err(bad), plan).and_then(|()| {
                    let served = batch.operations.len() > before;
                    self.count_idle(number, served, event.address, instruction)
                });
                if let Err(cause) = planned {
                    if matches!(cause, Cause::Stuck { .. }) {
                        // It was to go on.
                        batch.plans.pop();
                    }
                    self.stop(vm, cause);
                }
            }
            Some(EventKind::Exception) => {
                self.stop(vm, Cause::Exception { vector: event.code, error: event.value, instruction });
            }
            Some(EventKind::Exit) => self.stop(vm, Cause::Exit(event.code)),
            Some(EventKind::Ready) => self.stop(vm, Cause::Ready),
            // Doorbells go to the services' own queues.
            Some(EventKind::Doorbell) | None => {}
        }
    }

    /// Counts a fault that took nothing to serve; an error when a VM makes no progress.
    fn count_idle(&mut self, number: u32, served: bool, address: u64, instruction: u64) -> Result<(), Cause> {
        let Some(vm) = self.vms.get_mut(number) else { return Ok(()) };
        if served {
            vm.idle_faults = IdleFaults::default();
        } else if vm.idle_faults.count(address, instruction) {
            return Err(Cause::Stuck { address, instruction });
        }
        Ok(())
    }

    /// Decides for a page and notes what it takes. `bad`: the cause if it is illegal.
    fn plan(
        &mut self,
        batch: &mut Batch,
        (vm, number): (VmRef, u32),
        (page, touch): (u32, Touch),
        resume: bool,
        bad: Cause,
    ) -> Result<(), Cause> {
        let (operations, copies) = (batch.operations.len(), batch.copies.len());
        match self.plan_page(batch, number, page, touch, bad) {
            Ok(copy) => {
                batch.plans.push(Plan { vm, operations: batch.operations.len(), copy, resume });
                Ok(())
            }
            Err(cause) => {
                batch.operations.truncate(operations);
                batch.copies.truncate(copies);
                Err(cause)
            }
        }
    }

    fn plan_page(
        &mut self,
        batch: &mut Batch,
        number: u32,
        page: u32,
        touch: Touch,
        bad: Cause,
    ) -> Result<Option<usize>, Cause> {
        const LOST: Cause = Cause::Pager("the pager lost track of it");
        const FULL: Cause = Cause::Pager("the pager ran out of frames");
        let vm = self.vms.get(number).ok_or(LOST)?;
        let found = self.images.get(vm.image).and_then(|image| image.find(page));
        let present = if self.frames.find(number, Usage::Page(page)).is_some() {
            Present::Private
        } else if found.and_then(|found| found.data()).is_some_and(|(_, bit)| vm.is_shared(bit)) {
            Present::Shared
        } else {
            Present::No
        };
        match decide(found, present, touch) {
            Decision::Illegal => Err(bad),
            Decision::Nothing => Ok(None),
            Decision::Share { frame, bit, access } => {
                let count = found.map_or(1, |found| run(vm, found, page, frame));
                self.tables(number, page, &mut batch.operations).ok_or(FULL)?;
                let frame = frame.unwrap_or(self.zero);
                batch.operations.push(self.map_page(page, frame, count, access));
                let vm = self.vms.get_mut(number).ok_or(LOST)?;
                (bit..bit + count).for_each(|bit| vm.set_shared(bit, true));
                Ok(None)
            }
            Decision::Fill { from, replaces, access } => {
                self.tables(number, page, &mut batch.operations).ok_or(FULL)?;
                let frame = self.take(number, Usage::Page(page)).ok_or(FULL)?;
                let map = self.map_page(page, frame, 1, access);
                if let Some(bit) = replaces {
                    batch.operations.push(MapOperation { kind: MapKind::Unmap as u8, access: 0, frame: 0, ..map });
                    self.vms.get_mut(number).ok_or(LOST)?.set_shared(bit, false);
                }
                batch.operations.push(map);
                batch.copies.push(self.fill(from, frame));
                Ok(Some(batch.copies.len() - 1))
            }
        }
    }

    /// Does what was planned.
    fn carry_out(&mut self, machine: &mut impl Machine, batch: &mut Batch) {
        let copied = machine::transfer_all(machine, &mut batch.copies).is_ok();
        let mut start = 0;
        for plan in &batch.plans {
            let operations = batch.operations.get_mut(start..plan.operations).unwrap_or_default();
            start = plan.operations;
            let copy = plan.copy.and_then(|copy| batch.copies.get(copy));
            let filled = copied && copy.is_none_or(|copy| copy.status == 0);
            let mapped = filled && machine::map_all(machine, plan.vm, operations).is_ok();
            if !mapped {
                self.stop(plan.vm, Cause::Pager("the kernel refused to map a page"));
            } else if plan.resume && machine.control(plan.vm, Control::Resume, [0; 3]).is_err() {
                self.stop(plan.vm, Cause::Pager("the kernel refused to let it go on"));
            }
        }
        batch.clear();
    }

    /// [`protocol::service::pager::Request::Bring`].
    pub(super) fn bring(
        &mut self,
        machine: &mut impl Machine,
        vm: VmRef,
        address: u64,
        length: u32,
        write: bool,
    ) -> Response {
        let Some(number) = self.find(vm) else { return Response::NotFound };
        let Some(found) = self.vms.get(number) else { return Response::NotFound };
        let last = address.checked_add(u64::from(length.max(1)) - 1);
        let pages = found.space.page(address).zip(last.and_then(|last| found.space.page(last)));
        let Some((first, last)) = pages.filter(|_| length <= BRING_MAX) else { return Response::BadArgument };
        let mut batch = core::mem::take(&mut self.batch);
        let touch = if write { Touch::Write } else { Touch::Read };
        let mut response = Response::Here(vm);
        for page in first..=last {
            if self.plan(&mut batch, (vm, number), (page, touch), false, Cause::Ready).is_err() {
                response = Response::BadArgument;
                break;
            }
        }
        self.carry_out(machine, &mut batch);
        self.batch = batch;
        if self.vms.get(number).is_some_and(|vm| matches!(vm.stop, Some(Cause::Pager(_)))) {
            return Response::OutOfMemory;
        }
        response
    }
}

/// How many pages from `page` on can be shared by one operation: those of the same read-only part under the same page
/// table that lie in consecutive frames from `frame` on and are not there yet.
fn run(vm: &Vm, found: Found, page: u32, frame: Option<Frame>) -> u32 {
    let Some(frame) = frame.filter(|_| found.part.is_read_only()) else { return 1 };
    let next = |count: u32| {
        let content = found.part.data.get((found.index + count) as usize).copied();
        let consecutive = frame.checked_add(count).is_some_and(|frame| content == Some(Content::Stored(frame)));
        let bit = found.part.first_bit + found.index + count;
        consecutive && !vm.is_shared(bit) && space::leaf(page + count) == space::leaf(page)
    };
    (1..AROUND).find(|count| !next(*count)).unwrap_or(AROUND)
}
