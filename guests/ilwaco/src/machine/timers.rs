//! `embassy-time` by the virtual clock: a tick is a nanosecond since the kernel was entered.

use super::clock;
use core::{cell::RefCell, task::Waker};
use critical_section::Mutex;
use embassy_time_driver::Driver;
use embassy_time_queue_utils::Queue;

const _: () = assert!(embassy_time_driver::TICK_HZ == 1_000_000_000);

struct Timers {
    queue: Mutex<RefCell<Queue>>,
}

embassy_time_driver::time_driver_impl!(static TIMERS: Timers = Timers { queue: Mutex::new(RefCell::new(Queue::new())) });

impl Driver for Timers {
    fn now(&self) -> u64 {
        clock::now()
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        // The idle loop asks for the next timer before it idles, so there is no alarm to set.
        critical_section::with(|section| self.queue.borrow_ref_mut(section).schedule_wake(at, waker));
    }
}

/// Wakes the tasks whose time has come; returns when the next one's comes ([`protocol::abi::NEVER`]: none waits).
pub(super) fn next(now: u64) -> u64 {
    critical_section::with(|section| TIMERS.queue.borrow_ref_mut(section).next_expiration(now))
}
