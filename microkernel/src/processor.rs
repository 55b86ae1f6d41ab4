//! A processor's own record, its way of loading a domain, and what processors ask of one another without the kernel's lock.
//!
//! Who holds the lock may *recall* another processor ([`recall`]). That one is in ring 3, where the interrupt reaches it; or asleep; or
//! on its way into the kernel, where it polls for this while it waits for the lock ([`Poll`]). It never holds the lock, and only
//! a holder recalls: so nobody waits in a circle, and there is at most one recall at a time.

use crate::{apic, physical};
use core::{
    arch::asm,
    cell::{Cell, UnsafeCell},
    ptr::null_mut,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, Ordering},
};
use microkernel_logic::{
    Frame, NO_FRAME, PROCESSORS,
    block::{ControlBlock, FLAG_FPU},
    paging::{Entry, Table},
};
use spin::relax::RelaxStrategy;
use x86_64::registers::{
    control::{Cr0, Cr0Flags},
    model_specific::GsBase,
};

/// What a processor finds at `%gs` in the kernel; entry.s knows the first three offsets.
///
/// All fields but `wanted`, `next`, `shares` and `apic` are only used by the processor that the record belongs to.
#[repr(C)]
pub struct Record {
    /// The control block of the running domain.
    block: Cell<*mut ControlBlock>,
    scratch: Cell<u64>,
    /// Top of the kernel stack.
    stack: u64,
    this: *const Record,
    number: usize,
    /// The top-level page table.
    top: *mut Table,
    /// The same, as CR3 has it.
    top_physical: u64,
    /// Number of the local APIC.
    apic: u32,
    xsave: bool,
    /// Whether CR0.TS is set: the first floating-point instruction faults.
    fpu_off: Cell<bool>,
    call: Cell<Call>,
    /// Bit `p`: processor `p` is to be interrupted.
    later: Cell<u64>,
    /// What it has switched to and not loaded yet.
    next: AtomicU32,
    /// There are others: what can be done without the lock is done without it.
    shares: AtomicBool,
    /// Whether another processor waits until this one has given up what it has loaded ([`WANTED`]), or what it was told ([`GIVEN_UP`],
    /// [`WITH_TRAP`]).
    wanted: AtomicU8,
}

/// Nothing is wanted of the processor; what was loaded is in the control block.
const GIVEN_UP: u8 = 0;
const WANTED: u8 = 1;
/// The same as [`GIVEN_UP`], and the processor waits with an exception that would not come again.
const WITH_TRAP: u8 = 2;

/// With what the processor waits for the lock. What is not named here comes again of itself: faults, and interrupts do not belong to the domain.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    None,
    /// With a system call that it has not begun.
    Waiting,
    /// It was recalled: the domain will execute the system call again.
    Undone,
    /// With an exception that was raised behind its instruction: it would not come again.
    Trap,
}

/// The records of the processors that were started.
static RECORDS: [AtomicPtr<Record>; PROCESSORS] = [const { AtomicPtr::new(null_mut()) }; PROCESSORS];

impl Record {
    /// The record of processor `number`: its stack, and its top-level page table by address and as CR3 has it.
    pub fn new(number: usize, stack: u64, top: *mut Table, top_physical: u64, xsave: bool) -> Record {
        Record {
            block: Cell::new(null_mut()),
            scratch: Cell::new(0),
            stack,
            this: core::ptr::null(),
            number,
            top,
            top_physical,
            apic: 0,
            xsave,
            fpu_off: Cell::new(true),
            call: Cell::new(Call::None),
            later: Cell::new(0),
            next: AtomicU32::new(NO_FRAME),
            shares: AtomicBool::new(false),
            wanted: AtomicU8::new(GIVEN_UP),
        }
    }
}

/// Gives this processor its record.
///
/// # Safety
/// Once for each processor, before it takes the lock. The record is this processor's for ever.
pub unsafe fn install(record: &'static mut Record) {
    record.this = record;
    GsBase::write(x86_64::VirtAddr::from_ptr(record));
}

/// Makes this processor known to the others. Its local APIC is on.
pub fn announce() {
    let record = own();
    // SAFETY: the record is in memory that this processor may write; nobody else reads it before the next line.
    unsafe { (&raw mut (*record.this.cast_mut()).apic).write(apic::id()) };
    RECORDS[record.number].store(record.this.cast_mut(), Ordering::Release);
    if record.number > 0 {
        [0, record.number]
            .into_iter()
            .filter_map(other)
            .for_each(|record| record.shares.store(true, Ordering::Relaxed));
    }
}

/// This processor's record.
#[inline(always)]
fn own() -> &'static Record {
    let this: *const Record;
    // SAFETY: in the kernel %gs points to this processor's record, which names itself; a stack is used by one processor only.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) this, const core::mem::offset_of!(Record, this), options(nostack, preserves_flags, pure, nomem));
        &*this
    }
}

/// This processor's number.
#[inline(always)]
pub fn number() -> usize {
    let number;
    // SAFETY: as for `own`.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) number, const core::mem::offset_of!(Record, number), options(nostack, preserves_flags, pure, nomem));
    }
    number
}

/// The control block of the running domain, as the entry code knows it.
#[inline(always)]
pub fn current() -> *mut ControlBlock {
    let block;
    // SAFETY: in the kernel %gs points to this processor's record, whose first word this is.
    unsafe { asm!("mov {}, gs:[0]", out(reg) block, options(nostack, preserves_flags, readonly)) };
    block
}

fn other(processor: usize) -> Option<&'static Record> {
    let record = RECORDS.get(processor)?.load(Ordering::Acquire);
    // SAFETY: null, or a record that lives for ever; of another processor's record only `apic` and the atomic fields are used.
    unsafe { record.as_ref() }
}

/// Number of a processor's local APIC.
pub fn apic_of(processor: usize) -> Option<u32> {
    other(processor).map(|record| record.apic)
}

/// The processor with this local APIC.
pub fn with_apic(id: u32) -> Option<usize> {
    (0..PROCESSORS).find(|processor| apic_of(*processor) == Some(id))
}

/// Lets another processor enter the kernel once this one has left it: before that it would only wait for the lock.
pub fn interrupt_later(processor: usize) {
    let later = &own().later;
    later.set(later.get() | 1u64.checked_shl(processor as u32).unwrap_or(0));
}

#[inline(never)]
fn send_all(processors: u64) {
    (0..PROCESSORS).filter(|processor| processors >> processor & 1 != 0).for_each(interrupt);
}

/// Lets another processor enter the kernel at once.
fn interrupt(processor: usize) {
    if let Some(record) = other(processor) {
        apic::send(record.apic, u32::from(apic::CALL_VECTOR));
    }
}

/// Makes another processor stop in the kernel with nothing loaded. Whether it waits there with an exception of its domain that would not
/// come again. Only for who holds the lock.
pub fn recall(processor: usize) -> bool {
    let Some(record) = other(processor) else { return false };
    record.wanted.store(WANTED, Ordering::Release);
    interrupt(processor);
    loop {
        match record.wanted.load(Ordering::Acquire) {
            WANTED => core::hint::spin_loop(),
            answer => return answer == WITH_TRAP,
        }
    }
}

/// Sends all other processors a non-maskable interrupt; entry.s knows what it means.
pub fn stop_others() {
    for processor in (0..PROCESSORS).filter(|processor| *processor != number()) {
        if let Some(id) = apic_of(processor) {
            apic::send(id, apic::NON_MASKABLE);
        }
    }
}

/// Gives up what is loaded, if another processor wants that. The running domain is this processor's until the last line: only then may
/// who holds the lock touch its control block.
#[inline(always)]
pub fn answer_recall() {
    let own = own();
    if own.wanted.load(Ordering::Acquire) == WANTED {
        give_up(own);
        let answer = if own.call.get() == Call::Trap { WITH_TRAP } else { GIVEN_UP };
        own.wanted.store(answer, Ordering::Release);
    }
}

#[inline(never)]
fn give_up(own: &Record) {
    if own.call.get() == Call::Waiting {
        own.call.set(Call::Undone);
        // SAFETY: see `answer_recall`.
        let registers = unsafe { &mut (*own.block.get()).registers };
        // `syscall` is two bytes long, and has changed nothing but what it always loses.
        registers.rip = registers.rip.wrapping_sub(2);
    }
    if !own.fpu_off.get() {
        // SAFETY: see `answer_recall`; the floating-point unit is on for the running domain only.
        save(own, unsafe { &mut *own.block.get() });
        fpu_off(own);
    }
    set_root(own, Entry::EMPTY);
}

/// What to do while waiting for the lock.
pub struct Poll;

impl RelaxStrategy for Poll {
    #[inline(always)]
    fn relax() {
        answer_recall();
        core::hint::spin_loop();
    }
}

/// Runs `wait`, which waits for the lock for a system call. Whether the call still stands: if not, the domain may be running no more,
/// and if it does it will execute the call again.
pub fn wait_with_call<T>(wait: impl FnOnce() -> T) -> (T, bool) {
    let own = own();
    own.call.set(Call::Waiting);
    let result = wait();
    (result, own.call.replace(Call::None) == Call::Waiting)
}

/// Runs `wait`, which waits for the lock with an exception that would not come again.
pub fn wait_with_trap<T>(wait: impl FnOnce() -> T) -> T {
    let own = own();
    own.call.set(Call::Trap);
    let result = wait();
    own.call.set(Call::None);
    result
}

/// Saves the floating-point state of `previous`. The address space and floating-point state of `next` are loaded by [`finish`], if there are
/// other processors: that takes time in which they can have the lock. Without a `next`, what is loaded is given up at once.
#[inline(always)]
pub fn switch(previous: Frame, next: Frame) {
    let own = own();
    if previous != NO_FRAME {
        // SAFETY: the logic names domains that exist, and holds no reference to their blocks during a switch.
        let block = unsafe { &mut *physical::block(previous) };
        if block.flags & FLAG_FPU != 0 {
            save(own, block);
        }
    }
    if next == NO_FRAME {
        load(own, Entry::EMPTY, NO_FRAME);
    } else {
        // SAFETY: as above.
        let block = unsafe { &mut *physical::block(next) };
        own.block.set(block);
        if own.shares.load(Ordering::Relaxed) {
            own.next.store(next, Ordering::Relaxed);
        } else {
            load(own, Entry::table(block.root), if block.flags & FLAG_FPU != 0 { next } else { NO_FRAME });
        }
    }
}

/// Ends a stay in the kernel, when the lock is free again: interrupts the processors that the logic wanted to, and loads what was switched to.
///
/// Until that is done, the tables of the domain before are still the processor's. Nothing goes through them, but who gives up page tables
/// waits for it all the same ([`wait_for_switches`]).
#[inline(always)]
pub fn finish() {
    let own = own();
    if own.shares.load(Ordering::Relaxed) {
        finish_with_others(own);
    }
}

#[inline(never)]
fn finish_with_others(own: &Record) {
    if own.later.get() != 0 {
        send_all(own.later.replace(0));
    }
    let next = own.next.load(Ordering::Relaxed);
    if next != NO_FRAME {
        // SAFETY: the domain that this processor runs: its root never changes, its flags are changed by this processor only, and before it is
        // destroyed it is recalled, which this processor answers when it next enters the kernel.
        let (root, flags) = unsafe { ((*physical::block(next)).root, (*physical::block(next)).flags) };
        load(own, Entry::table(root), if flags & FLAG_FPU != 0 { next } else { NO_FRAME });
        own.next.store(NO_FRAME, Ordering::Release);
    }
}

/// Waits until every other processor has loaded what it has switched to. Only for who holds the lock: so none begins a switch meanwhile.
pub fn wait_for_switches() {
    for record in (0..PROCESSORS).filter(|processor| *processor != number()).filter_map(other) {
        while record.next.load(Ordering::Acquire) != NO_FRAME {
            core::hint::spin_loop();
        }
    }
}

/// Loads an address space, and the floating-point state of a domain (or that of none).
#[inline(always)]
fn load(own: &Record, entry: Entry, fpu: Frame) {
    set_root(own, entry);
    if fpu != NO_FRAME {
        load_fpu(fpu);
    } else if !own.fpu_off.get() {
        fpu_off(own);
    }
    reset_changed_segments();
}

/// Loads an address space.
#[inline(always)]
fn set_root(own: &Record, entry: Entry) {
    // SAFETY: nothing holds a reference to the top-level table; its first entry is the domain's half alone, so the kernel
    // stays mapped. Writing CR3 makes the processor forget the former domain's translations.
    unsafe {
        (&raw mut (*own.top)[0]).write_volatile(entry);
        asm!("mov cr3, {0}", in(reg) own.top_physical, options(nostack, preserves_flags));
    }
}

fn fpu_off(own: &Record) {
    own.fpu_off.set(true);
    // SAFETY: makes the next floating-point instruction fault, nothing else.
    unsafe { Cr0::update(|flags| *flags |= Cr0Flags::TASK_SWITCHED) };
}

fn save(own: &Record, block: &mut ControlBlock) {
    let area = block.fpu.0.as_mut_ptr();
    // SAFETY: the area is 64-aligned and as large as the enabled states need; the unit is on, for the domain has used it.
    unsafe {
        if own.xsave {
            asm!("xsave64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack, preserves_flags));
        } else {
            asm!("fxsave64 [{}]", in(reg) area, options(nostack, preserves_flags));
        }
    }
}

/// Gives the running domain its floating-point state.
pub fn load_fpu(domain: Frame) {
    let own = own();
    if own.fpu_off.replace(false) {
        // SAFETY: clears CR0.TS, which makes floating-point instructions possible.
        unsafe { asm!("clts", options(nomem, nostack, preserves_flags)) };
    }
    // SAFETY: the area holds what `save` wrote there, the initial state, or what `Fpu::make_valid` made valid.
    unsafe {
        let area = (*physical::block(domain)).fpu.0.as_ptr();
        if own.xsave {
            asm!("xrstor64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack, preserves_flags));
        } else {
            asm!("fxrstor64 [{}]", in(reg) area, options(nostack, preserves_flags));
        }
    }
}

/// If the domain that ran has loaded segment registers, makes them null again: they must tell the next one nothing.
#[inline]
fn reset_changed_segments() {
    let changed: u32;
    // SAFETY: reads four registers.
    unsafe {
        asm!(
            "mov {0:e}, ds", "mov {1:e}, es", "or {0:e}, {1:e}", "mov {1:e}, fs", "or {0:e}, {1:e}",
            "mov {1:e}, gs", "or {0:e}, {1:e}",
            out(reg) changed, out(reg) _, options(nomem, nostack),
        );
    }
    if changed & 0xffff != 0 {
        crate::cpu::reset_segments();
    }
}

/// A static that is written once at boot, before anything else could read it, and then belongs to one processor.
#[repr(transparent)]
pub struct Own<T>(pub UnsafeCell<T>);

// SAFETY: see the type.
unsafe impl<T> Sync for Own<T> {}
