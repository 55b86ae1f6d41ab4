//! A double of a controller with its disks, by the letter of the standard.

use crate::{fis, identify, registers::*};
use alloc::{rc::Rc, vec, vec::Vec};
use block_driver::{Dma, pci::hardware::Hardware};
use core::cell::RefCell;
use server_runtime::mmio::Region;

/// What is at a port.
#[derive(Clone)]
pub struct Port {
    pub signature: u32,
    pub identity: [u8; identify::LENGTH],
    /// Nanoseconds from a reset until the link is up; until the disk is ready.
    pub link: u64,
    pub ready: u64,
    /// Whether it does not stop.
    pub stuck: bool,
    command: u32,
    control: u32,
    addresses: [u64; 2],
    interrupts: u32,
    enabled: u32,
    reset: u64,
    task: u32,
    /// Commands issued, and queued ones that the disk has.
    issued: u32,
    active: u32,
    /// Queued commands that the disk had when the port was stopped. QEMU says of them that they have ended once it may, perhaps when others
    /// have their tags; so that must be when the link is reset.
    dropped: u32,
    /// Whether the disk has failed a queued command: it takes nothing until it is reset.
    failed: bool,
    pub resets: usize,
}

impl Port {
    pub fn new(signature: u32, identity: [u8; identify::LENGTH]) -> Port {
        Port {
            signature,
            identity,
            link: 0,
            ready: 0,
            stuck: false,
            command: 0,
            control: 0,
            addresses: [0; 2],
            interrupts: 0,
            enabled: 0,
            reset: 0,
            task: 0x50,
            issued: 0,
            active: 0,
            dropped: 0,
            failed: false,
            resets: 0,
        }
    }

    fn restart(&mut self, now: u64) {
        assert_eq!(self.active | self.dropped, 0, "the controller is reset with commands under way");
        (self.command, self.enabled, self.interrupts) = (0, 0, 0);
        self.reset_link(now);
    }

    fn reset_link(&mut self, now: u64) {
        (self.issued, self.active, self.dropped, self.failed, self.task) = (0, 0, 0, false, 0x50);
        self.reset = now;
        self.resets += 1;
    }
}

/// A command that the disk has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Given {
    pub slot: usize,
    pub code: u8,
    pub sector: u64,
    pub count: u16,
    pub address: u64,
    pub bytes: usize,
}

impl Given {
    pub fn is_queued(&self) -> bool {
        matches!(self.code, 0x60 | 0x61)
    }
}

/// The controller.
pub struct Controller {
    pub dma: Dma,
    pub buffers: Dma,
    pub disk: Vec<u8>,
    pub ports: Vec<Option<Port>>,
    pub capabilities: u32,
    pub gone: bool,
    /// Whether the firmware has it and does not let go.
    pub firmware: bool,
    /// Whether its reset does not end.
    pub never_resets: bool,
    pub now: u64,
    pub flushes: usize,
    pub resets: usize,
    control: u32,
    interrupts: u32,
}

impl Controller {
    pub fn new(dma: Dma, buffers: Dma, sectors: usize, ports: Vec<Option<Port>>) -> Controller {
        let capabilities = CAP_QUEUES | CAP_LONG_ADDRESSES | 31 << 8 | (ports.len() as u32 - 1);
        let disk = vec![0xee; sectors * 512];
        Controller {
            dma,
            buffers,
            disk,
            ports,
            capabilities,
            gone: false,
            firmware: false,
            never_resets: false,
            now: 0,
            flushes: 0,
            resets: 0,
            control: 0,
            interrupts: 0,
        }
    }

    fn at(&self, physical: u64, length: usize) -> Region {
        let memory = [self.dma, self.buffers].into_iter().find(|dma| {
            let end = dma.physical + dma.memory.length() as u64;
            dma.physical <= physical && physical + length as u64 <= end
        });
        let memory = memory.unwrap_or_else(|| panic!("the device is told {physical:#x}, which is not for it"));
        memory.memory.part((physical - memory.physical) as usize, length)
    }

    /// Whether it asks for an interrupt.
    pub fn interrupts(&self) -> bool {
        let asks = |port: &Port| port.interrupts & port.enabled != 0;
        self.control & GHC_INTERRUPTS != 0 && self.ports.iter().flatten().any(asks)
    }

    fn read(&self, offset: usize) -> u32 {
        match offset {
            CAP => self.capabilities,
            GHC => self.control,
            PI => (1u32 << self.ports.len()) - 1,
            CAP2 => CAP2_HANDOFF,
            BOHC => u32::from(self.firmware) * (BOHC_FIRMWARE | BOHC_BUSY),
            PORTS.. => {
                let Some(port) = &self.ports[(offset - PORTS) / PORT] else { return 0 };
                let is_up = self.now >= port.reset.saturating_add(port.link) && port.control & 0xf == 0;
                let is_ready =
                    is_up && self.now >= port.reset.saturating_add(port.ready) && port.command & CMD_RECEIVE != 0;
                match (offset - PORTS) % PORT {
                    PORT_IS => port.interrupts,
                    CMD => {
                        let on = |bit, running| if port.command & bit != 0 || port.stuck { running } else { 0 };
                        port.command | on(CMD_START, CMD_RUNNING) | on(CMD_RECEIVE, CMD_RECEIVING)
                    }
                    TFD => {
                        if is_ready {
                            port.task
                        } else {
                            0x80
                        }
                    }
                    SIG => {
                        if is_ready {
                            port.signature
                        } else {
                            !0
                        }
                    }
                    SSTS => {
                        if is_up {
                            0x113
                        } else {
                            1
                        }
                    }
                    SCTL => port.control,
                    SACT => port.active,
                    CI => port.issued,
                    other => panic!("a register of a port that is not read: {other:#x}"),
                }
            }
            _ => panic!("a register that is not read: {offset:#x}"),
        }
    }

    fn write(&mut self, offset: usize, value: u32) {
        let now = self.now;
        match offset {
            GHC if value & GHC_RESET != 0 => {
                self.resets += 1;
                self.ports.iter_mut().flatten().for_each(|port| port.restart(now));
                self.control = if self.never_resets { GHC_RESET } else { 0 };
            }
            GHC => self.control = value,
            IS => self.interrupts &= !value,
            BOHC => assert!(value & BOHC_SYSTEM != 0),
            PORTS.. => {
                let number = (offset - PORTS) / PORT;
                let Some(port) = &mut self.ports[number] else { return };
                let (low, high) = (u64::from(value), u64::from(value) << 32);
                let stopped = port.command & CMD_START == 0;
                match (offset - PORTS) % PORT {
                    CLB => port.addresses[0] = port.addresses[0] & !0 << 32 | low,
                    4 => port.addresses[0] = port.addresses[0] & 0xffff_ffff | high,
                    FB => port.addresses[1] = port.addresses[1] & !0 << 32 | low,
                    0xc => port.addresses[1] = port.addresses[1] & 0xffff_ffff | high,
                    PORT_IS => port.interrupts &= !value,
                    PORT_IE => port.enabled = value,
                    CMD => {
                        assert!(value & CMD_START == 0 || value & CMD_RECEIVE != 0, "commands without received FISes");
                        port.command = value & !(CMD_RUNNING | CMD_RECEIVING);
                        if value & CMD_START == 0 {
                            port.dropped |= port.active;
                            (port.issued, port.active) = (0, 0);
                            assert!(port.dropped == 0 || value & CMD_RECEIVE != 0, "their end can not be told");
                        }
                    }
                    SCTL => {
                        assert!(stopped, "the link is reset while commands are processed");
                        if port.control & 0xf == 1 && value & 0xf == 0 {
                            port.reset_link(now);
                        }
                        port.control = value;
                    }
                    SERR => {}
                    SACT => port.active |= value,
                    CI => {
                        assert!(
                            !stopped && !port.failed && port.task & TFD_BUSY == 0,
                            "a command that cannot be taken"
                        );
                        port.issued |= value;
                        let queued = port.active & value;
                        assert!(
                            queued == value || (port.issued | port.active).count_ones() == 1,
                            "queued and not, together"
                        );
                        if self.given(number).first().is_some_and(|given| given.code == 0xec) {
                            self.identify(number);
                        }
                    }
                    other => panic!("a register of a port that is not written: {other:#x}"),
                }
            }
            _ => panic!("a register that is not written: {offset:#x}"),
        }
    }

    /// The commands that a disk has.
    pub fn given(&self, number: usize) -> Vec<Given> {
        let Some(port) = &self.ports[number] else { return Vec::new() };
        let list = port.addresses[0];
        assert!(list.is_multiple_of(1024) && port.addresses[1].is_multiple_of(256));
        self.at(port.addresses[1], 256);
        let slots = (0..32).filter(|slot| (port.issued | port.active) >> slot & 1 != 0);
        slots
            .map(|slot| {
                let header = self.at(list + (slot * fis::HEADER) as u64, fis::HEADER);
                let (first, table) = (header.read_u32(0), header.read_u64(8));
                assert!(first & 0x1f == 5 && first & 1 << 5 == 0 && table.is_multiple_of(128));
                let pieces = (first >> 16) as usize;
                let table = self.at(table, 0x80 + pieces * 16);
                let mut bytes = [0; 20];
                table.copy_out(0, &mut bytes);
                assert_eq!(bytes[..2], [0x27, 0x80]);
                let code = bytes[2];
                let words = [bytes[12], bytes[13]];
                let count = if matches!(code, 0x60 | 0x61) {
                    assert_eq!(usize::from(words[0] >> 3), slot, "the tag is that of the slot");
                    u16::from_le_bytes([bytes[3], bytes[11]])
                } else {
                    u16::from_le_bytes(words)
                };
                assert_eq!(first & 1 << 6 != 0, matches!(code, 0x35 | 0x61), "the direction");
                let [a, b, c, d, e, f] = [bytes[4], bytes[5], bytes[6], bytes[8], bytes[9], bytes[10]];
                let (address, length) = match pieces {
                    0 => (0, 0),
                    1 => (table.read_u64(0x80), (table.read_u32(0x8c) & 0x3f_ffff) as usize + 1),
                    _ => panic!("{pieces} pieces"),
                };
                Given {
                    slot,
                    code,
                    sector: u64::from_le_bytes([a, b, c, d, e, f, 0, 0]),
                    count,
                    address,
                    bytes: length,
                }
            })
            .collect()
    }

    fn identify(&mut self, number: usize) {
        let given = self.given(number)[0];
        if let Some(port) = &self.ports[number] {
            self.at(given.address, identify::LENGTH).copy_in(0, &port.identity);
        }
        self.finish(number, &given);
    }

    /// Carries out a command. `true`: it fails.
    pub fn carry_out(&mut self, number: usize, given: &Given, fails: bool) {
        let start = given.sector as usize * 512;
        match given.code {
            _ if fails => return self.fail(number, given),
            0x25 | 0x60 | 0x35 | 0x61 => {
                assert_eq!(given.bytes, usize::from(given.count) * 512);
                let memory = self.at(given.address, given.bytes);
                let disk = &mut self.disk[start..start + given.bytes];
                if matches!(given.code, 0x25 | 0x60) { memory.copy_in(0, disk) } else { memory.copy_out(0, disk) }
            }
            0xea => self.flushes += 1,
            other => panic!("a command that is not used: {other:#x}"),
        }
        self.finish(number, given);
    }

    fn finish(&mut self, number: usize, given: &Given) {
        let Some(port) = &mut self.ports[number] else { return };
        port.issued &= !(1 << given.slot);
        port.active &= !(1 << given.slot);
        port.task = 0x50;
        port.interrupts |= if given.is_queued() { 1 << 3 } else { 1 };
    }

    fn fail(&mut self, number: usize, given: &Given) {
        let Some(port) = &mut self.ports[number] else { return };
        port.task = 0x4051;
        port.failed = given.is_queued();
        port.interrupts |= 1 << 30;
    }

    /// Says so of a port.
    pub fn interrupt(&mut self, number: usize, status: u32) {
        if let Some(port) = &mut self.ports[number] {
            port.interrupts |= status;
        }
    }

    /// Changes what the driver reads of commands under way.
    pub fn set_pending(&mut self, number: usize, issued: u32, active: u32) {
        if let Some(port) = &mut self.ports[number] {
            (port.issued, port.active) = (issued, active);
        }
    }
}

/// The way to it.
#[derive(Clone)]
pub struct Fake(pub Rc<RefCell<Controller>>);

impl Hardware for Fake {
    fn read(&self, offset: usize) -> u32 {
        let controller = self.0.borrow();
        if controller.gone { GONE } else { controller.read(offset) }
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
