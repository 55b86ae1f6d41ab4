//! `ready`: the VM has started, and what it is now is a template for others.

use super::{clock, console, doorbell, nic, random, start, vm};
use core::{
    convert::Infallible,
    future::{pending, poll_fn},
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    task::Poll,
};
use embassy_sync::waitqueue::AtomicWaker;

/// Longest time that the switch and the console are waited for, in nanoseconds.
const PATIENCE: u64 = 50_000_000;
/// Time between two looks at them.
const LOOK: u64 = 500_000;

/// Whether it is to be said.
static WANTED: AtomicBool = AtomicBool::new(false);
/// Until when it is waited for that all is quiet; 0: not yet.
static UNTIL: AtomicU64 = AtomicU64::new(0);
/// Clone generation of the VM when its tasks last ran.
static GENERATION: AtomicU32 = AtomicU32::new(0);
static SAID: AtomicWaker = AtomicWaker::new();

/// Says that the VM has started, and goes on when it may: as itself, or, any number of times, as a **clone** of it.
///
/// It is said when no other task has anything to do, so call it once all is set up and before the first connection. In a clone
/// [`vm::clone_generation`] is not 0, and it has its own name, arguments, addresses and random numbers by then; line
/// [`CLONE`](super::lines::CLONE) was raised. What the guest itself has drawn from [`random`], or read from the registers, before it called this its clones have
/// too: draw and read again what must be the VM's own. Connections that are open are lost.
///
/// The image must say that it does this: `entry!(..., ready)`. Else there are no clones, and the VM goes on as itself.
pub async fn ready() {
    WANTED.store(true, Ordering::Relaxed);
    poll_fn(|context| {
        SAID.register(context.waker());
        if WANTED.load(Ordering::Relaxed) { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

/// The same for a task that has nothing more to do then, as the main task of a server. A clone does nothing at all until something is sent to it or a timer
/// ends: it is a few pages of memory.
pub async fn ready_for_good() -> Infallible {
    WANTED.store(true, Ordering::Relaxed);
    pending().await
}

/// Called before tasks run: if this is a clone that has not run yet, it gets addresses of its own.
#[inline]
pub(super) fn before_tasks() {
    let generation = vm::clone_generation();
    if generation != GENERATION.load(Ordering::Relaxed) {
        GENERATION.store(generation, Ordering::Relaxed);
        #[cfg(feature = "net")]
        super::net::configure();
    }
}

/// Called by the idle loop when no task is ready and the next timer ends at `deadline`: says it, if that is wanted. Until when to wait.
pub(super) fn idle(deadline: u64) -> u64 {
    if !WANTED.load(Ordering::Relaxed) {
        return deadline;
    }
    // Those that wait for quiet have something to do.
    doorbell::ring();
    let now = clock::now();
    if UNTIL.load(Ordering::Relaxed) == 0 {
        UNTIL.store(now + PATIENCE, Ordering::Relaxed);
    }
    // What a clone would still have to send, or to print, is not its own.
    let quiet = nic::is_sent() && console::is_drained();
    if !quiet && now < UNTIL.load(Ordering::Relaxed) {
        return deadline.min(now + LOOK);
    }
    WANTED.store(false, Ordering::Relaxed);
    UNTIL.store(0, Ordering::Relaxed);
    nic::note_arrived();
    random::park();
    // What waits for it goes on when this returns, in the VM and in each clone.
    SAID.wake();
    let generation = vm::clone_generation();
    hypercall::ready();
    if vm::clone_generation() != generation {
        start::begins();
    }
    deadline
}
