//! A pager that was restarted finds its VMs again.
//!
//! Three things survive: the frame table and the records of VMs, which lie in frames of the pool; and the domains, which are the kernel's. What was under
//! way with disks is void: reads begin again with the faults that they were for, and of pages that were being written the frames are
//! still there. Traps that the former pager had taken come once more (`Hold` and `Release`). So a VM notices nothing but a pause.

use super::{IMAGES, Kept, Pager, Parts, SELF};
use crate::{
    frames::{Frame, List, Owners, Usage},
    image::{self, Content, Image},
    machine::{self, Machine},
    record::{Cause, LEAVING, State, VmTable},
    region,
    template::Template,
};
use alloc::{boxed::Box, collections::BTreeMap, vec::Vec};
use protocol::{abi::Error, domain::Control, layout::SPACE_BASE, memory::MapOperation, service::VmRef};

/// Who had frames, as far as it is believed.
struct Survivors<'a> {
    vms: &'a mut VmTable,
    images: &'a mut BTreeMap<u32, List>,
    own: &'a mut List,
    lost: &'a mut List,
}

impl Owners for Survivors<'_> {
    fn list(&mut self, owner: u32, usage: Usage) -> Option<&mut List> {
        // What was being filled is nothing; what holds a domain that nobody can name must not become anything else.
        match usage {
            Usage::Incoming(_) | Usage::Filling(_) => return None,
            Usage::Lost => return Some(self.lost),
            _ => {}
        }
        if owner == SELF {
            return Some(self.own);
        }
        if owner >= IMAGES {
            return self.images.get_mut(&(owner - IMAGES));
        }
        let vm = self.vms.get_mut(owner)?;
        match vm.state() {
            State::Free => None,
            // Its domain may be there although its record does not say where.
            State::Creating | State::Suspended if vm.at().is_none() => {
                matches!(usage, Usage::Control | Usage::Root).then_some(self.lost)
            }
            _ => Some(&mut vm.frames),
        }
    }
}

impl<'a> Pager<'a> {
    /// A pager that goes on with what the one before it has left. `None` if that cannot be made sense of.
    pub fn recover(parts: Parts<'a>, machine: &mut impl Machine) -> Option<Pager<'a>> {
        if parts.kept.magic != Kept::MAGIC {
            return None;
        }
        let same = (parts.kept.units, parts.kept.disks) == (parts.stripes.units, parts.stripes.disks);
        let mut pager = Pager::of(parts);
        let mut records: Vec<(u32, Frame)> = Vec::new();
        let mut images = BTreeMap::new();
        let mut image_records: Vec<(u32, Frame)> = Vec::new();
        let mut zero = None;
        pager.frames.each(|frame, owner, usage| match usage {
            Usage::Records(part) => records.push((part, frame)),
            Usage::ImageRecord => image_records.push((owner - IMAGES.min(owner), frame)),
            Usage::Own => zero = Some(frame),
            _ => {}
        });
        for (part, frame) in records {
            let mapped = pager.vms.reserve(part).then(|| machine.map_records(frame, false)).flatten()?;
            pager.vms.add(part, mapped);
        }
        for (number, _) in &image_records {
            images.insert(*number, List::default());
        }
        for place in 0..pager.vms.end() {
            if let Some(vm) = pager.vms.get_mut(place) {
                vm.forget();
            }
        }
        let Pager { frames, vms, own, lost, .. } = &mut pager;
        frames.recover(&mut Survivors { vms, images: &mut images, own, lost });
        pager.zero = zero?;
        pager.find_images(machine, image_records, &mut images);
        for place in 0..pager.vms.end() {
            pager.find_vm(machine, place, same);
        }
        Some(pager)
    }

    fn find_images(&mut self, machine: &mut impl Machine, records: Vec<(u32, Frame)>, lists: &mut BTreeMap<u32, List>) {
        let mut templates = Vec::new();
        for (number, frame) in records {
            let Some(frames) = lists.remove(&number) else { continue };
            if machine.read_frame(frame, 0, &mut *self.page).is_err() {
                continue;
            }
            self.image_frames += u64::from(frames.len());
            match Template::read(&self.page, frame) {
                // What it is made of must be there before.
                Some(template) => templates.push((number, frame, frames, template)),
                None => {
                    let stored = |page| self.frames.find(IMAGES + number, Usage::Image(page));
                    let parts = image::from_record(&self.page, stored);
                    let _ = self.images.insert_at(number, Image { parts, frames, users: 0, template: None });
                }
            }
        }
        for (number, frame, frames, template) in templates {
            let Some(base) = self.images.get(template.base) else { continue };
            if machine.read_frame(frame, 0, &mut *self.page).is_err() {
                continue;
            }
            let of_base = |page| match base.find(page).and_then(|found| found.content()) {
                Some(Content::Stored(frame)) => Some(frame),
                _ => None,
            };
            let stored = |page| self.frames.find(IMAGES + number, Usage::Image(page)).or_else(|| of_base(page));
            let parts = image::from_record(&self.page, stored);
            let base = template.base;
            let _ =
                self.images.insert_at(number, Image { parts, frames, users: 0, template: Some(Box::new(template)) });
            if let Some(base) = self.images.get_mut(base) {
                base.users += 1;
            }
        }
    }

    /// Goes on with a VM where the former pager was. `same`: swap space is what it was.
    fn find_vm(&mut self, machine: &mut impl Machine, place: u32, same: bool) {
        let Some(vm) = self.vms.get_mut(place) else { return };
        let (state, at, space, image) = (vm.state(), vm.at(), vm.space(), vm.image);
        if matches!(state, State::Free) {
            return;
        }
        if state == State::Creating && at.is_none() {
            // Whoever asked for it will ask again.
            vm.set_state(State::Free);
            self.frames.release(&mut vm.frames, u32::MAX);
            return;
        }
        let (region, promised) = (vm.region, u64::from(vm.promised));
        self.promised += promised;
        if let Some(image) = self.images.get_mut(image) {
            image.users += 1;
        }
        let claimed = region.checked_sub(1).is_none_or(|first| self.regions.claim(first, region::units(space)));
        if matches!(state, State::Dying | State::Creating) {
            if let Some(vm) = self.vms.get_mut(place) {
                vm.set_state(State::Dying);
            }
            self.dying.push_back(&mut self.vms, place);
            return;
        }
        self.count += 1;
        if region != 0 && !(same && claimed) {
            return self.stop(place, Cause::Pager("its swap space is gone"));
        }
        match (state, at) {
            (State::Suspended, _) => self.find_suspended(place, at.is_some()),
            (_, Some(at)) => {
                self.mend_tables(machine, place, at);
                self.enter_ring(machine, place);
                self.go_on(machine, place, at);
            }
            (_, None) => self.stop(place, Cause::Pager("it could not be brought back")),
        }
    }

    /// A suspended VM; `leaving`: it had not left memory whole.
    fn find_suspended(&mut self, place: u32, leaving: bool) {
        self.suspended += 1;
        let Some(vm) = self.vms.get_mut(place) else { return };
        let (wake, leaves) = (vm.wake, leaving || !vm.frames.is_empty());
        if leaves {
            vm.set(LEAVING, true);
            self.leaving.push_back(&mut self.vms, place);
        }
        self.wake_at(wake, place);
        // Who waited for it asks again; what it was to be told is in its own state.
    }

    /// Page tables that were taken and perhaps not supplied are supplied; the kernel says of the others that they are there.
    fn mend_tables(&mut self, machine: &mut impl Machine, place: u32, at: VmRef) {
        let Some(vm) = self.vms.get(place) else { return };
        let mut tables: Vec<(bool, u32, Frame)> = Vec::new();
        let mut next = self.frames.first_of(&vm.frames);
        while let Some(frame) = next {
            match self.frames.usage(frame) {
                Some(Usage::Directory(number)) => tables.push((false, number, frame)),
                Some(Usage::Leaf(number)) => tables.push((true, number, frame)),
                _ => {}
            }
            next = self.frames.next_of(frame);
        }
        // Directories first: a leaf that is supplied before its directory would become one.
        tables.sort_unstable();
        for (leaf, number, frame) in tables {
            let address =
                u64::from(number) * if leaf { crate::space::LEAF_BYTES } else { crate::space::DIRECTORY_BYTES };
            // The lowest addresses belong to nobody.
            let operation = MapOperation { address: address.max(SPACE_BASE), ..self.table(0, frame) };
            match machine::map_all(machine, at, &mut [operation]) {
                Ok(()) | Err(Error::Occupied) => {}
                Err(_) => return self.stop(place, super::fault::REFUSED),
            }
        }
    }

    /// A VM that is in memory: what the former pager was in the middle of with it begins again.
    fn go_on(&mut self, machine: &mut impl Machine, place: u32, at: VmRef) {
        let Some(vm) = self.vms.get(place) else { return };
        let refused = Cause::Pager("the kernel refused to let it go on");
        let state = vm.state();
        match state {
            State::Running | State::Stopped | State::Ready => {
                // One that does not run is stopped again by the trap that stopped it; one that waits for `Start` says so again.
                if let Some(vm) = self.vms.get_mut(place) {
                    vm.set_state(State::Running);
                }
                let started = state == State::Running;
                let state = machine.usage(at).map_or(0, |usage| usage.state);
                let done = match state {
                    // It has ended itself, or it was about to be started and was not.
                    0 => {
                        let ended = machine.control(at, Control::Release, [0; 3]).is_ok();
                        if !ended && !started {
                            return self.stop(place, Cause::Pager("it was stopped before its pager was restarted"));
                        }
                        if !ended && let Some(vm) = self.vms.get_mut(place) {
                            vm.set_state(State::Created);
                        }
                        Ok(())
                    }
                    5 => machine.control(at, Control::Release, [0; 3]),
                    _ => match machine.control(at, Control::Hold, [0; 3]) {
                        // What it has to say comes of itself.
                        Err(Error::Busy) => Ok(()),
                        Ok(()) => machine.control(at, Control::Release, [0; 3]),
                        Err(error) => Err(error),
                    },
                };
                if done.is_err() {
                    self.stop(place, refused);
                }
            }
            _ => {}
        }
    }
}
