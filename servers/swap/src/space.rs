//! The memory of a VM in numbers: pages, page tables, windows.

use protocol::{
    domain::Window,
    layout::{IMAGE_BASE, PAGE, SPACE_BASE, VM_MEMORY_MAX, VM_MEMORY_MIN},
};

/// Bytes of addresses under one leaf page table.
pub const LEAF_BYTES: u64 = 512 * PAGE;
/// Bytes of addresses under one page table above it.
pub const DIRECTORY_BYTES: u64 = 512 * LEAF_BYTES;

/// The memory of a VM: from [`SPACE_BASE`], its virtual register page first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    pages: u32,
}

impl Space {
    /// Of `bytes` bytes; `None` if no VM may have that.
    pub const fn new(bytes: u64) -> Option<Space> {
        if bytes.is_multiple_of(PAGE) && bytes >= VM_MEMORY_MIN && bytes <= VM_MEMORY_MAX {
            Some(Space { pages: (bytes / PAGE) as u32 })
        } else {
            None
        }
    }

    /// Of so many pages, which were checked before.
    pub const fn of_pages(pages: u32) -> Space {
        Space { pages }
    }

    /// Pages.
    pub const fn pages(self) -> u32 {
        self.pages
    }

    /// First address beyond it.
    pub const fn end(self) -> u64 {
        SPACE_BASE + self.pages as u64 * PAGE
    }

    /// Page tables that it takes when every page is mapped, the root not counted.
    pub const fn tables(self) -> u32 {
        self.covered(LEAF_BYTES) + self.covered(DIRECTORY_BYTES)
    }

    /// Aligned blocks of `bytes` addresses that it touches.
    const fn covered(self, bytes: u64) -> u32 {
        ((self.end() - 1) / bytes - SPACE_BASE / bytes + 1) as u32
    }

    /// The page that holds this address.
    pub const fn page(self, address: u64) -> Option<u32> {
        if address >= SPACE_BASE && address < self.end() { Some(((address - SPACE_BASE) / PAGE) as u32) } else { None }
    }

    /// Whether a device window lies in it, behind the virtual register page. No window (both 0) does.
    pub fn holds_window(self, window: &Window) -> bool {
        if *window == Window::default() {
            return true;
        }
        let aligned = window.address.is_multiple_of(PAGE) && window.length.is_multiple_of(PAGE);
        let end = window.address.checked_add(window.length);
        aligned && window.length > 0 && window.address >= IMAGE_BASE && end.is_some_and(|end| end <= self.end())
    }
}

/// Address of a page.
pub const fn address(page: u32) -> u64 {
    SPACE_BASE + page as u64 * PAGE
}

/// The page at an address that is not below the first page.
pub const fn page_of(address: u64) -> u32 {
    (address.saturating_sub(SPACE_BASE) / PAGE) as u32
}

/// Number of the leaf table of a page.
pub const fn leaf(page: u32) -> u32 {
    (address(page) / LEAF_BYTES) as u32
}

/// Number of the directory of a page.
pub const fn directory(page: u32) -> u32 {
    (address(page) / DIRECTORY_BYTES) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn sizes_are_checked() {
        for bytes in [0, PAGE, VM_MEMORY_MIN - PAGE, VM_MEMORY_MIN + 1, VM_MEMORY_MAX + PAGE, !4095] {
            assert_eq!(Space::new(bytes), None);
        }
        assert!(Space::new(VM_MEMORY_MIN).is_some() && Space::new(VM_MEMORY_MAX).is_some());
    }

    #[test]
    fn windows_are_checked() {
        let space = Space::new(1 << 20).unwrap();
        let window = |address, length| space.holds_window(&Window { address, length });
        assert!(window(0, 0) && window(IMAGE_BASE, PAGE) && window(space.end() - PAGE, PAGE));
        assert!(
            !window(SPACE_BASE, PAGE) && !window(IMAGE_BASE, 0) && !window(0, PAGE) && !window(IMAGE_BASE + 8, PAGE)
        );
        assert!(!window(space.end(), PAGE) && !window(space.end() - PAGE, 2 * PAGE) && !window(IMAGE_BASE, 100));
        assert!(!window(!4095, PAGE) && !window(IMAGE_BASE, !4095));
    }

    proptest! {
        #[test]
        fn counts_every_table(pages in 16u32..3_000_000) {
            let space = Space::new(u64::from(pages) * PAGE).unwrap();
            let ends = [0, pages - 1].into_iter().chain((0..pages).step_by(512));
            let (mut leaves, mut directories) = (BTreeSet::new(), BTreeSet::new());
            for page in ends {
                leaves.insert(leaf(page));
                directories.insert(directory(page));
                prop_assert_eq!(space.page(address(page) + 4095), Some(page));
            }
            prop_assert_eq!(space.tables() as usize, leaves.len() + directories.len());
            prop_assert_eq!(space.page(space.end()), None);
            prop_assert_eq!(space.page(SPACE_BASE - 1), None);
        }
    }
}
