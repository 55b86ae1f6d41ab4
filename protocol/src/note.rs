//! What a guest image says of itself: an ELF note, so that one file is all one needs to push.
//!
//! The note lies in section `.note.denali`, owner [`OWNER`], type [`TYPE`], and its descriptor is one
//! [`Note`]. All numbers are little-endian. Addresses are link-time addresses in the image.

/// Owner of the note: 10 bytes with its NUL, padded to 12, so that the descriptor is 8-aligned.
pub const OWNER: [u8; 12] = *b"Denali VM\0\0\0";
/// Length of the owner as the note states it.
pub const OWNER_LENGTH: u32 = 10;
/// Type of the note: a VM image.
pub const TYPE: u32 = 1;
/// Name of the section.
pub const SECTION: &str = ".note.denali";

/// In [`Note::flags`]: the guest says `ready` ([`crate::abi::Number::Ready`]) once it has started, so that clones can be made of it.
pub const FLAG_READY: u32 = 1;

/// The descriptor. A device that the guest does not use has address and length 0.
///
/// `A` is the type of an address: a pointer to a static in the guest that makes the note (so that
/// the linker fills it in), `u64` for whoever reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Note<A = u64> {
    /// [`crate::ARCHITECTURE_VERSION`].
    pub version: u32,
    /// [`FLAG_READY`]; the other bits must be 0.
    pub flags: u32,
    /// Bytes of memory that the guest wants, the virtual register page included. The system file may say otherwise.
    pub memory: u64,
    /// NIC window: page-aligned address; the queue page comes first.
    pub nic: A,
    /// Bytes of the NIC window, a multiple of 4096.
    pub nic_length: u64,
    /// Disk window.
    pub disk: A,
    /// Bytes of the disk window.
    pub disk_length: u64,
    /// Console page.
    pub console: A,
    /// Bytes of the console window: 0 or 4096.
    pub console_length: u64,
}

/// The whole note as it lies in the section.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ElfNote<A> {
    /// [`OWNER_LENGTH`].
    pub owner_length: u32,
    /// Bytes of [`Note`].
    pub length: u32,
    /// [`TYPE`].
    pub kind: u32,
    /// [`OWNER`].
    pub owner: [u8; 12],
    /// The descriptor.
    pub note: Note<A>,
}

impl<A> ElfNote<A> {
    /// The note with its header.
    pub const fn new(note: Note<A>) -> ElfNote<A> {
        ElfNote { owner_length: OWNER_LENGTH, length: size_of::<Note>() as u32, kind: TYPE, owner: OWNER, note }
    }
}

const _: () = assert!(size_of::<Note>() == 64 && size_of::<Note<*const u8>>() == 64);
const _: () = assert!(core::mem::offset_of!(ElfNote<u64>, note) == 24);

impl Note {
    /// The note from its little-endian bytes.
    pub fn from_bytes(bytes: &[u8; 64]) -> Note {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        Note {
            version: word(0) as u32,
            flags: (word(0) >> 32) as u32,
            memory: word(8),
            nic: word(16),
            nic_length: word(24),
            disk: word(32),
            disk_length: word(40),
            console: word(48),
            console_length: word(56),
        }
    }
}
