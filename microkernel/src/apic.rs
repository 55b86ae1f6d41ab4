//! Local APIC and I/O APICs (Intel SDM vol. 3, chapter 11; 82093AA data sheet), and the legacy controller, which is shut up.

use crate::physical;
use core::{
    arch::x86_64::__cpuid,
    sync::atomic::{AtomicBool, Ordering, fence},
};
use x86_64::{instructions::port::Port, registers::model_specific::Msr};

/// Where the local APIC is, on every PC.
pub const LOCAL: u64 = 0xfee0_0000;
/// Vector of the timer.
pub const TIMER_VECTOR: u8 = 240;
/// Vector with which processors interrupt one another.
pub const CALL_VECTOR: u8 = 241;
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
const COMMAND: u64 = 0x300;
const COMMAND_TO: u64 = 0x310;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;
const MASKED: u32 = 1 << 16;
/// In the command register: the last command has not been sent yet.
const SENDING: u32 = 1 << 12;
/// Polls after which a command is taken for sent.
const PATIENCE: u32 = 100_000;
/// In the command register: reset a processor; start one at a page. Both with the level asserted.
pub const RESET: u32 = 0x4500;
pub const START: u32 = 0x4600;
/// In the command register: a non-maskable interrupt.
pub const NON_MASKABLE: u32 = 0x4400;

/// Register of the mode and address of the local APIC: enabled, and in x2APIC mode.
const BASE: u32 = 0x1b;
const ENABLED: u64 = 1 << 11;
const X2: u64 = 1 << 10;
/// First register of a local APIC in x2APIC mode.
const X2_REGISTERS: u32 = 0x800;

/// Whether the local APICs are in x2APIC mode: their registers are the processor's, and their numbers have 32 bits.
static IS_X2: AtomicBool = AtomicBool::new(false);

fn is_x2() -> bool {
    IS_X2.load(Ordering::Relaxed)
}

fn x2(register: u64) -> Msr {
    Msr::new(X2_REGISTERS + (register >> 4) as u32)
}

fn read(register: u64) -> u32 {
    // SAFETY: a register of the local APIC, which is at LOCAL, or in x2APIC mode, since `switch_on`.
    unsafe { if is_x2() { x2(register).read() as u32 } else { physical::read_register(LOCAL + register) } }
}

fn write(register: u64, value: u32) {
    // SAFETY: as above; the kernel alone drives it.
    unsafe {
        if is_x2() { x2(register).write(u64::from(value)) } else { physical::write_register(LOCAL + register, value) }
    }
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
    IS_X2.store(__cpuid(1).ecx & 1 << 21 != 0, Ordering::Relaxed);
    switch_on();
}

/// Switches this processor's local APIC on, in x2APIC mode if processors have that.
pub fn switch_on() {
    let mut base = Msr::new(BASE);
    // SAFETY: sets the address that every PC uses, and the mode; from x2APIC mode, in which firmware may have left it, there is no way
    // back but by switching it off (Intel SDM vol. 3, 11.12.5), and none is taken: a processor that has the mode stays in it.
    unsafe {
        base.write(LOCAL | base.read() & (0x100 | X2) | ENABLED);
        if is_x2() {
            base.write(base.read() | X2);
        }
    }
    write(SPURIOUS, 0x100 | u32::from(SPURIOUS_VECTOR));
    write(TASK_PRIORITY, 0);
    for register in [LINT0, LINT1, ERROR] {
        write(register, MASKED);
    }
    write(DIVIDE, 0b1011);
    write(TIMER, u32::from(TIMER_VECTOR));
}

/// Number of this processor's local APIC.
pub fn id() -> u32 {
    if is_x2() { read(ID) } else { read(ID) >> 24 }
}

/// Whether a command can be sent to the local APIC with this number and no other: it fits, and does not mean all.
pub fn can_reach(id: u32) -> bool {
    id < if is_x2() { u32::MAX } else { 0xff }
}

/// Sends a command (Intel SDM vol. 3, 11.6.1) to another processor: a vector, [`RESET`] or [`START`].
pub fn send(to: u32, command: u32) {
    // What was written before must be seen by who gets the interrupt: in x2APIC mode sending it does not wait for that.
    fence(Ordering::SeqCst);
    if is_x2() {
        // SAFETY: the command register; the command is this module's or a vector of ours.
        unsafe { x2(COMMAND).write(u64::from(to) << 32 | u64::from(command)) };
        return;
    }
    let _ = (0..PATIENCE).find(|_| read(COMMAND) & SENDING == 0);
    write(COMMAND_TO, to << 24);
    write(COMMAND, command);
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

    /// Routes a global interrupt to a vector of the processor whose local APIC has the number `to`; `false` if no I/O APIC has it.
    pub fn route(&mut self, number: u32, to: u8, vector: u8, level: bool, low: bool, masked: bool) -> bool {
        let has = |apic: &&IoApic| number.checked_sub(apic.first).is_some_and(|line| line < apic.count);
        let Some(apic) = self.known.iter().flatten().find(has).copied() else { return false };
        let line = number - apic.first;
        let entry = u32::from(vector) | u32::from(low) << 13 | u32::from(level) << 15 | u32::from(masked) << 16;
        // Whether it is level-triggered never changes, not for a moment: a line that is asserted meanwhile would not be heard. Where it goes
        // matters once it is unmasked, and is always the same.
        if !masked {
            apic.write(0x11 + 2 * line, u32::from(to) << 24);
        }
        apic.write(0x10 + 2 * line, entry);
        true
    }
}
