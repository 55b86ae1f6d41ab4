//! What the kernel tells `init`: the page at [`crate::layout::STARTUP`].
//!
//! `init` is started with every capability there is, in the slots named here.

/// Slots of `init`.
pub mod slot {
    /// [`crate::capability::Kind::Domain`], CONTROL, CALL and RAISE: `init` itself, so that it can hand out channels to itself.
    pub const SELF: u8 = 0;
    /// [`crate::capability::Kind::Memory`], all rights: free memory, the largest extent.
    pub const MEMORY: u8 = 1;
    /// Memory, READ and MAP: the bundle.
    pub const BUNDLE: u8 = 2;
    /// Memory, READ, MAP and DEVICE: all physical addresses that are not memory handed out here (tables of
    /// the firmware, device registers). Firmware tables are mapped through it read-only.
    pub const DEVICES: u8 = 3;
    /// All I/O ports.
    pub const PORTS: u8 = 4;
    /// The interrupt authority.
    pub const INTERRUPTS: u8 = 5;
    /// The debug line.
    pub const DEBUG: u8 = 6;
    /// Memory, all rights: `init`'s own frames, the free ones among them for its page tables.
    pub const OWN: u8 = 7;
    /// First of up to [`super::EXTENTS`] further extents of free memory.
    pub const MORE_MEMORY: u8 = 8;
}

/// Most extents of free memory beyond the largest.
pub const EXTENTS: usize = 8;
/// Value of [`BootInfo::magic`].
pub const MAGIC: u64 = u64::from_le_bytes(*b"DenaliBI");

/// An extent of physical frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Extent {
    /// First frame number.
    pub first: u64,
    /// Frames.
    pub count: u64,
}

/// The page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct BootInfo {
    /// [`MAGIC`].
    pub magic: u64,
    /// Extent behind [`slot::MEMORY`].
    pub memory: Extent,
    /// Extents behind [`slot::MORE_MEMORY`] and the slots after it.
    pub more_memory: [Extent; EXTENTS],
    /// Extents used of `more_memory`.
    pub more_memory_count: u64,
    /// Extent behind [`slot::BUNDLE`].
    pub bundle: Extent,
    /// Bytes of the bundle; it begins at the first byte of its extent.
    pub bundle_length: u64,
    /// Free frames of [`slot::OWN`] for `init`'s page tables.
    pub own_free: Extent,
    /// Heap of `init`: mapped bytes from [`crate::layout::HEAP`].
    pub heap_length: u64,
    /// Physical address of the ACPI root pointer; 0: none was handed over.
    pub rsdp: u64,
    /// TSC at kernel entry.
    pub tsc_base: u64,
    /// As in [`crate::registers::RegisterPage::tsc_multiplier`].
    pub tsc_multiplier: u64,
    /// Processors that run domains.
    pub processors: u64,
    /// Bytes of memory found at boot.
    pub memory_total: u64,
}

const _: () = assert!(size_of::<BootInfo>() <= 4096);
