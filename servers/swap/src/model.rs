//! A model of the kernel: frames with types, counts and contents, domains with page tables, and every rule of
//! `protocol` that the pager relies on, checked at each call.

use crate::{
    frames::Frame,
    machine::{Machine, MapError},
};
use protocol::{
    abi::{Error, Target, TargetKind},
    domain::{Control, DomainParameters},
    layout::PAGE,
    memory::{Access, BATCH, DESTINATION_MISSING, MapKind, MapOperation, TransferOperation},
    service::VmRef,
};
use std::{boxed::Box, collections::BTreeMap, vec, vec::Vec};

pub type Page = [u8; PAGE as usize];

/// Pages that one call maps before it answers `Again`: small, so that tests meet it.
const MAP_PAGES: u32 = 3;
/// Transfers that one call performs.
const TRANSFERS: usize = 5;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Type {
    Free,
    Mapped(u32),
    Table(Frame),
    Control,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainState {
    Stopped,
    Runs,
    Trapped,
}

#[derive(Debug)]
pub struct Domain {
    pub generation: u16,
    pub parameters: DomainParameters,
    pub state: DomainState,
    pub entry: [u64; 3],
    directories: BTreeMap<u64, Frame>,
    leaves: BTreeMap<u64, Frame>,
    pub pages: BTreeMap<u64, (Frame, Access)>,
}

/// The kernel.
pub struct Model {
    pub slot: u8,
    pub first: Frame,
    pub types: Vec<Type>,
    generations: Vec<u16>,
    pub contents: Vec<Box<Page>>,
    pub domains: BTreeMap<Frame, Domain>,
    /// The range that callers lend, whoever they are.
    pub lent: Vec<u8>,
    pub calls: usize,
}

impl Model {
    pub fn new(slot: u8, first: Frame, frames: usize) -> Model {
        Model {
            slot,
            first,
            types: vec![Type::Free; frames],
            generations: vec![0; frames],
            // What was there before: nobody may ever see it.
            contents: vec![Box::new([0xee; PAGE as usize]); frames],
            domains: BTreeMap::new(),
            lent: Vec::new(),
            calls: 0,
        }
    }

    fn index(&self, frame: u64) -> Result<usize, Error> {
        let index = frame.checked_sub(u64::from(self.first)).ok_or(Error::BadArgument)? as usize;
        if index < self.types.len() { Ok(index) } else { Err(Error::BadArgument) }
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

    /// What a VM sees at an address, if the page is there and may be used so.
    pub fn access(&mut self, vm: VmRef, address: u64, need: Access) -> Option<&mut u8> {
        let (frame, access) = *self.domains.get(&vm.frame)?.pages.get(&(address / PAGE))?;
        let index = self.index(u64::from(frame)).unwrap();
        access.contains(need).then(|| &mut self.contents[index][(address % PAGE) as usize])
    }

    fn map_one(&mut self, vm: VmRef, operation: &MapOperation, budget: &mut u32) -> Result<(), (Error, u32)> {
        assert!(operation.address.is_multiple_of(PAGE) && operation.reserved == 0);
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
                assert_eq!(operation.slot, self.slot);
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
                self.domain(vm)?.pages.insert(address / PAGE, (frame as Frame, access));
            }
            MapKind::Table => {
                assert_eq!((operation.slot, operation.count), (self.slot, 1));
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
            MapKind::Unmap => {
                if let Some((frame, _)) = self.domain(vm)?.pages.remove(&(address / PAGE)) {
                    self.unmap(frame);
                }
            }
            MapKind::Protect => panic!("the pager protects nothing"),
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
            TargetKind::Slot(slot) if slot == self.slot => {
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
        assert_eq!(Target(operation.to), Target::slot(self.slot), "the pager writes frames only");
        let index = self.index(operation.to_address / PAGE)?;
        assert!(matches!(self.types[index], Type::Free | Type::Mapped(_)), "transfer into a {:?}", self.types[index]);
        let start = (operation.to_address % PAGE) as usize;
        self.contents[index][start..start + length].copy_from_slice(&bytes);
        Ok(())
    }
}

impl Machine for Model {
    fn create(&mut self, frame: Frame, parameters: &DomainParameters) -> Result<VmRef, Error> {
        self.calls += 1;
        let index = self.index(u64::from(frame))?;
        assert_eq!(self.types[index], Type::Free);
        self.make_table(parameters.root_frame, frame)?;
        self.types[index] = Type::Control;
        self.contents[index].fill(0);
        self.generations[index] += 1;
        let generation = self.generations[index];
        let domain = Domain {
            generation,
            parameters: *parameters,
            state: DomainState::Stopped,
            entry: [0; 3],
            directories: BTreeMap::new(),
            leaves: BTreeMap::new(),
            pages: BTreeMap::new(),
        };
        self.domains.insert(frame, domain);
        Ok(VmRef { frame, generation })
    }

    fn control(&mut self, vm: VmRef, control: Control, arguments: [u64; 3]) -> Result<(), Error> {
        self.calls += 1;
        let domain = self.domain(vm)?;
        match control {
            Control::Start if domain.state == DomainState::Stopped => {
                (domain.state, domain.entry) = (DomainState::Runs, arguments);
            }
            Control::Resume if domain.state == DomainState::Trapped => domain.state = DomainState::Runs,
            Control::Stop => domain.state = DomainState::Stopped,
            Control::Destroy => {
                for _ in 0..MAP_PAGES {
                    let Some((_, (frame, _))) = self.domain(vm)?.pages.pop_first() else { break };
                    self.unmap(frame);
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

    fn map(&mut self, vm: VmRef, operations: &[MapOperation]) -> Result<(), MapError> {
        self.calls += 1;
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
        self.calls += 1;
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
        self.calls += 1;
        into.copy_from_slice(&self.read(lent, offset, into.len())?);
        Ok(())
    }

    fn write_frame(&mut self, frame: Frame, page: &Page) -> Result<(), Error> {
        self.calls += 1;
        let index = self.index(u64::from(frame))?;
        assert_eq!(self.types[index], Type::Free, "only new frames are written so");
        self.contents[index].copy_from_slice(page);
        Ok(())
    }

    fn cpu_time(&mut self, _: VmRef) -> u64 {
        5
    }
}
