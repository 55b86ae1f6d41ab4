//! The page map of a VM: what its region holds of each page, and how to know it again.
//!
//! An entry for each page, in frames that the VM gets as they are needed ([`crate::frames::Usage::Map`]); a page that never left memory costs
//! nothing. The frames are reached by copies, a few entries at a time. When a VM is suspended, its map goes to disk with it.

use crate::crypt::TAG;

/// Bytes of an entry.
pub const ENTRY: usize = 24;
/// Entries in a part of the map: a frame.
pub const ENTRIES: u32 = 4096 / ENTRY as u32;

/// What the region holds of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// Number of the write; 0: the region holds nothing of this page that is worth anything.
    pub counter: u64,
    /// Tag of what was written.
    pub tag: [u8; TAG],
}

impl Entry {
    /// Nothing.
    pub const NONE: Entry = Entry { counter: 0, tag: [0; TAG] };

    /// Whether the region holds the page.
    pub const fn is_valid(&self) -> bool {
        self.counter != 0
    }

    /// As it lies in the map.
    pub fn to_bytes(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..8].copy_from_slice(&self.counter.to_le_bytes());
        bytes[8..].copy_from_slice(&self.tag);
        bytes
    }

    /// From the map.
    pub fn from_bytes(bytes: &[u8; ENTRY]) -> Entry {
        let [a, b, c, d, e, f, g, h, tag @ ..] = *bytes;
        Entry { counter: u64::from_le_bytes([a, b, c, d, e, f, g, h]), tag }
    }
}

/// Where the entry of a page lies: part of the map, and offset in bytes there.
pub const fn place(page: u32) -> (u32, usize) {
    (page / ENTRIES, (page % ENTRIES) as usize * ENTRY)
}

/// Most parts of the map of a VM with so many pages.
pub const fn parts(pages: u32) -> u32 {
    pages.div_ceil(ENTRIES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_places_of_their_own() {
        let entry = Entry { counter: 0x0102_0304_0506_0708, tag: core::array::from_fn(|index| index as u8) };
        assert_eq!(Entry::from_bytes(&entry.to_bytes()), entry);
        assert_eq!(Entry::from_bytes(&[0; ENTRY]), Entry::NONE);
        assert_eq!((place(0), place(169), place(170)), ((0, 0), (0, 169 * 24), (1, 0)));
        assert!(place(169).1 + ENTRY <= 4096);
        assert_eq!((parts(1), parts(170), parts(171)), (1, 1, 2));
    }
}
