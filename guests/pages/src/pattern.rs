//! What must be in a page.

use crate::SECRET;

/// Words of a page.
pub const WORDS: usize = 512;
/// Words that the secret takes.
pub const SECRET_WORDS: usize = SECRET.len() / 8;

/// A page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(4096))]
pub struct Page(pub [u64; WORDS]);

impl Page {
    /// All zero.
    pub const ZERO: Page = Page([0; WORDS]);
}

/// What the pages of a VM follow from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pattern {
    /// Number of the VM.
    pub vm: u64,
    /// Seed.
    pub seed: u64,
    /// Percent of each page that nothing can compress; the rest is one word again and again.
    pub entropy: u8,
}

/// Mixes a word (SplitMix64, Steele, Lea and Flood 2014).
const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

impl Pattern {
    /// The word at `index` of page `page`, which was written `writes` times after the first.
    pub fn word(&self, page: u32, writes: u64, index: usize) -> u64 {
        self.word_of(self.key(page, writes), index)
    }

    const fn key(&self, page: u32, writes: u64) -> u64 {
        mix(mix(mix(self.vm) ^ self.seed) ^ mix(writes) ^ page as u64)
    }

    fn word_of(&self, key: u64, index: usize) -> u64 {
        let compressible = SECRET_WORDS + (WORDS - SECRET_WORDS) * usize::from(self.entropy.min(100)) / 100;
        match SECRET.as_chunks().0.get(index) {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None if index < compressible => mix(key.wrapping_add(index as u64)),
            None => key,
        }
    }

    /// Writes the page whole, where it is: a guest's stack is small.
    pub fn fill(&self, page: u32, writes: u64, place: &mut Page) {
        let key = self.key(page, writes);
        for (index, word) in place.0.iter_mut().enumerate() {
            *word = self.word_of(key, index);
        }
    }

    /// The page whole.
    pub fn page(&self, page: u32, writes: u64) -> Page {
        let mut place = Page::ZERO;
        self.fill(page, writes, &mut place);
        place
    }

    /// The first word that is not what it must be.
    pub fn wrong(&self, page: u32, writes: u64, found: &Page) -> Option<usize> {
        let key = self.key(page, writes);
        found.0.iter().enumerate().find(|(index, word)| **word != self.word_of(key, *index)).map(|(index, _)| index)
    }

    /// The sum that a VM with `pages` pages must have after it has written `touched` of them again.
    pub fn sum(&self, pages: u32, touched: u64) -> u64 {
        (0..pages).fold(0, |sum, page| add(sum, &self.page(page, writes(page, pages, touched))))
    }
}

/// How often page `page` of `pages` was written again after `touched` pages were, one after the other, round and round.
pub const fn writes(page: u32, pages: u32, touched: u64) -> u64 {
    if pages == 0 {
        return 0;
    }
    touched / pages as u64 + ((page as u64) < touched % pages as u64) as u64
}

/// Adds a page to a sum in which the order counts.
pub fn add(sum: u64, page: &Page) -> u64 {
    page.0.iter().fold(sum, |sum, word| sum.rotate_left(5).wrapping_mul(0x0100_0000_01b3) ^ word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERN: Pattern = Pattern { vm: 7, seed: 9, entropy: 100 };

    #[test]
    fn a_page_is_told_from_all_others() {
        let page = PATTERN.page(3, 1);
        assert_eq!(PATTERN.wrong(3, 1, &page), None);
        assert_eq!(PATTERN.wrong(3, 0, &page), Some(SECRET_WORDS), "an earlier time");
        assert_eq!(PATTERN.wrong(2, 1, &page), Some(SECRET_WORDS), "another place");
        assert_eq!(Pattern { vm: 8, ..PATTERN }.wrong(3, 1, &page), Some(SECRET_WORDS), "another VM");
        assert_eq!(Pattern { seed: 8, ..PATTERN }.wrong(3, 1, &page), Some(SECRET_WORDS), "another boot");
        let mut flipped = page;
        flipped.0[511] ^= 1 << 63;
        assert_eq!(PATTERN.wrong(3, 1, &flipped), Some(511));
        assert_eq!(PATTERN.wrong(3, 1, &Page([0; WORDS])), Some(0), "a page of zeros");
    }

    #[test]
    fn pages_begin_with_the_secret() {
        let bytes: Vec<u8> = PATTERN.page(0, 0).0.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(&bytes[..64], SECRET);
    }

    #[test]
    fn entropy_is_what_was_asked_for() {
        let distinct = |entropy| {
            let page = Pattern { entropy, ..PATTERN }.page(0, 0);
            page.0.iter().collect::<std::collections::BTreeSet<_>>().len()
        };
        assert_eq!((distinct(100), distinct(0)), (WORDS, SECRET_WORDS + 1));
        assert!((WORDS / 2 - 10..WORDS / 2 + 10).contains(&distinct(50)));
    }

    #[test]
    fn writes_go_round() {
        assert_eq!([0, 1, 2].map(|page| writes(page, 3, 0)), [0, 0, 0]);
        assert_eq!([0, 1, 2].map(|page| writes(page, 3, 4)), [2, 1, 1]);
        assert_eq!(writes(0, 0, 5), 0);
        assert_ne!(PATTERN.sum(3, 0), PATTERN.sum(3, 1));
    }
}
