//! Misuse of the virtual register page.

extern crate alloc;

use super::{broken, random::Random};
use alloc::vec;
use core::{arch::asm, mem::offset_of, sync::atomic::Ordering};
use hostile::Registers;
use ilwaco::{
    clock,
    hypercall::{self, enter_raw},
    lines, println,
    protocol::{
        abi::{Number, Request},
        layout,
        registers::{KERNEL_PART, RegisterPage},
    },
    registers::live,
};

/// Rounds of scribbling.
const ROUNDS: u32 = 2_000;
const KERNEL: u64 = 0xffff_8000_0000_1000;
const NON_CANONICAL: u64 = 0x1234_5678_9abc_def0;
/// Flags that a user may not set: I/O privilege 3, virtual-8086 mode, virtual interrupt flags; the interrupt flag is left out.
const FORBIDDEN: u64 = 0x3000 | 1 << 17 | 1 << 19 | 1 << 20;
const INTERRUPT_FLAG: u64 = 1 << 9;

/// Where handlers that are entered end up.
extern "C" fn entered() -> ! {
    broken("the handler was entered with a stack in the kernel")
}

/// Has an interrupt delivered to a handler.
fn deliver(handler: u64, stack: u64) {
    let page = live();
    page.handler.store(handler, Ordering::Relaxed);
    page.handler_stack.store(stack, Ordering::Relaxed);
    page.mask.store(u64::MAX, Ordering::Relaxed);
    page.enabled.store(1, Ordering::Relaxed);
    let start = clock::now();
    hypercall::set_timer(start + 1_000_000);
    while clock::now() < start + 200_000_000 {
        core::hint::spin_loop();
    }
    let pending = page.pending.load(Ordering::Relaxed);
    page.enabled.store(0, Ordering::Relaxed);
    page.handler.store(0, Ordering::Relaxed);
    if pending & 1 << lines::TIMER == 0 {
        broken("the timer has not become pending");
    }
    println!("no interrupt was delivered to {handler:#x}; it is pending");
}

/// Returns from an interrupt to `instruction`; the call comes back if the kernel refuses.
fn return_to(instruction: u64) {
    live().saved_instruction.store(instruction, Ordering::Relaxed);
    live().saved_stack.store(NON_CANONICAL, Ordering::Relaxed);
    live().saved_flags.store(u64::MAX, Ordering::Relaxed);
    let mut registers =
        hypercall::Registers { rax: Request::new(Number::InterruptReturn).0, ..hypercall::Registers::default() };
    // SAFETY: the call goes on nowhere or comes back.
    unsafe { enter_raw(&mut registers) };
    println!("refused: {:#x}", registers.rax);
    if registers.rax == 0 {
        broken("the call went well");
    }
}

/// Returns from an interrupt to the next instruction with these flags; returns the flags there.
fn return_with(flags: u64) -> u64 {
    let after: u64;
    // SAFETY: the kernel goes on at the label with the same stack; the flags are set back before the compiler's code goes on.
    unsafe {
        asm!(
            "mov [{instruction}], rsp",
            "mov [{stack}], rsp",
            "mov [{flags_place}], {flags}",
            "lea rax, [rip + 2f]",
            "mov [{instruction}], rax",
            "mov rax, {request}",
            "syscall",
            "2:",
            "pushfq",
            "pop {flags}",
            "push 0x202",
            "popfq",
            instruction = const layout::SPACE_BASE + offset_of!(RegisterPage, saved_instruction) as u64,
            stack = const layout::SPACE_BASE + offset_of!(RegisterPage, saved_stack) as u64,
            flags_place = const layout::SPACE_BASE + offset_of!(RegisterPage, saved_flags) as u64,
            request = in(reg) Request::new(Number::InterruptReturn).0,
            flags = inout(reg) flags => after,
            out("rax") _,
            out("rcx") _,
            out("r11") _,
        );
    }
    live().enabled.store(0, Ordering::Relaxed);
    after
}

/// Writes random bytes all over the page, and has the kernel look at it.
fn scribble() {
    const BYTES: usize = size_of::<RegisterPage>();
    let page = core::ptr::with_exposed_provenance_mut::<u8>(layout::SPACE_BASE as usize);
    let (mut saved, mut bytes) = (vec![0u8; BYTES], vec![0u8; BYTES]);
    // SAFETY: the register page may be read and written as bytes; nothing holds a reference to it but to its atomics.
    unsafe { core::ptr::copy_nonoverlapping(page, saved.as_mut_ptr(), BYTES) };
    let mut random = Random::new();
    for round in 0..ROUNDS {
        random.fill(&mut bytes);
        // With a handler there would be a jump; other modes do that.
        bytes[offset_of!(RegisterPage, handler)..][..8].fill(0);
        let length = if round % 2 == 0 { KERNEL_PART } else { BYTES };
        // SAFETY: as above.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), page, length) };
        hypercall::set_timer(random.below(1 << 40));
        hypercall::null();
        hypercall::idle(1);
    }
    // SAFETY: as above.
    unsafe { core::ptr::copy_nonoverlapping(saved.as_ptr(), page, BYTES) };
    hypercall::set_timer(ilwaco::protocol::abi::NEVER);
    println!("the register page was filled {ROUNDS} times");
}

/// Misuse of the register page.
pub fn misuse(misuse: Registers) {
    match misuse {
        Registers::Scribble => scribble(),
        Registers::HandlerKernel => deliver(KERNEL, 0),
        Registers::HandlerNonCanonical => deliver(NON_CANONICAL, 0),
        Registers::HandlerData => deliver(layout::SPACE_BASE, 0),
        Registers::HandlerStackKernel => deliver(entered as *const () as u64, KERNEL),
        Registers::ReturnNonCanonical => return_to(NON_CANONICAL),
        Registers::ReturnKernel => return_to(KERNEL),
        Registers::ReturnFlags => {
            for _ in 0..1000 {
                let flags = return_with(FORBIDDEN);
                if flags & FORBIDDEN != 0 || flags & INTERRUPT_FLAG == 0 {
                    println!("flags {flags:#x}");
                    broken("flags were set that a user may not set");
                }
            }
        }
    }
}
