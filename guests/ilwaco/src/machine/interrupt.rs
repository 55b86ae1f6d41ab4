//! Virtual interrupts delivered to a handler, for guests that want to be interrupted while they compute
//! (threads, benchmarks). Guests made of async tasks poll instead ([`super::lines`]).
//!
//! The trampoline runs on the interrupted stack, below the red zone, and returns without a trap: it copies what the
//! kernel saved into a frame of its own, enables interrupts, looks once more for lines that became pending
//! meanwhile, and leaves by `popfq` and `ret`. An interrupt that is delivered in between nests, on its own frame. (`iretq`
//! would do it in one instruction, but older QEMU, 7.2 for one, takes its reads of the stack for the kernel's and faults under SMAP.)
//!
//! This module also is the VM's critical section: disabling virtual interrupts is a store to the register page.

use super::registers::{live, take_pending};
use core::{
    mem::offset_of,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering, compiler_fence, fence},
};
use protocol::{layout::SPACE_BASE, registers::RegisterPage};

/// What is called with the lines that were pending, a bit for each. It runs with virtual interrupts disabled, may not
/// wait, and may use only the processor state that every x86-64 has (the SSE registers are kept, AVX ones are not).
pub type Handler = fn(u64);

static HANDLER: AtomicUsize = AtomicUsize::new(0);
static HANDLED: AtomicU64 = AtomicU64::new(0);

/// Installs a handler for the lines in `lines` (a bit for each) and enables delivery. The lines are from then on no longer
/// polled: whoever waits for one of them in a task waits in vain.
pub fn install(handler: Handler, lines: u64) {
    HANDLED.store(lines, Ordering::Relaxed);
    HANDLER.store(handler as usize, Ordering::Relaxed);
    live().handler_stack.store(0, Ordering::Relaxed);
    live().handler.store(trampoline as *const () as u64, Ordering::Relaxed);
    // The kernel, on another processor, writes `pending` and then looks whether there is a handler: `set_enabled` must look the other way round.
    fence(Ordering::SeqCst);
    live().mask.fetch_or(lines, Ordering::Relaxed);
    set_enabled(true);
}

/// Ends delivery; lines are polled again.
pub fn remove() {
    live().enabled.store(0, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    live().handler.store(0, Ordering::Relaxed);
}

/// Enables or disables delivery; returns whether it was enabled. Costs no trap: the kernel delivers only what becomes pending
/// while delivery is enabled, so a line that became pending before is handled here, by a plain call.
pub fn set_enabled(enabled: bool) -> bool {
    let registers = live();
    let before = registers.enabled.load(Ordering::Relaxed) != 0;
    // What was done with interrupts disabled stays before the store that enables them, and after the one that disables them.
    compiler_fence(Ordering::SeqCst);
    registers.enabled.store(u64::from(enabled), Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    if enabled && !before && registers.handler.load(Ordering::Relaxed) != 0 {
        while is_pending() {
            registers.enabled.store(0, Ordering::Relaxed);
            compiler_fence(Ordering::SeqCst);
            dispatch();
            compiler_fence(Ordering::SeqCst);
            registers.enabled.store(1, Ordering::Relaxed);
        }
    }
    before
}

/// Called by the trampoline until nothing is pending.
extern "C" fn dispatch() {
    let lines = take_pending(HANDLED.load(Ordering::Relaxed) & live().mask.load(Ordering::Relaxed));
    let handler = HANDLER.load(Ordering::Relaxed);
    if handler != 0 && lines != 0 {
        // SAFETY: only `install` writes the word, from a `Handler`.
        let handler = unsafe { core::mem::transmute::<usize, Handler>(handler) };
        handler(lines);
    }
}

/// Whether a line of the handler is pending.
extern "C" fn is_pending() -> bool {
    live().pending.load(Ordering::Relaxed) & live().mask.load(Ordering::Relaxed) & HANDLED.load(Ordering::Relaxed) != 0
}

const ENABLED: u64 = SPACE_BASE + offset_of!(RegisterPage, enabled) as u64;
const SAVED_INSTRUCTION: u64 = SPACE_BASE + offset_of!(RegisterPage, saved_instruction) as u64;
const SAVED_STACK: u64 = SPACE_BASE + offset_of!(RegisterPage, saved_stack) as u64;
const SAVED_FLAGS: u64 = SPACE_BASE + offset_of!(RegisterPage, saved_flags) as u64;

/// Entered by the kernel: `rsp` is the interrupted one less 128, all other registers are the interrupted ones, and virtual
/// interrupts are disabled.
#[unsafe(naked)]
extern "C" fn trampoline() {
    core::arch::naked_asm!(
        // Room for the address of the way back, 40 bytes below. Flags and instruction go to the 16 bytes under the red zone of
        // the interrupted stack S: they lie at least 24 bytes above that address, for rsp is now at most S - 128.
        "lea rsp, [rsp - 40]",
        "push rax",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push rbp",
        "mov rbp, rsp",
        "mov rcx, [{stack}]",
        "sub rcx, 144",
        "mov [rbp + 80], rcx",
        "mov rax, [{flags}]",
        "mov [rcx], rax",
        "mov rax, [{instruction}]",
        "mov [rcx + 8], rax",
        // The floating-point and SSE registers; fxsave wants 16-byte alignment.
        "and rsp, -16",
        "sub rsp, 512",
        "fxsave64 [rsp]",
        "cld",
        "2:",
        "call {dispatch}",
        // Enabled first, then looked at: a line that becomes pending in between is either seen here or delivered.
        "mov qword ptr [{enabled}], 1",
        "call {is_pending}",
        "test al, al",
        "jz 3f",
        "mov qword ptr [{enabled}], 0",
        "jmp 2b",
        "3:",
        "fxrstor64 [rsp]",
        "mov rsp, rbp",
        "pop rbp",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "mov rsp, [rsp]",
        "popfq",
        "ret 128",
        instruction = const SAVED_INSTRUCTION,
        stack = const SAVED_STACK,
        flags = const SAVED_FLAGS,
        enabled = const ENABLED,
        dispatch = sym dispatch,
        is_pending = sym is_pending,
    );
}

struct CriticalSection;

critical_section::set_impl!(CriticalSection);

// SAFETY: a VM has one processor and one flow of control; only a virtual interrupt can come between, and it is disabled here.
unsafe impl critical_section::Impl for CriticalSection {
    unsafe fn acquire() -> bool {
        set_enabled(false)
    }

    unsafe fn release(enabled: bool) {
        if enabled {
            set_enabled(true);
        }
    }
}
