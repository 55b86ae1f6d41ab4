//! Physical addresses of the memory that the device sees.
//!
//! `virtio-drivers` asks for them through functions without a `self`, so what they know is in a static of this module. A
//! driver has one device.

use alloc::vec::Vec;
use core::{
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};
use pci_device::{Dma, Registers};
use protocol::layout::PAGE;
use spin::Once;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

/// Pages of device memory that are kept track of.
const PAGES_MAX: usize = 64;

/// What the device sees.
#[derive(Clone, Debug)]
pub struct Map {
    /// Queues, and what else [`allocate`] hands out.
    pub dma: Dma,
    /// Buffers that descriptors point to.
    pub buffers: Vec<Dma>,
    /// The device's registers, by base address register.
    pub registers: [Option<Registers>; 6],
}

static MAP: Once<Map> = Once::new();
/// Pages of [`Map::dma`] in use, a bit each.
static USED: AtomicU64 = AtomicU64::new(0);

/// Says what the device sees; to be called once, before the device is opened.
pub fn init(map: Map) {
    MAP.call_once(|| map);
}

fn map() -> &'static Map {
    MAP.get().expect("the device was opened before its memory was known")
}

/// Takes `pages` neighbouring pages of `total`; returns the first.
fn take(used: &AtomicU64, total: usize, pages: usize) -> Option<usize> {
    let total = total.min(PAGES_MAX);
    let mask = if pages < 64 { (1u64 << pages) - 1 } else { !0 };
    let bits = used.load(Ordering::Relaxed);
    let first = (0..=total.checked_sub(pages)?).find(|first| bits >> first & mask == 0)?;
    used.store(bits | mask << first, Ordering::Relaxed);
    Some(first)
}

/// Gives them back.
fn give(used: &AtomicU64, first: usize, pages: usize) {
    let mask = if pages < 64 { (1u64 << pages) - 1 } else { !0 };
    used.fetch_and(!(mask << first), Ordering::Relaxed);
}

/// Takes `pages` neighbouring pages of the device's memory for good, filled with zeros: for what descriptors point to
/// besides the buffers. `None` if so many are not left.
pub fn allocate(pages: usize) -> Option<Dma> {
    let dma = map().dma;
    let first = take(&USED, dma.memory.length() / PAGE as usize, pages)?;
    let part = dma.part(first * PAGE as usize, pages * PAGE as usize);
    part.memory.zero(0, part.memory.length());
    Some(part)
}

/// The memory of this driver.
#[derive(Debug)]
pub struct Memory;

// SAFETY: device memory is mapped for the life of the driver and handed out once at a time (`take`); buffers and registers
// are regions that the runtime has mapped, and only addresses within them are converted.
unsafe impl Hal for Memory {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        match allocate(pages) {
            Some(part) => (part.physical, part.memory.base()),
            // The address 0 says that there is no memory.
            None => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(physical: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        give(&USED, ((physical - map().dma.physical) / PAGE) as usize, pages);
        0
    }

    unsafe fn mmio_phys_to_virt(physical: PhysAddr, size: usize) -> NonNull<u8> {
        let within = |registers: &&Registers| {
            let offset = physical.checked_sub(registers.physical);
            offset.is_some_and(|offset| offset + size as u64 <= registers.memory.length() as u64)
        };
        let registers = map().registers.iter().flatten().find(within);
        let registers = registers.expect("the device names registers that the driver was not given");
        registers.memory.part((physical - registers.physical) as usize, size).base()
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        let map = map();
        let address = buffer.cast::<u8>().addr().get();
        let within = |memory: &Dma| {
            let offset = address.checked_sub(memory.memory.base().addr().get())?;
            let end = offset.checked_add(buffer.len())?;
            (end <= memory.memory.length()).then_some(memory.physical + offset as u64)
        };
        let physical = map.buffers.iter().chain([&map.dma]).find_map(within);
        physical.expect("a buffer that is not in memory of the device")
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn pages_come_back() {
        let used = AtomicU64::new(0);
        assert_eq!((take(&used, 4, 2), take(&used, 4, 1), take(&used, 4, 2)), (Some(0), Some(2), None));
        give(&used, 0, 2);
        assert_eq!((take(&used, 4, 2), take(&used, 4, 5), take(&used, 4, 1)), (Some(0), None, Some(3)));
        assert_eq!(take(&used, 4, 1), None);
    }

    proptest! {
        #[test]
        fn no_page_is_handed_out_twice(total in 0usize..70, steps in prop::collection::vec((0usize..8, any::<bool>()), 1..100)) {
            let used = AtomicU64::new(0);
            let mut held = Vec::new();
            for (pages, taking) in steps {
                if taking {
                    if let Some(first) = take(&used, total, pages.max(1)) {
                        let new = first..first + pages.max(1);
                        prop_assert!(new.end <= total);
                        prop_assert!(held.iter().all(|old: &core::ops::Range<usize>| old.end <= new.start || new.end <= old.start));
                        held.push(new);
                    }
                } else if !held.is_empty() {
                    let range = held.swap_remove(pages % held.len());
                    give(&used, range.start, range.len());
                }
            }
        }
    }
}
