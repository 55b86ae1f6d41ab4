//! The microkernel: CPU and memory isolation, messages, virtual interrupts; nothing else.
//!
//! What it does is in `microkernel_logic`; this crate is what must be done in ring 0 to do it. Boot takes memory
//! as the loader left it, sets the processor up, loads `init` from the bundle, and never returns: from then
//! on the kernel runs only when a domain calls, faults, or is interrupted.
//!
//! `unsafe` lies in the modules that touch the machine: `physical` (memory by number), `cpu` (registers of the
//! processor), `apic`, `clock`, `serial` (device registers), and the entries in this file. Blanket assumptions: the code
//! runs in ring 0 in long mode, with interrupts off except while it sleeps; and with the one lock held, but for what entry.s, the
//! record of each processor (`processor`) and its start (`bring_up`) do.
#![no_std]
#![no_main]

mod apic;
mod bring_up;
mod clock;
mod cpu;
mod first;
mod machine;
mod memory;
mod physical;
mod processor;
mod serial;
mod start_info;

use core::{
    arch::global_asm,
    fmt::Write,
    panic::PanicInfo,
    sync::atomic::{AtomicBool, Ordering},
};
use machine::Metal;
use microkernel_logic::{
    Frame, Kernel, Machine, NO_FRAME,
    block::{ControlBlock, FLAG_FPU},
};
use processor::Poll;
use protocol::abi::{Number, Reply, Request};
use spin::mutex::{Mutex, MutexGuard};
use x86_64::registers::control::Cr2;

global_asm!(include_str!("boot.s"), STACK = const cpu::FIRST_STACK, options(att_syntax));
global_asm!(include_str!("entry.s"), options(att_syntax, raw));

/// The kernel, under its one lock. Empty until boot is over.
static KERNEL: Mutex<Option<Kernel<Metal>>, Poll> = Mutex::new(None);

/// Set when the kernel has stopped for good; entry.s looks.
#[unsafe(no_mangle)]
static stopped: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    fn sleep() -> !;
    fn resume() -> !;
}

/// Device not available: a floating-point instruction while CR0.TS is set.
const NO_FPU: u64 = 7;
/// Debug exception, breakpoint, overflow: they are raised behind their instruction (Intel SDM vol. 3, 6.5), which is not executed again.
const TRAPS: [u64; 3] = [1, 3, 4];
const PAGE_FAULT: u64 = 14;

/// Called by boot.s: the loader's table, the TSC at entry, and which loader it was ([`start_info::read`]).
#[unsafe(no_mangle)]
extern "C" fn kernel_main(start_info: u64, tsc: u64, loader: u32) -> ! {
    serial::initialise();
    // SAFETY: the one call at boot, on the one processor, with what the loader handed over.
    let (info, mut memory) = unsafe {
        cpu::initialise();
        let mut info = start_info::read(loader, start_info).unwrap_or_else(|reason| refuse(reason));
        let memory = memory::initialise(&mut info).unwrap_or_else(|reason| refuse(reason));
        (info, memory)
    };
    apic::initialise();
    processor::announce();
    let clock = clock::Clock::measure(tsc);
    let (mib, mhz) = (memory.total >> 20, clock.tsc_hz / 1_000_000);
    let invariant = if cpu::has_invariant_tsc() { "" } else { ", not said to be invariant" };
    say!("{} for x86-64: {mib} MiB of memory, TSC at {mhz} MHz{invariant}", env!("CARGO_PKG_VERSION"));
    say!("protection: {}", cpu::protections());
    let bring_up = bring_up::BringUp::new(&info, &mut memory);
    first::start(&info, memory, clock, bring_up, &mut KERNEL.lock()).unwrap_or_else(|reason| refuse(reason));
    begin(Kernel::run_first)
}

/// Enters the kernel as this processor's first work, and goes to the domain to run.
fn begin(work: impl FnOnce(&mut Kernel<Metal>) -> Frame) -> ! {
    let mut guard = KERNEL.lock();
    let Some(kernel) = guard.as_mut() else { refuse("a processor came before boot was over") };
    let next = work(kernel);
    let block = leave(next, guard);
    // SAFETY: `resume` takes the control block in rax and goes to the domain; it needs no stack.
    unsafe { core::arch::asm!("jmp {}", sym resume, in("rax") block, options(noreturn)) }
}

/// Boot cannot go on.
fn refuse(reason: &str) -> ! {
    say!("cannot boot: {reason}");
    halt()
}

fn halt() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}

type Guard = MutexGuard<'static, Option<Kernel<Metal>>, Poll>;

/// Enters the kernel, whose lock was taken, for `work`. Returns the control block of the domain to run.
#[inline(always)]
fn enter(mut guard: Guard, work: impl FnOnce(&mut Kernel<Metal>) -> Frame) -> *mut ControlBlock {
    let Some(kernel) = guard.as_mut() else { refuse("an interrupt came before boot was over") };
    kernel.enter(processor::number());
    leave(work(kernel), guard)
}

/// Ends a stay in the kernel: returns the control block of the domain to run, or sleeps.
#[inline(always)]
fn leave(next: Frame, guard: Guard) -> *mut ControlBlock {
    drop(guard);
    processor::finish();
    if next == NO_FRAME {
        // SAFETY: nothing on this stack is needed any more; `sleep` begins it anew.
        unsafe { sleep() }
    }
    // SAFETY: the logic has chosen a domain that exists.
    unsafe { physical::block(next) }
}

/// Called by entry.s for a system call; the registers are in the control block of the domain.
#[unsafe(no_mangle)]
extern "C" fn system_call() -> *mut ControlBlock {
    // SAFETY: the block of the domain that has just called, whose registers nobody else looks at while the domain is on this
    // processor and has not been recalled, the lock being needed only for what domains share.
    let registers = unsafe { &mut (*processor::current()).registers };
    if registers.rax == Request::new(Number::Null).0 {
        registers.rax = Reply::OK.0;
        return processor::current();
    }
    locked_call()
}

#[inline(never)]
fn locked_call() -> *mut ControlBlock {
    match KERNEL.try_lock() {
        Some(guard) => enter(guard, Kernel::system_call),
        None => waiting_call(),
    }
}

/// A system call that has to wait for the lock, and may be undone meanwhile.
#[inline(never)]
fn waiting_call() -> *mut ControlBlock {
    let (guard, stands) = processor::wait_with_call(|| KERNEL.lock());
    enter(guard, |kernel| if stands { kernel.system_call() } else { kernel.spurious_interrupt() })
}

/// Called by entry.s for exceptions of domains and for hardware interrupts.
#[unsafe(no_mangle)]
extern "C" fn interrupt(vector: u64, error: u64) -> *mut ControlBlock {
    let address = if vector == PAGE_FAULT { Cr2::read_raw() } else { 0 };
    let wait = || {
        processor::answer_recall();
        KERNEL.lock()
    };
    let guard = if TRAPS.contains(&vector) { processor::wait_with_trap(wait) } else { wait() };
    enter(guard, |kernel| {
        if vector >= 32 {
            kernel.resume_from_idle();
        }
        match vector as u8 {
            apic::TIMER_VECTOR => kernel.timer_interrupt(),
            apic::CALL_VECTOR => {
                kernel.machine.end_of_interrupt();
                kernel.spurious_interrupt()
            }
            // Nothing is to be ended for a spurious interrupt, of either controller.
            apic::SPURIOUS_VECTOR | 32..48 => kernel.spurious_interrupt(),
            48.. => kernel.hardware_interrupt(vector as u8),
            _ if vector == NO_FPU && first_fpu_use(kernel) => kernel.spurious_interrupt(),
            exception => kernel.exception(exception, error, address),
        }
    })
}

/// Switches the floating-point unit on for a domain that uses it for the first time; whether that was it.
fn first_fpu_use(kernel: &mut Kernel<Metal>) -> bool {
    let domain = kernel.running();
    if domain == NO_FRAME {
        return false;
    }
    let block = kernel.machine.block_mut(domain);
    if block.flags & FLAG_FPU != 0 {
        return false;
    }
    block.flags |= FLAG_FPU;
    processor::load_fpu(domain);
    true
}

/// Called by entry.s for an exception in ring 0: an error of the kernel, or of the machine.
#[unsafe(no_mangle)]
extern "C" fn kernel_exception(frame: *const [u64; 7]) -> ! {
    // SAFETY: entry.s passes the address of what the processor pushed.
    let [vector, error, rip, _, flags, rsp, _] = unsafe { frame.read() };
    panic!(
        "exception {vector} in the kernel: error {error:#x}, address {:#x}, rip {rip:#x}, rsp {rsp:#x}, flags {flags:#x}",
        Cr2::read_raw()
    );
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    stopped.store(true, Ordering::SeqCst);
    processor::stop_others();
    let _ = writeln!(serial::Serial, "microkernel: PANIC: {info}");
    halt()
}
