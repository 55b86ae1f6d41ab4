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

/// The screen as the boot loader left it. All zeros: there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "services", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct Framebuffer {
    /// Physical address of its first byte; it lies within [`slot::DEVICES`].
    pub address: u64,
    /// Bytes from one line to the next.
    pub pitch: u32,
    /// Pixels, or characters, of a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// [`Framebuffer::NONE`], [`Framebuffer::PIXELS`] or [`Framebuffer::TEXT`].
    pub kind: u32,
    /// Bits of a pixel, of a character and its attribute with [`Framebuffer::TEXT`].
    pub bits_per_pixel: u8,
    /// Lowest bit of red in a pixel.
    pub red_position: u8,
    /// Bits of red.
    pub red_size: u8,
    /// Lowest bit of green.
    pub green_position: u8,
    /// Bits of green.
    pub green_size: u8,
    /// Lowest bit of blue.
    pub blue_position: u8,
    /// Bits of blue.
    pub blue_size: u8,
    /// 0.
    pub reserved: u8,
}

impl Framebuffer {
    /// No screen.
    pub const NONE: u32 = 0;
    /// A linear framebuffer of pixels, each colour a field of bits.
    pub const PIXELS: u32 = 1;
    /// EGA text: a byte of code page 437 and an attribute byte for each character.
    pub const TEXT: u32 = 2;
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
    /// Processors that run domains when `init` starts; `platform` starts the others.
    pub processors: u64,
    /// Bytes of memory found at boot.
    pub memory_total: u64,
    /// The screen, if the boot loader handed one over.
    pub framebuffer: Framebuffer,
}

const _: () = assert!(size_of::<BootInfo>() <= 4096);
