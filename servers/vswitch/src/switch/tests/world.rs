//! The machine of the tests: memories of VMs that come and go, a pager, a driver.

use super::super::*;
use crate::{
    header::tests::ipv4_packet,
    memory::{Answer, Copy, Need, Outcome},
    queue::{Page, receive_length},
};
use alloc::{boxed::Box, vec, vec::Vec};
use core::mem::offset_of;
use protocol::{
    nic::{ENTRIES, Indices, RECEIVE_RING, SEND_RING},
    service::net_driver::{self, RingPage, SHARED_BYTES, receive_buffer, send_buffer},
};
use server_runtime::mmio::Region;
use std::collections::{BTreeMap, BTreeSet};

pub const BASE: u64 = 0x20_1000;
pub const WINDOW: usize = 0x2_0000;
pub const BUFFER: usize = 2048;
pub const OUTSIDE: Mac = [0x52, 0x55, 10, 0, 2, 2];
pub const OUTSIDE_ADDRESS: [u8; 4] = [10, 0, 2, 2];
pub const ALL: Mac = [0xff; 6];

pub fn vm(number: u8) -> VmNumber {
    u64::from(number)
}
pub fn at(number: u8) -> VmRef {
    VmRef { frame: 100 + u32::from(number), generation: 1 }
}
pub fn mac(number: u8) -> Mac {
    [2, 0, 10, 0, 2, number]
}
pub fn address(number: u8) -> [u8; 4] {
    [10, 0, 2, number]
}

type Hook = Box<dyn FnMut(&mut BTreeMap<u8, Vec<u8>>, &Copy)>;

type Trap = Box<dyn FnMut(&Copy, &mut BTreeSet<(u8, u64)>, &mut BTreeMap<u8, VmRef>)>;

/// The kernel and the pager.
pub struct World {
    /// Memories, by VM.
    pub vms: BTreeMap<u8, Vec<u8>>,
    /// Where VMs are. Those that are not here have left memory.
    pub at: BTreeMap<u8, VmRef>,
    next_frame: u32,
    /// Pages that are not in memory: VM and page number.
    pub missing: BTreeSet<(u8, u64)>,
    /// Pages that can never be brought.
    pub broken: BTreeSet<(u8, u64)>,
    /// Whether the pager brings at once what it is asked for.
    pub quick: bool,
    /// What the pager was asked for and has not brought.
    pub asked: Vec<Need>,
    pub asks: usize,
    pub now: u64,
    scratch: Vec<u8>,
    pub uplink: Region,
    pub raised: Vec<VmRef>,
    /// VMs that were raised and have not looked since.
    pub told: BTreeSet<u8>,
    pub calls: usize,
    /// Called after each copy.
    pub hook: Option<Hook>,
    /// Called before each copy: what is not in memory, where VMs are.
    pub trap: Option<Trap>,
    /// The pager says that all is here.
    pub liar: bool,
}

fn pages(address: u64, length: usize) -> core::ops::RangeInclusive<u64> {
    address / 4096..=address.saturating_add((length as u64).saturating_sub(1)) / 4096
}

fn within(address: u64, length: usize) -> bool {
    address >= BASE && address.saturating_add(length as u64) <= BASE + WINDOW as u64
}

impl World {
    fn new(uplink: Region) -> World {
        World {
            vms: BTreeMap::new(),
            at: BTreeMap::new(),
            next_frame: 1000,
            missing: BTreeSet::new(),
            broken: BTreeSet::new(),
            quick: true,
            asked: Vec::new(),
            asks: 0,
            now: 0,
            scratch: vec![0; SCRATCH],
            uplink,
            raised: Vec::new(),
            told: BTreeSet::new(),
            calls: 0,
            hook: None,
            trap: None,
            liar: false,
        }
    }

    fn who(&self, at: VmRef) -> Option<u8> {
        self.at.iter().find(|(_, place)| **place == at).map(|(number, _)| *number)
    }

    /// What keeps a copy from being made at this side.
    fn obstacle(&self, place: Place, length: usize, missing: Outcome) -> Option<Outcome> {
        match place {
            Place::Vm { vm: named, at, address } => {
                let Some(number) = self.who(at) else { return Some(Outcome::Gone) };
                assert_eq!(vm(number), named, "the memory of another VM is touched");
                let lacks = |page| self.missing.contains(&(number, page)) || self.broken.contains(&(number, page));
                match within(address, length) {
                    false => Some(Outcome::Failed),
                    true => pages(address, length).any(lacks).then_some(missing),
                }
            }
            Place::Scratch(offset) => {
                assert!(offset + length <= SCRATCH);
                None
            }
            Place::Uplink(offset) => {
                assert!(offset >= 4096 && offset + length <= SHARED_BYTES);
                None
            }
        }
    }

    /// The whole VM leaves memory.
    pub fn leave(&mut self, number: u8) {
        self.at.remove(&number);
    }

    pub fn come(&mut self, number: u8) {
        if !self.at.contains_key(&number) {
            self.next_frame += 1;
            self.at.insert(number, VmRef { frame: self.next_frame, generation: 1 });
        }
    }

    /// The pager brings all that it was asked for: the VMs concerned.
    pub fn bring_all(&mut self) -> Vec<VmNumber> {
        let mut brought = BTreeSet::new();
        for need in core::mem::take(&mut self.asked) {
            let number = need.vm as u8;
            self.come(number);
            for page in pages(need.address, need.length as usize) {
                self.missing.remove(&(number, page));
            }
            brought.insert(need.vm);
        }
        brought.into_iter().collect()
    }
}

impl Memory for World {
    fn copy(&mut self, copies: &[Copy], outcomes: &mut Vec<Outcome>) {
        self.calls += 1;
        // In one call of the kernel, no page goes or comes.
        for (index, copy) in copies.iter().enumerate() {
            assert!(copy.length > 0);
            let call = if index % protocol::memory::BATCH == 0 { &copies[index..] } else { &[] };
            for copy in call.iter().take(protocol::memory::BATCH) {
                if let Some(trap) = &mut self.trap {
                    trap(copy, &mut self.missing, &mut self.at);
                }
            }
            let obstacle = self.obstacle(copy.from, copy.length, Outcome::SourceMissing);
            let obstacle = obstacle.or_else(|| self.obstacle(copy.to, copy.length, Outcome::DestinationMissing));
            if let Some(obstacle) = obstacle {
                outcomes.push(obstacle);
                continue;
            }
            let mut bytes = vec![0; copy.length];
            match copy.from {
                Place::Vm { vm, address, .. } => {
                    bytes.copy_from_slice(&self.vms[&(vm as u8)][(address - BASE) as usize..][..copy.length]);
                }
                Place::Scratch(offset) => bytes.copy_from_slice(&self.scratch[offset..][..copy.length]),
                Place::Uplink(offset) => self.uplink.copy_out(offset, &mut bytes),
            }
            match copy.to {
                Place::Vm { vm, address, .. } => {
                    let memory = self.vms.get_mut(&(vm as u8)).unwrap();
                    memory[(address - BASE) as usize..][..copy.length].copy_from_slice(&bytes);
                }
                Place::Scratch(offset) => self.scratch[offset..][..copy.length].copy_from_slice(&bytes),
                Place::Uplink(offset) => self.uplink.copy_in(offset, &bytes),
            }
            outcomes.push(Outcome::Done);
            if let Some(hook) = &mut self.hook {
                hook(&mut self.vms, copy);
            }
        }
    }

    fn bring(&mut self, need: Need) -> Answer {
        self.asks += 1;
        let number = need.vm as u8;
        let mut pages = pages(need.address, need.length as usize);
        let never =
            !within(need.address, need.length as usize) || pages.clone().any(|p| self.broken.contains(&(number, p)));
        if never || !self.vms.contains_key(&number) {
            return Answer::Never;
        }
        let here = !pages.any(|page| self.missing.contains(&(number, page)));
        match self.at.get(&number) {
            Some(at) if here || self.liar => Answer::Here(*at),
            _ => {
                self.asked.push(need);
                if !self.quick {
                    return Answer::Later;
                }
                self.bring_all();
                Answer::Here(self.at[&number])
            }
        }
    }

    fn scratch(&mut self) -> &mut [u8] {
        &mut self.scratch
    }

    fn raise(&mut self, at: VmRef) -> bool {
        let who = self.who(at);
        if let Some(number) = who {
            self.raised.push(at);
            self.told.insert(number);
        }
        who.is_some()
    }

    fn now(&mut self) -> u64 {
        self.now
    }
}

/// The switch, its world, and what the VMs and the driver know.
pub struct Bench {
    pub switch: Switch,
    pub world: World,
    pub filled: BTreeMap<u8, u32>,
    pub offered: BTreeMap<u8, u32>,
    pub read: BTreeMap<u8, u32>,
    pub driver_sent: u32,
    pub driver_arrived: u32,
}

impl Bench {
    pub fn new(numbers: impl IntoIterator<Item = u8>) -> Bench {
        let uplink = Region::of(vec![0; SHARED_BYTES / 8].leak());
        let world = World::new(uplink);
        let mut switch = Switch::new(1000, Uplink::new(Some(uplink)));
        switch.uplink.set_state(State::Up);
        let (filled, offered, read) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut bench = Bench { switch, world, filled, offered, read, driver_sent: 0, driver_arrived: 0 };
        for number in numbers {
            bench.add(number);
        }
        bench.run();
        bench.world.raised.clear();
        bench
    }

    pub fn add(&mut self, number: u8) {
        self.world.vms.insert(number, vec![0; WINDOW]);
        self.world.at.insert(number, at(number));
        self.attach(number);
        self.offer(number, 8);
    }

    pub fn attach(&mut self, number: u8) {
        let window = Window::new(BASE, WINDOW as u64).unwrap();
        let place = self.world.at.get(&number).copied().unwrap_or(VmRef::NOWHERE);
        self.switch.attach(vm(number), place, mac(number), address(number), window).unwrap();
    }

    pub fn memory(&mut self, number: u8) -> &mut Vec<u8> {
        self.world.vms.get_mut(&number).unwrap()
    }

    pub fn write(&mut self, number: u8, offset: usize, bytes: &[u8]) {
        self.memory(number)[offset..][..bytes.len()].copy_from_slice(bytes);
    }

    pub fn word(&self, number: u8, offset: usize) -> u32 {
        u32::from_le_bytes(*self.world.vms[&number][offset..].first_chunk().unwrap())
    }

    pub fn entry(&mut self, number: u8, ring: usize, index: u32, address: u64, length: u32) {
        let offset = ring + index as usize % ENTRIES * 16;
        self.write(number, offset, &address.to_le_bytes());
        self.write(number, offset + 8, &length.to_le_bytes());
    }

    /// A VM offers `count` more buffers.
    pub fn offer(&mut self, number: u8, count: u32) {
        for _ in 0..count {
            let index = self.offered.get(&number).copied().unwrap_or(0);
            let address = BASE + 0x1000 + u64::from(index % ENTRIES as u32) * BUFFER as u64;
            self.entry(number, RECEIVE_RING, index, address, BUFFER as u32);
            self.offered.insert(number, index + 1);
            self.write(number, offset_of!(Indices, offered), &(index + 1).to_le_bytes());
        }
    }

    /// A VM puts a packet up.
    pub fn put(&mut self, number: u8, packet: &[u8]) {
        let index = self.filled.get(&number).copied().unwrap_or(0);
        let offset = 0x11000 + index as usize % ENTRIES * 1600;
        self.write(number, offset, packet);
        self.entry(number, SEND_RING, index, BASE + offset as u64, packet.len() as u32);
        self.filled.insert(number, index + 1);
        self.write(number, offset_of!(Indices, sent_filled), &(index + 1).to_le_bytes());
        let at = self.world.at[&number];
        self.switch.rung(vm(number), at);
    }

    /// What a VM has received.
    pub fn received(&mut self, number: u8) -> Vec<Vec<u8>> {
        let arrived = self.word(number, offset_of!(Indices, arrived));
        let mut packets = Vec::new();
        let read = self.read.get(&number).copied().unwrap_or(0);
        for index in read..arrived {
            let length = self.word(number, receive_length(index)) as usize;
            let offset = 0x1000 + index as usize % ENTRIES * BUFFER;
            packets.push(self.memory(number)[offset..][..length].to_vec());
        }
        self.read.insert(number, arrived);
        packets
    }

    pub fn own(&self, number: u8) -> Own {
        Page(&self.world.vms[&number]).own()
    }

    /// Packets for a VM that were lost, whether or not its page says so yet.
    pub fn dropped(&self, number: u8) -> u32 {
        let own = self.own(number);
        let wait = self.switch.ports.by_vm(vm(number)).and_then(|id| self.switch.waits.get(id));
        wait.map_or(own.dropped, |wait| wait.dropped(own))
    }

    /// The driver sends at most `most` packets.
    pub fn drive(&mut self, most: usize) -> Vec<Vec<u8>> {
        let filled = self.world.uplink.read_u32(offset_of!(RingPage, sent_filled));
        let mut packets = Vec::new();
        while self.driver_sent != filled && packets.len() < most {
            let entry = self.driver_sent as usize % net_driver::ENTRIES;
            let length = self.world.uplink.read_u32(offset_of!(RingPage, send) + entry * 4) as usize;
            let mut packet = vec![0; length];
            self.world.uplink.copy_out(send_buffer(entry) + net_driver::HEADROOM, &mut packet);
            packets.push(packet);
            self.driver_sent = self.driver_sent.wrapping_add(1);
        }
        self.world.uplink.write_u32(offset_of!(RingPage, sent_taken), self.driver_sent);
        packets
    }

    /// A packet comes from the network.
    pub fn arrive(&mut self, packet: &[u8]) {
        let entry = self.driver_arrived as usize % net_driver::ENTRIES;
        self.world.uplink.copy_in(receive_buffer(entry) + net_driver::HEADROOM, packet);
        self.world.uplink.write_u32(offset_of!(RingPage, receive) + entry * 4, packet.len() as u32);
        self.driver_arrived = self.driver_arrived.wrapping_add(1);
        self.world.uplink.write_u32(offset_of!(RingPage, arrived), self.driver_arrived);
    }

    /// Packets from the network, then a round of the VMs. Returns whether there were any.
    pub fn round(&mut self) -> bool {
        let received = self.switch.receive(&mut self.world);
        let served = self.switch.serve(&mut self.world);
        self.switch.uplink.show();
        received || served
    }

    /// Rounds until there is nothing to do; returns how many.
    pub fn run(&mut self) -> usize {
        for rounds in 0..10_000 {
            if !self.round() {
                return rounds;
            }
        }
        panic!("the switch never comes to rest");
    }
}

pub fn out(number: u8, length: usize) -> Vec<u8> {
    ipv4_packet(mac(number), OUTSIDE, address(number), OUTSIDE_ADDRESS, length)
}
pub fn between(from: u8, to: u8, length: usize) -> Vec<u8> {
    ipv4_packet(mac(from), mac(to), address(from), address(to), length)
}
