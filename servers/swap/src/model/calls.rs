//! The model's calls of the kernel, with every rule that the pager relies on.

use super::{Domain, DomainState, MAP_PAGES, Mapped, Model, TRANSFERS, Type};
use crate::{
    frames::Frame,
    machine::{Machine, MapError},
    record::{PER_FRAME, VmRecord},
};
use protocol::{
    abi::{Error, NEVER, Target, TargetKind},
    domain::{Control, DomainParameters, Event, EventKind, SavedDomain, Usage, Window},
    layout::PAGE,
    memory::{Access, BATCH, DESTINATION_MISSING, MapKind, MapOperation, PageState, Scan, TransferOperation},
    service::VmRef,
};
use std::{boxed::Box, collections::BTreeMap, vec, vec::Vec};

impl Model {
    fn index(&self, frame: u64) -> Result<usize, Error> {
        let index = u32::try_from(frame).ok().and_then(|frame| self.pool.index(frame));
        Ok(index.ok_or(Error::BadArgument)? as usize)
    }

    fn domain(&mut self, vm: VmRef) -> Result<&mut Domain, Error> {
        self.domains.get_mut(&vm.frame).filter(|domain| domain.generation == vm.generation).ok_or(Error::Gone)
    }

    fn make_table(&mut self, frame: u64, owner: Frame) -> Result<(), Error> {
        let index = self.index(frame)?;
        if self.types[index] != Type::Free {
            return Err(Error::Occupied);
        }
        self.types[index] = Type::Table(owner);
        self.contents[index].fill(0);
        Ok(())
    }

    /// What a VM, or a server by a transfer, reaches at an address, if the page is there and may be used so.
    pub fn access(&mut self, vm: VmRef, address: u64, need: Access) -> Option<&mut u8> {
        let mapped = self.domain(vm).ok()?.pages.get_mut(&(address / PAGE))?;
        if !mapped.access.contains(need) {
            return None;
        }
        mapped.used = true;
        mapped.written |= need.contains(Access::WRITE);
        let frame = mapped.frame;
        let index = self.pool.index(frame)?;
        Some(&mut self.contents[index as usize][(address % PAGE) as usize])
    }

    fn map_one(&mut self, vm: VmRef, operation: &MapOperation, budget: &mut u32) -> Result<(), (Error, u32)> {
        assert!(operation.address.is_multiple_of(PAGE) && operation.address >= PAGE && operation.reserved == 0);
        let access = Access::from_bits(operation.access).unwrap();
        assert!(!access.contains(Access::WRITE | Access::EXECUTE), "write xor execute");
        for page in 0..operation.count {
            if *budget == 0 {
                return Err((Error::Again, page));
            }
            *budget -= 1;
            let address = operation.address + u64::from(page) * PAGE;
            self.map_page(vm, operation, address, operation.frame + u64::from(page), access).map_err(|e| (e, page))?;
        }
        Ok(())
    }

    fn map_page(
        &mut self,
        vm: VmRef,
        operation: &MapOperation,
        address: u64,
        frame: u64,
        access: Access,
    ) -> Result<(), Error> {
        let (directory, leaf) = (address >> 30, address >> 21);
        match MapKind::from_u8(operation.kind).unwrap() {
            MapKind::Map => {
                assert_eq!(operation.slot, self.pool.slot(frame as Frame));
                let index = self.index(frame)?;
                let domain = self.domain(vm)?;
                if !domain.directories.contains_key(&directory) || !domain.leaves.contains_key(&leaf) {
                    return Err(Error::NoTable);
                }
                if domain.pages.contains_key(&(address / PAGE)) {
                    return Err(Error::Occupied);
                }
                let count = match self.types[index] {
                    Type::Free => 0,
                    Type::Mapped(count) => count,
                    _ => return Err(Error::Occupied),
                };
                self.types[index] = Type::Mapped(count + 1);
                let mapped = Mapped { frame: frame as Frame, access, used: false, written: false };
                self.domain(vm)?.pages.insert(address / PAGE, mapped);
            }
            MapKind::Table => {
                assert_eq!((operation.slot, operation.count), (self.pool.slot(frame as Frame), 1));
                let domain = self.domain(vm)?;
                let missing_directory = !domain.directories.contains_key(&directory);
                if !missing_directory && domain.leaves.contains_key(&leaf) {
                    return Err(Error::Occupied);
                }
                self.make_table(frame, vm.frame)?;
                let domain = self.domain(vm)?;
                let (tables, number) =
                    if missing_directory { (&mut domain.directories, directory) } else { (&mut domain.leaves, leaf) };
                tables.insert(number, frame as Frame);
            }
            MapKind::Unmap => self.unmap_page(vm, address)?,
            MapKind::Protect => panic!("the pager protects nothing"),
        }
        Ok(())
    }

    fn unmap_page(&mut self, vm: VmRef, address: u64) -> Result<(), Error> {
        if let Some(mapped) = self.domain(vm)?.pages.remove(&(address / PAGE)) {
            self.unmap(mapped.frame);
        }
        Ok(())
    }

    fn unmap(&mut self, frame: Frame) {
        let index = self.index(u64::from(frame)).unwrap();
        self.types[index] = match self.types[index] {
            Type::Mapped(1) => Type::Free,
            Type::Mapped(count) if count > 1 => Type::Mapped(count - 1),
            other => panic!("{other:?} was mapped"),
        };
    }

    fn read(&mut self, side: Target, address: u64, length: usize) -> Result<Vec<u8>, Error> {
        match side.kind().ok_or(Error::BadArgument)? {
            TargetKind::Zero => Ok(vec![0; length]),
            TargetKind::Caller { .. } => {
                let start = usize::try_from(address).map_err(|_| Error::BadAddress)?;
                let end = start.checked_add(length).ok_or(Error::BadAddress)?;
                self.lent.get(start..end).map(<[u8]>::to_vec).ok_or(Error::BadAddress)
            }
            TargetKind::Slot(slot) if slot == self.pool.slot((address / PAGE) as Frame) => {
                let index = self.index(address / PAGE)?;
                let start = (address % PAGE) as usize;
                Ok(self.contents[index][start..start + length].to_vec())
            }
            _ => Err(Error::NoCapability),
        }
    }

    fn transfer_one(&mut self, operation: &TransferOperation) -> Result<(), Error> {
        let length = operation.length as usize;
        let bytes = self.read(Target(operation.from), operation.from_address, length)?;
        let slot = self.pool.slot((operation.to_address / PAGE) as Frame);
        assert_eq!(Target(operation.to), Target::slot(slot), "the pager writes frames only");
        let index = self.index(operation.to_address / PAGE)?;
        assert!(matches!(self.types[index], Type::Free | Type::Mapped(_)), "transfer into a {:?}", self.types[index]);
        let start = (operation.to_address % PAGE) as usize;
        self.contents[index][start..start + length].copy_from_slice(&bytes);
        Ok(())
    }
}

impl Machine for Model {
    fn create(&mut self, frame: Frame, parameters: &DomainParameters) -> Result<VmRef, Error> {
        self.call();
        let index = self.index(u64::from(frame))?;
        assert_eq!(self.types[index], Type::Free);
        assert_eq!(parameters.root_slot, u64::from(self.pool.slot(parameters.root_frame as Frame)));
        self.make_table(parameters.root_frame, frame)?;
        self.types[index] = Type::Control;
        self.contents[index].fill(0);
        self.generations[index] += 1;
        let generation = self.generations[index];
        let domain = Domain {
            generation,
            parameters: *parameters,
            state: DomainState::Stopped,
            held: false,
            pending: 0,
            trap: None,
            queued: false,
            entry: [0; 3],
            time: 0,
            switches: 0,
            register: 0,
            directories: BTreeMap::new(),
            leaves: BTreeMap::new(),
            pages: BTreeMap::new(),
        };
        self.domains.insert(frame, domain);
        Ok(VmRef { frame, generation })
    }

    fn control(&mut self, vm: VmRef, control: Control, arguments: [u64; 3]) -> Result<(), Error> {
        self.call();
        let now = self.now;
        let domain = self.domain(vm)?;
        match control {
            Control::Start if domain.state == DomainState::Stopped => {
                (domain.state, domain.entry) = (DomainState::Runs, arguments);
            }
            Control::Resume if domain.state == DomainState::Trapped && !domain.held => domain.state = DomainState::Runs,
            Control::Stop => (domain.state, domain.queued, domain.held) = (DomainState::Stopped, false, false),
            Control::Hold => {
                let can = matches!(domain.state, DomainState::Runs | DomainState::Idle(_) | DomainState::Trapped);
                if domain.held || domain.queued {
                    return Err(Error::Busy);
                }
                if !can {
                    return Err(Error::BadArgument);
                }
                domain.held = true;
            }
            Control::Release if domain.held => {
                domain.held = false;
                match domain.state {
                    DomainState::Trapped => domain.queued = true,
                    DomainState::Idle(deadline) if domain.pending != 0 || deadline <= now => {
                        domain.state = DomainState::Runs;
                    }
                    _ => {}
                }
            }
            Control::Release
                if domain.state == DomainState::Stopped
                    && domain.trap.is_some_and(|trap| trap.kind == EventKind::Exit as u32) =>
            {
                domain.queued = true;
            }
            Control::Destroy => {
                domain.state = DomainState::Ending;
                domain.queued = false;
                for _ in 0..MAP_PAGES {
                    let Some((_, mapped)) = self.domain(vm)?.pages.pop_first() else { break };
                    self.unmap(mapped.frame);
                }
                if !self.domain(vm)?.pages.is_empty() {
                    return Err(Error::Again);
                }
                self.domains.remove(&vm.frame);
                for kind in &mut self.types {
                    if *kind == Type::Table(vm.frame) {
                        *kind = Type::Free;
                    }
                }
                let index = self.index(u64::from(vm.frame))?;
                self.types[index] = Type::Free;
                self.generations[index] += 1;
            }
            _ => return Err(Error::BadArgument),
        }
        Ok(())
    }

    fn save(&mut self, vm: VmRef, state: &mut SavedDomain) -> Result<(), Error> {
        self.call();
        let domain = self.domain(vm)?;
        if !domain.held {
            return Err(Error::Busy);
        }
        *state = SavedDomain::ZERO;
        (state.state, state.deadline) = match domain.state {
            DomainState::Idle(deadline) => (2, deadline),
            DomainState::Trapped => (4, NEVER),
            _ => (1, NEVER),
        };
        (state.clock, state.pending) = (NEVER, domain.pending);
        state.registers[3] = domain.register;
        if let Some(trap) = domain.trap {
            state.trap = [u64::from(trap.kind) | u64::from(trap.code) << 32, trap.address, trap.instruction];
        }
        (state.cpu_ticks, state.switches) = (domain.time, domain.switches);
        state.windows = domain.parameters.windows.map(|window| [window.address, window.length]);
        Ok(())
    }

    fn restore(&mut self, vm: VmRef, state: &SavedDomain) -> Result<(), Error> {
        self.call();
        let windows = state.windows.map(|[address, length]| Window { address, length });
        let domain = self.domain(vm)?;
        assert_eq!(domain.state, DomainState::Stopped);
        domain.state = match state.state {
            2 => DomainState::Idle(state.deadline),
            4 => DomainState::Trapped,
            1 => DomainState::Runs,
            _ => return Err(Error::BadArgument),
        };
        domain.held = true;
        domain.pending = state.pending;
        domain.register = state.registers[3];
        let [kind, address, instruction] = state.trap;
        let tag = domain.parameters.tag;
        let (kind, code) = (kind as u32, (kind >> 32) as u32);
        domain.trap =
            (kind != 0).then_some(Event { tag, kind, code, address, instruction, value: 13, ..Event::default() });
        (domain.time, domain.switches) = (state.cpu_ticks, state.switches);
        domain.parameters.windows = windows;
        Ok(())
    }

    fn usage(&mut self, vm: VmRef) -> Result<Usage, Error> {
        self.call();
        let domain = self.domain(vm)?;
        let state = match domain.state {
            _ if domain.held => 5,
            DomainState::Stopped => 0,
            DomainState::Runs => 1,
            DomainState::Idle(_) => 2,
            DomainState::Trapped => 4,
            DomainState::Ending => 6,
        };
        Ok(Usage { cpu_time: domain.time, switches: domain.switches, state, incarnation: 0 })
    }

    fn scan(&mut self, vm: VmRef, address: u64, states: &mut [u8], action: Scan) -> Result<(), Error> {
        self.call();
        assert!(address.is_multiple_of(PAGE));
        for (page, state) in (address / PAGE..).zip(states) {
            if self.meddles && action.contains(Scan::UNMAP) {
                self.meddle(vm, page * PAGE + 8);
            }
            let mut seen = PageState::empty();
            if let Some(mapped) = self.domain(vm)?.pages.get_mut(&page) {
                seen.set(PageState::PRESENT, true);
                seen.set(PageState::ACCESSED, mapped.used);
                seen.set(PageState::DIRTY, mapped.written);
                seen.set(PageState::WRITABLE, mapped.access.contains(Access::WRITE));
                mapped.used &= !action.contains(Scan::CLEAR_ACCESSED);
                if action.contains(Scan::UNMAP) {
                    self.unmap_page(vm, page * PAGE)?;
                }
            }
            *state = seen.bits();
        }
        Ok(())
    }

    fn map(&mut self, vm: VmRef, operations: &[MapOperation]) -> Result<(), MapError> {
        self.call();
        assert!(!operations.is_empty() && operations.len() <= BATCH);
        let mut budget = MAP_PAGES;
        for (index, operation) in operations.iter().enumerate() {
            self.map_one(vm, operation, &mut budget).map_err(|(error, pages)| MapError {
                error,
                operations: index,
                pages,
            })?;
        }
        Ok(())
    }

    fn transfer(&mut self, operations: &mut [TransferOperation]) -> Result<usize, Error> {
        self.call();
        assert!(operations.len() <= BATCH);
        let count = operations.len().min(TRANSFERS);
        for operation in &mut operations[..count] {
            match self.transfer_one(operation) {
                Ok(()) => (operation.status, operation.done) = (0, operation.length),
                Err(error) => (operation.status, operation.done) = (error as u32, DESTINATION_MISSING),
            }
        }
        Ok(count)
    }

    fn read_lent(&mut self, lent: Target, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.call();
        into.copy_from_slice(&self.read(lent, offset, into.len())?);
        Ok(())
    }

    fn read_frame(&mut self, frame: Frame, offset: usize, into: &mut [u8]) -> Result<(), Error> {
        self.call();
        let index = self.index(u64::from(frame))?;
        assert!(matches!(self.types[index], Type::Free | Type::Mapped(_)), "read of a {:?}", self.types[index]);
        into.copy_from_slice(&self.contents[index][offset..offset + into.len()]);
        Ok(())
    }

    fn write_frame(&mut self, frame: Frame, offset: usize, from: &[u8]) -> Result<(), Error> {
        self.call();
        let index = self.index(u64::from(frame))?;
        assert_eq!(self.types[index], Type::Free, "what is mapped by a VM is not written so");
        self.contents[index][offset..offset + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn map_records(&mut self, frame: Frame, fresh: bool) -> Option<&'static mut [VmRecord]> {
        self.call();
        if !fresh {
            return Some(self.left.remove(&frame).expect("a dead pager has left this part"));
        }
        let records: Vec<VmRecord> = (0..PER_FRAME).map(|_| VmRecord::default()).collect();
        Some(Box::leak(records.into_boxed_slice()))
    }

    fn now(&mut self) -> u64 {
        self.now
    }
}
