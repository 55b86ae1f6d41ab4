//! The idle loop: runs the tasks that are ready, rings doorbells, takes virtual interrupts, and idles until the next timer.

use super::{clock, doorbell, lines, ready, stack, start, timers};
use alloc::boxed::Box;
use core::{
    future::{Future, poll_fn},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};
use embassy_executor::{
    SpawnToken, Spawner,
    raw::{Executor, TaskStorage},
};

/// Rounds between two looks at the end of the stack.
const STACK_LOOK: u32 = 1024;

/// Whether a task became ready since the last round.
static READY: AtomicBool = AtomicBool::new(false);

/// Rounds so far in which the tasks that were ready ran.
static ROUND: AtomicU32 = AtomicU32::new(0);

/// The round in which tasks run.
pub(super) fn round() -> u32 {
    ROUND.load(Ordering::Relaxed)
}

/// Called by the executor when a task becomes ready.
#[unsafe(export_name = "__pender")]
fn pender(_context: *mut ()) {
    READY.store(true, Ordering::Relaxed);
}

/// Makes a task of a future, in memory of the heap: `spawner.spawn(ilwaco::task(async { ... }))`.
///
/// The memory stays reserved when the task ends: for work that comes and goes, let a few tasks take turns.
///
/// The timers that wake a task are those that it polled when it was last polled, so that one that is no longer wanted wakes no VM. Whatever waits with `.await`,
/// `select` or `join` does that. A future written by hand must, at each poll, poll again all timers that it still waits for.
pub fn task<F: Future<Output = ()> + 'static>(future: F) -> SpawnToken<impl Sized> {
    let mut future = Box::pin(future);
    let anew = poll_fn(move |context| {
        timers::forget(context.waker());
        future.as_mut().poll(context)
    });
    let storage: &'static TaskStorage<_> = Box::leak(Box::new(TaskStorage::new()));
    match storage.spawn(|| anew) {
        Ok(token) => token,
        Err(_) => unreachable!("new task storage is free"),
    }
}

/// Runs the guest.
pub(super) fn run<F: Future<Output = ()> + 'static>(main: impl FnOnce(Spawner) -> F) -> ! {
    let executor: &'static Executor = Box::leak(Box::new(Executor::new(core::ptr::null_mut())));
    let spawner = executor.spawner();
    spawner.spawn(task(main(spawner)));
    let mut rounds = 0u32;
    loop {
        if READY.load(Ordering::Relaxed) {
            READY.store(false, Ordering::Relaxed);
            ROUND.store(round().wrapping_add(1), Ordering::Relaxed);
            ready::before_tasks();
            // SAFETY: there is one executor, polled here only, not by itself.
            unsafe { executor.poll() };
        }
        lines::poll();
        let deadline = timers::next(clock::now());
        rounds = rounds.wrapping_add(1);
        if rounds.is_multiple_of(STACK_LOOK) {
            assert!(stack::is_sound(), "stack overflow");
        }
        if READY.load(Ordering::Relaxed) {
            doorbell::ring();
            continue;
        }
        let deadline = ready::idle(deadline);
        // The task that has said it goes on.
        if !READY.load(Ordering::Relaxed) {
            // A line that became pending after `poll` is still pending: then this returns at once.
            start::waits();
            hypercall::ring_and_idle(doorbell::take(), deadline);
        }
    }
}
