//! A suspended VM on disk: all that was in memory of it, in one piece.
//!
//! The piece is a row of *chunks* of 4 KiB: a header (the domain's state, which parts of the page map and which pages follow, the
//! tags of all segments but the first), then those parts of the map, then those pages. Sixteen chunks are a *segment*: what is
//! read, written and sealed at once. The first segment's tag, and how many segments there are, is all that the VM's record
//! in memory needs. A small VM is one or two segments: one sequential read.

use crate::{crypt::TAG, region::UNIT_BLOCKS};
use alloc::{boxed::Box, vec::Vec};
use protocol::domain::SavedDomain;

/// Bytes of a chunk.
pub const CHUNK: usize = 4096;
/// Chunks of a segment.
pub const SEGMENT_CHUNKS: u32 = UNIT_BLOCKS;
/// Most pages that stay in the piece; a VM with more in memory has the others written to their own places first.
pub const PAGES_MAX: u32 = 96;
/// Most parts of the page map. A VM with more of them in use (5 GiB swapped out) is paged, but never suspended.
pub const MAPS_MAX: u32 = 8192;

/// First word: so that a mistake in this server is not taken for a VM.
const MAGIC: u64 = u64::from_le_bytes(*b"suspend1");
const FIXED: usize = 24 + size_of::<SavedDomain>();

/// The header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Pages that follow, in this order.
    pub pages: Vec<u32>,
    /// Parts of the page map that follow, in this order.
    pub maps: Vec<u32>,
    /// Tags of the second segment and those after it.
    pub tags: Vec<[u8; TAG]>,
    /// The domain's state.
    pub state: Box<SavedDomain>,
}

/// Chunks of the header, if so many pages and parts of the map follow.
pub const fn header_chunks(pages: u32, maps: u32) -> u32 {
    // One more tag than there can be for each sixteen chunks: the header's own chunks are few.
    let tags = (pages + maps) / SEGMENT_CHUNKS + 2;
    ((FIXED as u32) + tags * TAG as u32 + (pages + maps) * 4).div_ceil(CHUNK as u32)
}

/// Segments of the piece.
pub const fn segments(pages: u32, maps: u32) -> u32 {
    (header_chunks(pages, maps) + pages + maps).div_ceil(SEGMENT_CHUNKS)
}

/// Most segments of a VM with so many pages and parts of the page map.
pub const fn segments_max(pages: u32, maps: u32) -> u32 {
    segments(if pages < PAGES_MAX { pages } else { PAGES_MAX }, if maps < MAPS_MAX { maps } else { MAPS_MAX })
}

impl Header {
    /// Writes the header to the beginning of the first segment. `None` if it is longer than [`header_chunks`] says.
    pub fn encode(&self, segment: &mut [u8]) -> Option<()> {
        let length = header_chunks(self.pages.len() as u32, self.maps.len() as u32) as usize * CHUNK;
        let mut rest = segment.get_mut(..length)?;
        rest.fill(0);
        let mut put = |bytes: &[u8]| {
            let (place, after) = core::mem::take(&mut rest).split_at_mut_checked(bytes.len())?;
            place.copy_from_slice(bytes);
            rest = after;
            Some(())
        };
        put(&MAGIC.to_le_bytes())?;
        for count in [self.pages.len(), self.maps.len(), self.tags.len(), 0] {
            put(&(count as u32).to_le_bytes())?;
        }
        put(&self.state.to_bytes())?;
        self.tags.iter().try_for_each(|tag| put(tag))?;
        self.pages.iter().chain(&self.maps).try_for_each(|number| put(&number.to_le_bytes()))
    }

    /// Reads it from the first segment. `None` if these are not the bytes of a header.
    pub fn decode(segment: &[u8]) -> Option<Header> {
        let mut rest = segment;
        let mut take = |length: usize| {
            let (bytes, after) = rest.split_at_checked(length)?;
            rest = after;
            Some(bytes)
        };
        let word = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).ok();
        let number = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).ok();
        if word(take(8)?)? != MAGIC {
            return None;
        }
        let (pages, maps, tags) = (number(take(4)?)?, number(take(4)?)?, number(take(4)?)?);
        take(4)?;
        if pages > PAGES_MAX || maps > MAPS_MAX || tags + 1 != segments(pages, maps) {
            return None;
        }
        let state = Box::new(SavedDomain::from_bytes(take(size_of::<SavedDomain>())?.try_into().ok()?));
        let tags = (0..tags).map(|_| take(TAG)?.try_into().ok()).collect::<Option<_>>()?;
        let mut numbers = |count| (0..count).map(|_| number(take(4)?)).collect::<Option<Vec<u32>>>();
        Some(Header { pages: numbers(pages)?, maps: numbers(maps)?, tags, state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    #[test]
    fn headers_fit_into_a_segment() {
        for (pages, maps) in [(0, 0), (1, 0), (96, 8192), (96, 0), (17, 1), (13, 1)] {
            let segments = segments(pages, maps);
            assert!(header_chunks(pages, maps) <= SEGMENT_CHUNKS, "{pages} {maps}");
            let used = FIXED + (segments as usize - 1) * TAG + (pages + maps) as usize * 4;
            assert!(used <= header_chunks(pages, maps) as usize * CHUNK, "{pages} {maps}");
        }
        assert_eq!(segments(14, 1), 1, "a small VM is one read");
    }

    proptest! {
        #[test]
        fn round_trips(pages in prop::collection::vec(any::<u32>(), 0..96), maps in prop::collection::vec(any::<u32>(), 0..300), byte: u8) {
            let count = segments(pages.len() as u32, maps.len() as u32) as usize - 1;
            let mut state = Box::new(SavedDomain::ZERO);
            (state.registers[3], state.fpu[800]) = (77, byte);
            let header = Header { pages, maps, tags: vec![[byte; TAG]; count], state };
            let mut segment = vec![0xcc; SEGMENT_CHUNKS as usize * CHUNK];
            header.encode(&mut segment).unwrap();
            prop_assert_eq!(Header::decode(&segment), Some(header));
        }

        #[test]
        fn any_bytes_are_harmless(mut bytes in prop::collection::vec(any::<u8>(), 0..3000), real: bool) {
            if real && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(b"suspend1");
            }
            let _ = Header::decode(&bytes);
        }
    }
}
