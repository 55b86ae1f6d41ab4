//! Time without a trap: the time-stamp counter and the scale in the virtual register page.

use super::registers::loaded;
use core::sync::atomic::{AtomicU64, Ordering};

/// The largest time given so far: time never goes back, even between processors whose counters differ a little.
static LATEST: AtomicU64 = AtomicU64::new(0);

/// The time-stamp counter.
#[inline(always)]
pub fn tsc() -> u64 {
    // SAFETY: `rdtsc` only reads a counter, and the virtual architecture grants it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Nanoseconds since the kernel was entered. It never goes back.
#[inline]
pub fn now() -> u64 {
    let now = at_tsc(tsc());
    let latest = LATEST.load(Ordering::Relaxed);
    if now > latest {
        LATEST.store(now, Ordering::Relaxed);
        now
    } else {
        latest
    }
}

/// Nanoseconds since the kernel was entered, for a value of the time-stamp counter.
#[inline]
pub fn at_tsc(tsc: u64) -> u64 {
    let base = loaded!(tsc_base);
    if tsc < base { 0 } else { protocol::registers::nanoseconds(tsc, base, loaded!(tsc_multiplier)) }
}

/// The value of the time-stamp counter at a time.
pub fn tsc_at(nanoseconds: u64) -> u64 {
    let ticks = (u128::from(nanoseconds) << 32) / u128::from(loaded!(tsc_multiplier).max(1));
    loaded!(tsc_base).saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX))
}

/// Nanoseconds since 1970-01-01 UTC; `None` if the machine has no clock.
pub fn wall_clock() -> Option<u64> {
    match loaded!(wall_clock) {
        0 => None,
        start => start.checked_add(now()),
    }
}
