//! How long the VM took to start, and how often it has waited since.

use super::{clock, registers::loaded};
use core::sync::atomic::{AtomicU64, Ordering};

static FIRST: AtomicU64 = AtomicU64::new(0);
static WAITED: AtomicU64 = AtomicU64::new(0);
static WAITS: AtomicU64 = AtomicU64::new(0);

/// How long it took, in nanoseconds since the loader began to create the VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// To its first instruction; of a clone, the first after `ready`.
    pub first_instruction: u64,
    /// Until it first waited, with nothing left to do; 0: it has not yet.
    pub first_wait: u64,
}

/// How long it took.
pub fn start() -> Start {
    let since = |time: &AtomicU64| time.load(Ordering::Relaxed).saturating_sub(loaded!(created));
    Start { first_instruction: since(&FIRST), first_wait: since(&WAITED) }
}

/// The VM begins, or goes on as a clone.
pub(super) fn begins() {
    FIRST.store(clock::now(), Ordering::Relaxed);
    WAITED.store(0, Ordering::Relaxed);
    WAITS.store(0, Ordering::Relaxed);
}

/// How often it has waited since.
pub(super) fn count() -> u64 {
    WAITS.load(Ordering::Relaxed)
}

/// It is about to wait.
#[inline]
pub(super) fn waits() {
    WAITS.store(count() + 1, Ordering::Relaxed);
    if WAITED.load(Ordering::Relaxed) == 0 {
        WAITED.store(clock::now(), Ordering::Relaxed);
    }
}
