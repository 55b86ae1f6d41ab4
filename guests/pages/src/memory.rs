//! The pages.

use crate::pattern::{Page, Pattern, add, writes};
use alloc::vec::Vec;
use core::ops::Range;

/// The pages of a VM, and what must be in them.
#[derive(Debug)]
pub struct Memory {
    pages: Vec<Page>,
    pattern: Pattern,
    /// Pages written again, one after the other, round and round.
    touched: u64,
}

/// A page that holds something else than it must.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// The page.
    pub page: u32,
    /// The first wrong word.
    pub word: usize,
    /// What it is.
    pub found: u64,
    /// What it must be.
    pub expected: u64,
}

impl Memory {
    /// Fills `count` pages. `None` if there is not so much memory.
    pub fn new(pattern: Pattern, count: u32) -> Option<Memory> {
        let mut pages = Vec::new();
        pages.try_reserve_exact(count as usize).ok()?;
        // Each is touched once: memory that is there twice over, first as zeros, would be taken back in between.
        for page in 0..count {
            let mut place = Page::ZERO;
            pattern.fill(page, 0, &mut place);
            pages.push(place);
        }
        Some(Memory { pages, pattern, touched: 0 })
    }

    /// Pages.
    pub fn count(&self) -> u32 {
        self.pages.len() as u32
    }

    /// What they follow from.
    pub fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// Pages written again so far.
    pub fn touched(&self) -> u64 {
        self.touched
    }

    /// Looks at pages; the first that is wrong. Returns how many were looked at.
    pub fn check(&self, range: Range<u32>) -> Result<u32, Wrong> {
        let end = range.end.min(self.count());
        let start = range.start.min(end);
        for page in start..end {
            let Some(found) = self.pages.get(page as usize) else { break };
            let writes = writes(page, self.count(), self.touched);
            if let Some(word) = self.pattern.wrong(page, writes, found) {
                let expected = self.pattern.word(page, writes, word);
                return Err(Wrong { page, word, found: found.0.get(word).copied().unwrap_or(0), expected });
            }
        }
        Ok(end - start)
    }

    /// Writes the next `count` pages again.
    pub fn touch(&mut self, count: u64) {
        let pages = self.count();
        for _ in 0..count {
            let Some(page) = self.touched.checked_rem(u64::from(pages)) else { return };
            self.touched += 1;
            if let Some(place) = self.pages.get_mut(page as usize) {
                self.pattern.fill(page as u32, writes(page as u32, pages, self.touched), place);
            }
        }
    }

    /// A sum over all pages, as they are.
    pub fn sum(&self) -> u64 {
        self.pages.iter().fold(0, add)
    }

    /// What stands at the beginning of a page.
    pub fn head(&self, page: u32) -> Option<[u8; 64]> {
        let words = self.pages.get(page as usize)?.0.first_chunk::<8>()?;
        let mut bytes = [0; 64];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        Some(bytes)
    }

    /// Something else than the VM writes a word.
    #[cfg(test)]
    pub(crate) fn damage(&mut self, page: usize, word: usize) {
        self.pages[page].0[word] ^= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SECRET;

    const PATTERN: Pattern = Pattern { vm: 1, seed: 2, entropy: 100 };

    #[test]
    fn what_was_written_is_found_and_nothing_else() {
        let mut memory = Memory::new(PATTERN, 5).unwrap();
        for touched in 0..12 {
            assert_eq!(memory.check(0..5), Ok(5));
            assert_eq!((memory.touched(), memory.sum()), (touched, PATTERN.sum(5, touched)));
            memory.touch(1);
        }
        assert_eq!((memory.check(3..4), memory.check(4..99), memory.check(9..99)), (Ok(1), Ok(1), Ok(0)));
        assert_eq!(memory.head(4).as_ref(), Some(SECRET));
        memory.damage(3, 100);
        let Err(wrong) = memory.check(0..5) else { panic!() };
        assert_eq!((wrong.page, wrong.word, wrong.found ^ wrong.expected), (3, 100, 1));
        assert_eq!(memory.check(0..3), Ok(3));
        assert_ne!(memory.sum(), PATTERN.sum(5, 12));
        memory.touch(5);
        assert_eq!(memory.check(0..5), Ok(5), "written anew");
    }

    #[test]
    fn no_pages_are_no_trouble() {
        let mut memory = Memory::new(PATTERN, 0).unwrap();
        memory.touch(3);
        assert_eq!((memory.check(0..9), memory.head(0)), (Ok(0), None));
    }
}
