//! Guest images as the pager keeps them: their pages, taken in once and shared by all VMs made from them.

use crate::{
    frames::{Frame, List},
    space::{self, Space},
    template::Template,
};
use alloc::{boxed::Box, vec::Vec};
use protocol::{
    abi::Lend,
    image::SEGMENTS_MAX,
    layout::{IMAGE_BASE, PAGE, SPACE_BASE, VM_MEMORY_MAX},
    memory::Access,
    service::pager::Part,
};

/// Bytes of the longest lent range.
const LENT_MAX: u64 = Lend::MAX_PAGES * PAGE;

/// What a page of an image's data holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// The contents of this frame.
    Stored(Frame),
    /// Zeros; no frame is spent on them.
    Zero,
}

/// A part of an image, in pages.
#[derive(Debug)]
pub struct ImagePart {
    /// First page.
    pub page: u32,
    /// Pages.
    pub pages: u32,
    /// Access.
    pub access: Access,
    /// The pages with data, from the first on; the others are zero.
    pub data: Vec<Content>,
}

impl ImagePart {
    /// Whether its pages are shared for good, never copied.
    pub const fn is_read_only(&self) -> bool {
        !self.access.contains(Access::WRITE)
    }
}

/// An image.
#[derive(Debug)]
pub struct Image {
    /// Parts by page.
    pub parts: Vec<ImagePart>,
    /// Frames of its pages.
    pub frames: List,
    /// VMs and templates made from it.
    pub users: u32,
    /// What makes it a template.
    pub template: Option<Box<Template>>,
}

/// What an image says of a page.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The part.
    pub part: &'a ImagePart,
    /// Number of the page in the part.
    pub index: u32,
}

impl Found<'_> {
    /// The page's data. `None`: zero.
    pub fn content(&self) -> Option<Content> {
        self.part.data.get(self.index as usize).copied()
    }
}

impl Image {
    /// The part that a page lies in.
    pub fn find(&self, page: u32) -> Option<Found<'_>> {
        let after = self.parts.partition_point(|part| part.page <= page);
        let part = self.parts.get(after.checked_sub(1)?)?;
        let index = page - part.page;
        (index < part.pages).then_some(Found { part, index })
    }

    /// Pages of which no VM ever needs a copy.
    pub fn shared_pages(&self) -> u32 {
        self.parts.iter().filter(|part| part.is_read_only()).map(|part| part.data.len() as u32).sum()
    }

    /// Whether a VM with this memory, starting at `entry`, can be made from it.
    pub fn fits(&self, space: Space, entry: u64) -> bool {
        let inside = self.parts.last().is_some_and(|part| part.page + part.pages <= space.pages());
        let found = space.page(entry).and_then(|page| self.find(page));
        inside && found.is_some_and(|found| found.part.access.contains(Access::EXECUTE))
    }
}

/// Bytes of a part in the record of an image.
const PART_BYTES: usize = 16;
/// Most parts of an image; of a template, which has parts between those of its base.
const PARTS_MAX: usize = 2 * SEGMENTS_MAX + 1;

/// The record of an image, from which a restarted pager makes it again: a page with its parts. Its pages it finds by the frame table.
pub fn record(parts: &[ImagePart]) -> [u8; PAGE as usize] {
    let mut page = [0; PAGE as usize];
    for (part, place) in parts.iter().zip(page.chunks_exact_mut(PART_BYTES)).take(PARTS_MAX) {
        let words = [part.page, part.pages, u32::from(part.access.bits()), part.data.len() as u32];
        for (word, to) in words.into_iter().zip(place.chunks_exact_mut(4)) {
            to.copy_from_slice(&word.to_le_bytes());
        }
    }
    page
}

/// The parts of a record; `stored` says what frame holds a page of the image, its own or, for a template, one of its base.
pub fn from_record(page: &[u8; PAGE as usize], stored: impl Fn(u32) -> Option<Frame>) -> Vec<ImagePart> {
    let mut parts = Vec::new();
    for place in page.chunks_exact(PART_BYTES).take(PARTS_MAX) {
        let word = |index: usize| place.as_chunks().0.get(index).map_or(0, |word| u32::from_le_bytes(*word));
        let (page, pages, data_pages) = (word(0), word(1), word(3));
        if pages == 0 {
            break;
        }
        let content = |index| stored(page + index).map_or(Content::Zero, Content::Stored);
        let data = (0..data_pages.min(pages)).map(content).collect();
        parts.push(ImagePart { page, pages, access: Access::from_bits_truncate(word(2) as u8), data });
    }
    parts
}

/// A part that passed the check, before its data are there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checked {
    /// First page.
    pub page: u32,
    /// Pages.
    pub pages: u32,
    /// Access.
    pub access: Access,
    /// First byte in the lent range.
    pub data_offset: u64,
    /// Bytes in the lent range.
    pub data_length: u64,
    /// Bytes before the data in its first page.
    pub skip: u64,
}

impl Checked {
    /// Pages that hold data.
    pub const fn data_pages(&self) -> u32 {
        if self.data_length == 0 { 0 } else { (self.skip + self.data_length).div_ceil(PAGE) as u32 }
    }

    /// The data of data page `index`: offset in the lent range, offset in the page, bytes.
    pub const fn piece(&self, index: u32) -> (u64, usize, usize) {
        let start = index as u64 * PAGE;
        // Position of the page in the data; the first page begins `skip` bytes before the data.
        let (from, at) = if start < self.skip { (0, self.skip - start) } else { (start - self.skip, 0) };
        let left = self.data_length.saturating_sub(from);
        let length = if left < PAGE - at { left } else { PAGE - at };
        (self.data_offset + from, at as usize, length as usize)
    }
}

/// Checks the parts of a new image: 1 to [`SEGMENTS_MAX`], by address, in the largest memory a VM can have, no two on a page, none
/// writable and executable, not more data than memory. `None` if anything is wrong.
pub fn check(parts: &[Part]) -> Option<Vec<Checked>> {
    if parts.is_empty() || parts.len() > SEGMENTS_MAX {
        return None;
    }
    let mut checked: Vec<Checked> = Vec::new();
    checked.try_reserve_exact(parts.len()).ok()?;
    for part in parts {
        let end = part.address.checked_add(part.length)?;
        let data_end = part.data_offset.checked_add(part.data_length)?;
        let inside = part.address >= IMAGE_BASE && end <= SPACE_BASE + VM_MEMORY_MAX;
        if !inside || part.length == 0 || part.data_length > part.length || data_end > LENT_MAX {
            return None;
        }
        if part.write && part.execute {
            return None;
        }
        let page = ((part.address - SPACE_BASE) / PAGE) as u32;
        let pages = (end.div_ceil(PAGE) - part.address / PAGE) as u32;
        if checked.last().is_some_and(|last| last.page + last.pages > page) {
            return None;
        }
        let mut access = Access::empty();
        access.set(Access::WRITE, part.write);
        access.set(Access::EXECUTE, part.execute);
        let skip = part.address - space::address(page);
        let (data_offset, data_length) = (part.data_offset, part.data_length);
        checked.push(Checked { page, pages, access, data_offset, data_length, skip });
    }
    Some(checked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    const fn part(address: u64, length: u64, data_length: u64) -> Part {
        Part { address, length, data_offset: 0, data_length, write: false, execute: false }
    }

    #[test]
    fn bad_parts_are_refused() {
        let good = part(IMAGE_BASE + 0x123, 0x2000, 0x1000);
        assert!(check(&[good]).is_some());
        assert!(check(&[]).is_none());
        assert!(check(&vec![good; SEGMENTS_MAX + 1]).is_none());
        let bad = [
            part(IMAGE_BASE - 1, 10, 0),
            part(IMAGE_BASE, 0, 0),
            part(IMAGE_BASE, 10, 11),
            part(u64::MAX, 10, 0),
            part(IMAGE_BASE, u64::MAX - IMAGE_BASE, 0),
            part(SPACE_BASE + VM_MEMORY_MAX, 1, 0),
            Part { data_offset: u64::MAX, ..good },
            Part { write: true, execute: true, ..good },
        ];
        for part in bad {
            assert!(check(&[part]).is_none(), "{part:?}");
        }
        assert!(check(&[good, part(IMAGE_BASE + 0x2200, 5, 5)]).is_none(), "two parts on a page");
        assert!(check(&[part(IMAGE_BASE + 0x9000, 5, 5), good]).is_none(), "not by address");
        assert!(check(&[good, part(IMAGE_BASE + 0x3000, 5, 5)]).is_some());
    }

    #[test]
    fn finds_parts() {
        let piece = |page, pages| ImagePart { page, pages, access: Access::empty(), data: vec![Content::Zero] };
        let image = Image { parts: vec![piece(1, 2), piece(5, 1)], frames: List::default(), users: 0, template: None };
        let found: Vec<_> = (0..8).map(|page| image.find(page).map(|f| (f.part.page, f.index))).collect();
        assert_eq!(found, [None, Some((1, 0)), Some((1, 1)), None, None, Some((5, 0)), None, None]);
        assert_eq!(image.find(5).unwrap().content(), Some(Content::Zero));
        assert!(image.find(2).unwrap().content().is_none());
    }

    #[test]
    fn records_give_the_image_back() {
        let part = |page, access, data| ImagePart { page, pages: 5, access, data };
        let parts = vec![
            part(1, Access::EXECUTE, vec![Content::Stored(10), Content::Zero, Content::Stored(12)]),
            part(9, Access::WRITE, vec![]),
        ];
        let stored = |page| [1, 3].contains(&page).then_some(9 + page);
        let again = from_record(&record(&parts), stored);
        assert_eq!(std::format!("{again:?}"), std::format!("{parts:?}"));
        assert!(from_record(&[0; PAGE as usize], stored).is_empty());
    }

    proptest! {
        #[test]
        fn pieces_cover_the_data_once(skip in 0u64..4096, length in 1u64..20_000, offset in 0u64..1000) {
            let parts = check(&[Part { data_offset: offset, ..part(IMAGE_BASE + skip, length + 50, length) }]).unwrap();
            let (mut next, mut place) = (offset, IMAGE_BASE + skip);
            for index in 0..parts[0].data_pages() {
                let (from, at, bytes) = parts[0].piece(index);
                prop_assert_eq!(from, next);
                prop_assert_eq!(space::address(parts[0].page + index) + at as u64, place);
                prop_assert!(bytes > 0 && at + bytes <= 4096);
                next += bytes as u64;
                place += bytes as u64;
            }
            prop_assert_eq!(next, offset + length);
            prop_assert!(parts[0].data_pages() <= parts[0].pages);
        }

        #[test]
        fn any_part_is_harmless(address: u64, length: u64, data_offset: u64, data_length: u64, write: bool, execute: bool) {
            if let Some(parts) = check(&[Part { address, length, data_offset, data_length, write, execute }]) {
                let part = parts[0];
                prop_assert!(part.page >= 1 && u64::from(part.page + part.pages) * PAGE <= VM_MEMORY_MAX);
                if part.data_pages() > 0 {
                    let _ = part.piece(part.data_pages() - 1);
                }
            }
        }
    }
}
