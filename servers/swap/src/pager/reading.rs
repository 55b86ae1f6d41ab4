//! Pages from swap space: read by the cluster, many under way.

use super::{Pager, fault, underway::Job};
use crate::{
    crypt::Place,
    decide,
    frames::Usage,
    machine::{self, Completed, Machine},
    map::Entry,
    record::{Cause, State},
};
use alloc::vec::Vec;
use protocol::{
    layout::PAGE,
    service::block_driver::{Operation, Status},
};

/// What a VM is told whose page comes back changed.
const CHANGED: Cause = Cause::Pager("its memory was changed in swap space: authentication failed");

impl Pager<'_> {
    /// Begins to read a page, and with it those of its block around it that are in swap space too. `false`: there is no frame or slot for it now.
    pub(super) fn start_read(&mut self, machine: &mut impl Machine, place: u32, page: u32) -> bool {
        let Some(vm) = self.vms.get(place) else { return false };
        let (pages, Some(region)) = (vm.pages, vm.region.checked_sub(1)) else { return false };
        let block_first = page / self.block * self.block;
        let block_end = (block_first + self.block).min(pages);
        let mut entries = super::pages::Entries::default();
        let Some(known) = entries.get_mut(..(block_end - block_first) as usize) else { return false };
        self.read_entries(machine, place, block_first, known);
        let known = &*known;
        let is_out = |page: u32| {
            let valid = known.get((page - block_first) as usize).is_some_and(Entry::is_valid);
            let here = [Usage::Page(page), Usage::Incoming(page)];
            valid && here.iter().all(|usage| self.frames.find(place, *usage).is_none())
        };
        // What is read around it must not push out what is needed.
        let spare = self.spare().saturating_sub(self.clock.floor());
        if spare == 0 {
            return false;
        }
        let around = if spare > self.clock.low() { self.block } else { 1 };
        let (mut first, mut end) = (page, page + 1);
        while end < block_end && end - first < around && is_out(end) {
            end += 1;
        }
        while first > block_first && end - first < around && is_out(first - 1) {
            first -= 1;
        }
        let (disk, block) = self.stripes.place(region, u64::from(first));
        let Some(slot) = machine.take_slot(disk) else { return false };
        let count = end - first;
        let taken = (first..end).take_while(|page| self.take(place, Usage::Incoming(*page)).is_some()).count();
        if taken < count as usize {
            self.drop_incoming(place, first, count);
            machine.give_slot(disk, slot);
            return false;
        }
        entries.rotate_left((first - block_first) as usize);
        self.begin(disk, slot, Job::Read { place, first, count, entries });
        machine.submit(disk, slot, Operation::Read, block, count);
        true
    }

    /// Gives frames back that were to hold pages.
    fn drop_incoming(&mut self, place: u32, first: u32, count: u32) {
        for page in first..first + count {
            if let Some(frame) = self.frames.find(place, Usage::Incoming(page)) {
                self.give(place, frame);
            }
        }
    }

    /// Pages were read, or not.
    pub(super) fn finish_read(
        &mut self,
        machine: &mut impl Machine,
        place: u32,
        first: u32,
        entries: &[Entry],
        completed: Completed,
    ) {
        let count = entries.len() as u32;
        let vm = self.vms.get(place).filter(|vm| vm.state() != State::Dying);
        let Some((number, waited_for)) = vm.map(|vm| (vm.number, vm.fault())) else {
            return self.drop_incoming(place, first, count);
        };
        let mut failed = (completed.status != Status::Ok)
            .then_some(Cause::Swap("its memory cannot be read from swap space", completed.status));
        let mut came = Vec::with_capacity(entries.len());
        for (index, (page, entry)) in (first..).zip(entries).enumerate() {
            let Some(frame) = self.frames.find(place, Usage::Incoming(page)) else { continue };
            let is_waited_for = waited_for.is_some_and(|(fault, _)| fault == page) || waited_for.is_none();
            if completed.status == Status::Ok {
                let bytes = &mut *self.page;
                machine.read_buffer(completed.disk, completed.slot, index * PAGE as usize, bytes);
                let good = self.cipher.open(entry.counter, Place::Page(number, page), bytes, &entry.tag);
                if good && machine.write_frame(frame, 0, bytes).is_ok() {
                    self.frames.promote(frame);
                    came.push((page, frame));
                    continue;
                }
                // A page that was only read along is found out when it is wanted.
                failed = failed.or(is_waited_for.then_some(CHANGED));
            }
            self.give(place, frame);
        }
        self.kept.page_ins += came.len() as u64;
        if let Some(vm) = self.vms.get_mut(place) {
            vm.swapped = vm.swapped.saturating_sub(came.len() as u32);
        }
        match failed {
            Some(cause) => self.stop(place, cause),
            None => self.map_came(machine, place, &came),
        }
        self.notify(place);
    }

    /// Maps pages that have come, and lets the VM go on if it waited for one of them.
    fn map_came(&mut self, machine: &mut impl Machine, place: u32, came: &[(u32, crate::frames::Frame)]) {
        let Some(vm) = self.vms.get(place) else { return };
        let Some(at) = vm.at() else { return };
        let time = machine.usage(at).map_or(0, |usage| super::clock::virtual_time(&usage));
        let mut operations = Vec::with_capacity(came.len() + 4);
        for (page, frame) in came {
            let found = self.vms.get(place).and_then(|vm| self.image_of(vm)).and_then(|image| image.find(*page));
            let access = decide::access(found);
            // Without a table the page stays in memory, unmapped, and is mapped when it is touched.
            if self.tables(place, *page, &mut operations).is_none() {
                break;
            }
            operations.push(self.map_page(*page, *frame, 1, access));
            self.frames.set_stamp(*frame, time);
        }
        if machine::map_all(machine, at, &mut operations).is_err() {
            return self.stop(place, fault::REFUSED);
        }
        let waits = self.vms.get(place).and_then(|vm| vm.fault()).is_some();
        if waits {
            self.retry_fault(machine, place);
        }
    }
}
