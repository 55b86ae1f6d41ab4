//! Records of the batched memory calls `map` and `transfer`.

use bitflags::bitflags;

/// Most records in one call.
pub const BATCH: usize = 64;
/// Most pages that one `map` touches before it answers [`crate::abi::Error::Again`].
pub const MAP_PAGES: u32 = 512;
/// Most bytes of one transfer operation.
pub const TRANSFER_BYTES: u32 = 64 * 1024;

/// What one map operation does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum MapKind {
    /// Maps `count` consecutive frames at consecutive pages. The pages must be unmapped.
    Map = 0,
    /// Makes `frame` the page table that is missing highest up at `address`. `count` must be 1.
    Table = 1,
    /// Unmaps `count` pages; pages that are not mapped are passed over.
    Unmap = 2,
    /// Gives `count` mapped pages new access.
    Protect = 3,
}

impl MapKind {
    /// The kind with this code, if there is one.
    pub const fn from_u8(code: u8) -> Option<MapKind> {
        Some(match code {
            0 => MapKind::Map,
            1 => MapKind::Table,
            2 => MapKind::Unmap,
            3 => MapKind::Protect,
            _ => return None,
        })
    }
}

bitflags! {
    /// How a page may be used. Every mapped page is readable.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Access: u8 {
        /// May be written.
        const WRITE = 1;
        /// May be executed.
        const EXECUTE = 2;
        /// Device memory: writes may be combined and come late, as a framebuffer wants it (write-combining, Intel SDM vol. 3, 13.3).
        /// Refused for other memory.
        const COMBINE = 4;
    }
}

/// One change of an address space ([`crate::abi::Number::Map`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct MapOperation {
    /// [`MapKind`].
    pub kind: u8,
    /// [`Access`].
    pub access: u8,
    /// Own slot of the memory capability that the frames belong to (Map, Table).
    pub slot: u8,
    /// Must be 0.
    pub reserved: u8,
    /// Pages.
    pub count: u32,
    /// First page, page-aligned.
    pub address: u64,
    /// First frame, an absolute frame number.
    pub frame: u64,
}

/// One copy ([`crate::abi::Number::Transfer`]).
///
/// Each side is a [`crate::abi::Target`] and an address: own memory, a window of a domain (with
/// [`crate::capability::Rights::CONTROL`] any of its memory), the range lent by a caller, where the address
/// counts from the beginning of that range, or an extent, where the address is a physical address
/// within it. The source may be zero bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct TransferOperation {
    /// Source [`crate::abi::Target`].
    pub from: u64,
    /// Source address.
    pub from_address: u64,
    /// Destination [`crate::abi::Target`].
    pub to: u64,
    /// Destination address.
    pub to_address: u64,
    /// Bytes, at most [`TRANSFER_BYTES`].
    pub length: u32,
    /// Written by the kernel: 0 or [`crate::abi::Error`].
    pub status: u32,
    /// Written by the kernel: bytes copied. With `NotPresent`, the side at fault is in bit 31 (0: source).
    pub done: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// In [`TransferOperation::done`] with `NotPresent`: the destination's page is missing, not the source's.
pub const DESTINATION_MISSING: u32 = 1 << 31;

/// Most pages of one [`crate::abi::Number::Scan`].
pub const SCAN_PAGES: usize = 512;

bitflags! {
    /// What a page was, in a byte ([`crate::abi::Number::Scan`]).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct PageState: u8 {
        /// Mapped.
        const PRESENT = 1;
        /// Used since the bit was last cleared or the page was mapped.
        const ACCESSED = 2;
        /// Written likewise, by the domain or by a transfer into its memory.
        const DIRTY = 4;
        /// May be written.
        const WRITABLE = 8;
    }

    /// What a scan does besides looking.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Scan: u8 {
        /// Clears ACCESSED.
        const CLEAR_ACCESSED = 1;
        /// Unmaps the pages.
        const UNMAP = 2;
    }
}

const _: () = assert!(size_of::<MapOperation>() == 24 && size_of::<TransferOperation>() == 48);
