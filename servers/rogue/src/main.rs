//! A driver whose device reaches for memory that is not its own: QEMU's `edu`, which copies on command.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]
#![deny(unsafe_code)]

extern crate alloc;

use pci_device::{Device, Dma, Problem};
use protocol::{domain::line, layout::PAGE};
use server_runtime::{Startup, clock, hypercall, log, mmio::Region};

server_runtime::entry!(main);

/// Registers of `edu`: source, destination, bytes, command.
const SOURCE: usize = 0x80;
const DESTINATION: usize = 0x88;
const COUNT: usize = 0x90;
const COMMAND: usize = 0x98;
/// Command: begin (reads as 1 while it is under way); from the device's buffer to memory.
const BEGIN: u32 = 1;
const TO_MEMORY: u32 = 2;
/// Where the device has its buffer.
const BUFFER: u64 = 0x4_0000;
/// Bytes that are copied.
const LENGTH: usize = 64;
/// Nanoseconds that a copy may take, and that it may take to be stopped.
const PATIENCE: u64 = 5_000_000_000;
const LOOK: u64 = 10_000_000;

fn main(startup: Startup) -> ! {
    match run(&startup) {
        Ok(()) => log!("nobody stops me"),
        Err(problem) => log!("{problem}"),
    }
    hypercall::sleep_forever()
}

fn run(startup: &Startup) -> Result<(), Problem> {
    let mine = (0..startup.resources.len()).find_map(|index| Dma::resource(startup, index));
    let mine = mine.ok_or("the system file gives it no shared memory")?;
    let mut device = Device::claim(startup)?;
    let registers = device.registers(0)?.ok_or("the device has no registers")?.memory;
    device.interrupt(0, line::HARDWARE_FIRST)?;

    let pattern = [0xc3; LENGTH];
    mine.memory.copy_in(0, &pattern);
    copy(&registers, mine.physical, BUFFER, 0)?;
    copy(&registers, BUFFER, mine.physical + PAGE / 2, TO_MEMORY)?;
    let mut copied = [0; LENGTH];
    mine.memory.copy_out(PAGE as usize / 2, &mut copied);
    log!("a copy within its own memory {}", if copied == pattern { "works" } else { "fails" });

    // Its own too, and nobody's harm; but the system file does not let the device have it.
    let elsewhere = startup.own_free_first * PAGE;
    log!("now a copy to {elsewhere:#x}");
    copy(&registers, BUFFER, elsewhere, TO_MEMORY)?;
    let end = clock::now() + PATIENCE;
    while clock::now() < end {
        hypercall::idle(end);
    }
    Ok(())
}

fn copy(registers: &Region, from: u64, to: u64, direction: u32) -> Result<(), Problem> {
    registers.write_u64(SOURCE, from);
    registers.write_u64(DESTINATION, to);
    registers.write_u64(COUNT, LENGTH as u64);
    registers.write_u32(COMMAND, BEGIN | direction);
    let end = clock::now() + PATIENCE;
    while registers.read_u32(COMMAND) & BEGIN != 0 {
        if clock::now() > end {
            return Err("the device does not come to an end".into());
        }
        hypercall::idle(clock::now() + LOOK);
    }
    Ok(())
}
