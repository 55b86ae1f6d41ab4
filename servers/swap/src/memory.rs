//! What of the pager's state lies in the pool and survives it, mapped for good: in the first frame what it keeps of itself, then the frame table,
//! and the parts of the table of VMs wherever they were taken.

use crate::kernel::Kernel;
use server_runtime::protocol::{
    abi::{Error, Target},
    layout::PAGE,
    memory::{Access, BATCH, TRANSFER_BYTES, TransferOperation},
};
use swap::{
    frames::{Frame, FrameTable, Layout, Pool, Record},
    pager::Kept,
    record::{PER_FRAME, VmRecord},
};

/// What lies at the beginning of the pool.
pub struct State {
    /// What the pager keeps of itself.
    pub kept: &'static mut Kept,
    /// The frame table.
    pub frames: FrameTable<'static>,
    /// Whether an earlier pager has left them.
    pub found: bool,
}

/// Maps the beginning of the pool. Unless an earlier pager has left something there (`again`: there may
/// be one), it is zeroed.
///
/// `BadArgument` if the pool is too small; errors of the kernel.
pub fn map(kernel: &mut Kernel, mut pool: Pool, again: bool) -> Result<State, Error> {
    let own = pool.take_first(1).ok_or(Error::BadArgument)?;
    let layout = Layout::new(&pool).ok_or(Error::BadArgument)?;
    let table_first = u64::from(own.first) + 1;
    let kept = map_frames::<Kept>(own.slot, own.first.into(), 1, 1)?.first_mut().ok_or(Error::BadArgument)?;
    let found = again && kept.magic == Kept::MAGIC;
    if !found {
        *kept = Kept::default();
        clear(kernel, own.slot, table_first, u64::from(layout.reserved()))?;
    }
    let records = map_frames::<Record>(own.slot, table_first, layout.record_frames, layout.frames)?;
    let heads_first = table_first + u64::from(layout.record_frames);
    let heads = map_frames::<u32>(own.slot, heads_first, layout.head_frames, layout.heads)?;
    let frames = FrameTable::new(pool, &layout, records, heads, seed()).ok_or(Error::BadArgument)?;
    Ok(State { kept, frames, found })
}

/// Maps a frame as a part of the table of VMs, zeroed first if it is `fresh`.
pub fn records(kernel: &mut Kernel, frame: Frame, fresh: bool) -> Result<&'static mut [VmRecord], Error> {
    let slot = kernel.pool().slot(frame);
    if fresh {
        clear(kernel, slot, u64::from(frame), 1)?;
    }
    map_frames(slot, u64::from(frame), 1, PER_FRAME)
}

/// Numbers only, without invalid bit patterns.
trait Plain: Sized {}
impl Plain for u32 {}
impl Plain for Record {}
impl Plain for VmRecord {}
impl Plain for Kept {}

/// Maps `frames` frames of the pool as a slice of `count` values.
fn map_frames<T: Plain>(slot: u8, first: u64, frames: u32, count: u32) -> Result<&'static mut [T], Error> {
    if u64::from(count) * size_of::<T>() as u64 > u64::from(frames) * PAGE {
        return Err(Error::BadArgument);
    }
    let base = server_runtime::memory::map_extent(slot, first, u64::from(frames), Access::WRITE)?;
    // SAFETY: the range was mapped just now, page-aligned, writable, long enough for `count` values, and for the life of the
    // program. The frames are this one mapping's alone: those at the beginning of the pool are below the first that the table ever
    // hands out, and a part of the table of VMs is mapped once, by whoever took its frame or found it. Every bit pattern is a value
    // of `T` (`Plain`).
    Ok(unsafe { core::slice::from_raw_parts_mut(base.as_ptr().cast::<T>(), count as usize) })
}

/// Zeroes frames of the extent of the pool in a slot.
fn clear(kernel: &mut Kernel, slot: u8, first: u64, frames: u64) -> Result<(), Error> {
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
                to: Target::slot(slot).0,
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
