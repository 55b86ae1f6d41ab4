//! Local APIC and I/O APICs (Intel SDM vol. 3, chapter 11; 82093AA data sheet), and the legacy controller, which is shut up.

use crate::physical;
use x86_64::{instructions::port::Port, registers::model_specific::Msr};

/// Where the local APIC is, on every PC.
pub const LOCAL: u64 = 0xfee0_0000;
/// Vector of the timer.
pub const TIMER_VECTOR: u8 = 240;
/// Vector of spurious interrupts.
pub const SPURIOUS_VECTOR: u8 = 255;

const ID: u64 = 0x20;
const TASK_PRIORITY: u64 = 0x80;
const END: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const TIMER: u64 = 0x320;
const LINT0: u64 = 0x350;
const LINT1: u64 = 0x360;
const ERROR: u64 = 0x370;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;
const MASKED: u32 = 1 << 16;

fn read(register: u64) -> u32 {
    // SAFETY: a register of the local APIC, which is at LOCAL since `initialise`.
    unsafe { physical::read_register(LOCAL + register) }
}

fn write(register: u64, value: u32) {
    // SAFETY: as above; the kernel alone drives it.
    unsafe { physical::write_register(LOCAL + register, value) }
}

/// Switches the local APIC on and the legacy interrupt controller off.
pub fn initialise() {
    // The legacy controller's interrupts, of which spurious ones come even when masked, go to vectors 32 to 47.
    for (port, value) in [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, 32),
        (0xa1, 40),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
        (0x21, 0xff),
        (0xa1, 0xff),
    ] {
        let mut port: Port<u8> = Port::new(port);
        // SAFETY: ports of the legacy interrupt controllers, which nobody else uses.
        unsafe { port.write(value) };
    }
    let mut base = Msr::new(0x1b);
    // SAFETY: sets the address that every PC uses, and the enable bit; x2APIC mode stays off.
    unsafe { base.write(LOCAL | base.read() & 0x100 | 1 << 11) };
    write(SPURIOUS, 0x100 | u32::from(SPURIOUS_VECTOR));
    write(TASK_PRIORITY, 0);
    for register in [LINT0, LINT1, ERROR] {
        write(register, MASKED);
    }
    write(DIVIDE, 0b1011);
    write(TIMER, u32::from(TIMER_VECTOR));
}

/// Number of this processor's local APIC.
pub fn id() -> u8 {
    (read(ID) >> 24) as u8
}

/// Ends the interrupt being handled.
pub fn end_of_interrupt() {
    write(END, 0);
}

/// Starts the one-shot timer; 0 stops it.
pub fn set_timer(count: u32) {
    write(INITIAL_COUNT, count);
}

/// What is left of the timer's count.
pub fn timer() -> u32 {
    read(CURRENT_COUNT)
}

/// Most I/O APICs.
const IO_APICS: usize = 8;

/// The I/O APICs that the platform server named.
#[derive(Default)]
pub struct IoApics {
    known: [Option<IoApic>; IO_APICS],
}

#[derive(Clone, Copy)]
struct IoApic {
    address: u64,
    first: u32,
    count: u32,
}

impl IoApic {
    fn read(self, index: u32) -> u32 {
        // SAFETY: index and data register of an I/O APIC that the holder of the interrupt authority vouched for.
        unsafe {
            physical::write_register(self.address, index);
            physical::read_register(self.address + 0x10)
        }
    }

    fn write(self, index: u32, value: u32) {
        // SAFETY: as above.
        unsafe {
            physical::write_register(self.address, index);
            physical::write_register(self.address + 0x10, value);
        }
    }
}

impl IoApics {
    /// Adds one with its lines masked; `false` if it lies where none can, or there is no room. Naming one again changes nothing.
    pub fn add(&mut self, address: u64, first: u32) -> bool {
        let outside = !(0xfe00_0000..LOCAL).contains(&address) || !address.is_multiple_of(16);
        if outside {
            return false;
        }
        if self.known.iter().flatten().any(|known| known.address == address) {
            return true;
        }
        let Some(free) = self.known.iter_mut().find(|slot| slot.is_none()) else { return false };
        let mut apic = IoApic { address, first, count: 0 };
        apic.count = (apic.read(1) >> 16 & 0xff) + 1;
        for line in 0..apic.count {
            apic.write(0x10 + 2 * line, MASKED);
        }
        *free = Some(apic);
        true
    }

    /// Routes a global interrupt to a vector of this processor; `false` if no I/O APIC has it.
    pub fn route(&mut self, number: u32, vector: u8, level: bool, low: bool, masked: bool) -> bool {
        let has = |apic: &&IoApic| number.checked_sub(apic.first).is_some_and(|line| line < apic.count);
        let Some(apic) = self.known.iter().flatten().find(has).copied() else { return false };
        let line = number - apic.first;
        let entry = u32::from(vector) | u32::from(low) << 13 | u32::from(level) << 15 | u32::from(masked) << 16;
        apic.write(0x10 + 2 * line, MASKED | u32::from(vector));
        apic.write(0x11 + 2 * line, u32::from(id()) << 24);
        apic.write(0x10 + 2 * line, entry);
        true
    }
}
