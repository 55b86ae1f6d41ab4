//! A whole VM leaves memory: its pages, its page tables, its control block. What it was lies in its region then, in one piece
//! ([`crate::suspended`]), and in the 128 bytes of its record.
//!
//! 1. The VM is held. If it has more pages in memory than the piece has room for, the others are written to their own places in its region, like
//!    pages of any VM ([`super::writing`]).
//! 2. Its state is read, and its pages are taken out of its page tables, so that nobody changes them any more: a server that wants to finds them missing
//!    and asks for the VM.
//! 3. The piece is written, segment by segment, the first one last.
//! 4. If nobody has asked for the VM meanwhile, or others are before it, its record says that it is suspended. Only then is anything given up. Else, or if a write failed, it is
//!    released as it was; its pages are all there.

use super::{
    Pager,
    pages::{self, Resident},
    underway::{Job, Leave, Move, Way},
};
use crate::{
    crypt::Place,
    decide,
    frames::{Frame, Usage},
    machine::Machine,
    map::Entry,
    record::{FRESH, LEAVING, MOVING, State, WANTED},
    region::{self, UNIT_BLOCKS},
    space,
    suspended::{self, CHUNK, Header, SEGMENT_CHUNKS},
};
use alloc::{boxed::Box, collections::VecDeque, vec, vec::Vec};
use protocol::{
    domain::{Control, SavedDomain},
    memory::{PageState, Scan},
    service::{
        VmRef,
        block_driver::{Operation, Status},
    },
};

/// VMs on their way at once.
pub(super) const MOVES_MAX: usize = 64;
/// Frames of a VM that leaves whole. One with more (8 MiB) loses pages until it has no more than these.
const LOOK: u32 = 2048;
/// Laps after which a VM whose suspension failed is tried again.
const FAILURES_MAX: u8 = 3;

/// Whether a suspension has begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Begun {
    /// It has, and will free so many frames.
    Yes(u32),
    /// There is no slot for it now.
    Blocked,
    /// This VM cannot be suspended as it is.
    No,
}

impl Pager<'_> {
    /// Begins to suspend a VM that idles; by `force` also one that runs or waits for a page: it will stand at the gate at once.
    pub(super) fn suspend(&mut self, machine: &mut impl Machine, place: u32, force: bool) -> Begun {
        let Some(vm) = self.vms.get(place) else { return Begun::No };
        let (Some(at), frames) = (vm.at(), vm.frames.len()) else { return Begun::No };
        if !self.can_leave(place) || vm.under_way > 0 || (vm.waiting != 0 && !force) {
            return Begun::No;
        }
        self.end_grace(place);
        let (resident, _) = self.resident(place, None, LOOK);
        let busy = resident.incoming || resident.pages.iter().any(|(_, frame)| self.frames.is_busy(*frame));
        if busy || resident.maps.len() > suspended::MAPS_MAX as usize {
            return Begun::No;
        }
        if self.underway.moves() >= MOVES_MAX
            || !self.segment_place(place, 0).is_some_and(|(disk, _)| has_slot(machine, disk))
        {
            return Begun::Blocked;
        }
        if machine.control(at, Control::Hold, [0; 3]).is_err() {
            return Begun::No;
        }
        let mut state = Box::new(SavedDomain::ZERO);
        // With something pending it would come back at once.
        let saved = machine.save(at, &mut state).is_ok();
        if !saved || !(force || (state.pending == 0 && state.state == 2)) {
            let _ = machine.control(at, Control::Release, [0; 3]);
            return Begun::No;
        }
        let before = self.not_in_the_piece(machine, place, at, resident);
        if let Some(vm) = self.vms.get_mut(place) {
            vm.set(MOVING, true);
            vm.set(WANTED | FRESH, false);
            // What it waits for it asks for again when it is back.
            vm.set_fault(None);
        }
        let leave = Leave {
            force,
            state,
            frames,
            before,
            next: 0,
            pages: Vec::new(),
            maps: Vec::new(),
            segments: 0,
            left: 0,
            writing: 0,
            counter: 0,
            tags: Vec::new(),
            failed: None,
        };
        self.underway.freeing += frames;
        self.go_out(machine, place, leave);
        Begun::Yes(frames)
    }

    /// The pages of a held VM for which there is no room in the piece. Those that stay in it were used since the clock last came by; if those are too
    /// many, those of them that the VM has had for the longest time: what is old and still in use is more likely to be used again.
    fn not_in_the_piece(
        &self,
        machine: &mut impl Machine,
        place: u32,
        at: VmRef,
        resident: Resident,
    ) -> Vec<(u32, Frame)> {
        if resident.pages.len() <= suspended::PAGES_MAX as usize {
            return Vec::new();
        }
        let states = pages::states(machine, at, &resident.pages, Scan::empty());
        let used = |page: u32| {
            let index = resident.pages.binary_search_by_key(&page, |(page, _)| *page).ok();
            index.and_then(|index| states.get(index)).is_some_and(|state| state & PageState::ACCESSED.bits() != 0)
        };
        // Its frames are listed from the one that it got last to the first.
        let mut stays = VecDeque::with_capacity(suspended::PAGES_MAX as usize + 1);
        let mut next = self.vms.get(place).and_then(|vm| self.frames.first_of(&vm.frames));
        for _ in 0..LOOK {
            let Some(frame) = next else { break };
            if let Some(Usage::Page(page)) = self.frames.usage(frame)
                && used(page)
            {
                stays.push_back(page);
                if stays.len() > suspended::PAGES_MAX as usize {
                    stays.pop_front();
                }
            }
            next = self.frames.next_of(frame);
        }
        let mut stays = Vec::from(stays);
        stays.sort_unstable();
        let mut pages = resident.pages;
        pages.retain(|(page, _)| stays.binary_search(page).is_err());
        pages
    }

    /// Goes on with a VM on its way out: first the pages that do not go with the others in one piece, then that.
    pub(super) fn go_out(&mut self, machine: &mut impl Machine, place: u32, leave: Leave) {
        let begun = machine.now();
        if leave.segments == 0 {
            self.write_before(machine, place, leave);
        } else {
            self.write_segments(machine, place, leave);
        }
        self.clock.charge(begun, machine.now());
    }

    /// Writes pages to their own places, as many as there are slots for; when all are written, what is left goes in one piece.
    fn write_before(&mut self, machine: &mut impl Machine, place: u32, mut leave: Leave) {
        let Some(vm) = self.vms.get(place) else { return };
        if vm.state() != State::Running {
            // It was stopped: its memory cannot be written. That is all there is to say of it.
            self.underway.freeing -= leave.frames;
            if let Some(vm) = self.vms.get_mut(place) {
                vm.set(MOVING | WANTED, false);
            }
            return;
        }
        if !leave.force && (vm.is(WANTED) || vm.waiting != 0) {
            return self.suspended(machine, place, leave);
        }
        let mut blocked = false;
        while let Some(rest) = leave.before.get(leave.next..).filter(|rest| !rest.is_empty() && !blocked) {
            // What an earlier try has put up, or given back, is not there any more.
            let is_here = |(page, frame): &(u32, Frame)| {
                self.frames.find(place, Usage::Page(*page)) == Some(*frame) && !self.frames.is_busy(*frame)
            };
            leave.next += rest.iter().take_while(|page| !is_here(page)).count();
            let rest = leave.before.get(leave.next..).unwrap_or_default();
            let run = rest.get(..pages::run_of(rest)).unwrap_or_default();
            let run: Vec<_> = run.iter().take_while(|page| is_here(page)).copied().collect();
            let Some((first, _)) = run.first() else { break };
            let disk = self.page_place(place, *first).map(|(disk, _)| disk);
            if !disk.is_some_and(|disk| has_slot(machine, disk)) || !self.underway.take_piece() {
                blocked = true;
                break;
            }
            let freed = self.evict(machine, place, &run);
            // Those whose write is under way are counted on their own.
            let frames = freed.frames.min(leave.frames);
            self.underway.freeing -= frames;
            leave.frames -= frames;
            blocked = freed.blocked;
            if !blocked {
                leave.next += run.len();
            }
        }
        let under_way = self.vms.get(place).map_or(0, |vm| vm.under_way);
        if blocked && self.underway.count() == 0 && !self.underway.has_more() {
            // Nothing will end that it could wait for: there is no frame for its page map.
            return self.suspended(machine, place, leave);
        }
        if blocked || under_way > 0 {
            return self.underway.add_move(Move { place, way: Way::Out(leave) });
        }
        match self.put_together(machine, place, &mut leave) {
            Some(()) => self.write_segments(machine, place, leave),
            None => {
                leave.failed = Some(Status::Failed);
                self.suspended(machine, place, leave);
            }
        }
    }

    /// What goes in one piece. `None`: it cannot, pages that were to go before did not.
    fn put_together(&mut self, machine: &mut impl Machine, place: u32, leave: &mut Leave) -> Option<()> {
        let vm = self.vms.get(place)?;
        let (at, frames) = (vm.at()?, vm.frames.len());
        machine.save(at, &mut leave.state).ok()?;
        let (resident, _) = self.resident(place, None, LOOK);
        if resident.pages.len() > suspended::PAGES_MAX as usize {
            return None;
        }
        self.underway.freeing = self.underway.freeing - leave.frames + frames;
        leave.frames = frames;
        leave.pages = self.take_out(machine, place, at, &resident.pages);
        leave.maps = resident.maps;
        leave.segments = suspended::segments(leave.pages.len() as u32, leave.maps.len() as u32);
        leave.left = leave.segments;
        leave.counter = self.next_counters(u64::from(leave.segments));
        leave.tags = vec![[0; 16]; leave.segments as usize];
        Some(())
    }

    /// Whether a VM is small enough to leave whole, as far as that is seen at a glance.
    pub(super) fn can_leave(&self, place: u32) -> bool {
        self.vms.get(place).is_some_and(|vm| vm.frames.len() <= LOOK && vm.failures < FAILURES_MAX)
    }

    /// Disk and block of a page's own place.
    fn page_place(&self, place: u32, page: u32) -> Option<(u32, u64)> {
        let region = self.vms.get(place)?.region.checked_sub(1)?;
        Some(self.stripes.place(region, u64::from(page)))
    }

    /// Disk and block of a segment.
    pub(super) fn segment_place(&self, place: u32, segment: u32) -> Option<(u32, u64)> {
        let vm = self.vms.get(place)?;
        let unit = region::page_units(vm.space()) + segment;
        Some(self.stripes.place(vm.region.checked_sub(1)?, u64::from(unit) * u64::from(UNIT_BLOCKS)))
    }

    /// Takes the pages of a held VM out of its page tables; those that must go into the piece. What the region holds of pages that were written is void
    /// first. Pages of zeros that the VM would get again are not kept.
    fn take_out(
        &mut self,
        machine: &mut impl Machine,
        place: u32,
        at: VmRef,
        pages: &[(u32, Frame)],
    ) -> Vec<(u32, Frame)> {
        let mut kept = Vec::with_capacity(pages.len());
        let mut rest = pages;
        while !rest.is_empty() {
            let (run, after) = rest.split_at(pages::run_of(rest));
            rest = after;
            let Some((first, _)) = run.first() else { continue };
            let mut states = [0; UNIT_BLOCKS as usize];
            let mut entries = pages::Entries::default();
            let (Some(states), Some(entries)) = (states.get_mut(..run.len()), entries.get_mut(..run.len())) else {
                continue;
            };
            self.read_entries(machine, place, *first, entries);
            // Once before they are taken out, so that nothing void counts if this server dies in between; and once more for what a server on another
            // processor has written since.
            for action in [Scan::empty(), Scan::UNMAP] {
                let _ = machine.scan(at, space::address(*first), states, action);
                for ((page, entry), state) in (*first..).zip(entries.iter_mut()).zip(states.iter()) {
                    if entry.is_valid() && state & PageState::DIRTY.bits() != 0 {
                        *entry = Entry::NONE;
                        self.write_entries(machine, place, page, &[Entry::NONE]);
                    }
                }
            }
            for (page, frame) in run {
                let read = machine.read_frame(*frame, 0, &mut *self.page).is_ok();
                let zeros = read && self.page.iter().all(|byte| *byte == 0);
                let found = self.vms.get(place).and_then(|vm| self.image_of(vm)).and_then(|image| image.find(*page));
                if !(zeros && decide::is_zero_by_itself(found)) {
                    kept.push((*page, *frame));
                }
            }
        }
        kept
    }

    /// Puts up as many segments as there are slots for.
    fn write_segments(&mut self, machine: &mut impl Machine, place: u32, mut leave: Leave) {
        while leave.failed.is_none()
            && let Some(segment) = leave.left.checked_sub(1)
        {
            let Some((disk, block)) = self.segment_place(place, segment) else { break };
            if !has_slot(machine, disk) || !self.underway.take_piece() {
                break;
            }
            let Some(slot) = machine.take_slot(disk) else { break };
            let Some(chunks) = self.seal_segment(machine, place, segment, &mut leave) else {
                machine.give_slot(disk, slot);
                leave.failed = Some(Status::Failed);
                break;
            };
            let bytes = self.segment.get(..chunks as usize * CHUNK).unwrap_or_default();
            machine.fill_buffer(disk, slot, 0, bytes);
            self.begin(disk, slot, Job::Out { place });
            machine.submit(disk, slot, Operation::Write, block, chunks);
            self.kept.page_outs += u64::from(chunks);
            (leave.left, leave.writing) = (segment, leave.writing + 1);
        }
        let over = leave.writing == 0 && (leave.left == 0 || leave.failed.is_some());
        if over {
            self.suspended(machine, place, leave);
        } else {
            self.underway.add_move(Move { place, way: Way::Out(leave) });
        }
    }

    /// Puts a segment together and seals it; its chunks. `None`: a frame could not be read.
    fn seal_segment(&mut self, machine: &mut impl Machine, place: u32, segment: u32, leave: &mut Leave) -> Option<u32> {
        let number = self.vms.get(place)?.number;
        let (pages, maps) = (leave.pages.len() as u32, leave.maps.len() as u32);
        let header = suspended::header_chunks(pages, maps);
        let total = header + pages + maps;
        let first = segment * SEGMENT_CHUNKS;
        let chunks = SEGMENT_CHUNKS.min(total - first);
        let bytes = self.segment.get_mut(..chunks as usize * CHUNK)?;
        if segment == 0 {
            let numbers = |list: &[(u32, Frame)]| list.iter().map(|(number, _)| *number).collect();
            let tags = leave.tags.get(1..)?.to_vec();
            let (pages, maps) = (numbers(&leave.pages), numbers(&leave.maps));
            Header { pages, maps, tags, state: leave.state.clone() }.encode(bytes)?;
        }
        for (chunk, to) in (first..).zip(bytes.chunks_exact_mut(CHUNK)).filter(|(chunk, _)| *chunk >= header) {
            let index = (chunk - header) as usize;
            let (_, frame) = match index.checked_sub(leave.maps.len()) {
                None => leave.maps.get(index)?,
                Some(index) => leave.pages.get(index)?,
            };
            machine.read_frame(*frame, 0, to).ok()?;
        }
        let tag = self.cipher.seal(leave.counter + u64::from(segment), Place::Segment(number, segment), bytes);
        *leave.tags.get_mut(segment as usize)? = tag;
        Some(chunks)
    }

    /// A segment was written, or not.
    pub(super) fn segment_written(&mut self, machine: &mut impl Machine, place: u32, status: Status) {
        let Some(Move { way: Way::Out(mut leave), .. }) = self.underway.take_move(place) else { return };
        leave.writing -= 1;
        if status != Status::Ok {
            leave.failed = Some(status);
        }
        self.write_segments(machine, place, leave);
    }

    /// All of it is written, or it failed: the VM is gone, or goes on.
    fn suspended(&mut self, machine: &mut impl Machine, place: u32, leave: Leave) {
        let Some(vm) = self.vms.get_mut(place) else { return };
        self.underway.freeing -= leave.frames;
        vm.set(MOVING, false);
        let wanted = vm.set(WANTED, false) || vm.waiting != 0;
        let (Some(at), failures) = (vm.at(), vm.failures) else { return };
        let mut now = Box::new(SavedDomain::ZERO);
        let changed = machine.save(at, &mut now).is_err() || now.pending != leave.state.pending;
        let stays = changed || leave.segments == 0 || leave.failed.is_some() || (wanted && !leave.force);
        let total = suspended::header_chunks(leave.pages.len() as u32, leave.maps.len() as u32)
            + (leave.pages.len() + leave.maps.len()) as u32;
        if stays {
            if let Some(vm) = self.vms.get_mut(place) {
                vm.failures = if leave.failed.is_some() { failures.saturating_add(1) } else { 0 };
                vm.quiet = 0;
            }
            if machine.control(at, Control::Release, [0; 3]).is_err() {
                return self.stop(place, super::fault::REFUSED);
            }
            return self.notify(place);
        }
        self.leave_ring(place);
        let Some(vm) = self.vms.get_mut(place) else { return };
        (vm.counter, vm.tag) = (leave.counter, leave.tags.first().copied().unwrap_or_default());
        vm.segments = leave.segments as u16;
        vm.last = (total - (leave.segments - 1) * SEGMENT_CHUNKS) as u8;
        (vm.failures, vm.quiet) = (0, 0);
        // One that idles has what it needs with it; one that had to leave in the middle of its work gets more room each time.
        if leave.force {
            vm.more_room();
        } else {
            vm.room = 0;
        }
        let runs = leave.state.state != 2 || leave.state.pending != 0;
        // One that was running is to come back in any case, even if this server dies before.
        let wake = if runs { 0 } else { leave.state.deadline.min(leave.state.clock) };
        vm.wake = wake;
        vm.set(WANTED, runs || wanted);
        vm.set(LEAVING, true);
        vm.set_state(State::Suspended);
        self.suspended += 1;
        self.leaving.push_back(&mut self.vms, place);
        self.wake_at(wake, place);
    }
}

/// Whether a disk has a free slot.
fn has_slot(machine: &mut impl Machine, disk: u32) -> bool {
    let slot = machine.take_slot(disk);
    if let Some(slot) = slot {
        machine.give_slot(disk, slot);
    }
    slot.is_some()
}
