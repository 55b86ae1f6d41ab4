//! Wild reads, writes, jumps and stack pointers.

use core::arch::asm;
use hostile::Place;
use ilwaco::{protocol::layout, vm};

/// A constant of the guest.
static CONSTANT: u64 = 0xc3c3_c3c3_c3c3_c3c3;

fn address(place: Place) -> u64 {
    match place {
        Place::Null => 0,
        Place::Low => layout::STARTUP,
        Place::Behind => layout::SPACE_BASE + vm::memory(),
        Place::LowerEnd => 0x7fff_ffff_fff8,
        // A page further on, so that a push there does not leave the canonical addresses.
        Place::Kernel => 0xffff_8000_0000_1000,
        Place::KernelEnd => 0xffff_ffff_ffff_fff8,
        Place::NonCanonical => 0x1234_5678_9abc_def0,
        Place::Code => address as *const () as u64,
        Place::Constants => &raw const CONSTANT as u64,
        Place::Registers => layout::SPACE_BASE,
        Place::Data => {
            // Two return instructions, so that the jump would come back.
            let code = [0xc3u8; 16];
            core::hint::black_box(&code).as_ptr() as u64
        }
        Place::LastBytes => layout::SPACE_BASE + vm::memory() - 2,
    }
}

/// Reads a place.
pub fn read(place: Place) {
    let value: u64;
    // SAFETY: nothing is there: the VM is stopped. In assembly, because the language knows no such read.
    unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) address(place)) };
    core::hint::black_box(value);
    super::broken("the read went well");
}

/// Writes a place.
pub fn write(place: Place) {
    // SAFETY: nothing that may be written is there: the VM is stopped.
    unsafe { asm!("mov [{}], {}", in(reg) address(place), in(reg) 0u64) };
    super::broken("the write went well");
}

/// Jumps to a place.
pub fn jump(place: Place) {
    let address = address(place);
    if place == Place::LastBytes {
        // SAFETY: the last two bytes of the VM's memory belong to nothing: the heap does not reach that far. `syscall`.
        unsafe { core::ptr::with_exposed_provenance_mut::<[u8; 2]>(address as usize).write_volatile([0x0f, 0x05]) };
    }
    // SAFETY: nothing that may be executed is there: the VM is stopped.
    unsafe { asm!("call {}", in(reg) address, clobber_abi("sysv64")) };
    super::broken("the jump came back");
}

/// Pushes with the stack pointer at a place.
pub fn stack(place: Place) {
    // SAFETY: nothing that may be written is there: the VM is stopped.
    unsafe { asm!("mov {0}, rsp", "mov rsp, {1}", "push {1}", "mov rsp, {0}", out(reg) _, in(reg) address(place)) };
    super::broken("the push went well");
}
