//! The frame table in the pool's own first frames, mapped for good.

use crate::kernel::Kernel;
use server_runtime::protocol::{
    abi::{Error, Target},
    layout::PAGE,
    memory::{Access, BATCH, TRANSFER_BYTES, TransferOperation},
};
use swap::frames::{FrameTable, Layout, Record};

/// Maps the first frames of the pool behind `slot`, zeroes them and makes the table of them.
///
/// `BadArgument` if the pool is too small; errors of the kernel.
pub fn frame_table(kernel: &mut Kernel, first: u64, count: u64) -> Result<FrameTable<'static>, Error> {
    let slot = kernel.slot;
    let layout = Layout::new(first, count).ok_or(Error::BadArgument)?;
    clear(kernel, first, u64::from(layout.reserved()))?;
    let records = map::<Record>(slot, first, layout.record_frames, layout.frames)?;
    let heads = map::<u32>(slot, first + u64::from(layout.record_frames), layout.head_frames, layout.heads)?;
    let first = u32::try_from(first).map_err(|_| Error::BadArgument)?;
    FrameTable::new(first, &layout, records, heads, seed()).ok_or(Error::BadArgument)
}

/// Numbers without invalid bit patterns and without padding.
trait Plain: Sized {}
impl Plain for u32 {}
impl Plain for Record {}

/// Maps `frames` zeroed frames of the pool as a slice of `count` values.
fn map<T: Plain>(slot: u8, first: u64, frames: u32, count: u32) -> Result<&'static mut [T], Error> {
    if u64::from(count) * size_of::<T>() as u64 > u64::from(frames) * PAGE {
        return Err(Error::BadArgument);
    }
    let base = server_runtime::memory::map_extent(slot, first, u64::from(frames), Access::WRITE)?;
    // SAFETY: the range was mapped just now, page-aligned, writable, long enough for `count` values, and for the life of the
    // program. The frames are the table's alone: they are below the first that it ever hands out, and each is mapped once.
    // Every bit pattern is a value of `T` (`Plain`).
    Ok(unsafe { core::slice::from_raw_parts_mut(base.as_ptr().cast::<T>(), count as usize) })
}

/// Zeroes frames of the pool.
fn clear(kernel: &mut Kernel, first: u64, frames: u64) -> Result<(), Error> {
    let pages = u64::from(TRANSFER_BYTES) / PAGE;
    let mut at = first;
    let end = first + frames;
    while at < end {
        let mut batch = [TransferOperation::default(); BATCH];
        let mut used = 0;
        for operation in &mut batch {
            let count = pages.min(end - at);
            if count == 0 {
                break;
            }
            *operation = TransferOperation {
                from: Target::ZERO.0,
                to: Target::slot(kernel.slot).0,
                to_address: at * PAGE,
                length: (count * PAGE) as u32,
                ..TransferOperation::default()
            };
            at += count;
            used += 1;
        }
        kernel.transfer_whole(&mut batch[..used])?;
    }
    Ok(())
}

/// A number that guests can hardly know: the low bits of the time at which this server started, which it never tells, spread out.
fn seed() -> u64 {
    let mut value = server_runtime::clock::rdtsc() ^ 0x9e37_79b9_7f4a_7c15;
    // SplitMix64.
    for shift in [30, 27, 31] {
        value = (value ^ value >> shift).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    value
}
