//! A suspended VM comes back: its piece is read, all segments at once, and taken in in order; then there is a domain again, with the state that it
//! had and the pages that were in memory with it. What else it touches comes by faults.

use super::{
    Pager, fault,
    underway::{Arrive, Job, Move, Way},
};
use crate::{
    crypt::Place,
    decide,
    frames::{Frame, Usage},
    machine::{self, Completed, Machine},
    record::{Cause, LEAVING, MOVING, State, WANTED},
    suspended::{self, CHUNK, Header, SEGMENT_CHUNKS},
};
use alloc::{vec, vec::Vec};
use protocol::{
    domain::{Control, Window},
    layout::PAGE,
    service::block_driver::{Operation, Status},
};

/// What a VM is told whose piece comes back changed.
const CHANGED: Cause = Cause::Pager("its suspended state was changed in swap space: authentication failed");
const NO_MEMORY: Cause = Cause::Pager("there is not enough memory to bring it back");

impl Pager<'_> {
    /// Begins to bring a suspended VM back, for which so many frames are kept free.
    pub(super) fn resume(&mut self, machine: &mut impl Machine, place: u32, promised: u32) {
        let Some(vm) = self.vms.get_mut(place) else { return };
        vm.set(MOVING, true);
        let segments = u32::from(vm.segments);
        self.underway.promised += promised;
        let arrive = Arrive {
            segments,
            promised,
            asked: 0,
            taken: 0,
            arrived: vec![None; segments as usize],
            header: None,
            chunk: 0,
            pages: Vec::new(),
        };
        self.read_segments(machine, place, arrive);
    }

    /// Asks for as many segments as there are slots for.
    pub(super) fn read_segments(&mut self, machine: &mut impl Machine, place: u32, mut arrive: Arrive) {
        while arrive.asked < arrive.segments {
            let Some((disk, block)) = self.segment_place(place, arrive.asked) else { break };
            let Some(slot) = machine.take_slot(disk) else { break };
            let last = self.vms.get(place).map_or(0, |vm| u32::from(vm.last));
            let chunks =
                if arrive.asked + 1 == arrive.segments { last.clamp(1, SEGMENT_CHUNKS) } else { SEGMENT_CHUNKS };
            self.begin(disk, slot, Job::In { place, segment: arrive.asked });
            machine.submit(disk, slot, Operation::Read, block, chunks);
            arrive.asked += 1;
        }
        self.underway.add_move(Move { place, way: Way::In(arrive) });
    }

    /// A segment was read, or not.
    pub(super) fn segment_read(&mut self, machine: &mut impl Machine, place: u32, segment: u32, completed: Completed) {
        let Completed { disk, slot, status } = completed;
        let Some(Move { way: Way::In(mut arrive), .. }) = self.underway.take_move(place) else {
            // Given up meanwhile.
            machine.give_slot(disk, slot);
            return;
        };
        if let Some(arrived) = arrive.arrived.get_mut(segment as usize) {
            *arrived = Some((disk, slot, status));
        }
        let begun = machine.now();
        while let Some((disk, slot, status)) = arrive.arrived.get_mut(arrive.taken as usize).and_then(Option::take) {
            let taken = self.take_in_segment(machine, place, &mut arrive, (disk, slot, status));
            machine.give_slot(disk, slot);
            arrive.taken += 1;
            if let Err(cause) = taken {
                for (disk, slot, _) in arrive.arrived.iter_mut().filter_map(Option::take) {
                    machine.give_slot(disk, slot);
                }
                self.underway.promised -= arrive.promised;
                return self.lose(place, cause);
            }
        }
        self.clock.charge(begun, machine.now());
        if arrive.taken < arrive.segments {
            self.read_segments(machine, place, arrive);
        } else {
            // What is left of it is the VM's for a while.
            if let Some(vm) = self.vms.get_mut(place) {
                vm.grace = arrive.promised.min(u16::MAX.into()) as u16;
                self.underway.promised -= core::mem::take(&mut arrive.promised) - u32::from(vm.grace);
            }
            if let Err(cause) = self.bring_back(machine, place, arrive) {
                self.lose(place, cause);
            }
        }
    }

    /// Opens a segment and takes what is in it into frames.
    fn take_in_segment(
        &mut self,
        machine: &mut impl Machine,
        place: u32,
        arrive: &mut Arrive,
        (disk, slot, status): (u32, u16, Status),
    ) -> Result<(), Cause> {
        if status != Status::Ok {
            return Err(Cause::Swap("its suspended state cannot be read from swap space", status));
        }
        let vm = self.vms.get(place).ok_or(CHANGED)?;
        let (number, counter, segment) = (vm.number, vm.counter, arrive.taken);
        let last = segment + 1 == arrive.segments;
        let chunks = if last { u32::from(vm.last).clamp(1, SEGMENT_CHUNKS) } else { SEGMENT_CHUNKS };
        let tag = match &arrive.header {
            None => vm.tag,
            Some(header) => *header.tags.get(segment as usize - 1).ok_or(CHANGED)?,
        };
        let mut bytes = core::mem::take(&mut self.segment);
        let part = bytes.get_mut(..chunks as usize * CHUNK).unwrap_or_default();
        machine.read_buffer(disk, slot, 0, part);
        let opened = self.cipher.open(counter + u64::from(segment), Place::Segment(number, segment), part, &tag);
        let taken = if opened { self.take_in_chunks(machine, place, arrive, part) } else { Err(CHANGED) };
        self.segment = bytes;
        taken
    }

    fn take_in_chunks(
        &mut self,
        machine: &mut impl Machine,
        place: u32,
        arrive: &mut Arrive,
        bytes: &[u8],
    ) -> Result<(), Cause> {
        let mut skip = 0;
        if arrive.header.is_none() {
            let header = Header::decode(bytes).ok_or(CHANGED)?;
            skip = suspended::header_chunks(header.pages.len() as u32, header.maps.len() as u32);
            arrive.pages = Vec::with_capacity(header.pages.len());
            arrive.header = Some(header);
        }
        let header = arrive.header.as_ref().ok_or(CHANGED)?;
        for chunk in bytes.chunks_exact(CHUNK).skip(skip as usize) {
            let index = arrive.chunk as usize;
            arrive.chunk += 1;
            let (usage, page) = match header.maps.get(index) {
                Some(part) => (Usage::Map(*part), None),
                None => match header.pages.get(index - header.maps.len()) {
                    Some(page) => (Usage::Page(*page), Some(*page)),
                    // The rest of a read that was longer than the piece.
                    None => break,
                },
            };
            let frame = self.take(place, Usage::Filling(0)).ok_or(NO_MEMORY)?;
            let promised = u32::from(arrive.promised > 0);
            (arrive.promised, self.underway.promised) = (arrive.promised - promised, self.underway.promised - promised);
            machine.write_frame(frame, 0, chunk).map_err(|_| NO_MEMORY)?;
            self.frames.turn(frame, usage);
            arrive.pages.extend(page.map(|page| (page, frame)));
        }
        self.kept.page_ins += (bytes.len() / CHUNK) as u64;
        Ok(())
    }

    /// Makes the domain again, with its pages, and lets it go on.
    fn bring_back(&mut self, machine: &mut impl Machine, place: u32, arrive: Arrive) -> Result<(), Cause> {
        let Arrive { header: Some(header), pages, .. } = arrive else { return Err(CHANGED) };
        if !self.reserve_queues() {
            return Err(NO_MEMORY);
        }
        let windows = header.state.windows.map(|[address, length]| Window { address, length });
        let at = self.make_domain(machine, place, windows).map_err(|_| NO_MEMORY)?;
        let mut operations = Vec::with_capacity(pages.len() + 8);
        for (page, frame) in &pages {
            self.tables(place, *page, &mut operations).ok_or(NO_MEMORY)?;
            operations.push(self.map_back(place, *page, *frame));
        }
        machine::map_all(machine, at, &mut operations).map_err(|_| fault::REFUSED)?;
        machine.restore(at, &header.state).map_err(|_| fault::REFUSED)?;
        self.enter_ring(machine, place);
        self.suspended -= 1;
        if let Some(vm) = self.vms.get_mut(place) {
            vm.set(MOVING | WANTED, false);
            vm.seen = header.state.switches as u32;
            // From here on what is on disk is the past.
            vm.set_state(State::Running);
        }
        machine.control(at, Control::Release, [0; 3]).map_err(|_| fault::REFUSED)?;
        self.notify(place);
        Ok(())
    }

    fn map_back(&self, place: u32, page: u32, frame: Frame) -> protocol::memory::MapOperation {
        let found = self.vms.get(place).and_then(|vm| self.image_of(vm)).and_then(|image| image.find(page));
        self.map_page(page, frame, 1, decide::access(found))
    }

    /// A VM cannot come back. If only memory is lacking it is put back into the queue; else it is told.
    fn lose(&mut self, place: u32, cause: Cause) {
        self.end_grace(place);
        if let Some(vm) = self.vms.get_mut(place) {
            let was_suspended = vm.state() == State::Suspended;
            if was_suspended && cause == NO_MEMORY {
                // What it was is still on disk, as it was.
                vm.set(MOVING, false);
                vm.set(LEAVING | WANTED, true);
                return self.leaving.push_back(&mut self.vms, place);
            }
            vm.set(MOVING | WANTED, false);
            if was_suspended {
                self.suspended -= 1;
            }
        }
        self.stop(place, cause);
    }
}

const _: () = assert!(CHUNK as u64 == PAGE);
