//! Virtual interrupts by polling: the usual way of a guest.
//!
//! The lines that are pending are bits of a word in the virtual register page, so that looking at them costs no
//! trap. The idle loop looks before it idles and wakes whoever waits.

use super::registers::{live, take_pending};
use core::{
    future::poll_fn,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    task::{Poll, Waker},
};
use embassy_sync::waitqueue::AtomicWaker;
pub use protocol::domain::line::{CLONE, CONSOLE, DISK, NIC, TIMER};

/// Lines that a VM has a use for.
const LINES: usize = 8;

static WAKERS: [AtomicWaker; LINES] = [const { AtomicWaker::new() }; LINES];
static TAKEN: AtomicU64 = AtomicU64::new(0);
static COUNTS: [AtomicU32; LINES] = [const { AtomicU32::new(0) }; LINES];

/// Lets a line (0-63) wake the VM.
pub fn enable(line: u8) {
    live().mask.fetch_or(1 << (line & 63), Ordering::Relaxed);
}

/// Keeps a line from waking the VM. It becomes pending all the same.
pub fn disable(line: u8) {
    live().mask.fetch_and(!(1 << (line & 63)), Ordering::Relaxed);
}

/// Wakes `waker` when the line is next taken. Only the last one registered for a line is woken.
pub fn register(line: u8, waker: &Waker) {
    if let Some(slot) = WAKERS.get(usize::from(line)) {
        slot.register(waker);
    }
}

/// Waits for the next interrupt on a line (0-7), which it enables.
pub async fn wait(line: u8) {
    enable(line);
    let count = || COUNTS.get(usize::from(line)).map(|count| count.load(Ordering::Relaxed));
    let before = count();
    poll_fn(|context| {
        register(line, context.waker());
        if count() == before { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

/// Takes the pending lines among those enabled and wakes whoever waits for them.
pub(super) fn poll() {
    let mut lines = take_pending(live().mask.load(Ordering::Relaxed));
    if lines == 0 {
        return;
    }
    TAKEN.fetch_add(u64::from(lines.count_ones()), Ordering::Relaxed);
    while lines != 0 {
        let line = lines.trailing_zeros() as usize;
        lines &= lines - 1;
        if line == usize::from(DISK) {
            super::disk::interrupted();
        }
        if let (Some(waker), Some(count)) = (WAKERS.get(line), COUNTS.get(line)) {
            count.fetch_add(1, Ordering::Relaxed);
            waker.wake();
        }
    }
}

/// Virtual interrupts so far: taken by polling and delivered to a handler.
pub fn taken() -> u64 {
    TAKEN.load(Ordering::Relaxed) + live().delivered.load(Ordering::Relaxed)
}
