//! Pages to swap space: written in runs, many under way.
//!
//! A page leaves in this order, so that neither a failed write nor the death of this server loses anything: what the region holds of it is
//! declared void, the page is taken out of the page table, sealed and written; when the disk has it, the map says where it is and how to know it,
//! and the frame is free. If it is touched before that, the frame is still there, and is mapped again.

use super::{Pager, underway::Job};
use crate::{
    crypt::Place,
    decide,
    frames::{Frame, Usage},
    machine::Machine,
    map::Entry,
    record::{Cause, FRESH, State},
    region::UNIT_BLOCKS,
    space,
};
use protocol::{
    layout::PAGE,
    memory::{PageState, Scan},
    service::block_driver::{Operation, Status},
};

/// Writes of a VM's region that may fail in a row.
const FAILURES_MAX: u8 = 3;

/// What became of an attempt to free frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Freed {
    /// Frames that are free, or will be when a write is over.
    pub frames: u32,
    /// There was no slot, or no frame for the page map.
    pub blocked: bool,
}

impl Pager<'_> {
    /// Takes pages in a row, of one unit of the region and none of them busy, out of memory.
    pub(super) fn evict(&mut self, machine: &mut impl Machine, place: u32, run: &[(u32, Frame)]) -> Freed {
        let mut freed = Freed::default();
        let (Some((first, _)), Some(at)) = (run.first(), self.vms.get(place).and_then(|vm| vm.at())) else {
            return freed;
        };
        if let Some(vm) = self.vms.get_mut(place) {
            vm.set(FRESH, false);
        }
        let count = run.len().min(UNIT_BLOCKS as usize);
        let mut entries = super::pages::Entries::default();
        let mut states = [0; UNIT_BLOCKS as usize];
        let (Some(entries), Some(states)) = (entries.get_mut(..count), states.get_mut(..count)) else { return freed };
        self.read_entries(machine, place, *first, entries);
        if machine.scan(at, space::address(*first), states, Scan::empty()).is_err() {
            return freed;
        }
        let is_clean = |index: usize| {
            let dirty = states.get(index).is_some_and(|state| state & PageState::DIRTY.bits() != 0);
            entries.get(index).is_some_and(Entry::is_valid) && !dirty
        };
        let mut from = 0;
        while from < count {
            let clean = is_clean(from);
            let length = (from..count).take_while(|index| is_clean(*index) == clean).count();
            let part = run.get(from..from + length).unwrap_or_default();
            if clean {
                freed.frames += self.drop_clean(machine, place, part);
            } else {
                let written = self.write_dirty(machine, place, part);
                freed.frames += written.frames;
                freed.blocked |= written.blocked;
            }
            from += length;
        }
        freed
    }

    /// Frees pages of which the region holds what they are.
    fn drop_clean(&mut self, machine: &mut impl Machine, place: u32, run: &[(u32, Frame)]) -> u32 {
        let (Some((first, _)), Some(at)) = (run.first(), self.vms.get(place).and_then(|vm| vm.at())) else { return 0 };
        let mut states = [0; UNIT_BLOCKS as usize];
        let Some(states) = states.get_mut(..run.len()) else { return 0 };
        if machine.scan(at, space::address(*first), states, Scan::UNMAP).is_err() {
            return 0;
        }
        let mut freed = 0;
        for ((page, frame), state) in run.iter().zip(states) {
            if *state & PageState::DIRTY.bits() != 0 {
                // Written on another processor since it was looked at: it stays, unmapped, and is no longer clean.
                self.write_entries(machine, place, *page, &[Entry::NONE]);
                continue;
            }
            self.give(place, *frame);
            freed += 1;
        }
        if let Some(vm) = self.vms.get_mut(place) {
            vm.swapped += freed;
        }
        freed
    }

    /// Writes pages, and frees those that are zeros of themselves.
    fn write_dirty(&mut self, machine: &mut impl Machine, place: u32, run: &[(u32, Frame)]) -> Freed {
        let mut freed = Freed { frames: 0, blocked: true };
        let (Some((first, _)), Some(vm)) = (run.first(), self.vms.get(place)) else { return freed };
        let (Some(at), Some(region), number) = (vm.at(), vm.region.checked_sub(1), vm.number) else { return freed };
        let (disk, block) = self.stripes.place(region, u64::from(*first));
        if !self.make_map(machine, place, *first, run.len() as u32) {
            return freed;
        }
        let Some(mut slot) = machine.take_slot(disk) else { return freed };
        freed.blocked = false;
        let void = super::pages::Entries::default();
        self.write_entries(machine, place, *first, void.get(..run.len()).unwrap_or_default());
        let mut states = [0; UNIT_BLOCKS as usize];
        let states = states.get_mut(..run.len()).unwrap_or_default();
        if machine.scan(at, space::address(*first), states, Scan::UNMAP).is_err() {
            machine.give_slot(disk, slot);
            return freed;
        }
        let mut write = Pending::default();
        for (offset, (page, frame)) in (0..).zip(run) {
            let read = machine.read_frame(*frame, 0, &mut *self.page).is_ok();
            let found = self.vms.get(place).and_then(|vm| self.image_of(vm)).and_then(|image| image.find(*page));
            let zeros = self.page.iter().all(|byte| *byte == 0) && decide::is_zero_by_itself(found);
            if !read || zeros {
                if read {
                    self.give(place, *frame);
                    freed.frames += 1;
                }
                // A gap: what comes behind it is another write.
                if write.count > 0 {
                    self.put_up(machine, place, (disk, slot), block, &mut write);
                    let Some(next) = machine.take_slot(disk) else {
                        freed.blocked = true;
                        // The others stay in memory, unmapped.
                        return freed;
                    };
                    slot = next;
                }
                continue;
            }
            if write.count == 0 {
                (write.page, write.offset) = (*page, offset);
            }
            let counter = self.next_counters(1);
            let tag = self.cipher.seal(counter, Place::Page(number, *page), &mut *self.page);
            machine.fill_buffer(disk, slot, write.count * PAGE as usize, &*self.page);
            write.add(*frame, Entry { counter, tag });
            self.frames.set_busy(*frame, true);
            self.frames.set_leaving(*frame, true);
            self.underway.freeing += 1;
            freed.frames += 1;
        }
        if write.count > 0 {
            self.put_up(machine, place, (disk, slot), block, &mut write);
        } else {
            machine.give_slot(disk, slot);
        }
        freed
    }

    fn put_up(
        &mut self,
        machine: &mut impl Machine,
        place: u32,
        (disk, slot): (u32, u16),
        block: u64,
        write: &mut Pending,
    ) {
        let Pending { page, offset, count, frames, entries } = core::mem::take(write);
        self.begin(disk, slot, Job::Write { place, first: page, count: count as u32, frames, entries });
        machine.submit(disk, slot, Operation::Write, block + offset, count as u32);
    }

    /// Pages were written, or not.
    pub(super) fn finish_write(
        &mut self,
        machine: &mut impl Machine,
        place: u32,
        first: u32,
        frames: &[Frame],
        entries: &[Entry],
        status: Status,
    ) {
        let alive = self.vms.get(place).is_some_and(|vm| vm.state() != State::Dying);
        if alive && status == Status::Ok {
            self.write_entries(machine, place, first, entries);
        }
        let mut gone = 0;
        for frame in frames {
            let leaving = self.frames.is_leaving(*frame);
            self.frames.set_busy(*frame, false);
            self.frames.set_leaving(*frame, false);
            self.underway.freeing = self.underway.freeing.saturating_sub(u32::from(leaving));
            if alive && leaving && status == Status::Ok {
                self.give(place, *frame);
                gone += 1;
            }
        }
        let Some(vm) = self.vms.get_mut(place).filter(|_| alive) else { return };
        if status == Status::Ok {
            (vm.failures, vm.swapped) = (0, vm.swapped + gone);
            self.kept.page_outs += frames.len() as u64;
            return;
        }
        vm.failures = vm.failures.saturating_add(1);
        if vm.failures >= FAILURES_MAX {
            self.halt(machine, place, Cause::Swap("its memory cannot be written to swap space", status));
        }
    }

    /// A page that is on its way out, or was left unmapped, is wanted: its frame is the VM's again.
    pub(super) fn keep(&mut self, frame: Frame) {
        if self.frames.is_leaving(frame) {
            self.frames.set_leaving(frame, false);
            self.underway.freeing = self.underway.freeing.saturating_sub(1);
        }
        debug_assert!(matches!(self.frames.usage(frame), Some(Usage::Page(_))));
    }
}

/// A write that is being put together.
#[derive(Debug, Default)]
struct Pending {
    /// First page, and its distance from the first of the run.
    page: u32,
    offset: u64,
    count: usize,
    frames: [Frame; UNIT_BLOCKS as usize],
    entries: super::pages::Entries,
}

impl Pending {
    fn add(&mut self, frame: Frame, entry: Entry) {
        if let (Some(to), Some(place)) = (self.frames.get_mut(self.count), self.entries.get_mut(self.count)) {
            (*to, *place) = (frame, entry);
            self.count += 1;
        }
    }
}
