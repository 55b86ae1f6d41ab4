//! Templates and clones: a VM that said `ready` is kept as an image, and VMs that are made from it go on where it was ([`crate::template`]).

use super::{Creation, IMAGES, Pager, create::First, fault, images::ALL};
use crate::{
    decide::{self, Decision, Present},
    frames::{Frame, List, Usage},
    image::{self, Image},
    machine::{self, Machine},
    record::{Cause, MOVING, State, TOLD, Touch},
    space,
    template::{self, Known, OwnPage, PAGES_MAX, Plan, TOUCHED_MAX, Template, Touched},
};
use alloc::{boxed::Box, vec::Vec};
use protocol::{
    abi::Target,
    domain::{Control, SavedDomain},
    layout::PAGE,
    memory::{Access, MapOperation, PageState, SCAN_PAGES, Scan, TransferOperation},
    registers::KERNEL_PART,
    service::{VmNumber, VmRef, pager::Response},
};

/// Frames of a VM that are looked at: its pages, and as many again of tables and maps.
const LOOK: u32 = 2 * PAGES_MAX as u32;
/// Calls for looking at what a watched clone has read.
const SCANS_MAX: u32 = 16;
/// Most templates of which a clone is watched at a time.
const WATCHED_MAX: usize = 16;
/// Faults that a clone must have had before what it touched is what others will.
const FAULTS: u32 = 4;
/// Nanoseconds for which it must have waited then: a client that it serves does not take as long between two packets.
const QUIET: u64 = 5_000_000;
/// [`protocol::domain::Usage::state`]: it waits.
const WAITS: u64 = 2;

impl Pager<'_> {
    /// [`protocol::service::pager::Request::MakeTemplate`].
    pub(super) fn make_template(&mut self, machine: &mut impl Machine, vm: VmNumber) -> Response {
        let Some(place) = self.vms.find(vm) else { return Response::NotFound };
        let Some(found) = self.vms.get(place) else { return Response::NotFound };
        let (Some(at), State::Ready) = (found.at(), found.state()) else { return Response::BadArgument };
        let of_a_clone = self.image_of(found).is_none_or(|image| image.template.is_some());
        let whole = found.swapped == 0 && found.under_way == 0 && !found.is(MOVING);
        if of_a_clone || !whole || machine.control(at, Control::Hold, [0; 3]).is_err() {
            self.stop(place, Cause::Ready);
            return Response::NotWhole;
        }
        let mut frames = List::default();
        let kept = self.keep_as_image(machine, place, at, &mut frames);
        if kept.is_err() {
            self.frames.release(&mut frames, ALL);
        }
        // Its trap comes once more, and it says `ready` again.
        self.causes.remove(&place);
        if let Some(vm) = self.vms.get_mut(place) {
            vm.set(TOLD, false);
            vm.set_state(State::Running);
        }
        if machine.control(at, Control::Release, [0; 3]).is_err() {
            self.stop(place, fault::REFUSED);
        }
        match kept {
            Ok(number) => Response::Image(number),
            Err(refusal) => refusal,
        }
    }

    /// Makes a template of a held VM; its number.
    fn keep_as_image(
        &mut self,
        machine: &mut impl Machine,
        place: u32,
        at: VmRef,
        frames: &mut List,
    ) -> Result<u32, Response> {
        let (resident, more) = self.resident(place, None, LOOK);
        if more.is_some() || resident.incoming || resident.pages.len() > PAGES_MAX {
            return Err(Response::NotWhole);
        }
        if resident.pages.len() as u64 + 1 > self.available() {
            return Err(Response::OutOfMemory);
        }
        self.images.reserve().map_err(|_| Response::OutOfMemory)?;
        let number = self.images.next();
        let mut state = SavedDomain::ZERO;
        machine.save(at, &mut state).map_err(|_| Response::NotWhole)?;
        let mut registers = [0; KERNEL_PART];
        let page = self.frames.find(place, Usage::Page(0)).ok_or(Response::NotWhole)?;
        machine.read_frame(page, 0, &mut registers).map_err(|_| Response::NotWhole)?;
        let (base, pages) = self.vms.get(place).map(|vm| (vm.image, vm.pages)).ok_or(Response::NotFound)?;
        let own = self.copy_pages(machine, number, base, &resident.pages, frames)?;
        let image = self.images.get(base).ok_or(Response::NotFound)?;
        let parts = template::overlay(&image.parts, &own).ok_or(Response::NotWhole)?;
        let registers = template::fresh_registers(registers);
        let state = template::begun(state);
        let (begin, then, known) = (Plan::default(), Plan::default(), Known::Nothing);
        let mut template = Template { base, pages, state, record: 0, begin, then, known };
        let mut record = image::record(&parts);
        template.write(&registers, &mut record);
        template.record = self.record_image(machine, number, &record, frames)?;
        self.image_frames += u64::from(frames.len());
        let image = Image { parts, frames: core::mem::take(frames), users: 0, template: Some(Box::new(template)) };
        // Room was made above.
        let number = self.images.insert(image).map_err(|_| Response::OutOfMemory)?;
        if let Some(base) = self.images.get_mut(base) {
            base.users += 1;
        }
        Ok(number)
    }

    /// Copies what a VM has of its own into frames of image `number`: its pages but the register page, and without those that it would find as
    /// they are.
    fn copy_pages(
        &mut self,
        machine: &mut impl Machine,
        number: u32,
        base: u32,
        pages: &[(u32, Frame)],
        frames: &mut List,
    ) -> Result<Vec<(u32, Frame)>, Response> {
        let mut own = Vec::with_capacity(pages.len());
        for (page, from) in pages.iter().filter(|(page, _)| *page != 0) {
            machine.read_frame(*from, 0, &mut *self.page).map_err(|_| Response::NotWhole)?;
            let image = self.images.get(base).ok_or(Response::NotFound)?;
            if !template::needs_copy(image, *page, &self.page) {
                continue;
            }
            // Without a record there is no such image: a restarted pager takes them for nobody's.
            let usage = Usage::Image(*page);
            let frame = self.frames.take(frames, IMAGES + number, usage).ok_or(Response::OutOfMemory)?;
            machine.write_frame(frame, 0, &*self.page).map_err(|_| Response::OutOfMemory)?;
            own.push((*page, frame));
        }
        Ok(own)
    }

    /// [`protocol::service::pager::Request::Clone`].
    pub(super) fn make_clones(
        &mut self,
        machine: &mut impl Machine,
        lent: Target,
        number: u32,
        vms: &[VmNumber],
    ) -> Response {
        let template = self.images.get(number).and_then(|image| image.template.as_deref());
        let Some(Template { pages, state, .. }) = template else { return Response::NotFound };
        let (memory, windows) = (u64::from(*pages) * PAGE, state.windows.map(|[address, length]| (address, length)));
        let of = Creation { lent, lent_at: 0, vm: 0, image: number, memory, entry: 0, windows, start: true };
        let create = |(vm, lent_at)| Creation { lent_at, vm, ..of };
        let creations = vms.iter().copied().zip((0..).step_by(PAGE as usize)).map(create);
        let mut made = 0;
        for creation in creations {
            if self.create(machine, &creation).is_err() {
                break;
            }
            made += 1;
        }
        Response::Cloned(made)
    }

    /// The template that a VM is a clone of.
    pub(super) fn template_of(&self, place: u32) -> Option<&Template> {
        self.vms.get(place).and_then(|vm| self.image_of(vm))?.template.as_deref()
    }

    /// Adds to what a new VM begins with, if it is a clone: the kernel's part of its register page, and the pages that it is known to touch. Those only if
    /// memory is not short: else they come by faults.
    pub(super) fn warm(
        &mut self,
        machine: &mut impl Machine,
        place: u32,
        registers: Frame,
        first: &mut First,
    ) -> Result<(), Response> {
        let Some(record) = self.template_of(place).map(|template| template.record) else { return Ok(()) };
        let (from, length) = Template::registers_at();
        let copy = self.fill(Some(record), registers);
        first.copies.push(TransferOperation { from_address: copy.from_address + from, length, ..copy });
        if self.template_of(place).is_some_and(|template| matches!(template.known, Known::Watched(_))) {
            self.learn(machine);
        }
        let Some((number, image)) = self.vms.get(place).map(|vm| (vm.number, vm.image)) else { return Ok(()) };
        let can_watch = self.watched.len() < WATCHED_MAX;
        let Some(template) = self.template_mut(image) else { return Ok(()) };
        if template.known == Known::Nothing && can_watch {
            template.known = Known::Watched(number);
            self.watched.push(image);
            return Ok(());
        }
        let plan = core::mem::take(&mut template.begin);
        let done = self.add_planned(place, &plan, first);
        if let Some(template) = self.template_mut(image) {
            template.begin = plan;
        }
        done
    }

    /// A clone needs something for the first time since it was made: it gets all that clones are known to need then.
    pub(super) fn prefetch(&mut self, machine: &mut impl Machine, place: u32) {
        let Some((image, at)) = self.vms.get(place).and_then(|vm| Some((vm.image, vm.at()?))) else { return };
        let Some(template) = self.template_mut(image) else { return };
        let plan = core::mem::take(&mut template.then);
        let mut first = core::mem::take(&mut self.first);
        first.clear();
        let planned = self.add_planned(place, &plan, &mut first);
        if let Some(template) = self.template_mut(image) {
            template.then = plan;
        }
        let copied = machine::transfer_all(machine, &mut first.copies).is_ok();
        let filled = planned.is_ok() && copied && first.copies.iter().all(|copy| copy.status == 0);
        if !filled {
            // It gets them one by one.
            first.filled.iter().for_each(|frame| self.give(place, *frame));
            self.first = first;
            return;
        }
        // Those for which there is no table come by faults.
        self.add_maps(place, None, &mut first);
        first.filled.iter().for_each(|frame| self.frames.promote(*frame));
        if machine::map_all(machine, at, &mut first.operations).is_err() {
            self.stop(place, fault::REFUSED);
        }
        self.first = first;
    }

    fn template_mut(&mut self, image: u32) -> Option<&mut Template> {
        self.images.get_mut(image)?.template.as_deref_mut()
    }

    /// Adds what fills and maps pages. A clone that has needed nothing yet has none of them, and nothing is mapped there but what is said to be replaced. Nothing if
    /// memory is short.
    fn add_planned(&mut self, place: u32, plan: &Plan, first: &mut First) -> Result<(), Response> {
        if self.has_swap() && self.spare() < self.clock.low() + plan.own.len() as u32 {
            return Ok(());
        }
        first.maps.reserve(plan.shared.len() + plan.own.len() + 4);
        first.maps.extend_from_slice(&plan.shared);
        for OwnPage { page, from, access, replaces } in plan.own.iter().copied() {
            let frame = self.take(place, Usage::Filling(page)).ok_or(Response::OutOfMemory)?;
            first.copies.push(self.fill(from, frame));
            first.filled.push(frame);
            let map = self.map_page(page, frame, 1, access);
            if replaces {
                first.maps.push(fault::unmap(map));
            }
            first.maps.push(map);
        }
        Ok(())
    }

    /// What maps these pages for a clone; `before`: what it has then.
    fn plan_pages(&self, image: u32, touched: Touched, before: &Touched) -> Plan {
        let (mut shared, mut own) = (Vec::new(), Vec::new());
        for (page, write) in touched.iter().copied() {
            let found = self.images.get(image).and_then(|image| image.find(page));
            let touch = if write { Touch::Write } else { Touch::Read };
            match decide::decide(found, Present::No, touch) {
                Decision::Share { frame, access } => {
                    let map = self.map_page(page, frame.unwrap_or(self.zero), 1, access);
                    match shared.last_mut().filter(|before| follows(before, &map)) {
                        Some(before) => before.count += 1,
                        None => shared.push(map),
                    }
                }
                Decision::Fill { from, access } => {
                    own.push(OwnPage { page, from, access, replaces: before.contains(&(page, false)) });
                }
                Decision::Illegal | Decision::Back { .. } | Decision::Wait | Decision::Read => {}
            }
        }
        Plan { touched, shared, own }
    }

    /// If the clones that are watched wait now, what they have touched is what clones touch.
    pub(super) fn learn(&mut self, machine: &mut impl Machine) {
        for index in (0..self.watched.len()).rev() {
            if let Some(image) = self.watched.get(index).copied()
                && self.learn_of(machine, image)
            {
                self.watched.swap_remove(index);
            }
        }
    }

    /// Looks at the clone of this template that is watched; whether it need not be watched any more.
    fn learn_of(&mut self, machine: &mut impl Machine, image: u32) -> bool {
        let known = self.template_mut(image).map(|template| template.known);
        let (Some(Known::Watched(vm) | Known::Begin { vm, .. }), Some(known)) = (known, known) else { return true };
        let here = self.vms.find(vm).and_then(|place| Some((place, self.vms.get(place)?)));
        let there = here.and_then(|(place, vm)| Some((place, vm, vm.at()?)));
        let next = match there {
            Some((_, vm, _)) if vm.state() == State::Created => return false,
            Some((place, vm, at)) if vm.state() == State::Running && vm.swapped == 0 && !vm.is(MOVING) => {
                let (vm, faults) = (vm.number, vm.faults);
                // Not yet.
                if matches!(known, Known::Begin { faults: before, .. } if faults <= before + FAULTS) {
                    return false;
                }
                match (known, machine.usage(at)) {
                    (_, Ok(usage)) if usage.state != WAITS => return false,
                    (_, Err(_)) => None,
                    (Known::Begin { faults, seen: (switches, since), .. }, Ok(usage)) => {
                        let now = machine.now();
                        if usage.switches != switches {
                            let seen = (usage.switches, now);
                            if let Some(template) = self.template_mut(image) {
                                template.known = Known::Begin { vm, faults, seen };
                            }
                            return false;
                        }
                        if now.saturating_sub(since) < QUIET {
                            return false;
                        }
                        Some((Known::All, self.touched(machine, place, at)))
                    }
                    (_, Ok(_)) => {
                        let known = Known::Begin { vm, faults, seen: (u64::MAX, 0) };
                        Some((known, self.touched(machine, place, at)))
                    }
                }
            }
            // It is not what it was.
            _ => None,
        };
        let Some(template) = self.template_mut(image) else { return true };
        let begin = core::mem::take(&mut template.begin.touched);
        let (plan, known) = match next {
            Some((known, mut pages)) => {
                pages.retain(|page| !begin.contains(page));
                (Some(self.plan_pages(image, pages, &begin)), known)
            }
            // Another one will show it; if only the rest is missing it is as good as all.
            None => (None, if begin.is_empty() { Known::Nothing } else { Known::All }),
        };
        let Some(template) = self.template_mut(image) else { return true };
        template.begin.touched = begin;
        template.known = known;
        match plan {
            Some(plan) if known == Known::All => template.then = plan,
            Some(plan) => template.begin = plan,
            None => {}
        }
        matches!(known, Known::All | Known::Nothing)
    }

    /// The pages that a VM has written or read, in order, and whether it has written them.
    fn touched(&self, machine: &mut impl Machine, place: u32, at: VmRef) -> Touched {
        let (resident, _) = self.resident(place, None, LOOK);
        let mut pages: Touched = resident.pages.iter().map(|(page, _)| (*page, true)).collect();
        let total = self.vms.get(place).map_or(0, |vm| vm.pages);
        let mut states = [0; SCAN_PAGES];
        for scan in 0..SCANS_MAX {
            let first = scan * SCAN_PAGES as u32;
            let count = total.saturating_sub(first).min(SCAN_PAGES as u32);
            let Some(states) = states.get_mut(..count as usize).filter(|states| !states.is_empty()) else { break };
            if machine.scan(at, space::address(first), states, Scan::empty()).is_err() {
                break;
            }
            let read = PageState::PRESENT | PageState::ACCESSED;
            for (page, state) in (first..).zip(states.iter()) {
                let state = PageState::from_bits_truncate(*state);
                let is_own = resident.pages.binary_search_by_key(&page, |(page, _)| *page).is_ok();
                if state.contains(read) && !is_own {
                    pages.push((page, false));
                }
            }
        }
        // The register page is mapped in any case.
        pages.retain(|(page, _)| *page != 0);
        pages.sort_unstable();
        pages.truncate(TOUCHED_MAX);
        pages
    }
}

/// Whether an operation maps what lies directly behind another, so that one does for both.
fn follows(before: &MapOperation, next: &MapOperation) -> bool {
    let same = (before.kind, before.access, before.slot) == (next.kind, next.access, next.slot);
    let pages = u64::from(before.count);
    let behind = before.address + pages * protocol::layout::PAGE == next.address && before.frame + pages == next.frame;
    // A leaf table's pages only: what belongs to the next may lack its table.
    let leaf = before.address / space::LEAF_BYTES == next.address / space::LEAF_BYTES;
    same && behind && leaf && before.access & Access::WRITE.bits() == 0
}
