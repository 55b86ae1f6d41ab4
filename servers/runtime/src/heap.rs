//! The heap: one range, mapped by whoever started the program.

/// Serves `alloc` on the machine itself; on the host there is the host's.
#[cfg_attr(target_os = "none", global_allocator)]
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
static HEAP: talc::TalcLock<spin::Mutex<()>, talc::source::Manual> = talc::TalcLock::new(talc::source::Manual);

/// Gives the heap its memory.
///
/// # Safety
/// `length` bytes from [`protocol::layout::HEAP`] must be mapped writable and used by nothing else, and this must be the
/// only call.
pub unsafe fn set(length: u64) {
    let base = core::ptr::with_exposed_provenance_mut(protocol::layout::HEAP as usize);
    // SAFETY: the caller vouches for the range; nothing was claimed before.
    let heap = unsafe { HEAP.lock().claim(base, length as usize) };
    if heap.is_none() {
        panic!("a heap of {length} bytes is too small");
    }
}

/// Bytes of the heap that are not free: what was asked for, and what the allocator keeps with it.
pub fn used() -> u64 {
    let counters = *HEAP.lock().counters();
    counters.claimed_bytes.saturating_sub(counters.available_bytes) as u64
}
