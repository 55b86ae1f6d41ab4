//! How the frames of a pool are divided between the frame table and everybody else.

use super::Record;
use protocol::layout::PAGE;

/// How the frames of a pool are divided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Frames that the table knows: all of the pool that fits into 32-bit frame numbers.
    pub frames: u32,
    /// Heads of hash chains.
    pub heads: u32,
    /// Frames at the beginning of the pool that hold the records.
    pub record_frames: u32,
    /// Frames after those that hold the heads.
    pub head_frames: u32,
}

impl Layout {
    /// Most frames of a pool (1 TiB).
    pub const FRAMES_MAX: u64 = 1 << 28;

    /// For a pool of `frames` frames from `first`; `None` if it is too small to hold its own table, or beyond 32-bit frame numbers.
    pub fn new(first: u64, frames: u64) -> Option<Layout> {
        let beyond = u64::from(u32::MAX).checked_sub(first)?;
        let frames = u32::try_from(frames.min(Self::FRAMES_MAX).min(beyond)).ok()?;
        // At most two records to a chain on average.
        let heads = (frames / 2 + 1).next_power_of_two();
        let pages = |bytes: u64| u32::try_from(bytes.div_ceil(PAGE)).ok();
        let record_frames = pages(u64::from(frames) * size_of::<Record>() as u64)?;
        let head_frames = pages(u64::from(heads) * size_of::<u32>() as u64)?;
        let layout = Layout { frames, heads, record_frames, head_frames };
        (layout.reserved() < frames).then_some(layout)
    }

    /// Frames that the table itself takes.
    pub const fn reserved(&self) -> u32 {
        self.record_frames + self.head_frames
    }
}
