//! The driver: binds [`rtl8139`] to the machine.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]

extern crate alloc;

use alloc::format;
use net_driver::{
    Problem, Setup,
    pci::{Device, Interrupt},
};
use rtl8139::{
    device::{LINE, Nic, Wire},
    registers,
};
use server_runtime::{Startup, clock, hypercall, mmio::Region};

server_runtime::entry!(main);

/// Base address register of the card's registers in memory.
const REGISTERS: u8 = 1;
/// Configuration space: the revision is in the lowest 8 bits.
const REVISION: u16 = 0x08;
/// The first revision that has C+ mode.
const PLUS: u32 = 0x20;

fn main(startup: Startup) -> ! {
    net_driver::serve(startup, open)
}

/// A card on the PCI bus.
struct Pci {
    registers: Region,
    /// Its interrupt, once it has it.
    interrupt: Option<Interrupt>,
}

impl Wire for Pci {
    fn read_u8(&self, register: usize) -> u8 {
        self.registers.read_u8(register)
    }
    fn read_u16(&self, register: usize) -> u16 {
        self.registers.read_u16(register)
    }
    fn write_u8(&self, register: usize, value: u8) {
        self.registers.write_u8(register, value);
    }
    fn write_u16(&self, register: usize, value: u16) {
        self.registers.write_u16(register, value);
    }
    fn write_u32(&self, register: usize, value: u32) {
        self.registers.write_u32(register, value);
    }
    fn pause(&self, microseconds: u64) {
        let end = clock::now() + microseconds * 1_000;
        while clock::now() < end {
            hypercall::idle(end);
        }
    }
    fn acknowledge(&self) {
        if let Some(interrupt) = &self.interrupt {
            interrupt.acknowledge();
        }
    }
}

fn open(setup: &Setup<'_>) -> Result<Nic<Pci>, Problem> {
    let mut device = Device::claim(setup.startup)?;
    let revision = device.config_read(REVISION)? & 0xff;
    if revision < PLUS {
        return Err(format!(
            "an RTL8139 of revision {revision:#x}, which has no C+ mode: this driver needs an RTL8139C+"
        ));
    }
    let registers = device.registers(REGISTERS)?.ok_or("the card's registers are not to be had")?.memory;
    if registers.length() < registers::LENGTH {
        return Err(format!("{} bytes of registers are too few", registers.length()));
    }
    let end = setup.packets.physical + setup.packets.memory.length() as u64;
    let mut nic = Nic::new(Pci { registers, interrupt: None }, setup.dma, end)?;
    // The driver that was here before may have left it running: it must be quiet before it may reach memory.
    nic.reset()?;
    nic.wire().interrupt = Some(device.interrupt(0, LINE)?);
    server_runtime::log!("Realtek RTL8139C+");
    Ok(nic)
}
