//! The heap: the free memory behind the image, taken a few pages at a time so that only what is used is touched.
//!
//! The allocator is `talc`; this module gives it memory and its lock.

use super::{interrupt, registers::loaded};
use core::{
    alloc::Layout,
    cell::Cell,
    ptr::NonNull,
    sync::atomic::{AtomicUsize, Ordering},
};
use protocol::layout::{PAGE, SPACE_BASE};
use talc::{TalcLock, base::Talc, base::binning::Binning, source::Source};

#[global_allocator]
static HEAP: TalcLock<Masked, FreeMemory> = TalcLock::new(FreeMemory { end: None });

unsafe extern "C" {
    /// First byte behind the image; the linker defines it.
    static _end: u8;
}

static USED: AtomicUsize = AtomicUsize::new(0);

/// Bytes of the free memory that the heap has taken so far.
pub fn used() -> usize {
    USED.load(Ordering::Relaxed)
}

/// First free page behind the image.
fn first() -> usize {
    (&raw const _end).expose_provenance().next_multiple_of(PAGE as usize)
}

/// Bytes of memory behind the image.
pub fn available() -> usize {
    (SPACE_BASE + loaded!(memory)).saturating_sub(first() as u64) as usize
}

/// Memory for the allocator.
#[derive(Debug)]
struct FreeMemory {
    /// End of the allocator's heap; `None` before the first page was taken.
    end: Option<NonNull<u8>>,
}

// SAFETY: the pointer is to memory that belongs to the allocator alone.
unsafe impl Send for FreeMemory {}

// SAFETY: `acquire` uses no allocator but the one it is given.
unsafe impl Source for FreeMemory {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        // Enough for this allocation with its alignment and the allocator's own records.
        let wanted = layout.size().checked_add(layout.align()).and_then(|bytes| bytes.checked_add(64)).ok_or(())?;
        let wanted = match talc.source.end {
            Some(_) => wanted,
            None => wanted.checked_add(talc::min_first_heap_size::<B>()).ok_or(())?,
        };
        let wanted = wanted.checked_next_multiple_of(PAGE as usize).ok_or(())?;
        let used = USED.load(Ordering::Relaxed);
        let total = used.checked_add(wanted).filter(|total| *total <= available()).ok_or(())?;
        let start = core::ptr::with_exposed_provenance_mut::<u8>(first());
        talc.source.end = match talc.source.end {
            // SAFETY: the memory behind the image up to the VM's size is the VM's and nobody else's in this program; each
            // page is given to the allocator once.
            None => Some(unsafe { talc.claim(start, total) }.ok_or(())?),
            // SAFETY: as above; `end` is the end of the heap that this source made.
            Some(end) => Some(unsafe { talc.extend(end, start.add(total)) }),
        };
        USED.store(total, Ordering::Relaxed);
        Ok(())
    }
}

/// The allocator's lock: virtual interrupts are disabled meanwhile, so that a handler may allocate.
struct Masked {
    enabled: Cell<bool>,
}

// SAFETY: a VM has one flow of control, which only a virtual interrupt can come between.
unsafe impl Sync for Masked {}

// SAFETY: between `lock` and `unlock` nothing else of the VM runs. The allocator does not lock twice.
unsafe impl lock_api::RawMutex for Masked {
    const INIT: Masked = Masked { enabled: Cell::new(false) };
    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        self.enabled.set(interrupt::set_enabled(false));
    }

    fn try_lock(&self) -> bool {
        self.lock();
        true
    }

    unsafe fn unlock(&self) {
        if self.enabled.get() {
            interrupt::set_enabled(true);
        }
    }
}
