//! Capabilities as seen from outside the kernel: kinds, rights, narrowing.

use bitflags::bitflags;

/// Slots of a domain's capability table.
pub const SLOTS: usize = 64;

/// What a capability names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Nothing.
    Empty = 0,
    /// An extent of physical frames, and the domains whose control blocks lie in it.
    Memory = 1,
    /// One domain.
    Domain = 2,
    /// A range of I/O ports.
    Ports = 3,
    /// One hardware interrupt.
    Interrupt = 4,
    /// The right to make hardware interrupts and to name I/O APICs.
    InterruptAuthority = 5,
    /// The right to write to the kernel's debug line.
    Debug = 6,
}

impl Kind {
    /// The kind with this code, if there is one.
    pub const fn from_u8(code: u8) -> Option<Kind> {
        Some(match code {
            0 => Kind::Empty,
            1 => Kind::Memory,
            2 => Kind::Domain,
            3 => Kind::Ports,
            4 => Kind::Interrupt,
            5 => Kind::InterruptAuthority,
            6 => Kind::Debug,
            _ => return None,
        })
    }
}

bitflags! {
    /// What the holder may do. Rights can only be taken away by a copy.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Rights: u16 {
        /// Memory: read the frames by transfer, map them readable.
        const READ = 1 << 0;
        /// Memory: write the frames by transfer, map them writable.
        const WRITE = 1 << 1;
        /// Memory: map the frames executable.
        const EXECUTE = 1 << 2;
        /// Memory: map the frames at all.
        const MAP = 1 << 3;
        /// Memory: make control blocks and page tables of its frames.
        const CREATE = 1 << 4;
        /// Memory: the frames are device registers; map them uncached. Such frames are never read or written by transfer.
        const DEVICE = 1 << 5;
        /// Domain, and domains in Memory: start, stop, reset, destroy, map, transfer anywhere, fill slots.
        const CONTROL = 1 << 6;
        /// Domain, and domains in Memory: transfer from and to the window that the capability names.
        const WINDOW = 1 << 7;
        /// Domain, and domains in Memory: raise the line that the capability names.
        const RAISE = 1 << 8;
        /// Domain: send messages.
        const CALL = 1 << 9;
    }
}

/// What a copy keeps of a capability. All of it must lie within the original.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Narrow {
    /// Rights to keep; must be a subset.
    pub rights: u16,
    /// Line that [`Rights::RAISE`] raises. Free to choose only when the original has [`Rights::CONTROL`].
    pub line: u8,
    /// Window that [`Rights::WINDOW`] opens. Free to choose only when the original has [`Rights::CONTROL`].
    pub window: u8,
    /// Memory: frames; Ports: ports. 0: as many as the original has after `first`.
    pub count: u32,
    /// Memory: first frame, Ports: first port, as an absolute number. 0 keeps the original's first.
    pub first: u64,
    /// The number that the called server is told. Free to choose only when the original has [`Rights::CONTROL`].
    pub badge: u64,
}

/// What the kernel tells of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Description {
    /// [`Kind`].
    pub kind: u8,
    /// Line of [`Rights::RAISE`].
    pub line: u8,
    /// [`Rights`].
    pub rights: u16,
    /// Memory: frames; Ports: ports.
    pub count: u32,
    /// Memory: first frame number; Ports: first port; Domain: frame of the control block.
    pub first: u64,
    /// The badge.
    pub badge: u64,
}

const _: () = assert!(size_of::<Narrow>() == 24 && size_of::<Description>() == 24);
