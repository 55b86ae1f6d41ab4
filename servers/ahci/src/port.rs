//! A port of the controller: starting it, stopping it, identifying what is there (10.1.2, 10.3, 10.4).

use crate::{
    error::Error,
    fis::{self, Command},
    hba::numbers,
    identify::{self, Identity},
    registers::*,
};
use block_driver::{Dma, pci::hardware::Hardware};

/// Nanoseconds that a port may take to stop (10.3).
pub const STOP: u64 = 500_000_000;
/// Nanoseconds for which a reset of the link is said (10.4.2).
const LINK_RESET: u64 = 1_000_000;
/// Nanoseconds until the link is up again.
const LINK: u64 = 1_000_000_000;
/// Nanoseconds that a disk may be busy after a reset: it may have to spin up.
const BUSY: u64 = 15_000_000_000;
/// Nanoseconds that a disk may take to identify itself.
const IDENTIFY: u64 = 5_000_000_000;

/// Where in the memory for the device each thing lies: command list, received FISes, command tables, what the disk says of itself.
const LIST: usize = 0;
const LIST_BYTES: usize = 32 * fis::HEADER;
const RECEIVED: usize = LIST + LIST_BYTES;
const RECEIVED_BYTES: usize = 256;
const TABLES: usize = 4096;
const IDENTITY: usize = TABLES + 32 * fis::TABLE;
/// Bytes of memory for the device.
pub const MEMORY: usize = IDENTITY + identify::LENGTH;
const _: () = assert!(RECEIVED + RECEIVED_BYTES <= TABLES && RECEIVED.is_multiple_of(256));

/// Resets the links of stopped ports, a bit for each.
pub fn reset_links(hardware: &mut impl Hardware, ports: u32) {
    for value in [1, 0] {
        for register in numbers(ports).map(|port| of_port(port, SCTL)) {
            let control = hardware.read(register) & !0xf;
            hardware.write(register, control | value);
        }
        if value != 0 {
            hardware.wait(LINK_RESET, |_| false);
        }
    }
}

/// A port and the memory for it.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Its number.
    pub number: usize,
    /// [`MEMORY`] bytes.
    pub memory: Dma,
}

impl Port {
    /// Reads a register.
    #[inline]
    pub fn read(&self, hardware: &impl Hardware, register: usize) -> u32 {
        hardware.read(of_port(self.number, register))
    }

    /// Writes one.
    #[inline]
    pub fn write(&self, hardware: &mut impl Hardware, register: usize, value: u32) {
        hardware.write(of_port(self.number, register), value);
    }

    /// Writes a command into the entry of a tag.
    #[inline]
    pub fn put(&self, tag: usize, command: Command, data: Option<Dma>) {
        let header = self.memory.part(LIST + tag * fis::HEADER, fis::HEADER);
        let table = self.memory.part(TABLES + tag * fis::TABLE, fis::TABLE);
        command.put(tag, header, table, data);
    }

    /// Resets the link, and with it the disk. The port was stopped.
    pub fn reset_link(&self, hardware: &mut impl Hardware) {
        reset_links(hardware, 1 << self.number);
    }

    /// Stops it: all commands are forgotten. It still receives what the disk says: QEMU keeps to itself which commands have ended until it
    /// can say so, and would say it of later ones with the same tags.
    pub fn stop(&self, hardware: &mut impl Hardware) -> Result<(), Error> {
        self.stop_engine(hardware, CMD_START, CMD_RUNNING)
    }

    /// Stops it, and from then on it touches no memory.
    pub fn stop_all(&self, hardware: &mut impl Hardware) -> Result<(), Error> {
        self.stop(hardware)?;
        self.stop_engine(hardware, CMD_RECEIVE, CMD_RECEIVING)
    }

    fn stop_engine(&self, hardware: &mut impl Hardware, engine: u32, running: u32) -> Result<(), Error> {
        let command = self.read(hardware, CMD);
        self.write(hardware, CMD, command & !engine);
        let stopped = hardware.wait(STOP, |hardware| self.read(hardware, CMD) & running == 0);
        if stopped { Ok(()) } else { Err(Error::Stuck(self.number)) }
    }

    /// Starts it, which was stopped or reset, and waits until the disk is ready. Fails if it is no disk.
    pub fn start(&self, hardware: &mut impl Hardware) -> Result<(), Error> {
        let link = |hardware: &mut _| self.read(hardware, SSTS) & 0xf == DET_UP;
        if !hardware.wait(LINK, link) {
            return Err(Error::Link(self.number));
        }
        // They must stay what they are while it receives.
        if self.read(hardware, CMD) & CMD_RECEIVE == 0 {
            let memory = self.memory.physical;
            for (register, address) in [(CLB, memory + LIST as u64), (FB, memory + RECEIVED as u64)] {
                self.write(hardware, register, address as u32);
                self.write(hardware, register + 4, (address >> 32) as u32);
            }
        }
        self.write(hardware, SERR, !0);
        self.write(hardware, PORT_IS, !0);
        let command = self.read(hardware, CMD);
        self.write(hardware, CMD, command | CMD_POWER | CMD_RECEIVE);
        // The first FIS of the disk says that it is ready, and what it is.
        if !hardware.wait(BUSY, |hardware| self.read(hardware, TFD) & TFD_BUSY == 0) {
            return Err(Error::Busy(self.number));
        }
        match self.read(hardware, SIG) {
            SIG_DISK => {}
            signature => return Err(Error::Signature(self.number, signature)),
        }
        let command = self.read(hardware, CMD);
        self.write(hardware, CMD, command | CMD_START);
        Ok(())
    }

    /// Asks the disk what it is. The port was started, and does nothing else.
    pub fn identify(&self, hardware: &mut impl Hardware) -> Result<Identity, Error> {
        let page = self.memory.part(IDENTITY, identify::LENGTH);
        page.memory.zero(0, identify::LENGTH);
        self.put(0, Command::Identify, Some(page));
        self.write(hardware, CI, 1);
        let done = hardware.wait(IDENTIFY, |hardware| {
            self.read(hardware, CI) & 1 == 0 || self.read(hardware, PORT_IS) & IS_FAILED != 0
        });
        let failed = self.read(hardware, PORT_IS) & IS_FAILED != 0 || self.read(hardware, TFD) & TFD_FAILED != 0;
        self.write(hardware, PORT_IS, !0);
        if !done || failed {
            return Err(Error::Identify(self.number));
        }
        let mut data = [0; identify::LENGTH];
        page.memory.copy_out(0, &mut data);
        Identity::parse(&data)
    }

    /// Lets it interrupt.
    pub fn enable_interrupts(&self, hardware: &mut impl Hardware) {
        self.write(hardware, PORT_IE, IS_DONE | IS_LINK | IS_FAILED);
    }
}
