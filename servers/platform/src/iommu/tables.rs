//! The tables by which the units translate: root, contexts, pages (VT-d 4.1, 9).
//!
//! They lie in memory that survives this server, because the devices go on using them while it is restarted. Page 0 is the root table; which
//! others are in use is found by walking them. A device that nothing is said about reaches nothing.

use alloc::{vec, vec::Vec};
use core::ops::Range;
use protocol::layout::PAGE;
use server_runtime::mmio::Region;

/// Words of a page, and bytes of a word.
const WORDS: usize = 512;
const WORD: usize = 8;
/// Bits of an address that a level of page tables decodes.
const LEVEL_BITS: u32 = 9;
/// Root entry, context entry: in use.
const PRESENT: u64 = 1;
/// Context entry: faults are not recorded.
const SILENT: u64 = 2;
/// Page table entry: may be read, may be written.
const READ: u64 = 1;
const WRITE: u64 = 2;
/// In all of them: the address.
const ADDRESS: u64 = ((1 << 52) - 1) & !(PAGE - 1);
/// Of a context entry's second word: where the number of the domain begins.
const DOMAIN_SHIFT: u32 = 8;

/// There is no page left for a table, or an address is too high for these tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exhausted;

/// The tables.
#[derive(Debug)]
pub struct Tables {
    memory: Region,
    physical: u64,
    /// Levels of page tables: 3 or 4.
    levels: u32,
    /// Whether the units see what the processor has written without its being flushed.
    coherent: bool,
    used: Vec<bool>,
}

impl Tables {
    /// In `memory` at a physical address, both page-aligned. `fresh`: what is in it is nothing; else it is what an earlier life has left.
    pub fn new(memory: Region, physical: u64, levels: u32, coherent: bool, fresh: bool) -> Tables {
        let mut tables =
            Tables { memory, physical, levels, coherent, used: vec![false; memory.length() / PAGE as usize] };
        if let Some(root) = tables.used.first_mut() {
            *root = true;
        }
        if fresh {
            tables.clear(0);
        } else {
            tables.recover();
        }
        tables
    }

    /// Physical address of the root table.
    pub fn root(&self) -> u64 {
        self.physical
    }

    fn read(&self, page: usize, word: usize) -> u64 {
        self.memory.read_u64(page * PAGE as usize + word % WORDS * WORD)
    }

    fn write(&self, page: usize, word: usize, value: u64) {
        let offset = page * PAGE as usize + word % WORDS * WORD;
        self.memory.write_u64(offset, value);
        if !self.coherent {
            self.memory.flush(offset, WORD);
        }
    }

    fn clear(&self, page: usize) {
        (0..WORDS).for_each(|word| self.write(page, word, 0));
    }

    /// The page that an entry names, if it is one of these.
    fn page_of(&self, entry: u64) -> Option<usize> {
        let page = usize::try_from((entry & ADDRESS).checked_sub(self.physical)? / PAGE).ok()?;
        (page > 0 && page < self.used.len()).then_some(page)
    }

    fn address(&self, page: usize) -> u64 {
        self.physical + page as u64 * PAGE
    }

    /// A page of zeros.
    fn take(&mut self) -> Result<usize, Exhausted> {
        let page = self.used.iter().position(|used| !used).ok_or(Exhausted)?;
        self.used[page] = true;
        self.clear(page);
        Ok(page)
    }

    /// Marks what the tables use.
    fn recover(&mut self) {
        for bus in 0..WORDS / 2 {
            let entry = self.read(0, bus * 2);
            let Some(context) = self.page_of(entry).filter(|page| entry & PRESENT != 0 && !self.used[*page]) else {
                continue;
            };
            self.used[context] = true;
            for function in 0..WORDS / 2 {
                let entry = self.read(context, function * 2);
                if let Some(top) = self.page_of(entry).filter(|_| entry & PRESENT != 0) {
                    self.mark(top, self.levels, true);
                }
            }
        }
    }

    /// Marks a page table and those below it as used or free; none is walked twice.
    fn mark(&mut self, page: usize, level: u32, used: bool) {
        if core::mem::replace(&mut self.used[page], used) == used || level <= 1 {
            return;
        }
        for word in 0..WORDS {
            let entry = self.read(page, word);
            if let Some(below) = self.page_of(entry).filter(|_| entry & (READ | WRITE) != 0) {
                self.mark(below, level - 1, used);
            }
        }
    }

    /// The page and the word of a function's context entry. `function`: bus in bits 8-15, device in 3-7, function in 0-2.
    fn context(&self, function: u16) -> Option<(usize, usize)> {
        let entry = self.read(0, usize::from(function >> 8) * 2);
        let page = self.page_of(entry).filter(|_| entry & PRESENT != 0)?;
        Some((page, usize::from(function & 0xff) * 2))
    }

    /// Lets a function reach these frames, at their physical addresses, and nothing else. What it had before must have been taken from it.
    pub fn attach(&mut self, function: u16, frames: &[Range<u64>]) -> Result<(), Exhausted> {
        let top = self.take()?;
        let filled = frames.iter().flat_map(Range::clone).try_for_each(|frame| self.map(top, frame));
        let entry = filled.and_then(|()| self.entry(function));
        let (page, word) = entry.inspect_err(|_| self.mark(top, self.levels, false))?;
        // 1: three levels, 2: four. The page's number is that of the domain: no two have the same.
        let width = u64::from(self.levels) - 2;
        self.write(page, word + 1, (top as u64) << DOMAIN_SHIFT | width);
        self.write(page, word, self.address(top) | PRESENT);
        Ok(())
    }

    /// The context entry of a function, made if the bus has none yet.
    fn entry(&mut self, function: u16) -> Result<(usize, usize), Exhausted> {
        if self.context(function).is_none() {
            let page = self.take()?;
            let bus = usize::from(function >> 8);
            self.write(0, bus * 2, self.address(page) | PRESENT);
        }
        self.context(function).ok_or(Exhausted)
    }

    fn map(&mut self, top: usize, frame: u64) -> Result<(), Exhausted> {
        if frame >> (LEVEL_BITS * self.levels) != 0 {
            return Err(Exhausted);
        }
        let mut page = top;
        for level in (1..self.levels).rev() {
            let word = (frame >> (LEVEL_BITS * level)) as usize % WORDS;
            page = match self.page_of(self.read(page, word)) {
                Some(below) => below,
                None => {
                    let below = self.take()?;
                    self.write(page, word, self.address(below) | READ | WRITE);
                    below
                }
            };
        }
        self.write(page, frame as usize % WORDS, (frame * PAGE) | READ | WRITE);
        Ok(())
    }

    /// Takes everything from a function. Its tables are still in use until the units have been told: [`Tables::release`]. `silent`: its faults
    /// are not recorded any more.
    pub fn detach(&mut self, function: u16, silent: bool) -> Option<Detached> {
        // To be silent takes an entry, on a bus too that nobody has a device on.
        let place = if silent { self.entry(function).ok() } else { self.context(function) };
        let (page, word) = place?;
        let entry = self.read(page, word);
        self.write(page, word, if silent { SILENT } else { 0 });
        let top = self.page_of(entry).filter(|_| entry & PRESENT != 0)?;
        Some(Detached(top))
    }

    /// Uses again what a function had.
    pub fn release(&mut self, detached: Detached) {
        self.mark(detached.0, self.levels, false);
    }

    /// Pages in use.
    pub fn used(&self) -> usize {
        self.used.iter().filter(|used| **used).count()
    }
}

/// Tables that a function had.
#[derive(Debug)]
pub struct Detached(usize);

#[cfg(test)]
// One range of frames, not the frames of a range.
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    const BASE: u64 = 0x1_2340_0000;

    fn memory(pages: usize) -> Region {
        // A region of whole pages; where it lies for the processor does not matter.
        Region::of(vec![0x5a5a_5a5a_5a5a_5a5au64; pages * WORDS].leak())
    }

    fn tables(pages: usize, levels: u32) -> Tables {
        Tables::new(memory(pages), BASE, levels, true, true)
    }

    /// What a unit would find: the frame that a function reaches at a frame.
    fn translate(tables: &Tables, function: u16, frame: u64) -> Option<u64> {
        let root = tables.read(0, usize::from(function >> 8) * 2);
        let context = (root & PRESENT != 0).then(|| ((root & ADDRESS) - BASE) / PAGE)? as usize;
        let word = usize::from(function & 0xff) * 2;
        let entry = tables.read(context, word);
        let mut page = (entry & PRESENT != 0).then(|| ((entry & ADDRESS) - BASE) / PAGE)? as usize;
        assert_eq!(tables.read(context, word + 1) & 7, u64::from(tables.levels) - 2);
        for level in (0..tables.levels).rev() {
            let entry = tables.read(page, (frame >> (LEVEL_BITS * level)) as usize % WORDS);
            if entry & (READ | WRITE) == 0 {
                return None;
            }
            if level == 0 {
                return Some((entry & ADDRESS) / PAGE);
            }
            page = (((entry & ADDRESS) - BASE) / PAGE) as usize;
        }
        None
    }

    #[test]
    fn a_function_reaches_its_own_and_nothing_else() {
        for levels in [3, 4] {
            let mut tables = tables(64, levels);
            tables.attach(0x0018, &[0x100..0x181, 0x40_0000..0x40_0003]).unwrap();
            tables.attach(0x0120, &[0x200..0x201]).unwrap();
            for frame in [0x100, 0x180, 0x40_0002] {
                assert_eq!(translate(&tables, 0x18, frame), Some(frame));
                assert_eq!(translate(&tables, 0x120, frame), None);
            }
            for frame in [0, 0xff, 0x181, 0x200, 0x3f_ffff, 0x40_0003] {
                assert_eq!(translate(&tables, 0x18, frame), None);
            }
            assert_eq!(translate(&tables, 0x19, 0x100), None);
            assert_eq!(translate(&tables, 0x218, 0x100), None);
        }
    }

    #[test]
    fn what_is_released_is_used_again() {
        let mut tables = tables(10, 3);
        tables.attach(0x18, &[0..600]).unwrap();
        let used = tables.used();
        for _ in 0..100 {
            let detached = tables.detach(0x18, true).unwrap();
            assert_eq!(translate(&tables, 0x18, 5), None);
            tables.release(detached);
            tables.attach(0x18, &[0..600]).unwrap();
            assert_eq!(tables.used(), used);
        }
        // One that does not fit leaves nothing behind.
        assert_eq!(tables.attach(0x20, &[0..1, 0x8_0000..0x8_0001, 0x10_0000..0x10_0001]), Err(Exhausted));
        assert_eq!(tables.used(), used);
        assert_eq!(tables.attach(0x20, &[1 << 27..(1 << 27) + 1]), Err(Exhausted));
        assert_eq!((tables.used(), translate(&tables, 0x20, 0)), (used, None));
    }

    #[test]
    fn a_restart_finds_what_is_in_use() {
        let mut before = tables(32, 3);
        before.attach(0x18, &[0x100..0x400]).unwrap();
        before.attach(0x120, &[0x200..0x201]).unwrap();
        let after = Tables::new(before.memory, BASE, 3, true, false);
        assert_eq!((after.used(), &after.used), (before.used(), &before.used));
    }

    proptest! {
        #[test]
        fn frames_are_mapped_exactly(frames: BTreeSet<u16>, others: BTreeSet<u16>) {
            let mut tables = tables(400, 3);
            let ranges: Vec<_> = frames.iter().map(|frame| u64::from(*frame)..u64::from(*frame) + 1).collect();
            tables.attach(0xff, &ranges).unwrap();
            for frame in frames.iter().chain(&others) {
                prop_assert_eq!(translate(&tables, 0xff, u64::from(*frame)).is_some(), frames.contains(frame));
            }
        }

        #[test]
        fn any_memory_is_walked_to_an_end(words in prop::collection::vec((0usize..4 * 512, 0u64..16), 0..200)) {
            let memory = memory(4);
            (0..4 * WORDS).for_each(|word| memory.write_u64(word * WORD, 0));
            for (word, value) in words {
                memory.write_u64(word * WORD, (BASE + (value >> 2) * PAGE) | value & 3);
            }
            let tables = Tables::new(memory, BASE, 3, true, false);
            prop_assert!(tables.used() <= 4);
        }
    }
}
