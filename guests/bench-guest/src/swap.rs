//! What the pager is measured with.
//!
//! | arguments | what the guest does |
//! |---|---|
//! | `touch mib=M block=K` | fills M MiB, then reads a byte of each page again and again, first in order, then block by block (of K KiB) in an order by chance |
//! | `hog mib=M start=S` | idles until S milliseconds after kernel entry, fills M MiB, and idles |
//! | `wake period=P after=A` | idles until A milliseconds after each multiple of P, and says how late it was |

extern crate alloc;

use alloc::{vec, vec::Vec};
use ilwaco::{
    clock::{self, tsc, tsc_at},
    hypercall, println,
};

const PAGE: usize = 4096;
const MILLISECOND: u64 = 1_000_000;
/// Nanoseconds of a measurement.
const TIME: u64 = 1_500_000_000;

/// Does what the arguments say; `false` if that is nothing of this.
pub fn run(arguments: &str) -> bool {
    let number = |key: &str| {
        let value = |word: &str| word.strip_prefix(key)?.strip_prefix('=')?.parse::<u64>().ok();
        arguments.split_whitespace().find_map(value).unwrap_or(1)
    };
    let times = |key: &str| number(key) * MILLISECOND;
    match arguments.split_whitespace().next() {
        Some("touch") => touch(number("mib"), number("block")),
        Some("hog") => hog(number("mib"), times("start")),
        Some("wake") => wake(times("period"), times("after")),
        _ => return false,
    }
    true
}

/// Memory no page of which is all zero: the pager would not keep it.
fn filled(mib: u64) -> Vec<u8> {
    vec![0x5a; (mib << 20) as usize]
}

/// Reads a byte of a page.
fn look(memory: &[u8], page: usize) {
    core::hint::black_box(memory.get(page * PAGE).copied());
}

fn touch(mib: u64, block: u64) {
    let memory = filled(mib);
    let block = (block as usize / 4).max(1);
    let mut blocks: Vec<u32> = (0..(memory.len() / PAGE / block) as u32).collect();
    for order in ["sequential", "random"] {
        if order == "random" {
            shuffle(&mut blocks);
        }
        let pass = |until: u64| {
            for number in &blocks {
                for page in 0..block {
                    look(&memory, *number as usize * block + page);
                }
                if clock::now() >= until {
                    return false;
                }
            }
            true
        };
        // Once round: what was written is on the disk then, and what is in memory is what was touched last.
        pass(u64::MAX);
        let start = clock::now();
        while pass(start + TIME) {}
        println!("touched order={order} from={start} until={}", clock::now());
    }
    println!("all is touched");
}

/// Another order, that of chance (Fisher and Yates; SplitMix64): always the same.
fn shuffle(numbers: &mut [u32]) {
    let mut state = 0u64;
    for index in (1..numbers.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        numbers.swap(index, ((z ^ z >> 31) % (index as u64 + 1)) as usize);
    }
}

/// Idles until a time, or later.
fn idle(until: u64) {
    while clock::now() < until {
        hypercall::idle(until);
    }
}

/// The next multiple of the period.
fn next(period: u64) -> u64 {
    (clock::now() / period.max(1) + 1) * period.max(1)
}

fn hog(mib: u64, start: u64) {
    idle(start);
    let memory = filled(mib);
    println!("hog: has filled {} bytes until {}", memory.len(), clock::now());
    idle(u64::MAX);
}

fn wake(period: u64, after: u64) {
    loop {
        let deadline = next(period) + after;
        idle(deadline);
        let late = tsc().saturating_sub(tsc_at(deadline));
        println!("woken at={deadline} late={late}");
    }
}
