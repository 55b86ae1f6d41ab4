//! How the frames of a pool are divided between the frame table and everybody else.

use super::{Pool, Record};
use protocol::layout::PAGE;

/// How the frames of a pool are divided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Frames that the table knows.
    pub frames: u32,
    /// Heads of hash chains.
    pub heads: u32,
    /// Frames at the beginning of the pool, in its first extent, that hold the records.
    pub record_frames: u32,
    /// Frames after those that hold the heads.
    pub head_frames: u32,
}

impl Layout {
    /// For a pool; `None` if its first extent is too small to hold the table of all.
    pub fn new(pool: &Pool) -> Option<Layout> {
        let frames = pool.frames();
        // At most two records to a chain on average.
        let heads = (frames / 2 + 1).next_power_of_two();
        let pages = |bytes: u64| u32::try_from(bytes.div_ceil(PAGE)).ok();
        let record_frames = pages(u64::from(frames) * size_of::<Record>() as u64)?;
        let head_frames = pages(u64::from(heads) * size_of::<u32>() as u64)?;
        let layout = Layout { frames, heads, record_frames, head_frames };
        let first = pool.extents().next()?;
        (layout.reserved() < first.count).then_some(layout)
    }

    /// Frames that the table itself takes.
    pub const fn reserved(&self) -> u32 {
        self.record_frames + self.head_frames
    }
}
