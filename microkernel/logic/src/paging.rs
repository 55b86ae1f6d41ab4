//! Page tables of domains, and a domain's memory as the kernel sees it.
//!
//! A domain has the lowest 512 GiB: one page-directory-pointer table as root, page directories and page tables below
//! it (Intel SDM vol. 3, 4.5). Each processor has one top-level table whose first entry is the root of
//! the domain that runs; so a domain costs no top-level table, and the kernel's half is shared by all.
//! The kernel never goes through a user mapping: it walks these tables and reaches the frame directly.

use crate::{Frame, Kernel, Machine, frames::FrameKind};
use protocol::{
    abi::Error,
    layout::{PAGE, SPACE_END},
    memory::Access,
};

/// A page table of any level.
pub type Table = [Entry; 512];

/// Entry bit: present.
const PRESENT: u64 = 1 << 0;
/// Entry bit: writable.
const WRITE: u64 = 1 << 1;
/// Entry bit: reachable from ring 3.
const USER: u64 = 1 << 2;
/// Entry bit: used since it was last cleared.
const ACCESSED: u64 = 1 << 5;
/// Entry bit: written since it was last cleared.
const DIRTY: u64 = 1 << 6;
/// Entry bits: uncached.
const UNCACHED: u64 = 1 << 3 | 1 << 4;
/// Entry bit: write-combining, as each processor's page attribute table is set ([`PAT`]).
const COMBINE: u64 = 1 << 3;
/// Entry bit: no instruction fetch.
const NO_EXECUTE: u64 = 1 << 63;
/// The page attribute table (IA32_PAT, Intel SDM vol. 3, 13.12) of every processor: as after reset, but that the write-through bit alone
/// means write-combining, for which nothing else is left.
pub const PAT: u64 = 0x0007_0406_0007_0106;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// An entry of a page table.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Entry(pub u64);

impl Entry {
    /// Nothing mapped.
    pub const EMPTY: Entry = Entry(0);

    /// A lower table.
    pub const fn table(frame: Frame) -> Entry {
        Entry((frame as u64) << 12 | PRESENT | WRITE | USER)
    }

    /// A page.
    pub fn page(frame: Frame, access: Access, uncached: bool) -> Entry {
        let mut bits = u64::from(frame) << 12 | PRESENT | USER;
        if access.contains(Access::WRITE) {
            bits |= WRITE;
        }
        if !access.contains(Access::EXECUTE) {
            bits |= NO_EXECUTE;
        }
        if uncached {
            bits |= if access.contains(Access::COMBINE) { COMBINE } else { UNCACHED };
        }
        Entry(bits)
    }

    /// Whether anything is mapped.
    #[inline]
    pub const fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }
    /// Whether it may be written.
    pub const fn is_writable(self) -> bool {
        self.0 & WRITE != 0
    }
    /// Whether it is mapped past the caches: device registers and framebuffers.
    pub const fn is_device(self) -> bool {
        self.0 & UNCACHED != 0
    }
    /// Whether the kernel may read it, or write it, for its domain. Device registers are not memory.
    #[inline]
    const fn may(self, write: bool) -> bool {
        self.is_present() && (!write || self.is_writable()) && !self.is_device()
    }
    /// Physical address of `address` in it.
    #[inline]
    const fn physical(self, address: u64) -> u64 {
        (self.frame() as u64) << 12 | address & (PAGE - 1)
    }
    /// Whether it was used.
    pub const fn is_accessed(self) -> bool {
        self.0 & ACCESSED != 0
    }
    /// Whether it was written.
    pub const fn is_dirty(self) -> bool {
        self.0 & DIRTY != 0
    }
    /// The same, as if it had not been used.
    pub const fn unaccessed(self) -> Entry {
        Entry(self.0 & !ACCESSED)
    }
    /// The frame that it names.
    #[inline]
    pub const fn frame(self) -> Frame {
        ((self.0 & ADDRESS) >> 12) as Frame
    }
}

/// Where an address is looked up in the table of `level` (3 root, 2, 1).
#[inline]
const fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * (level - 1))) as usize & 511
}

/// A range of a domain's addresses: not yet memory. Only the functions of this file make memory of it, page by page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserRange {
    start: u64,
    length: u64,
}

impl UserRange {
    /// `length` bytes from `start`; refused if not wholly in a domain's half of the address space.
    pub fn new(start: u64, length: u64) -> Result<UserRange, Error> {
        match start.checked_add(length) {
            Some(end) if end <= SPACE_END => Ok(UserRange { start, length }),
            _ => Err(Error::BadAddress),
        }
    }

    /// `count` records of type `T` from `start`, aligned to 8 bytes.
    pub fn records<T>(start: u64, count: u64) -> Result<UserRange, Error> {
        if !start.is_multiple_of(8) {
            return Err(Error::BadAddress);
        }
        UserRange::new(start, count.checked_mul(size_of::<T>() as u64).ok_or(Error::BadArgument)?)
    }
}

/// A page of a domain that is not there, or not writable when it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Missing {
    /// Address within it.
    pub address: u64,
    /// Whether it was to be written.
    pub write: bool,
}

impl<M: Machine> Kernel<M> {
    /// The page table that holds the entry for `address`; `None` if it is missing.
    #[inline]
    pub(crate) fn leaf_table(&self, root: Frame, address: u64) -> Option<Frame> {
        let upper = self.machine.table(root)[index(address, 3)];
        if !upper.is_present() {
            return None;
        }
        let middle = self.machine.table(upper.frame())[index(address, 2)];
        middle.is_present().then(|| middle.frame())
    }

    /// The entry for `address`.
    #[inline]
    pub(crate) fn entry(&self, root: Frame, address: u64) -> Entry {
        match self.leaf_table(root, address) {
            Some(table) => self.entry_in(table, address),
            None => Entry::EMPTY,
        }
    }

    /// The entry for `address` in the table `leaf`.
    #[inline]
    pub(crate) fn entry_in(&self, leaf: Frame, address: u64) -> Entry {
        self.machine.table(leaf)[index(address, 1)]
    }

    /// Writes the entry for `address` in the table `leaf`.
    pub(crate) fn set_entry(&mut self, leaf: Frame, address: u64, entry: Entry) {
        self.machine.table_mut(leaf)[index(address, 1)] = entry;
    }

    /// Physical address of `address` in the domain below `root`. Device registers are not memory.
    #[inline]
    pub(crate) fn translate(&self, root: Frame, address: u64, write: bool) -> Result<u64, Missing> {
        let entry = self.entry(root, address);
        if entry.may(write) { Ok(entry.physical(address)) } else { Err(Missing { address, write }) }
    }

    /// The same, for the kernel's own use of the page on the domain's behalf: it counts as used, and as written.
    #[inline]
    pub(crate) fn reach(&mut self, root: Frame, address: u64, write: bool) -> Result<u64, Missing> {
        let table = self.leaf_table(root, address).ok_or(Missing { address, write })?;
        let index = index(address, 1);
        let entry = self.machine.table(table)[index];
        if !entry.may(write) {
            return Err(Missing { address, write });
        }
        let used = ACCESSED | if write { DIRTY } else { 0 };
        if entry.0 & used != used {
            self.machine.set_bits(table, index, used);
        }
        Ok(entry.physical(address))
    }

    /// Whether an access of ring 3 that has faulted would succeed now: another processor has mapped the page meanwhile. `error`: the
    /// processor's code (Intel SDM vol. 3, 4.7).
    pub(crate) fn would_succeed(&self, root: Frame, address: u64, error: u64) -> bool {
        const WRITING: u64 = 1 << 1;
        const RING_3: u64 = 1 << 2;
        const RESERVED: u64 = 1 << 3;
        const FETCHING: u64 = 1 << 4;
        let entry = if address < SPACE_END { self.entry(root, address) } else { Entry::EMPTY };
        entry.is_present()
            && error & (RING_3 | RESERVED) == RING_3
            && (error & WRITING == 0 || entry.is_writable())
            && (error & FETCHING == 0 || entry.0 & NO_EXECUTE == 0)
    }

    /// Reads `bytes` from a range, which must be as long.
    pub(crate) fn read_user(&self, root: Frame, range: UserRange, bytes: &mut [u8]) -> Result<(), Missing> {
        let mut address = range.start;
        let mut rest = bytes;
        while !rest.is_empty() {
            let here = rest.len().min((PAGE - address % PAGE) as usize);
            let (part, after) = rest.split_at_mut(here);
            let physical = self.translate(root, address, false)?;
            self.machine.read(physical, part);
            address += here as u64;
            rest = after;
        }
        Ok(())
    }

    /// Writes `bytes` to a range, which must be as long.
    pub(crate) fn write_user(&mut self, root: Frame, range: UserRange, bytes: &[u8]) -> Result<(), Missing> {
        let mut address = range.start;
        let mut rest = bytes;
        while !rest.is_empty() {
            let here = rest.len().min((PAGE - address % PAGE) as usize);
            let (part, after) = rest.split_at(here);
            let physical = self.reach(root, address, true)?;
            self.machine.write(physical, part);
            address += here as u64;
            rest = after;
        }
        Ok(())
    }

    /// Whether every page of a range can be reached.
    pub(crate) fn probe_user(&self, root: Frame, range: UserRange, write: bool) -> Result<(), Missing> {
        let mut address = range.start;
        let end = range.start + range.length;
        while address < end {
            self.translate(root, address, write)?;
            address = (address / PAGE + 1) * PAGE;
        }
        Ok(())
    }

    /// Makes `frame` the table that is missing highest up for `address`.
    pub(crate) fn add_table(&mut self, root: Frame, address: u64, frame: Frame) -> Result<(), Error> {
        let upper = self.machine.table(root)[index(address, 3)];
        let (parent, level) = if !upper.is_present() {
            (root, 3)
        } else if !self.machine.table(upper.frame())[index(address, 2)].is_present() {
            (upper.frame(), 2)
        } else {
            return Err(Error::Occupied);
        };
        self.frames.make(frame, FrameKind::Table)?;
        self.machine.zero(frame);
        self.machine.table_mut(parent)[index(address, level)] = Entry::table(frame);
        Ok(())
    }

    /// Maps a free frame at boot; `false` if a page table is missing.
    pub fn map_at_boot(&mut self, root: Frame, address: u64, frame: Frame, access: Access) -> Result<bool, Error> {
        UserRange::new(address, PAGE)?;
        let Some(leaf) = self.leaf_table(root, address) else { return Ok(false) };
        if self.entry(root, address).is_present() {
            return Err(Error::Occupied);
        }
        self.frames.map(frame)?;
        self.set_entry(leaf, address, Entry::page(frame, access, false));
        Ok(true)
    }

    /// Makes a free frame at boot the table that is missing highest up for `address`.
    pub fn add_table_at_boot(&mut self, root: Frame, address: u64, frame: Frame) -> Result<(), Error> {
        UserRange::new(address, PAGE)?;
        self.add_table(root, address, frame)
    }

    /// Gives up mappings and tables below `root`, at most `budget` page tables of them; whether all is done.
    pub(crate) fn tear_down(&mut self, root: Frame, mut budget: u32) -> bool {
        for upper in 0..512 {
            let directory = self.machine.table(root)[upper];
            if !directory.is_present() {
                continue;
            }
            for middle in 0..512 {
                let table = self.machine.table(directory.frame())[middle];
                if !table.is_present() {
                    continue;
                }
                if budget == 0 {
                    return false;
                }
                budget -= 1;
                for leaf in 0..512 {
                    let page = self.machine.table(table.frame())[leaf];
                    if page.is_present() {
                        self.frames.unmap(page.frame());
                    }
                }
                self.machine.table_mut(directory.frame())[middle] = Entry::EMPTY;
                self.frames.free(table.frame());
            }
            self.machine.table_mut(root)[upper] = Entry::EMPTY;
            self.frames.free(directory.frame());
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_end_where_a_domain_ends() {
        assert!(UserRange::new(SPACE_END - 1, 1).is_ok());
        assert!(UserRange::new(SPACE_END, 0).is_ok());
        assert_eq!(UserRange::new(SPACE_END - 1, 2), Err(Error::BadAddress));
        assert_eq!(UserRange::new(0xffff_8000_0000_0000, 8), Err(Error::BadAddress));
        assert_eq!(UserRange::new(u64::MAX, 1), Err(Error::BadAddress));
        assert_eq!(UserRange::records::<u64>(8, u64::MAX), Err(Error::BadArgument));
        assert_eq!(UserRange::records::<u64>(4, 1), Err(Error::BadAddress));
    }

    proptest! {
        #[test]
        fn entries_keep_frame_and_access(frame: u32, access in 0u8..8, uncached: bool) {
            let access = Access::from_bits_truncate(access);
            let entry = Entry::page(frame, access, uncached);
            prop_assert!(entry.is_present());
            prop_assert_eq!(entry.frame(), frame);
            prop_assert_eq!(entry.is_writable(), access.contains(Access::WRITE));
            prop_assert_eq!(entry.is_device(), uncached);
            let combines = uncached && access.contains(Access::COMBINE);
            // Which byte of the page attribute table: 1 write-combining, 0 uncached, 6 write-back.
            let kind = PAT >> ((entry.0 >> 3 & 3) * 8) & 7;
            prop_assert_eq!(kind, if combines { 1 } else if uncached { 0 } else { 6 });
        }

        #[test]
        fn no_range_reaches_the_kernel(start: u64, length: u64) {
            if let Ok(range) = UserRange::new(start, length) {
                prop_assert!(u128::from(range.start) + u128::from(range.length) <= u128::from(SPACE_END));
            }
        }
    }
}
