//! The driver: binds [`ahci`] to the machine.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]

extern crate alloc;

use ahci::{device::Ahci, registers};
use alloc::format;
use block_driver::{
    BlockDriver, Dma, Problem, Setup,
    pci::{Device, hardware::Mapped},
};
use server_runtime::Startup;

server_runtime::entry!(main);

/// Base address register of an AHCI controller (2.1.11).
const BAR: u8 = 5;

fn main(startup: Startup) -> ! {
    block_driver::serve(startup, open)
}

fn open(setup: &Setup<'_>) -> Result<Ahci<Mapped>, Problem> {
    let wanted = match setup.startup.option("port").map(str::parse) {
        None => None,
        Some(Ok(port)) if port < registers::PORTS_MOST => Some(port),
        Some(_) => return Err(format!("option `port`: a number below {}", registers::PORTS_MOST)),
    };
    let end = |memory: &Dma| memory.physical + memory.memory.length() as u64;
    let end = setup.buffers.iter().chain([&setup.table]).map(end).max().unwrap_or(0);
    // A machine may have controllers without a disk.
    Device::claim_first(setup.startup, |device, line| {
        let registers = device.registers_from_start(BAR, registers::of_port(1, 0))?;
        let mut disk = Ahci::new(Mapped::new(registers), registers.length(), setup.dma, end, wanted)?;
        // It was reset: from here on it may reach memory.
        disk.interrupts_by(device.interrupt(0, line)?);
        disk.reset()?;
        Ok(disk)
    })
}
