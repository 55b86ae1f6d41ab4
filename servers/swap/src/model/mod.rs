//! A model of the kernel and of disks: frames with types, counts and contents, domains with page tables, and every rule of
//! `protocol` that the pager relies on, checked at each call; disks that answer in any order, or fail. The pager can be made to die at any call.

mod calls;
mod disks;

use crate::{
    frames::{Frame, Pool},
    record::VmRecord,
};
use protocol::{
    domain::{DomainParameters, Event},
    layout::PAGE,
    memory::Access,
    service::VmRef,
};
use std::{boxed::Box, collections::BTreeMap, vec, vec::Vec};

use disks::Disk;

pub type Page = [u8; PAGE as usize];

/// Pages that one call maps before it answers `Again`: small, so that tests meet it.
const MAP_PAGES: u32 = 3;
/// Transfers that one call performs.
const TRANSFERS: usize = 5;
/// Slots of a disk.
pub const SLOTS: u16 = 4;

/// What the pager dies with.
pub struct Died;

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
    Idle(u64),
    Trapped,
    Ending,
}

#[derive(Clone, Copy, Debug)]
pub struct Mapped {
    pub frame: Frame,
    pub access: Access,
    pub used: bool,
    pub written: bool,
}

#[derive(Debug)]
pub struct Domain {
    pub generation: u32,
    pub parameters: DomainParameters,
    pub state: DomainState,
    pub held: bool,
    pub pending: u64,
    pub trap: Option<Event>,
    pub queued: bool,
    pub entry: [u64; 3],
    pub time: u64,
    pub switches: u64,
    /// What only its registers know.
    pub register: u64,
    directories: BTreeMap<u64, Frame>,
    leaves: BTreeMap<u64, Frame>,
    pub pages: BTreeMap<u64, Mapped>,
}

/// The kernel and the disks.
pub struct Model {
    pub pool: Pool,
    pub types: Vec<Type>,
    generations: Vec<u32>,
    pub contents: Vec<Box<Page>>,
    pub domains: BTreeMap<Frame, Domain>,
    /// Parts of the table of VMs that a dead pager has left.
    pub left: BTreeMap<Frame, &'static mut [VmRecord]>,
    /// The range that callers lend, whoever they are.
    pub lent: Vec<u8>,
    pub now: u64,
    /// Nanoseconds that it takes to seal a page, or to open one.
    pub sealing: u64,
    pub calls: usize,
    /// The call at which the pager dies.
    pub dies_at: Option<usize>,
    /// Whether a server on another processor writes into each page just before it is unmapped; and what it has written: VM, address, byte.
    pub meddles: bool,
    pub meddled: Vec<(u64, u64, u8)>,
    disks: Vec<Disk>,
}

impl Model {
    pub fn new(pool: Pool, disks: &[u64]) -> Model {
        let frames = pool.frames() as usize;
        Model {
            pool,
            types: vec![Type::Free; frames],
            generations: vec![0; frames],
            // What was there before: nobody may ever see it.
            contents: vec![Box::new([0xee; PAGE as usize]); frames],
            domains: BTreeMap::new(),
            left: BTreeMap::new(),
            lent: Vec::new(),
            now: 1,
            sealing: 0,
            calls: 0,
            dies_at: None,
            meddles: false,
            meddled: Vec::new(),
            disks: disks.iter().map(|blocks| Disk::new(*blocks)).collect(),
        }
    }

    fn call(&mut self) {
        self.calls += 1;
        if self.dies_at.is_some_and(|at| self.calls >= at) {
            self.dies_at = None;
            std::panic::resume_unwind(Box::new(Died));
        }
    }

    /// A server on another processor writes into a page, if that can be written now.
    fn meddle(&mut self, vm: VmRef, address: u64) {
        let value = self.calls as u8 | 1;
        let Some(tag) = self.domains.get(&vm.frame).map(|domain| domain.parameters.tag) else { return };
        if let Some(byte) = self.access(vm, address, Access::WRITE) {
            *byte = value;
            self.meddled.push((tag, address, value));
        }
    }

    /// The pager has died: its pages and slots are gone, and the driver lets what was under way end.
    pub fn mourn(&mut self) {
        for disk in 0..self.disks.len() {
            while self.answer(disk, 0, true).is_some() {}
            self.disks[disk].taken = [false; SLOTS as usize];
        }
    }

    /// Events that wait in the queue of traps.
    pub fn collect(&mut self, most: usize) -> Vec<Event> {
        let waiting = self.domains.iter_mut().filter(|(_, domain)| domain.queued).take(most);
        waiting
            .map(|(frame, domain)| {
                domain.queued = false;
                Event { frame: *frame, generation: domain.generation, ..domain.trap.unwrap() }
            })
            .collect()
    }

    /// The domain of a VM, if it has one.
    pub fn find(&mut self, number: u64) -> Option<(VmRef, &mut Domain)> {
        let (frame, domain) = self
            .domains
            .iter_mut()
            .find(|(_, domain)| domain.parameters.tag == number && domain.state != DomainState::Ending)?;
        Some((VmRef { frame: *frame, generation: domain.generation }, domain))
    }
}
