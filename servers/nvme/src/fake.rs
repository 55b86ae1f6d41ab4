//! A double of a controller, by the letter of the standard.

use crate::{
    command::{COMMAND, COMPLETION, Opcode},
    identify::LENGTH,
    registers::*,
};
use alloc::{rc::Rc, vec, vec::Vec};
use block_driver::{Dma, pci::hardware::Hardware};
use core::cell::RefCell;
use protocol::layout::PAGE;
use server_runtime::mmio::Region;

/// A pair of queues, as the controller knows it.
#[derive(Clone, Copy, Default, Debug)]
pub struct Pair {
    commands: u64,
    completions: u64,
    entries: usize,
    /// Next command, next completion, the driver's tail and head.
    next: usize,
    completed: usize,
    tail: usize,
    head: usize,
    /// The phase of completions, in bit 16.
    phase: u32,
}

impl Pair {
    /// From here on the phase is the wrong one.
    pub fn turn(&mut self) {
        self.phase ^= 1 << 16;
    }
}

/// A command that was fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetched {
    pub opcode: u8,
    pub id: u16,
    pub namespace: u32,
    pub pages: [u64; 2],
    pub words: [u32; 3],
}

/// The controller.
pub struct Controller {
    pub dma: Dma,
    pub buffers: Dma,
    pub disk: Vec<u8>,
    pub capabilities: u64,
    pub controller: [u8; LENGTH],
    pub namespace: [u8; LENGTH],
    /// Nanoseconds from enabling to ready; as many from disabling to stopped.
    pub delay: u64,
    pub fatal: bool,
    pub gone: bool,
    /// An admin command that gets no answer, and the status of one that is refused.
    pub silent: Option<Opcode>,
    pub refuses: Option<(Opcode, u16)>,
    /// Opcode and status of the next I/O command that fails.
    pub fails: Option<(u8, u16)>,
    pub flushes: usize,
    pub starts: usize,
    /// Writes to the tail's doorbell of the I/O queue.
    pub told: usize,
    pub now: u64,
    configuration: u32,
    changed: u64,
    attributes: u32,
    addresses: [u64; 2],
    pub pairs: [Pair; 2],
}

impl Controller {
    pub fn new(dma: Dma, buffers: Dma, blocks: usize) -> Controller {
        let mut controller = [0; LENGTH];
        controller[4..10].copy_from_slice(b"serial");
        (controller[77], controller[520], controller[525]) = (4, 1 << 3, 1);
        let mut namespace = [0; LENGTH];
        // Not a whole block at the end.
        namespace[..8].copy_from_slice(&(blocks as u64 * 8 + 3).to_le_bytes());
        (namespace[33], namespace[130]) = (0b1001, 9);
        Controller {
            dma,
            buffers,
            disk: vec![0xee; blocks * 4096],
            // 256 entries, 1 s, doorbells 8 bytes apart, NVM.
            capabilities: 1 << 37 | 1 << 32 | 2 << 24 | 255,
            controller,
            namespace,
            delay: 0,
            fatal: false,
            gone: false,
            silent: None,
            refuses: None,
            fails: None,
            flushes: 0,
            starts: 0,
            told: 0,
            now: 0,
            configuration: 0,
            changed: 0,
            attributes: 0,
            addresses: [0; 2],
            pairs: [Pair::default(); 2],
        }
    }

    pub fn at(&self, physical: u64, length: usize) -> Region {
        let memory = [self.dma, self.buffers].into_iter().find(|dma| {
            let end = dma.physical + dma.memory.length() as u64;
            dma.physical <= physical && physical + length as u64 <= end
        });
        let memory = memory.unwrap_or_else(|| panic!("the device is told {physical:#x}, which is not for it"));
        memory.memory.part((physical - memory.physical) as usize, length)
    }

    fn status(&self) -> u32 {
        let settled = self.now >= self.changed.saturating_add(self.delay);
        let enabled = self.configuration & CC_ENABLE != 0;
        let bit = |set, bit| if set { bit } else { 0 };
        bit(enabled == settled, CSTS_READY) | bit(self.fatal && enabled, CSTS_FATAL)
    }

    fn write(&mut self, offset: usize, value: u32) {
        let (low, high) = (u64::from(value), u64::from(value) << 32);
        match offset {
            CC if (self.configuration ^ value) & CC_ENABLE != 0 => {
                assert!(value & CC_ENABLE != 0 || self.status() & CSTS_READY != 0, "disabled before it was ready");
                (self.configuration, self.changed) = (value, self.now);
                self.pairs = [Pair::default(); 2];
                if value & CC_ENABLE != 0 {
                    assert_eq!(value >> 16 & 0xff, 4 << 4 | 6);
                    self.starts += 1;
                    let [commands, completions] = self.addresses;
                    assert_eq!(self.attributes & 0xffff, self.attributes >> 16);
                    let entries = (self.attributes & 0xfff) as usize + 1;
                    self.pairs[0] = Pair { commands, completions, entries, phase: 1 << 16, ..Pair::default() };
                }
            }
            CC => self.configuration = value,
            AQA => self.attributes = value,
            ASQ => self.addresses[0] = self.addresses[0] & !0 << 32 | low,
            0x2c => self.addresses[0] = self.addresses[0] & 0xffff_ffff | high,
            ACQ => self.addresses[1] = self.addresses[1] & !0 << 32 | low,
            0x34 => self.addresses[1] = self.addresses[1] & 0xffff_ffff | high,
            DOORBELLS.. => {
                let number = (offset - DOORBELLS) / 8;
                let pair = &mut self.pairs[number / 2];
                assert!(
                    self.configuration & CC_ENABLE != 0 && (value as usize) < pair.entries,
                    "a doorbell of nothing"
                );
                match number % 2 {
                    0 => pair.tail = value as usize,
                    _ => pair.head = value as usize,
                }
                self.told += usize::from(number == 2);
                if number == 0 {
                    self.fetch(0).into_iter().for_each(|command| self.admin(command));
                }
            }
            _ => panic!("a register that is not written: {offset:#x}"),
        }
    }

    /// Takes the commands that the driver has put up.
    pub fn fetch(&mut self, pair: usize) -> Vec<Fetched> {
        let mut fetched = Vec::new();
        while self.pairs[pair].next != self.pairs[pair].tail {
            let Pair { commands, next, entries, .. } = self.pairs[pair];
            let entry = self.at(commands + (next * COMMAND) as u64, COMMAND);
            fetched.push(Fetched {
                opcode: entry.read_u8(0),
                id: entry.read_u16(2),
                namespace: entry.read_u32(4),
                pages: [entry.read_u64(24), entry.read_u64(32)],
                words: [entry.read_u32(40), entry.read_u32(44), entry.read_u32(48)],
            });
            self.pairs[pair].next = (next + 1) % entries;
        }
        fetched
    }

    /// Says what became of a command.
    pub fn complete(&mut self, pair: usize, id: u16, status: u16, result: u32) {
        let Pair { completions, completed, entries, phase, head, next, .. } = self.pairs[pair];
        assert_ne!((completed + 1) % entries, head, "the completion queue is full");
        let entry = self.at(completions + (completed * COMPLETION) as u64, COMPLETION);
        entry.write_u32(0, result);
        entry.write_u32(8, (pair as u32) << 16 | next as u32);
        entry.write_u32(12, u32::from(id) | phase | u32::from(status) << 17);
        let pair = &mut self.pairs[pair];
        pair.completed = (completed + 1) % entries;
        pair.phase ^= u32::from(pair.completed == 0) << 16;
    }

    fn admin(&mut self, command: Fetched) {
        let is = |opcode: Opcode| opcode.code() == command.opcode;
        if self.silent.is_some_and(is) {
            return;
        }
        if let Some((_, status)) = self.refuses.filter(|(opcode, _)| is(*opcode)) {
            return self.complete(0, command.id, status, 0);
        }
        let [first, second, _] = command.words;
        let entries = (first >> 16) as usize + 1;
        match command.opcode {
            0x06 => {
                let data = match (first, command.namespace) {
                    (0, 1) => self.namespace,
                    (1, 0) => self.controller,
                    other => panic!("identify {other:?}"),
                };
                self.at(command.pages[0], LENGTH).copy_in(0, &data);
            }
            0x09 => assert_eq!((first, second), (7, 0)),
            0x05 => {
                assert_eq!((first as u16, second), (1, 0b11));
                self.pairs[1] = Pair { completions: command.pages[0], entries, phase: 1 << 16, ..Pair::default() };
            }
            0x01 => {
                assert_eq!((first as u16, second, entries), (1, 1 << 16 | 1, self.pairs[1].entries));
                self.pairs[1].commands = command.pages[0];
            }
            other => panic!("an admin command that is not used: {other:#x}"),
        }
        assert!(command.pages[0].is_multiple_of(PAGE));
        self.complete(0, command.id, 0, 0);
    }

    /// The pages that a command names, `bytes` in all.
    fn pages(&self, command: &Fetched, bytes: usize) -> Vec<Region> {
        let count = bytes / PAGE as usize;
        let [first, second] = command.pages;
        let rest: Vec<u64> = match count {
            1 => Vec::new(),
            2 => vec![second],
            _ => {
                assert!(second % PAGE + (count as u64 - 1) * 8 <= PAGE, "a list crosses a page");
                let list = self.at(second, (count - 1) * 8);
                (0..count - 1).map(|page| list.read_u64(page * 8)).collect()
            }
        };
        [first].into_iter().chain(rest).map(|page| self.at(page, PAGE as usize)).collect()
    }

    /// Carries out an I/O command.
    pub fn carry_out(&mut self, command: &Fetched) {
        assert_eq!(command.namespace, 1);
        let [low, high, count] = command.words;
        let start = (u64::from(high) << 32 | u64::from(low)) as usize * 512;
        let bytes = ((count & 0xffff) as usize + 1) * 512;
        let mut status = 0;
        match command.opcode {
            failing if self.fails.is_some_and(|(opcode, _)| opcode == failing) => {
                status = self.fails.take().map_or(0, |(_, status)| status);
            }
            0x00 => self.flushes += 1,
            0x01 | 0x02 => {
                for (page, at) in self.pages(command, bytes).into_iter().zip((start..).step_by(PAGE as usize)) {
                    let disk = &mut self.disk[at..at + PAGE as usize];
                    if command.opcode == 1 { page.copy_out(0, disk) } else { page.copy_in(0, disk) }
                }
            }
            0x08 => {
                assert_eq!(count >> 16, 1 << 9, "it may deallocate");
                self.disk[start..start + bytes].fill(0);
            }
            other => panic!("a command that is not used: {other:#x}"),
        }
        self.complete(1, command.id, status, 0);
    }
}

/// The way to it.
#[derive(Clone)]
pub struct Fake(pub Rc<RefCell<Controller>>);

impl Hardware for Fake {
    fn read(&self, offset: usize) -> u32 {
        let controller = self.0.borrow();
        match offset {
            _ if controller.gone => GONE,
            CAP => controller.capabilities as u32,
            4 => (controller.capabilities >> 32) as u32,
            CC => controller.configuration,
            CSTS => controller.status(),
            _ => panic!("a register that is not read: {offset:#x}"),
        }
    }
    fn write(&mut self, offset: usize, value: u32) {
        let mut controller = self.0.borrow_mut();
        if !controller.gone {
            controller.write(offset, value);
        }
    }
    fn now(&self) -> u64 {
        self.0.borrow().now
    }
    fn sleep(&mut self, nanoseconds: u64) {
        self.0.borrow_mut().now += nanoseconds;
    }
}
