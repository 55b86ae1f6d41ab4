//! What happened to VMs, taken in batches: faults are decided first, then all frames filled in one call of the kernel,
//! then each VM's pages mapped and the VM let go on. What takes a disk is begun, and goes on when the disk has answered.

use super::{CLIENTS, Pager, Response};
use crate::{
    decide::{self, Decision, Present},
    frames::{Frame, Usage},
    image::{Content, Found},
    machine::{self, Machine},
    record::{Cause, FRESH, MOVING, State, Touch, WANTED},
    space,
};
use alloc::vec::Vec;
use protocol::{
    domain::{Control, Event, EventKind},
    memory::{Access, MapKind, MapOperation, PageState, Scan, TransferOperation},
    service::{VmNumber, VmRef, place},
};

/// Most events taken at once.
pub const BATCH: usize = 64;
/// Most bytes of one `Bring`.
const BRING_MAX: u32 = 64 * 1024;
/// Most pages of a read-only part mapped for one fault: sharing them costs nothing, and the next pages are likely next.
const AROUND: u32 = 16;
/// Frames that serving one fault may take: a page and two page tables.
const FRAMES: u32 = 3;

pub(super) const REFUSED: Cause = Cause::Pager("the kernel refused to map a page");
const LOST: Cause = Cause::Pager("the pager lost track of it");

/// What is to be done for one VM.
#[derive(Debug)]
struct Plan {
    place: u32,
    vm: VmRef,
    /// End of its operations; they begin where the plan before ends.
    operations: usize,
    /// Its entry in the copies, and the frame that is filled by it.
    copy: Option<(usize, Frame)>,
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

/// What became of a touch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Served {
    /// What it takes is planned.
    Planned(Option<(usize, Frame)>),
    /// It is being read.
    Waits,
    /// There is no frame or slot for it now.
    Stalls,
}

impl Pager<'_> {
    /// Takes up to [`BATCH`] events of VMs. Those that may go on do; the others are kept for the loader, or wait.
    pub fn events(&mut self, machine: &mut impl Machine, events: &[Event]) {
        self.clock.unblock();
        // Before it faults for something else.
        self.learn(machine);
        let mut batch = core::mem::take(&mut self.batch);
        for event in events.iter().take(BATCH) {
            self.event(machine, &mut batch, event);
        }
        self.carry_out(machine, &mut batch);
        self.batch = batch;
    }

    fn event(&mut self, machine: &mut impl Machine, batch: &mut Batch, event: &Event) {
        let at = VmRef { frame: event.frame, generation: event.generation };
        let place = place(event.tag);
        // Events of VMs that were destroyed meanwhile are void.
        let here = |vm: &&mut crate::record::VmRecord| {
            vm.number == event.tag && vm.at() == Some(at) && vm.state() == State::Running
        };
        let Some(vm) = self.vms.get_mut(place).filter(here) else { return };
        let instruction = event.instruction;
        match EventKind::from_u32(event.kind) {
            Some(EventKind::PageFault) => {
                let touch = Touch::from_code(event.code);
                let bad = Cause::BadAccess { address: event.address, instruction, touch };
                vm.faults = vm.faults.wrapping_add(1);
                let Some(page) = vm.space().page(event.address) else { return self.stop(place, bad) };
                vm.set_fault(Some((page, touch)));
                self.attempt(machine, batch, place, Some((event.address, instruction)), bad);
            }
            Some(EventKind::Exception) => {
                self.stop(place, Cause::Exception { vector: event.code, error: event.value, instruction });
            }
            Some(EventKind::Exit) => self.stop(place, Cause::Exit(event.code)),
            Some(EventKind::Ready) => self.stop(place, Cause::Ready),
            // Doorbells go to the services' own queues.
            Some(EventKind::Doorbell) | None => {}
        }
    }

    /// Serves the page that a VM waits for. `idle`: address and instruction, to count those that take nothing to serve.
    fn attempt(
        &mut self,
        machine: &mut impl Machine,
        batch: &mut Batch,
        place: u32,
        idle: Option<(u64, u64)>,
        bad: Cause,
    ) {
        let Some(vm) = self.vms.get(place) else { return };
        let (Some((page, touch)), Some(at)) = (vm.fault(), vm.at()) else { return };
        let before = batch.operations.len();
        match self.serve(machine, batch, place, page, touch, bad) {
            Ok(Served::Planned(copy)) => {
                let served = batch.operations.len() > before;
                let Some(vm) = self.vms.get_mut(place) else { return };
                if served {
                    vm.made_progress();
                } else if let Some((address, instruction)) = idle
                    && vm.count_idle(address, instruction)
                {
                    return self.stop(place, Cause::Stuck { address, instruction });
                }
                batch.plans.push(Plan { place, vm: at, operations: batch.operations.len(), copy, resume: true });
            }
            Ok(Served::Waits) => {}
            Ok(Served::Stalls) => self.stall(place),
            Err(cause) => self.stop(place, cause),
        }
    }

    /// Tries once more to serve the page that a VM waits for.
    pub(super) fn retry_fault(&mut self, machine: &mut impl Machine, place: u32) {
        let mut batch = core::mem::take(&mut self.batch);
        self.attempt(machine, &mut batch, place, None, LOST);
        self.carry_out(machine, &mut batch);
        self.batch = batch;
    }

    /// What a VM has of a page.
    fn present(&self, machine: &mut impl Machine, place: u32, page: u32) -> Present {
        let reads = self.vms.get(place).is_some_and(|vm| vm.under_way > 0);
        if let Some(frame) = self.frames.find(place, Usage::Page(page)) {
            Present::Private(frame)
        } else if reads && self.frames.find(place, Usage::Incoming(page)).is_some() {
            Present::Coming
        } else if self.has_swap() && self.entry(machine, place, page).is_valid() {
            Present::Swapped
        } else {
            Present::No
        }
    }

    /// Decides for a page and plans what it takes; nothing is planned unless all of it is. `bad`: the cause if it is illegal.
    fn serve(
        &mut self,
        machine: &mut impl Machine,
        batch: &mut Batch,
        place: u32,
        page: u32,
        touch: Touch,
        bad: Cause,
    ) -> Result<Served, Cause> {
        if self.vms.get_mut(place).is_some_and(|vm| vm.set(FRESH, false)) {
            self.prefetch(machine, place);
        }
        let before = batch.operations.len();
        let served = self.plan(machine, batch, place, page, touch, bad);
        if !matches!(served, Ok(Served::Planned(_))) {
            // Tables that were planned are taken again when it is tried again.
            let planned: Vec<MapOperation> = batch.operations.drain(before..).collect();
            for operation in planned.iter().filter(|operation| operation.kind == MapKind::Table as u8) {
                self.give(place, operation.frame as Frame);
            }
        }
        served
    }

    fn plan(
        &mut self,
        machine: &mut impl Machine,
        batch: &mut Batch,
        place: u32,
        page: u32,
        touch: Touch,
        bad: Cause,
    ) -> Result<Served, Cause> {
        let present = self.present(machine, place, page);
        let vm = self.vms.get(place).ok_or(LOST)?;
        let at = vm.at().ok_or(LOST)?;
        let found = self.image_of(vm).and_then(|image| image.find(page));
        let decision = decide::decide(found, present, touch);
        let count = match (decision, found) {
            (Decision::Share { frame, .. }, Some(found)) => run(found, page, frame),
            _ => 1,
        };
        let kept = u32::from(vm.grace) >= FRAMES;
        let short = self.has_swap() && !kept && self.spare() < self.clock.floor() + FRAMES;
        match decision {
            Decision::Illegal => Err(bad),
            Decision::Wait => Ok(Served::Waits),
            Decision::Read if self.start_read(machine, place, page) => Ok(Served::Waits),
            Decision::Read => Ok(Served::Stalls),
            Decision::Back { frame, access } => {
                let mut state = [0];
                machine.scan(at, space::address(page), &mut state, Scan::empty()).map_err(|_| REFUSED)?;
                let state = PageState::from_bits_truncate(state[0]);
                let present = state.contains(PageState::PRESENT);
                if !present || state.contains(PageState::WRITABLE) != access.contains(Access::WRITE) {
                    if self.tables(place, page, &mut batch.operations).is_none() {
                        return Ok(Served::Stalls);
                    }
                    self.keep(frame);
                    let map = self.map_page(page, frame, 1, access);
                    if present {
                        // The shared page that it replaces is still mapped: a pager that died has not come to it.
                        batch.operations.push(unmap(map));
                    }
                    batch.operations.push(map);
                }
                Ok(Served::Planned(None))
            }
            Decision::Share { frame, access } => {
                let mut states = [0; AROUND as usize];
                let states = states.get_mut(..count as usize).ok_or(LOST)?;
                machine.scan(at, space::address(page), states, Scan::empty()).map_err(|_| REFUSED)?;
                let absent = states.iter().take_while(|state| *state & PageState::PRESENT.bits() == 0).count() as u32;
                if absent == 0 {
                    // It is there: the VM only has to look again.
                    return Ok(Served::Planned(None));
                }
                if short || self.tables(place, page, &mut batch.operations).is_none() {
                    return Ok(Served::Stalls);
                }
                let frame = frame.unwrap_or(self.zero);
                batch.operations.push(self.map_page(page, frame, absent, access));
                Ok(Served::Planned(None))
            }
            Decision::Fill { from, access } => {
                if short || self.tables(place, page, &mut batch.operations).is_none() {
                    return Ok(Served::Stalls);
                }
                let Some(frame) = self.take(place, Usage::Filling(page)) else { return Ok(Served::Stalls) };
                let map = self.map_page(page, frame, 1, access);
                if from.is_some() {
                    // A shared page may be mapped there; if none is, nothing happens.
                    batch.operations.push(unmap(map));
                }
                batch.operations.push(map);
                batch.copies.push(self.fill(from, frame));
                Ok(Served::Planned(Some((batch.copies.len() - 1, frame))))
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
            let copy = plan.copy.and_then(|(copy, frame)| Some((batch.copies.get(copy)?, frame)));
            let filled = copied && copy.is_none_or(|(copy, _)| copy.status == 0);
            if filled && let Some((_, frame)) = copy {
                self.frames.promote(frame);
            }
            let mapped = filled && machine::map_all(machine, plan.vm, operations).is_ok();
            if !mapped {
                self.stop(plan.place, REFUSED);
            } else if plan.resume {
                if let Some(vm) = self.vms.get_mut(plan.place) {
                    vm.set_fault(None);
                }
                if machine.control(plan.vm, Control::Resume, [0; 3]).is_err() {
                    self.stop(plan.place, Cause::Pager("the kernel refused to let it go on"));
                }
            }
        }
        batch.clear();
    }

    /// [`protocol::service::pager::Request::Bring`].
    pub(super) fn bring(
        &mut self,
        machine: &mut impl Machine,
        client: Option<u8>,
        vm: VmNumber,
        address: u64,
        length: u32,
        write: bool,
    ) -> Response {
        let Some(place) = self.vms.find(vm) else { return Response::NotFound };
        let Some(found) = self.vms.get(place) else { return Response::NotFound };
        let last = address.checked_add(u64::from(length.max(1)) - 1);
        let pages = found.space().page(address).zip(last.and_then(|last| found.space().page(last)));
        let Some((first, last)) = pages.filter(|_| length <= BRING_MAX) else { return Response::BadArgument };
        let state = found.state();
        match found.at() {
            _ if state == State::Stopped => return Response::NotFound,
            Some(at) if state != State::Suspended && !found.is(MOVING) => {
                let touch = if write { Touch::Write } else { Touch::Read };
                match self.bring_pages(machine, place, at, (first, last), touch) {
                    Ok(true) => return Response::Here(at),
                    Ok(false) => {}
                    Err(()) => return Response::BadArgument,
                }
            }
            _ => {
                if let Some(vm) = self.vms.get_mut(place) {
                    vm.set(WANTED, true);
                }
                self.want(place);
            }
        }
        let Some(client) = client.filter(|client| usize::from(*client) < CLIENTS) else { return Response::Later };
        if let Some(vm) = self.vms.get_mut(place) {
            vm.waiting |= 1 << client;
        }
        Response::Later
    }

    /// Brings pages of a VM that is in memory; whether all are there now. An error: it has no such pages.
    fn bring_pages(
        &mut self,
        machine: &mut impl Machine,
        place: u32,
        at: VmRef,
        (first, last): (u32, u32),
        touch: Touch,
    ) -> Result<bool, ()> {
        let mut batch = core::mem::take(&mut self.batch);
        let mut here = Ok(true);
        for page in first..=last {
            match self.serve(machine, &mut batch, place, page, touch, Cause::Ready) {
                Ok(Served::Planned(copy)) => {
                    let operations = batch.operations.len();
                    batch.plans.push(Plan { place, vm: at, operations, copy, resume: false });
                }
                Ok(Served::Waits) => here = here.map(|_| false),
                Ok(Served::Stalls) => {
                    self.stall(place);
                    here = here.map(|_| false);
                    break;
                }
                Err(_) => {
                    here = Err(());
                    break;
                }
            }
        }
        self.carry_out(machine, &mut batch);
        self.batch = batch;
        here
    }
}

/// The operation that unmaps what `map` maps.
pub(super) fn unmap(map: MapOperation) -> MapOperation {
    MapOperation { kind: MapKind::Unmap as u8, access: 0, frame: 0, ..map }
}

/// How many pages from `page` on can be shared by one operation: those of the same read-only part under the same page
/// table that lie in consecutive frames from `frame` on.
fn run(found: Found, page: u32, frame: Option<Frame>) -> u32 {
    let Some(frame) = frame.filter(|_| found.part.is_read_only()) else { return 1 };
    let next = |count: u32| {
        let content = found.part.data.get((found.index + count) as usize).copied();
        let consecutive = frame.checked_add(count).is_some_and(|frame| content == Some(Content::Stored(frame)));
        consecutive && space::leaf(page + count) == space::leaf(page)
    };
    (1..AROUND).find(|count| !next(*count)).unwrap_or(AROUND)
}
