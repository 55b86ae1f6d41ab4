//! Creating VMs: what is checked, promised and built.

use super::{Creation, Pager, WAITING_MAX};
use crate::{
    frames::{Frame, List, Usage},
    machine::{self, Machine},
    space::{self, Space},
    vm::{IdleFaults, State, Vm},
};
use alloc::vec::Vec;
use protocol::{
    abi::{Error, Target},
    domain::{Band, DomainParameters, Window},
    layout::{PAGE, SPACE_BASE},
    memory::{Access, MapKind, MapOperation, TransferOperation},
    service::{VmRef, pager::Response, place},
};

/// Frames of a VM besides its pages and page tables: control block and root page table.
const FIXED: u64 = 2;

impl Pager<'_> {
    /// Creates a VM; `None`: it waits for memory that is being given back.
    pub(super) fn create_or_wait(&mut self, machine: &mut impl Machine, creation: Creation) -> Option<Response> {
        let response = self.create(machine, &creation);
        let wait = response == Err(Response::OutOfMemory) && !self.dying.is_empty();
        if wait && self.waiting.len() < WAITING_MAX {
            self.waiting.push_back(creation);
            return None;
        }
        Some(response.map_or_else(|refusal| refusal, Response::Created))
    }

    /// Frames that a VM with this memory and image can ever need.
    ///
    /// All of it is promised at creation, so that a VM that was created never lacks memory later. Only pages that can
    /// never become private, those with data of read-only parts, are not counted.
    fn need(space: Space, shared: u32) -> u64 {
        u64::from(space.pages()).saturating_sub(u64::from(shared)) + u64::from(space.tables()) + FIXED
    }

    fn create(&mut self, machine: &mut impl Machine, creation: &Creation) -> Result<VmRef, Response> {
        let image = self.images.get(creation.image).ok_or(Response::NotFound)?;
        let space = Space::new(creation.memory).ok_or(Response::BadArgument)?;
        let windows = creation.windows.map(|(address, length)| Window { address, length });
        if !image.fits(space, creation.entry) || !windows.iter().all(|window| space.holds_window(window)) {
            return Err(Response::BadArgument);
        }
        if self.places.contains_key(&place(creation.number)) {
            return Err(Response::BadArgument);
        }
        let need = Self::need(space, image.shared_pages());
        if need > self.available() {
            return Err(Response::OutOfMemory);
        }
        let bits = (image.data_pages() as usize).div_ceil(64);
        let mut shared = Vec::new();
        let room = self.vms.len() as usize + 1;
        let reserved = shared.try_reserve_exact(bits).and(self.stops.try_reserve(room));
        if reserved.and(self.dying.try_reserve(room)).is_err() || self.vms.reserve().is_err() {
            return Err(Response::OutOfMemory);
        }
        shared.resize(bits, 0);
        let vm = Vm {
            reference: VmRef { frame: 0, generation: 0 },
            tag: creation.number,
            entry: creation.entry,
            image: creation.image,
            space,
            state: State::Created,
            queued: false,
            told: false,
            stop: None,
            frames: List::default(),
            reserved: u32::try_from(need).map_err(|_| Response::OutOfMemory)?,
            shared,
            shared_count: 0,
            faults: 0,
            idle_faults: IdleFaults::default(),
        };
        let number = self.vms.insert(vm).map_err(|_| Response::OutOfMemory)?;
        let built = self.build(machine, number, creation.lent, windows);
        match built {
            Ok(vm) => {
                self.promised += need;
                self.places.insert(place(creation.number), vm);
                if let Some(image) = self.images.get_mut(creation.image) {
                    image.users += 1;
                }
                // From here on destroying it gives everything back.
                self.first_pages(machine, number, vm).inspect_err(|_| {
                    self.destroy(machine, vm);
                })
            }
            Err(refusal) => {
                if let Some(mut vm) = self.vms.remove(number) {
                    self.frames.release(&mut vm.frames, u32::MAX);
                }
                Err(refusal)
            }
        }
    }

    /// Takes a frame for a VM.
    pub(super) fn take(&mut self, number: u32, usage: Usage) -> Option<Frame> {
        let vm = self.vms.get_mut(number)?;
        if vm.frames.len() >= vm.reserved {
            return None;
        }
        self.frames.take(&mut vm.frames, number, usage)
    }

    /// Makes the domain. The virtual register page is copied first: if the caller lends none, nothing was made.
    fn build(
        &mut self,
        machine: &mut impl Machine,
        number: u32,
        lent: Target,
        windows: [Window; 3],
    ) -> Result<VmRef, Response> {
        let registers = self.take(number, Usage::Page(0)).ok_or(Response::OutOfMemory)?;
        let control = self.take(number, Usage::Control).ok_or(Response::OutOfMemory)?;
        let root = self.take(number, Usage::Root).ok_or(Response::OutOfMemory)?;
        let mut copy = [TransferOperation { from: lent.0, from_address: 0, ..self.fill(None, registers) }];
        machine::transfer_all(machine, &mut copy).map_err(|_| Response::BadArgument)?;
        if copy[0].status != 0 {
            return Err(Response::BadArgument);
        }
        let vm = self.vms.get_mut(number).ok_or(Response::NotFound)?;
        let mut services = self.services;
        for (service, window) in services.iter_mut().zip(&windows) {
            if window.length == 0 {
                *service = 0;
            }
        }
        let parameters = DomainParameters {
            root_frame: u64::from(root),
            tag: vm.tag,
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
        vm.reference = created;
        Ok(created)
    }

    /// Maps the virtual register page.
    fn first_pages(&mut self, machine: &mut impl Machine, number: u32, vm: VmRef) -> Result<VmRef, Response> {
        let frame = self.frames.find(number, Usage::Page(0)).ok_or(Response::NotFound)?;
        let mut operations = Vec::with_capacity(4);
        self.tables(number, 0, &mut operations).ok_or(Response::OutOfMemory)?;
        operations.push(self.map_page(0, frame, 1, Access::WRITE));
        machine::map_all(machine, vm, &mut operations).map_err(|_| Response::OutOfMemory)?;
        Ok(vm)
    }

    /// Adds the page tables that are missing for a page.
    pub(super) fn tables(&mut self, number: u32, page: u32, operations: &mut Vec<MapOperation>) -> Option<()> {
        for usage in [Usage::Directory(space::directory(page)), Usage::Leaf(space::leaf(page))] {
            if self.frames.find(number, usage).is_none() {
                let frame = self.take(number, usage)?;
                let kind = MapKind::Table as u8;
                operations.push(MapOperation { kind, ..self.map_page(page, frame, 1, Access::empty()) });
            }
        }
        Some(())
    }

    /// The operation that maps `count` frames from `frame`.
    pub(super) fn map_page(&self, page: u32, frame: Frame, count: u32, access: Access) -> MapOperation {
        MapOperation {
            kind: MapKind::Map as u8,
            access: access.bits(),
            slot: self.slot,
            reserved: 0,
            count,
            address: SPACE_BASE + u64::from(page) * PAGE,
            frame: u64::from(frame),
        }
    }
}
