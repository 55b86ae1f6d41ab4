//! The driver: binds [`e1000`] to the machine.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]

extern crate alloc;

use alloc::format;
use e1000::{
    device::{Interrupts, LINE_OTHER, LINE_RINGS, MESSAGES, Nic, Wire},
    models, registers,
};
use net_driver::{
    Problem, Setup,
    pci::{Device, Interrupt},
};
use server_runtime::{Startup, clock, hypercall, mmio::Region};

server_runtime::entry!(main);

/// Base address register of the card's registers.
const REGISTERS: u8 = 0;

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
    fn read(&self, register: usize) -> u32 {
        self.registers.read_u32(register)
    }
    fn write(&self, register: usize, value: u32) {
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
    let info = device.info;
    let model = models::find(info.vendor, info.device)
        .ok_or_else(|| format!("{:04x}:{:04x} is not a card that this driver knows", info.vendor, info.device))?;
    let registers = device.registers(REGISTERS)?.ok_or("the card's registers are not to be had")?.memory;
    if registers.length() < registers::LENGTH {
        return Err(format!("{} bytes of registers are too few", registers.length()));
    }
    let interrupts = if device.msix >= MESSAGES { Interrupts::Messages } else { Interrupts::One };
    let wire = Pci { registers, interrupt: None };
    let mut nic = Nic::new(wire, model.kind, interrupts, setup.dma)?;
    // The driver that was here before may have left it running: it must be quiet before it may reach memory.
    nic.reset()?;
    match interrupts {
        // Only a line has to be acknowledged.
        Interrupts::One => nic.wire().interrupt = Some(device.interrupt(0, LINE_RINGS)?),
        Interrupts::Messages => {
            device.interrupt(0, LINE_RINGS)?;
            device.interrupt(1, LINE_OTHER)?;
        }
    }
    server_runtime::log!("Intel {}", model.name);
    Ok(nic)
}
