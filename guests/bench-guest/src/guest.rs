//! The measurements.

extern crate alloc;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use ilwaco::{
    Spawner,
    clock::{self, tsc, tsc_at},
    hypercall, interrupt, lines, println,
    protocol::abi::NEVER,
    vm,
};

ilwaco::entry!(main, memory = 8 * 1024 * 1024, disk = 512, console);

const PAGE: usize = 4096;
/// Pages whose first touch is measured.
const PAGES: usize = 256;
/// Rounds of the other measurements.
const ROUNDS: usize = 1000;
/// Nanoseconds ahead at which a timer is set.
const AHEAD: u64 = 50_000;

async fn main(spawner: Spawner) {
    if vm::arguments().split_whitespace().any(|argument| argument == "disk") {
        return crate::disk::run(spawner).await;
    }
    if crate::compute::run(&vm::arguments()) || crate::swap::run(&vm::arguments()) {
        return;
    }
    let unit = unit();
    // What reading the counter costs is in every interval.
    let own = median((0..ROUNDS).map(|_| interval(|| ())).collect());
    let report = |name: &str, samples: Vec<u64>, what: &str| {
        let count = samples.len();
        if count == 0 {
            return println!("{name} could not be measured");
        }
        let value = median(samples).saturating_sub(own);
        println!("BENCH {name} {value} {unit} lower {what}={count} statistic=median");
    };
    report("page-fault", page_faults(), "pages");
    report("null-hypercall", (0..ROUNDS).map(|_| interval(hypercall::null)).collect(), "rounds");
    report("guest-idle-wake", idle_wakes(), "rounds");
    report("guest-interrupt", interrupts(), "rounds");
    println!("BENCH guest-done");
}

/// What the counter counts: `instructions`, unless the arguments say `cycles` (on a machine that does not count them).
fn unit() -> &'static str {
    if vm::arguments().split_whitespace().any(|argument| argument == "cycles") { "cycles" } else { "instructions" }
}

/// Ticks of the counter that something takes.
fn interval(work: impl FnOnce()) -> u64 {
    let start = tsc();
    work();
    tsc().wrapping_sub(start)
}

fn median(mut samples: Vec<u64>) -> u64 {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or(0)
}

/// First writes to pages that the pager has to bring, filled with zeros.
fn page_faults() -> Vec<u64> {
    // The heap has not been there yet: its pages are touched for the first time below.
    let mut samples = Vec::with_capacity(PAGES);
    let mut memory: Vec<u8> = Vec::with_capacity((PAGES + 1) * PAGE);
    let pages = memory.spare_capacity_mut();
    let first = pages.as_ptr().align_offset(PAGE);
    for page in 0..PAGES {
        // Not the first bytes of a page: the allocator may have left a record there.
        let byte = &mut pages[first + page * PAGE + PAGE / 2];
        samples.push(interval(|| {
            core::hint::black_box(byte.write(1));
        }));
    }
    samples
}

/// From the deadline of `idle` to the next instruction of the guest.
fn idle_wakes() -> Vec<u64> {
    let wake = |_| {
        let deadline = clock::now() + AHEAD;
        hypercall::idle(deadline);
        tsc().saturating_sub(tsc_at(deadline))
    };
    (0..ROUNDS).map(wake).collect()
}

static HANDLED: AtomicU64 = AtomicU64::new(0);

/// From the deadline of a timer to the interrupt handler of a guest that computes.
fn interrupts() -> Vec<u64> {
    let mut samples = Vec::with_capacity(ROUNDS);
    fn handler(_: u64) {
        HANDLED.store(tsc(), Ordering::Relaxed);
    }
    interrupt::install(handler, 1 << lines::TIMER);
    'rounds: while samples.len() < ROUNDS {
        HANDLED.store(0, Ordering::Relaxed);
        let deadline = clock::now() + AHEAD;
        hypercall::set_timer(deadline);
        let give_up = deadline + 1_000_000_000;
        while HANDLED.load(Ordering::Relaxed) == 0 {
            if clock::now() > give_up {
                samples.clear();
                break 'rounds;
            }
        }
        samples.push(HANDLED.load(Ordering::Relaxed).saturating_sub(tsc_at(deadline)));
    }
    hypercall::set_timer(NEVER);
    interrupt::remove();
    samples
}
