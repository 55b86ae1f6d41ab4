//! The frame table: what each physical frame is used for, and how often it is mapped.
//!
//! A frame changes its kind only when nobody uses it any more. That one rule keeps page tables and control
//! blocks out of everybody's reach: a frame that is one cannot be mapped, and one that is mapped
//! cannot become one.

use protocol::abi::Error;

/// Number of a physical frame of 4 KiB.
pub type Frame = u32;

/// No frame: frame 0 holds firmware data and is never handed out.
pub const NO_FRAME: Frame = 0;

/// What a frame is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// The kernel's own, or nothing is there.
    Reserved = 0,
    /// In use by nobody.
    Free = 1,
    /// Mapped by domains; the count says how often.
    User = 2,
    /// A page table.
    Table = 3,
    /// A control block.
    Block = 4,
    /// Device registers or a table of the firmware; not counted.
    Device = 5,
}

/// An entry of the table: 8 bytes for each frame of memory.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct FrameEntry {
    /// Kind in the upper 4 bits, count below.
    state: u32,
    /// How many objects have died in this frame; capabilities to an older one are dead.
    generation: u32,
}

const COUNT: u32 = (1 << 28) - 1;

impl FrameEntry {
    const fn new(kind: FrameKind, count: u32, generation: u32) -> FrameEntry {
        FrameEntry { state: (kind as u32) << 28 | count, generation }
    }

    fn kind(self) -> FrameKind {
        match self.state >> 28 {
            1 => FrameKind::Free,
            2 => FrameKind::User,
            3 => FrameKind::Table,
            4 => FrameKind::Block,
            5 => FrameKind::Device,
            _ => FrameKind::Reserved,
        }
    }
}

/// The table, one entry for each frame up to the end of memory. What lies beyond are devices.
pub struct FrameTable {
    entries: &'static mut [FrameEntry],
    /// Frames of devices that the kernel drives itself; [`NO_FRAME`]: none.
    hidden: [Frame; HIDDEN],
}

/// Most hidden frames.
const HIDDEN: usize = 16;

impl FrameTable {
    /// A table in which every frame is reserved.
    pub fn new(entries: &'static mut [FrameEntry]) -> FrameTable {
        entries.fill(FrameEntry::new(FrameKind::Reserved, 0, 0));
        FrameTable { entries, hidden: [NO_FRAME; HIDDEN] }
    }

    /// Keeps a frame of device registers for the kernel: nobody can map it.
    pub fn hide(&mut self, frame: Frame) {
        // A restarted platform server names the same ones again.
        if self.hidden.contains(&frame) {
            return;
        }
        if let Some(free) = self.hidden.iter_mut().find(|hidden| **hidden == NO_FRAME) {
            *free = frame;
        }
    }

    /// Declares frames at boot. Frames beyond the table are passed over.
    pub fn declare(&mut self, first: Frame, count: u32, kind: FrameKind) {
        for frame in first..first.saturating_add(count) {
            let Some(entry) = self.entries.get_mut(frame as usize) else { break };
            *entry = FrameEntry::new(kind, 0, 0);
        }
    }

    /// Frames in the table.
    pub fn length(&self) -> usize {
        self.entries.len()
    }

    /// The kind of a frame.
    #[inline]
    pub fn kind(&self, frame: Frame) -> FrameKind {
        let kind = self.entries.get(frame as usize).map_or(FrameKind::Device, |entry| entry.kind());
        if kind == FrameKind::Device && self.hidden.contains(&frame) { FrameKind::Reserved } else { kind }
    }

    /// How often a frame is mapped.
    pub fn count(&self, frame: Frame) -> u32 {
        self.entries.get(frame as usize).map_or(0, |entry| entry.state & COUNT)
    }

    /// The generation of a frame.
    #[inline]
    pub fn generation(&self, frame: Frame) -> u32 {
        self.entries.get(frame as usize).map_or(0, |entry| entry.generation)
    }

    /// Whether `frame` holds the control block of the generation `generation`.
    #[inline]
    pub fn is_block(&self, frame: Frame, generation: u32) -> bool {
        // Nothing is ever counted for a control block, so its whole state is its kind.
        self.entries
            .get(frame as usize)
            .is_some_and(|entry| entry.state == (FrameKind::Block as u32) << 28 && entry.generation == generation)
    }

    /// Whether `frame` holds a control block.
    #[inline(always)]
    pub fn has_block(&self, frame: Frame) -> bool {
        self.entries.get(frame as usize).is_some_and(|entry| entry.state == (FrameKind::Block as u32) << 28)
    }

    /// Counts one more mapping of a frame.
    pub fn map(&mut self, frame: Frame) -> Result<(), Error> {
        let entry = self.entries.get_mut(frame as usize).ok_or(Error::BadArgument)?;
        match entry.kind() {
            FrameKind::Free => *entry = FrameEntry::new(FrameKind::User, 1, entry.generation),
            FrameKind::User if entry.state & COUNT < COUNT => entry.state += 1,
            _ => return Err(Error::Occupied),
        }
        Ok(())
    }

    /// Counts one mapping less. Frames that are not counted are passed over.
    pub fn unmap(&mut self, frame: Frame) {
        if let Some(entry) = self.entries.get_mut(frame as usize)
            && entry.kind() == FrameKind::User
        {
            entry.state -= 1;
            if entry.state & COUNT == 0 {
                *entry = FrameEntry::new(FrameKind::Free, 0, entry.generation);
            }
        }
    }

    /// Turns a free frame into a page table or control block.
    pub fn make(&mut self, frame: Frame, kind: FrameKind) -> Result<(), Error> {
        let entry = self.entries.get_mut(frame as usize).ok_or(Error::BadArgument)?;
        if entry.kind() != FrameKind::Free {
            return Err(Error::Occupied);
        }
        *entry = FrameEntry::new(kind, 0, entry.generation);
        Ok(())
    }

    /// Frees a page table or control block. Capabilities to it are dead from here on.
    pub fn free(&mut self, frame: Frame) {
        if let Some(entry) = self.entries.get_mut(frame as usize)
            && matches!(entry.kind(), FrameKind::Table | FrameKind::Block)
        {
            *entry = FrameEntry::new(FrameKind::Free, 0, entry.generation.wrapping_add(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{boxed::Box, vec, vec::Vec};

    pub fn table(frames: usize) -> FrameTable {
        let mut table = FrameTable::new(Box::leak(vec![FrameEntry::default(); frames].into_boxed_slice()));
        table.declare(1, frames as u32 - 1, FrameKind::Free);
        table
    }

    #[test]
    fn a_mapped_frame_cannot_become_a_table() {
        let mut table = table(8);
        table.map(3).unwrap();
        assert_eq!(table.make(3, FrameKind::Table), Err(Error::Occupied));
        table.unmap(3);
        assert_eq!(table.make(3, FrameKind::Table), Ok(()));
        assert_eq!(table.map(3), Err(Error::Occupied));
    }

    #[test]
    fn frame_zero_and_frames_beyond_memory_are_never_handed_out() {
        let mut table = table(8);
        assert_eq!(table.map(0), Err(Error::Occupied));
        assert_eq!(table.map(8), Err(Error::BadArgument));
        assert_eq!(table.make(u32::MAX, FrameKind::Block), Err(Error::BadArgument));
        assert_eq!(table.kind(8), FrameKind::Device);
    }

    #[test]
    fn a_frame_that_is_hidden_often_takes_one_place() {
        let mut table = table(8);
        (0..2 * HIDDEN).for_each(|_| table.hide(9));
        table.hide(10);
        assert_eq!(
            (table.kind(9), table.kind(10), table.kind(11)),
            (FrameKind::Reserved, FrameKind::Reserved, FrameKind::Device)
        );
    }

    #[derive(Clone, Debug)]
    enum Step {
        Map(Frame),
        Unmap(Frame),
        Make(Frame, bool),
        Free(Frame),
    }

    fn step() -> impl Strategy<Value = Step> {
        let frame = 0u32..6;
        prop_oneof![
            frame.clone().prop_map(Step::Map),
            frame.clone().prop_map(Step::Unmap),
            (frame.clone(), any::<bool>()).prop_map(|(frame, block)| Step::Make(frame, block)),
            frame.prop_map(Step::Free),
        ]
    }

    proptest! {
        /// A frame is at every moment one thing only, its count is that of its mappings, and its generation grows
        /// exactly when an object in it dies.
        #[test]
        fn agrees_with_a_simple_model(steps in proptest::collection::vec(step(), 0..200)) {
            let mut table = table(5);
            let mut model: Vec<(FrameKind, u32, u32)> = vec![(FrameKind::Free, 0, 0); 5];
            model[0].0 = FrameKind::Reserved;
            for step in steps {
                match step {
                    Step::Map(frame) => {
                        let allowed = model.get(frame as usize).is_some_and(|m| matches!(m.0, FrameKind::Free | FrameKind::User));
                        prop_assert_eq!(table.map(frame).is_ok(), allowed);
                        if allowed { let m = &mut model[frame as usize]; m.0 = FrameKind::User; m.1 += 1; }
                    }
                    Step::Unmap(frame) => {
                        table.unmap(frame);
                        if let Some(m) = model.get_mut(frame as usize) && m.0 == FrameKind::User {
                            m.1 -= 1;
                            if m.1 == 0 { m.0 = FrameKind::Free; }
                        }
                    }
                    Step::Make(frame, block) => {
                        let kind = if block { FrameKind::Block } else { FrameKind::Table };
                        let allowed = model.get(frame as usize).is_some_and(|m| m.0 == FrameKind::Free);
                        prop_assert_eq!(table.make(frame, kind).is_ok(), allowed);
                        if allowed { model[frame as usize].0 = kind; }
                    }
                    Step::Free(frame) => {
                        table.free(frame);
                        if let Some(m) = model.get_mut(frame as usize) && matches!(m.0, FrameKind::Table | FrameKind::Block) {
                            m.0 = FrameKind::Free;
                            m.2 += 1;
                        }
                    }
                }
                for (frame, m) in model.iter().enumerate() {
                    let frame = frame as Frame;
                    prop_assert_eq!((table.kind(frame), table.count(frame), table.generation(frame)), *m);
                }
            }
        }
    }
}
