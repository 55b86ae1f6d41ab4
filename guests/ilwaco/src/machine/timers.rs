//! `embassy-time` by the virtual clock: a tick is a nanosecond since the kernel was entered.

use super::clock;
use crate::wakes::Wakes;
use core::{cell::RefCell, task::Waker};
use critical_section::Mutex;
use embassy_time_driver::Driver;

const _: () = assert!(embassy_time_driver::TICK_HZ == 1_000_000_000);
const _: () = assert!(crate::wakes::NEVER == protocol::abi::NEVER);

struct Timers {
    wakes: Mutex<RefCell<Wakes>>,
}

embassy_time_driver::time_driver_impl!(static TIMERS: Timers = Timers { wakes: Mutex::new(RefCell::new(Wakes::NONE)) });

impl Driver for Timers {
    fn now(&self) -> u64 {
        clock::now()
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        // The idle loop asks for the next timer before it idles, so there is no alarm to set.
        with(|wakes| wakes.set(at, waker));
    }
}

fn with<R>(act: impl FnOnce(&mut Wakes) -> R) -> R {
    critical_section::with(|section| act(&mut TIMERS.wakes.borrow_ref_mut(section)))
}

/// A task is about to be polled: it asks anew for all that it waits for.
pub(super) fn forget(waker: &Waker) {
    with(|wakes| wakes.forget(waker));
}

/// Wakes the tasks whose time has come; returns when the next one's comes ([`protocol::abi::NEVER`]: none waits).
pub(super) fn next(now: u64) -> u64 {
    with(|wakes| wakes.next(now))
}
