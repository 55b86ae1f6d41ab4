//! The controller (host bus adapter): taking it over, resetting it.

use crate::{
    error::Error,
    port::{STOP, reset_links},
    registers::*,
};
use block_driver::pci::hardware::Hardware;

/// Nanoseconds that the firmware gets to let go of the controller, and that it gets more if it says that it is busy (10.6.3).
const HANDOFF: u64 = 25_000_000;
/// See [`HANDOFF`].
const HANDOFF_BUSY: u64 = 2_000_000_000;
/// Nanoseconds that a reset may take (10.4.3).
const RESET: u64 = 1_000_000_000;
/// Nanoseconds until links are up that were up before.
const LINKS: u64 = 1_000_000_000;

/// A controller.
#[derive(Debug)]
pub struct Hba<H> {
    /// Its registers.
    pub hardware: H,
    capabilities: u32,
    /// A bit for each port that can be used.
    ports: u32,
}

impl<H: Hardware> Hba<H> {
    /// The controller with these registers, `length` bytes. It is reset: it touches no memory.
    pub fn new(mut hardware: H, length: usize) -> Result<Hba<H>, Error> {
        // The other registers mean something only then.
        hardware.write(GHC, GHC_AHCI);
        let capabilities = hardware.read(CAP);
        if capabilities == GONE {
            return Err(Error::Gone);
        }
        let within = |port: &usize| of_port(*port, PORT) <= length;
        let implemented = hardware.read(PI);
        let ports = (0..PORTS_MOST).filter(within).fold(0, |ports, port| ports | 1 << port) & implemented;
        let mut hba = Hba { hardware, capabilities, ports };
        hba.take_over();
        hba.reset()?;
        Ok(hba)
    }

    /// Makes the firmware let go. One that does not is not waited for.
    fn take_over(&mut self) {
        if self.hardware.read(CAP2) & CAP2_HANDOFF == 0 {
            return;
        }
        let handoff = self.hardware.read(BOHC);
        self.hardware.write(BOHC, handoff | BOHC_SYSTEM);
        let is_ours = |hardware: &mut H| hardware.read(BOHC) & BOHC_FIRMWARE == 0;
        if !self.hardware.wait(HANDOFF, is_ours) && self.hardware.read(BOHC) & BOHC_BUSY != 0 {
            self.hardware.wait(HANDOFF_BUSY, is_ours);
        }
    }

    /// Resets it. All ports are idle afterwards, interrupts off, and links that were up are up again.
    pub fn reset(&mut self) -> Result<(), Error> {
        if self.hardware.read(CAP) == GONE {
            return Err(Error::Gone);
        }
        let before = self.ports_with(|status| status & 0xf != 0);
        self.end_commands();
        self.hardware.write(GHC, GHC_AHCI | GHC_RESET);
        if !self.hardware.wait(RESET, |hardware| hardware.read(GHC) & GHC_RESET == 0) {
            return Err(if self.hardware.read(CAP) == GONE { Error::Gone } else { Error::Reset });
        }
        self.hardware.write(GHC, GHC_AHCI);
        let staggered = self.capabilities & CAP_STAGGERED != 0;
        if staggered {
            for port in self.ports() {
                let command = of_port(port, CMD);
                let power = self.hardware.read(command) | CMD_POWER;
                self.hardware.write(command, power);
            }
        }
        // Where the firmware has seen nothing there is nothing, unless nobody has spun it up before.
        let expected = if before == 0 && staggered { self.ports } else { before };
        self.hardware.wait(LINKS, |hardware| numbers(expected).all(|port| is_up(hardware.read(of_port(port, SSTS)))));
        Ok(())
    }

    /// Has the disks give up what they have, while there is still somebody to tell: QEMU would tell it later, of other commands
    /// ([`super::port::Port::stop`]).
    fn end_commands(&mut self) {
        let receives = |port: &usize| self.hardware.read(of_port(*port, CMD)) & CMD_RECEIVE != 0;
        let ports = self.ports().filter(receives).fold(0, |ports, port| ports | 1 << port);
        if ports == 0 {
            return;
        }
        for register in numbers(ports).map(|port| of_port(port, CMD)) {
            let command = self.hardware.read(register);
            self.hardware.write(register, command & !CMD_START);
        }
        // What does not stop is reset all the same, with everything else.
        let is_off = |hardware: &mut H| numbers(ports).all(|port| hardware.read(of_port(port, CMD)) & CMD_RUNNING == 0);
        if self.hardware.wait(STOP, is_off) {
            reset_links(&mut self.hardware, ports);
        }
    }

    /// Ports whose SATA status is so, a bit for each.
    fn ports_with(&self, wanted: impl Fn(u32) -> bool) -> u32 {
        let is_wanted = |port: &usize| wanted(self.hardware.read(of_port(*port, SSTS)));
        self.ports().filter(is_wanted).fold(0, |ports, port| ports | 1 << port)
    }

    /// Ports at which something is and answers, a bit for each.
    pub fn up(&self) -> u32 {
        self.ports_with(is_up)
    }

    /// Lets the controller interrupt.
    pub fn enable_interrupts(&mut self) {
        self.hardware.write(IS, !0);
        self.hardware.write(GHC, GHC_AHCI | GHC_INTERRUPTS);
    }

    /// Numbers of the ports that can be used.
    pub fn ports(&self) -> impl Iterator<Item = usize> + use<H> {
        numbers(self.ports)
    }

    /// Entries of a command list.
    pub const fn slots(&self) -> usize {
        (self.capabilities >> 8 & 31) as usize + 1
    }

    /// Whether commands can be queued.
    pub const fn queues(&self) -> bool {
        self.capabilities & CAP_QUEUES != 0
    }

    /// First address that it does not reach.
    pub const fn reach(&self) -> u64 {
        if self.capabilities & CAP_LONG_ADDRESSES != 0 { u64::MAX } else { 1 << 32 }
    }
}

/// Numbers of the bits that are set.
pub fn numbers(bits: u32) -> impl Iterator<Item = usize> {
    (0..PORTS_MOST).filter(move |number| bits >> number & 1 != 0)
}

const fn is_up(status: u32) -> bool {
    status != GONE && status & 0xf == DET_UP
}
