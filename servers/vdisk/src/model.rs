//! A machine for tests: a disk that does things in any order, fails and forgets, and VMs whose memory comes and goes.

use crate::{
    machine::{BlockDevice, Brought, Copy, Fate, Guests, Place, SCRATCH, Slot},
    store::BLOCK,
};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec,
    vec::Vec,
};
use protocol::service::{
    VmNumber, VmRef,
    block_driver::{BUFFER, Operation, Status},
};

/// Where the disk window of every VM begins.
pub const WINDOW: u64 = 0x20_4000;
const PAGE: u64 = 4096;

/// Random numbers.
#[derive(Clone, Debug)]
pub struct Chance(pub u64);

impl Chance {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit.max(1)
    }

    /// True once in so many times.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

#[derive(Debug)]
struct UnderWay {
    slot: Slot,
    operation: Operation,
    block: u64,
    count: u32,
    /// For a flush: the medium as it was when it was put up. What was written later it need not make safe.
    medium: Option<Vec<(u32, [u8; 512])>>,
}

/// The memory of a VM.
#[derive(Debug)]
pub struct Memory {
    pub at: VmRef,
    pub bytes: Vec<u8>,
    /// Whether it is in memory at all, and pages that are not.
    pub here: bool,
    pub missing: BTreeSet<u64>,
    pub raised: u32,
}

#[derive(Debug)]
pub struct Model {
    pub chance: Chance,
    /// What survives a power cut, and what reads find.
    pub safe: Vec<u8>,
    pub medium: Vec<u8>,
    /// How often each sector of either was written.
    versions: Vec<u32>,
    safe_versions: Vec<u32>,
    /// A request fails once in so many; 0: never.
    pub fails: usize,
    free: Vec<Slot>,
    buffers: Vec<Vec<u8>>,
    under_way: Vec<UnderWay>,
    finished: Vec<(Slot, Status)>,
    scratch: Vec<u8>,
    pub vms: BTreeMap<VmNumber, Memory>,
    /// What the pager was asked for and has not brought.
    pub asked: Vec<VmNumber>,
    /// Whether the pager ever says *later*.
    pub slow_pager: bool,
    /// The server dies after so many more copies, requests and interrupts: nothing that it does from then on has any effect.
    pub dies_after: Option<usize>,
}

impl Model {
    pub fn new(seed: u64, blocks: u64, slots: usize) -> Model {
        let medium = vec![0; blocks as usize * BLOCK];
        Model {
            chance: Chance(seed),
            safe: medium.clone(),
            versions: vec![0; medium.len() / 512],
            safe_versions: vec![0; medium.len() / 512],
            medium,
            fails: 0,
            free: (0..slots as Slot).collect(),
            buffers: vec![vec![0; BUFFER]; slots],
            under_way: Vec::new(),
            finished: Vec::new(),
            scratch: vec![0; SCRATCH],
            vms: BTreeMap::new(),
            asked: Vec::new(),
            slow_pager: false,
            dies_after: None,
        }
    }

    /// Whether the server is dead; a step of its way there.
    fn is_dead(&mut self) -> bool {
        match &mut self.dies_after {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    pub fn blocks(&self) -> u64 {
        (self.medium.len() / BLOCK) as u64
    }

    /// Slots that are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    pub fn is_quiet(&self) -> bool {
        self.under_way.is_empty() && self.finished.is_empty()
    }

    pub fn add_vm(&mut self, vm: VmNumber, pages: u64) -> VmRef {
        let at = VmRef { frame: vm as u32 * 100, generation: 1 };
        let bytes = vec![0; (pages * PAGE) as usize];
        self.vms.insert(vm, Memory { at, bytes, here: true, missing: BTreeSet::new(), raised: 0 });
        at
    }

    /// The device carries out one of the requests under way.
    pub fn step(&mut self) {
        if self.under_way.is_empty() {
            return;
        }
        let index = self.chance.below(self.under_way.len());
        let request = self.under_way.swap_remove(index);
        let (start, length) = (request.block as usize * BLOCK, request.count as usize * BLOCK);
        let failed = self.fails > 0 && self.chance.one_in(self.fails);
        let done = !failed || self.chance.one_in(2);
        let buffer = &mut self.buffers[usize::from(request.slot)];
        let inside = start + length <= self.medium.len();
        assert!(inside, "the server asks for what the partition does not have");
        if matches!(request.operation, Operation::Write | Operation::Zero) && done {
            self.versions[start / 512..(start + length) / 512].iter_mut().for_each(|version| *version += 1);
        }
        match request.operation {
            Operation::Read if !failed => buffer[..length].copy_from_slice(&self.medium[start..start + length]),
            Operation::Write if done => self.medium[start..start + length].copy_from_slice(&buffer[..length]),
            Operation::Zero if done => self.medium[start..start + length].fill(0),
            Operation::Flush if !failed => {
                // All that was in the medium when the flush was put up is safe, if nothing overwrote it: then that may be, or not.
                for (sector, (version, bytes)) in request.medium.unwrap_or_default().into_iter().enumerate() {
                    let newer = self.versions[sector] != version && self.chance.one_in(2);
                    let at = sector * 512..(sector + 1) * 512;
                    if newer {
                        self.safe[at.clone()].copy_from_slice(&self.medium[at]);
                        self.safe_versions[sector] = self.versions[sector];
                    } else if version > self.safe_versions[sector] {
                        self.safe[at].copy_from_slice(&bytes);
                        self.safe_versions[sector] = version;
                    }
                }
            }
            _ => {}
        }
        self.finished.push((request.slot, if failed { Status::Failed } else { Status::Ok }));
    }

    /// The power is cut: of what was not flushed, and of what was under way, some sectors are lost.
    pub fn cut(&mut self) {
        for request in core::mem::take(&mut self.under_way) {
            let (start, length) = (request.block as usize * BLOCK, request.count as usize * BLOCK);
            if request.operation == Operation::Write && self.chance.one_in(2) {
                self.medium[start..start + length].copy_from_slice(&self.buffers[usize::from(request.slot)][..length]);
            }
        }
        for (safe, now) in self.safe.chunks_mut(512).zip(self.medium.chunks(512)) {
            if safe != now && self.chance.one_in(2) {
                safe.copy_from_slice(now);
            }
        }
        self.medium.clone_from(&self.safe);
        self.safe_versions.clone_from(&self.versions);
        self.forget_server();
        self.vms.clear();
    }

    /// The server is restarted: what it had under way is over before the next one begins.
    pub fn forget_server(&mut self) {
        while !self.under_way.is_empty() {
            self.step();
        }
        self.finished.clear();
        self.free = (0..self.buffers.len() as Slot).collect();
        self.asked.clear();
        self.dies_after = None;
    }

    /// The pager brings something that it was asked for.
    pub fn page_in(&mut self) -> Option<VmNumber> {
        if self.asked.is_empty() {
            return None;
        }
        let index = self.chance.below(self.asked.len());
        let vm = self.asked.swap_remove(index);
        self.bring_whole(vm);
        Some(vm)
    }

    fn bring_whole(&mut self, vm: VmNumber) {
        if let Some(memory) = self.vms.get_mut(&vm) {
            if !memory.here {
                memory.at.frame += 1;
            }
            memory.here = true;
            memory.missing.clear();
        }
    }

    fn find(&mut self, at: VmRef) -> Option<&mut Memory> {
        self.vms.values_mut().find(|memory| memory.at == at && memory.here)
    }

    fn copy_one(&mut self, copy: Copy) -> Fate {
        let length = copy.length;
        assert!((1..=65536).contains(&length));
        let bytes = match copy.from {
            Place::Vm { .. } => None,
            Place::Buffer(slot, offset) => {
                assert!(!self.free.contains(&slot) && !self.under_way.iter().any(|request| request.slot == slot));
                Some(self.buffers[usize::from(slot)][offset..offset + length].to_vec())
            }
            Place::Scratch(offset) => Some(self.scratch[offset..offset + length].to_vec()),
        };
        let side = if bytes.is_some() { copy.to } else { copy.from };
        let Place::Vm { vm, address } = side else { panic!("one side is a VM") };
        let Some(memory) = self.find(vm) else { return Fate::Missing };
        let Some(start) = address.checked_sub(WINDOW).map(|offset| offset as usize) else { return Fate::Failed };
        if start + length > memory.bytes.len() {
            return Fate::Failed;
        }
        if (start as u64 / PAGE..=(start + length - 1) as u64 / PAGE).any(|page| memory.missing.contains(&page)) {
            return Fate::Missing;
        }
        match bytes {
            Some(bytes) => memory.bytes[start..start + length].copy_from_slice(&bytes),
            None => {
                let bytes = memory.bytes[start..start + length].to_vec();
                match copy.to {
                    Place::Buffer(slot, offset) => {
                        assert!(!self.free.contains(&slot) && !self.under_way.iter().any(|r| r.slot == slot));
                        self.buffers[usize::from(slot)][offset..offset + length].copy_from_slice(&bytes);
                    }
                    Place::Scratch(offset) => self.scratch[offset..offset + length].copy_from_slice(&bytes),
                    Place::Vm { .. } => panic!("one side is the server"),
                }
            }
        }
        Fate::Done
    }
}

impl BlockDevice for Model {
    fn slots(&self) -> usize {
        self.buffers.len()
    }
    fn take(&mut self) -> Option<Slot> {
        self.free.pop()
    }
    fn give_back(&mut self, slot: Slot) {
        assert!(!self.free.contains(&slot) && !self.under_way.iter().any(|request| request.slot == slot));
        self.free.push(slot);
    }
    fn submit(&mut self, slot: Slot, operation: Operation, block: u64, count: u32) {
        assert!(!self.free.contains(&slot) && !self.under_way.iter().any(|request| request.slot == slot));
        if self.is_dead() {
            return;
        }
        let sectors = || self.medium.chunks_exact(512).map(|bytes| bytes.try_into().unwrap());
        let medium = (operation == Operation::Flush).then(|| self.versions.iter().copied().zip(sectors()).collect());
        self.under_way.push(UnderWay { slot, operation, block, count, medium });
    }
    fn completed(&mut self) -> Option<(Slot, Status)> {
        self.finished.pop()
    }
    fn read_buffer(&self, slot: Slot, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.buffers[usize::from(slot)][..bytes.len()]);
    }
    fn write_buffer(&mut self, slot: Slot, bytes: &[u8]) {
        self.buffers[usize::from(slot)][..bytes.len()].copy_from_slice(bytes);
    }
}

impl Guests for Model {
    fn copy(&mut self, copies: &[Copy], fates: &mut Vec<Fate>) {
        for copy in copies {
            let fate = if self.is_dead() { Fate::Done } else { self.copy_one(*copy) };
            fates.push(fate);
        }
    }
    fn scratch(&mut self) -> &mut [u8] {
        &mut self.scratch
    }
    fn raise(&mut self, vm: VmRef) -> Fate {
        let dead = self.is_dead();
        match self.find(vm).filter(|_| !dead) {
            Some(memory) => {
                memory.raised += 1;
                Fate::Done
            }
            None => Fate::Missing,
        }
    }
    fn bring(&mut self, vm: VmNumber, _: u64, length: u32, _: bool) -> Brought {
        assert!(length <= 65536);
        if !self.vms.contains_key(&vm) {
            return Brought::NotFound;
        }
        match self.chance.below(if self.slow_pager { 4 } else { 1 }) {
            0 => {
                self.bring_whole(vm);
                Brought::Here(self.vms[&vm].at)
            }
            1 => Brought::Unreachable,
            _ => {
                if !self.asked.contains(&vm) {
                    self.asked.push(vm);
                }
                Brought::Later
            }
        }
    }
    fn exists(&mut self, vm: VmNumber) -> bool {
        self.vms.contains_key(&vm)
    }
}
