//! The driver: binds [`nvme`] to the machine.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]

extern crate alloc;

use block_driver::{
    Problem, Setup,
    pci::{Device, hardware::Mapped},
};
use nvme::{device::Nvme, registers};
use server_runtime::Startup;

server_runtime::entry!(main);

fn main(startup: Startup) -> ! {
    block_driver::serve(startup, open)
}

fn open(setup: &Setup<'_>) -> Result<Nvme<Mapped>, Problem> {
    Device::claim_first(setup.startup, |device, line| {
        let registers = device.registers_from_start(0, registers::LENGTH)?;
        let mut disk = Nvme::new(Mapped::new(registers), registers.length(), setup.dma)?;
        // It is stopped: from here on it may reach memory.
        let interrupt = device.interrupt(0, line)?;
        if device.msix == 0 {
            disk.interrupts_by(interrupt);
        }
        Ok(disk)
    })
}
