//! Starting the other processors, step by step as the platform server asks: the kernel waits for nothing that takes long.
//!
//! A processor that starts is in real mode at a page below 1 MiB, where `trampoline.s` brings it to long mode and into
//! [`processor_main`]. There it lets its time stamp counter be compared with the first one's, then takes the kernel's lock for the first time.
//! What it needs (top-level page table, [`Area`], stack) was set aside at boot, before it was known how many come.

use crate::{
    apic, clock,
    cpu::{self, Area},
    memory::Memory,
    physical::{self, KERNEL_BASE},
    processor::{self, Record},
};
use core::{
    arch::global_asm,
    sync::atomic::{AtomicU64, Ordering},
};
use microkernel_logic::{
    Kernel, PROCESSORS,
    boot::{PAGE, StartInfo},
    frames::FrameKind,
    paging::{Entry, Table},
};
use protocol::{abi::Error, domain::ProcessorStep};

global_asm!(include_str!("trampoline.s"), options(att_syntax));

/// What is set aside for each processor: top-level table, area, a page that is not mapped, stack.
const TOP_TO_AREA: u64 = PAGE;
const TOP_TO_GUARD: u64 = TOP_TO_AREA + size_of::<Area>() as u64;
const EACH: u64 = TOP_TO_GUARD + PAGE + cpu::STACK as u64;
/// Processors that something is set aside for in any case: the processor says how many its package has, not how many packages there are.
const AT_LEAST: usize = 4;
/// The trampoline must be reached by 20 bits, below the old devices.
const TRAMPOLINE_LIMIT: u64 = 0xa_0000;

/// Comparisons of time stamp counters for one processor.
const COMPARISONS: u64 = 16;
/// Ticks that one call spends with comparing, some 0.1 ms.
const CALL_TICKS: u64 = 300_000;

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
    static trampoline_descriptors: u8;
    static trampoline_descriptors_at: u8;
    static trampoline_long: u8;
    static trampoline_far: u8;
    static trampoline_top: u8;
    static trampoline_stack: u8;
    static trampoline_entry: u8;
    static boot_pointers: u8;
}

/// The processor that is being started: its record's number, or 0.
static NUMBER: AtomicU64 = AtomicU64::new(0);
/// Its local APIC's number.
static APIC: AtomicU64 = AtomicU64::new(0);
/// Where what was set aside for it lies (physical).
static PLACE: AtomicU64 = AtomicU64::new(0);
/// What the two say to one another: [`ABSENT`], or by the starting processor [`READY`] or `ANSWER + round`; by the other `ASK + round`, [`GO`],
/// [`MOVE`] (the counter by [`TICKS`]) or [`STAY_OFF`].
static WORD: AtomicU64 = AtomicU64::new(ABSENT);
/// The starting processor's counter, or by how much to move it.
static TICKS: AtomicU64 = AtomicU64::new(0);

const ABSENT: u64 = 0;
const READY: u64 = 1;
const GO: u64 = 2;
const MOVE: u64 = 3;
const STAY_OFF: u64 = 4;
const ASK: u64 = 1 << 32;
const ANSWER: u64 = 2 << 32;
const ROUND: u64 = ASK - 1;

/// What is set aside for other processors, and which of them is being started.
pub struct BringUp {
    /// Physical address of the trampoline; 0: there is no place for it.
    trampoline: u64,
    /// Physical address of what is set aside, and for how many processors.
    set_aside: (u64, usize),
    starting: Option<Starting>,
}

#[derive(Clone, Copy)]
struct Starting {
    number: usize,
    apic: u32,
    /// It was told to go.
    released: bool,
    /// Its counter was moved once.
    moved: bool,
    /// Comparisons made, and when the next was asked for.
    round: u64,
    asked: Option<u64>,
    /// Its counter is ahead by at least and at most so many ticks.
    least: i64,
    most: i64,
}

impl BringUp {
    /// Sets memory aside.
    pub fn new(info: &StartInfo, memory: &mut Memory) -> BringUp {
        let others = cpu::package_size().clamp(AT_LEAST, PROCESSORS) - 1;
        let bytes = others as u64 * EACH;
        let set_aside = memory.free.take(bytes, 1 << 32).map_or((0, 0), |start| {
            memory.frames.declare((start / PAGE) as u32, (bytes / PAGE) as u32, FrameKind::Reserved);
            // For those whose stacks have no guard nothing is set aside.
            let guarded =
                (0..others).take_while(|number| memory.unmap(start + *number as u64 * EACH + TOP_TO_GUARD).is_some());
            (start, guarded.count())
        });
        let last_page = |end: u64| (end.min(TRAMPOLINE_LIMIT) & !(PAGE - 1)).saturating_sub(PAGE);
        let low = info.memory.list().iter().map(|region| (region.start, last_page(region.end())));
        let page = low.filter(|(start, page)| *page >= PAGE && page >= start).map(|(_, page)| page).max().unwrap_or(0);
        memory.frames.declare((page / PAGE) as u32, 1, FrameKind::Reserved);
        BringUp { trampoline: page, set_aside, starting: None }
    }

    /// Does a step with the processor whose local APIC is `apic`; it will be processor `number`.
    pub fn step(&mut self, number: usize, apic: u32, step: ProcessorStep) -> Result<(), Error> {
        // One that has joined is started, whether or not that was asked for.
        self.starting = self.starting.filter(|starting| starting.number == number);
        if step == ProcessorStep::Join {
            return self.join(apic);
        }
        if !apic::can_reach(apic) {
            return Err(Error::BadArgument);
        }
        let released = self.starting.is_some_and(|starting| starting.apic == apic && starting.released);
        if released || processor::with_apic(apic).is_some() {
            // Among others: one that may hold the kernel's lock is not reset.
            return Err(Error::Occupied);
        }
        match step {
            ProcessorStep::Reset => apic::send(apic, apic::RESET),
            ProcessorStep::Start => return self.start(number, apic),
            _ => {
                apic::send(apic, apic::RESET);
                self.starting = self.starting.filter(|starting| starting.apic != apic);
            }
        }
        Ok(())
    }

    fn start(&mut self, number: usize, apic: u32) -> Result<(), Error> {
        if self.trampoline == 0 || number > self.set_aside.1 {
            return Err(Error::Exhausted);
        }
        match self.starting {
            // The second start that some processors need.
            Some(starting) if starting.apic == apic => {}
            Some(_) => return Err(Error::Busy),
            None => {
                let place = self.set_aside.0 + (number as u64 - 1) * EACH;
                NUMBER.store(number as u64, Ordering::Relaxed);
                APIC.store(u64::from(apic), Ordering::Relaxed);
                PLACE.store(place, Ordering::Relaxed);
                WORD.store(ABSENT, Ordering::Release);
                // SAFETY: no processor is being started, so nobody uses the trampoline or what is set aside for this number.
                unsafe { prepare(self.trampoline, place) };
                self.starting = Some(Starting::new(number, apic));
            }
        }
        apic::send(apic, apic::START | (self.trampoline / PAGE) as u32);
        Ok(())
    }

    /// Compares counters once the processor has come, and lets it go.
    fn join(&mut self, apic: u32) -> Result<(), Error> {
        let Some(starting) = self.starting.as_mut().filter(|starting| starting.apic == apic) else {
            return if processor::with_apic(apic).is_some() { Ok(()) } else { Err(Error::BadArgument) };
        };
        if starting.released {
            return Err(Error::Again);
        }
        if matches!(WORD.load(Ordering::Acquire), ABSENT | MOVE) {
            return Err(Error::Again);
        }
        let offset = starting.compare().ok_or(Error::Again)?;
        if offset != 0 && !starting.moved && cpu::has_tsc_adjust() {
            crate::say!("processor {}: its TSC is {offset} ticks off; it is moved", starting.number);
            *starting = Starting { moved: true, ..Starting::new(starting.number, apic) };
            TICKS.store(offset.wrapping_neg() as u64, Ordering::Relaxed);
            WORD.store(MOVE, Ordering::Release);
            return Err(Error::Again);
        }
        if offset != 0 {
            crate::say!("processor {}: its TSC is {offset} ticks off, and cannot be moved", starting.number);
            WORD.store(STAY_OFF, Ordering::Release);
            self.starting = None;
            return Err(Error::Denied);
        }
        starting.released = true;
        WORD.store(GO, Ordering::Release);
        Err(Error::Again)
    }
}

impl Starting {
    const fn new(number: usize, apic: u32) -> Starting {
        let (least, most) = (i64::MIN, i64::MAX);
        Starting { number, apic, released: false, moved: false, round: 0, asked: None, least, most }
    }

    /// By how many ticks its counter is ahead for sure; 0 if they may be the same. `None`: it has not answered often enough yet; on a
    /// machine that is emulated, its processor may not run at this moment.
    fn compare(&mut self) -> Option<i64> {
        let start = clock::ticks();
        while self.round < COMPARISONS {
            let asked = *self.asked.get_or_insert_with(|| {
                let now = clock::ticks();
                WORD.store(ASK + self.round, Ordering::Release);
                now
            });
            while WORD.load(Ordering::Acquire) != ANSWER + self.round {
                if clock::ticks().wrapping_sub(start) > CALL_TICKS {
                    return None;
                }
                core::hint::spin_loop();
            }
            // The true difference lies between the answer less now and the answer less the moment of the question.
            let (theirs, now) = (TICKS.load(Ordering::Relaxed), clock::ticks());
            self.least = self.least.max(theirs.wrapping_sub(now) as i64);
            self.most = self.most.min(theirs.wrapping_sub(asked) as i64);
            (self.asked, self.round) = (None, self.round + 1);
        }
        Some(if self.least > 0 || self.most < 0 { self.least / 2 + self.most / 2 } else { 0 })
    }
}

/// Writes the trampoline, and the page table that the processor begins with.
///
/// # Safety
/// Nobody uses the trampoline or the place.
unsafe fn prepare(page: u64, place: u64) {
    let start = &raw const trampoline;
    let offset = |label: *const u8| label as u64 - start as u64;
    let put = |label: *const u8, bytes: &[u8]| {
        // SAFETY: the label lies in the trampoline, which is less than a page, and the page is ours.
        unsafe { physical::write(page + offset(label), bytes) };
    };
    // SAFETY: the trampoline's bytes are constants of this program.
    put(start, unsafe { core::slice::from_raw_parts(start, offset(&raw const trampoline_end) as usize) });
    put(
        &raw const trampoline_descriptors_at,
        &((page + offset(&raw const trampoline_descriptors)) as u32).to_le_bytes(),
    );
    put(&raw const trampoline_far, &((page + offset(&raw const trampoline_long)) as u32).to_le_bytes());
    put(&raw const trampoline_top, &(place as u32).to_le_bytes());
    let stack = physical::address(place + EACH) - 16;
    put(&raw const trampoline_stack, &stack.to_le_bytes());
    put(&raw const trampoline_entry, &(processor_main as *const () as u64).to_le_bytes());
    let low = &raw const boot_pointers as u64 - KERNEL_BASE;
    // SAFETY: the first processor's table is only read, and its kernel half never changes; the other is ours.
    unsafe {
        let top: &mut Table = &mut *physical::table((place / PAGE) as u32);
        *top = *cpu::top();
        // The first page tables, that see memory where it is.
        top[0] = Entry(low | 3);
    }
}

/// Called by trampoline.s, on the processor's own stack.
extern "C" fn processor_main() -> ! {
    let (number, place) = (NUMBER.load(Ordering::Relaxed), PLACE.load(Ordering::Relaxed));
    let (top, stack) = (physical::address(place) as *mut Table, physical::address(place + EACH));
    // SAFETY: `start` has set this place aside for this processor, and the trampoline lets only one come here for it. Low addresses
    // are used no more.
    unsafe {
        (*top)[0] = Entry::EMPTY;
        let record = Record::new(number as usize, stack, top, place, cpu::has_xsave());
        cpu::set_up(physical::address(place + TOP_TO_AREA) as *mut Area, record, stack);
    }
    x86_64::instructions::tlb::flush_all();
    apic::switch_on();
    // One that was given up may come after all, and see what is said to the next one. Whoever sees that sees whom it is meant for.
    let own = u64::from(apic::id());
    let is_meant = || own == APIC.load(Ordering::Relaxed);
    if !is_meant() {
        crate::halt();
    }
    WORD.store(READY, Ordering::Release);
    loop {
        match WORD.load(Ordering::Acquire) {
            _ if !is_meant() => crate::halt(),
            GO => break,
            STAY_OFF => crate::halt(),
            MOVE => {
                clock::move_ticks(TICKS.load(Ordering::Relaxed));
                WORD.store(READY, Ordering::Release);
            }
            word if word & !ROUND == ASK => {
                TICKS.store(clock::ticks(), Ordering::Relaxed);
                WORD.store(ANSWER + (word & ROUND), Ordering::Release);
            }
            _ => {}
        }
        core::hint::spin_loop();
    }
    processor::announce();
    crate::begin(Kernel::join)
}
