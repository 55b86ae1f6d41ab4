//! Creating VMs: what is checked, promised and built.

use super::{Creation, Pager, WAITING_MAX};
use crate::{
    frames::{Frame, Usage},
    machine::{self, Machine},
    record::{FRESH, State, VmTable},
    region,
    space::{self, Space},
};
use alloc::vec::Vec;
use protocol::{
    abi::{Error, Target},
    domain::{Band, DomainParameters, Window},
    layout::{PAGE, SPACE_BASE},
    memory::{Access, MapKind, MapOperation, TransferOperation},
    service::{VmNumber, VmRef, pager::Response, place},
};

/// Frames of a VM besides its pages and page tables: control block and root page table.
const FIXED: u64 = 2;
/// Frames that a VM begins with at most: those, its register page with its page tables, and a part of the table of VMs.
const FIRST_FRAMES: u32 = 6;

/// What a VM begins with. Kept from one to the next, so that not each allocates.
#[derive(Debug, Default)]
pub(super) struct First {
    /// Fills its pages.
    pub copies: Vec<TransferOperation>,
    /// Those frames.
    pub filled: Vec<Frame>,
    /// Maps what a clone is known to touch; page tables and the register page are not in it.
    pub maps: Vec<MapOperation>,
    /// All that is mapped.
    pub operations: Vec<MapOperation>,
}

impl First {
    pub(super) fn clear(&mut self) {
        self.copies.clear();
        self.filled.clear();
        self.maps.clear();
        self.operations.clear();
    }
}

impl Pager<'_> {
    /// Creates a VM; `None`: it waits for memory that is being given back.
    pub(super) fn create_or_wait(&mut self, machine: &mut impl Machine, creation: Creation) -> Option<Response> {
        let response = self.create(machine, &creation);
        let wait = match response {
            Err(Response::OutOfMemory) => self.gives_back(),
            // Only VMs that are being destroyed give these back.
            Err(Response::OutOfSwap | Response::InUse) => !self.dying.is_empty(),
            _ => false,
        };
        if wait && self.waiting.len() < WAITING_MAX {
            self.waiting.push_back(creation);
            return None;
        }
        Some(response.map_or_else(|refusal| refusal, Response::Created))
    }

    /// Whether memory is being given back.
    pub(super) fn gives_back(&self) -> bool {
        let soon = self.reclaims() || self.clock.next_turn().is_some();
        !self.dying.is_empty() || !self.leaving.is_empty() || self.under_way() > 0 || soon
    }

    /// Frames that a VM with this memory and image can ever need.
    ///
    /// Without swap space all of it is promised at creation, so that a VM that was created never lacks memory later. Only pages that can
    /// never become private, those with data of read-only parts, are not counted.
    fn need(space: Space, shared: u32) -> u64 {
        u64::from(space.pages()).saturating_sub(u64::from(shared)) + u64::from(space.tables()) + FIXED
    }

    pub(super) fn create(&mut self, machine: &mut impl Machine, creation: &Creation) -> Result<VmRef, Response> {
        let image = self.images.get(creation.image).ok_or(Response::NotFound)?;
        let space = Space::new(creation.memory).ok_or(Response::BadArgument)?;
        let windows = creation.windows.map(|(address, length)| Window { address, length });
        let template = image.template.as_deref();
        let is_clone = template.is_some();
        let fits = match template {
            // It goes on where the template was, not at the entry.
            Some(template) => template.fits(space.pages(), &creation.windows),
            None => image.fits(space, creation.entry),
        };
        if !fits || !windows.iter().all(|window| space.holds_window(window)) {
            return Err(Response::BadArgument);
        }
        let (need, units) = match self.has_swap() {
            // With less memory is taken back, and it waits for that.
            true => (u64::from(self.clock.low().max(FIRST_FRAMES)), region::units(space)),
            false => (Self::need(space, image.shared_pages()), 0),
        };
        // Memory comes back, so that it is asked for last.
        if units > 0 && !self.regions.has(units) {
            return Err(Response::OutOfSwap);
        }
        if need > self.available() {
            return Err(Response::OutOfMemory);
        }
        let place = self.new_place(machine, creation.vm)?;
        let region = match units {
            0 => 0,
            units => self.regions.allocate(units).ok_or(Response::OutOfSwap)? + 1,
        };
        let promised = if self.has_swap() { 0 } else { u32::try_from(need).map_err(|_| Response::OutOfMemory)? };
        if let Some(vm) = self.vms.get_mut(place) {
            vm.forget();
            (vm.number, vm.entry, vm.image) = (creation.vm, creation.entry, creation.image);
            (vm.pages, vm.region, vm.promised, vm.swapped) = (space.pages(), region, promised, 0);
            vm.set_at(None);
            vm.set_state(State::Creating);
            vm.set(FRESH, is_clone);
        }
        match self.build(machine, place, (creation.lent, creation.lent_at), windows) {
            Ok((at, mut first)) => {
                self.promised += u64::from(promised);
                self.count += 1;
                if let Some(image) = self.images.get_mut(creation.image) {
                    image.users += 1;
                }
                if let Some(vm) = self.vms.get_mut(place) {
                    vm.set_state(State::Created);
                }
                self.enter_ring(machine, place);
                // From here on destroying it gives everything back.
                self.first_pages(machine, place, at, &mut first).inspect_err(|_| {
                    self.destroy(machine, creation.vm);
                })?;
                self.first = first;
                if creation.start {
                    // Whatever keeps it from running stops it, and the loader is told of that.
                    self.start(machine, creation.vm);
                }
                Ok(at)
            }
            Err(refusal) => {
                if let Some(vm) = self.vms.get_mut(place) {
                    vm.set_state(State::Free);
                    self.frames.release(&mut vm.frames, u32::MAX);
                }
                self.regions.release(region.saturating_sub(1), units);
                Err(refusal)
            }
        }
    }

    /// The record for a new VM: its place must be free, and its part of the table there.
    fn new_place(&mut self, machine: &mut impl Machine, vm: VmNumber) -> Result<u32, Response> {
        let place = place(vm);
        let part = VmTable::part(place);
        if vm == 0 {
            return Err(Response::BadArgument);
        }
        if !self.vms.has(part) {
            let room = self.vms.reserve(part) && self.reserve_queues();
            let frame = if room { self.frames.take(&mut self.own, super::SELF, Usage::Filling(0)) } else { None };
            let frame = frame.ok_or(Response::OutOfMemory)?;
            let Some(records) = machine.map_records(frame, true) else {
                self.frames.give(&mut self.own, frame);
                return Err(Response::OutOfMemory);
            };
            // It is a part of the table only now that it is empty.
            self.frames.turn(frame, Usage::Records(part));
            self.vms.add(part, records);
        }
        let free = self.vms.get(place).is_some_and(|record| record.state() == State::Free);
        let room = self.regions.reserve() && self.reserve_queues();
        if !room {
            return Err(Response::OutOfMemory);
        }
        // One that is being destroyed will free it.
        if free { Ok(place) } else { Err(Response::InUse) }
    }

    /// Makes sure that every VM that is in memory, and one more, has room in the queues that those are in.
    pub(super) fn reserve_queues(&mut self) -> bool {
        let room = self.clock.length() as usize + 1;
        let queues = [&mut self.stops, &mut self.stalled];
        // Those who have left meanwhile may still stand there.
        queues.into_iter().all(|queue| queue.try_reserve(room).is_ok())
    }

    /// Makes the domain; and what maps the pages that a clone begins with. They and the virtual register page are filled first: if the caller lends none, nothing was
    /// made.
    fn build(
        &mut self,
        machine: &mut impl Machine,
        place: u32,
        (lent, lent_at): (Target, u64),
        windows: [Window; 3],
    ) -> Result<(VmRef, First), Response> {
        let registers = self.take(place, Usage::Filling(0)).ok_or(Response::OutOfMemory)?;
        let mut first = core::mem::take(&mut self.first);
        first.clear();
        first.filled.push(registers);
        first.copies.push(TransferOperation { from: lent.0, from_address: lent_at, ..self.fill(None, registers) });
        self.warm(machine, place, registers, &mut first)?;
        machine::transfer_all(machine, &mut first.copies).map_err(|_| Response::BadArgument)?;
        if first.copies.iter().any(|copy| copy.status != 0) {
            return Err(Response::BadArgument);
        }
        first.filled.iter().for_each(|frame| self.frames.promote(*frame));
        let at = self.make_domain(machine, place, windows)?;
        if let Some(template) = self.template_of(place) {
            machine.restore(at, &template.state).map_err(|_| Response::BadArgument)?;
        }
        Ok((at, first))
    }

    /// Makes a stopped domain for a VM, and notes where it is.
    pub(super) fn make_domain(
        &mut self,
        machine: &mut impl Machine,
        place: u32,
        windows: [Window; 3],
    ) -> Result<VmRef, Response> {
        let control = self.take(place, Usage::Control).ok_or(Response::OutOfMemory)?;
        let root = self.take(place, Usage::Root).ok_or(Response::OutOfMemory)?;
        let vm = self.vms.get_mut(place).ok_or(Response::NotFound)?;
        let mut services = self.services;
        for (service, window) in services.iter_mut().zip(&windows) {
            if window.length == 0 {
                *service = 0;
            }
        }
        let parameters = DomainParameters {
            root_frame: u64::from(root),
            root_slot: self.frames.slot(root).into(),
            tag: vm.number,
            register_page: SPACE_BASE,
            band: Band::Vm as u64,
            handler: Target::OWN.0,
            services,
            windows,
        };
        let created = machine.create(control, &parameters).map_err(|error| match error {
            Error::Exhausted => Response::OutOfMemory,
            _ => Response::BadArgument,
        })?;
        vm.set_at(Some(created));
        Ok(created)
    }

    /// Maps the virtual register page, and of a clone what it is known to touch.
    fn first_pages(
        &mut self,
        machine: &mut impl Machine,
        place: u32,
        vm: VmRef,
        first: &mut First,
    ) -> Result<VmRef, Response> {
        let frame = self.frames.find(place, Usage::Page(0)).ok_or(Response::NotFound)?;
        self.tables(place, 0, &mut first.operations).ok_or(Response::OutOfMemory)?;
        first.operations.push(self.map_page(0, frame, 1, Access::WRITE));
        if !self.add_maps(place, Some(space::leaf(0)), first) {
            return Err(Response::OutOfMemory);
        }
        machine::map_all(machine, vm, &mut first.operations).map_err(|_| Response::OutOfMemory)?;
        Ok(vm)
    }

    /// Adds what is to be mapped to what is done, with the page tables that are missing for it; `leaf`: the leaf table that is known to be there. `false`: there is no frame for a
    /// table, and neither the page that lacks it nor those behind it are added.
    #[inline(always)]
    pub(super) fn add_maps(&mut self, place: u32, mut leaf: Option<u32>, first: &mut First) -> bool {
        let First { maps, operations, .. } = first;
        for map in maps.drain(..) {
            let page = space::page_of(map.address);
            let new = leaf.replace(space::leaf(page)) != Some(space::leaf(page));
            if new && self.tables(place, page, operations).is_none() {
                return false;
            }
            operations.push(map);
        }
        true
    }

    /// Adds the page tables that are missing for a page.
    pub(super) fn tables(&mut self, place: u32, page: u32, operations: &mut Vec<MapOperation>) -> Option<()> {
        for usage in [Usage::Directory(space::directory(page)), Usage::Leaf(space::leaf(page))] {
            if self.frames.find(place, usage).is_none() {
                let frame = self.take(place, usage)?;
                operations.push(self.table(page, frame));
            }
        }
        Some(())
    }

    /// The operation that makes a frame the page table that is missing highest up for a page.
    pub(super) fn table(&self, page: u32, frame: Frame) -> MapOperation {
        MapOperation { kind: MapKind::Table as u8, ..self.map_page(page, frame, 1, Access::empty()) }
    }

    /// The operation that maps `count` frames from `frame`.
    pub(super) fn map_page(&self, page: u32, frame: Frame, count: u32, access: Access) -> MapOperation {
        MapOperation {
            kind: MapKind::Map as u8,
            access: access.bits(),
            slot: self.frames.slot(frame),
            reserved: 0,
            count,
            address: SPACE_BASE + u64::from(page) * PAGE,
            frame: u64::from(frame),
        }
    }
}
