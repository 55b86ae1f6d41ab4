//! Time without a trap.

/// Nanoseconds since the kernel was entered: the same clock as that of deadlines.
pub fn now() -> u64 {
    crate::state::get()
        .map_or(0, |state| protocol::registers::nanoseconds(rdtsc(), state.tsc_base, state.tsc_multiplier))
}

/// The processor's time stamp counter.
#[inline(always)]
pub fn rdtsc() -> u64 {
    // SAFETY: the instruction exists on every x86-64 processor and only reads a counter; the kernel leaves it open to ring 3.
    unsafe { core::arch::x86_64::_rdtsc() }
}
