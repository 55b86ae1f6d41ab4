//! `ready`: the VM has started, and what it is now is a template for others.

use super::{clock, nic, random, vm};
use core::{
    future::poll_fn,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    task::Poll,
};
use embassy_sync::waitqueue::AtomicWaker;

/// Longest time that the switch is waited for, in nanoseconds.
const PATIENCE: u64 = 50_000_000;
/// Time between two looks at it.
const LOOK: u64 = 500_000;

/// Whether a task waits to say it.
static WANTED: AtomicBool = AtomicBool::new(false);
/// Until when it is waited for that all is quiet; 0: not yet.
static UNTIL: AtomicU64 = AtomicU64::new(0);
static SAID: AtomicWaker = AtomicWaker::new();

/// Says that the VM has started, and goes on when it may: as itself, or, any number of times, as a **clone** of it.
///
/// It is said when no other task has anything to do, so call it once all is set up and before the first connection. In a clone
/// [`vm::clone_generation`] is not 0, and `ilwaco` has its own name, arguments, addresses, seed and disks by then; line
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

/// Called by the idle loop when no task is ready: says it if a task wants that. When it wants to look again, if it has to wait; `None`: nobody does.
pub(super) fn idle() -> Option<u64> {
    if !WANTED.load(Ordering::Relaxed) {
        return None;
    }
    let now = clock::now();
    if UNTIL.load(Ordering::Relaxed) == 0 {
        UNTIL.store(now + PATIENCE, Ordering::Relaxed);
    }
    // What a clone would still have to send is not its own.
    if !nic::is_sent() && now < UNTIL.load(Ordering::Relaxed) {
        return Some(now + LOOK);
    }
    WANTED.store(false, Ordering::Relaxed);
    UNTIL.store(0, Ordering::Relaxed);
    let generation = vm::clone_generation();
    nic::note_arrived();
    random::park();
    hypercall::ready();
    // From here on this may be a clone.
    if vm::clone_generation() != generation {
        #[cfg(feature = "net")]
        super::net::configure();
    }
    SAID.wake();
    Some(now)
}
