//! What a frame is used for, and how that is written down in its record: in one word, which is true at every moment.

/// What a frame is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Usage {
    /// The control block of a VM.
    Control,
    /// The root page table of a VM.
    Root,
    /// The pager's own.
    Own,
    /// A page table above leaf tables; the number of the GiB of addresses.
    Directory(u32),
    /// A leaf page table; the number of the 2 MiB of addresses.
    Leaf(u32),
    /// A private page of a VM; the number of the page in its memory.
    Page(u32),
    /// What is to be a private page once its contents are there: they are being read.
    Incoming(u32),
    /// The same: it is being filled, and nobody looks for it meanwhile.
    Filling(u32),
    /// A part of a VM's page map; its number.
    Map(u32),
    /// A page of an image; the number of the page in a VM's memory.
    Image(u32),
    /// What an image is made of.
    ImageRecord,
    /// A part of the table of VMs; its number.
    Records(u32),
    /// May hold a domain that nobody can name any more: never used again.
    Lost,
}

/// Bits of a number in a [`Usage`].
const NUMBER_BITS: u32 = 28;
const NUMBER: u32 = (1 << NUMBER_BITS) - 1;

impl Usage {
    pub(super) const fn key(self) -> u32 {
        let (kind, number) = match self {
            Usage::Control => (1, 0),
            Usage::Root => (2, 0),
            Usage::Own => (3, 0),
            Usage::Directory(number) => (4, number),
            Usage::Leaf(number) => (5, number),
            Usage::Page(number) => (6, number),
            Usage::Incoming(number) => (7, number),
            Usage::Map(number) => (8, number),
            Usage::Image(number) => (9, number),
            Usage::ImageRecord => (10, 0),
            Usage::Records(number) => (11, number),
            Usage::Lost => (12, 0),
            Usage::Filling(number) => (13, number),
        };
        kind << NUMBER_BITS | number & NUMBER
    }

    pub(super) const fn from_key(key: u32) -> Option<Usage> {
        let number = key & NUMBER;
        Some(match key >> NUMBER_BITS {
            1 => Usage::Control,
            2 => Usage::Root,
            3 => Usage::Own,
            4 => Usage::Directory(number),
            5 => Usage::Leaf(number),
            6 => Usage::Page(number),
            7 => Usage::Incoming(number),
            8 => Usage::Map(number),
            9 => Usage::Image(number),
            10 => Usage::ImageRecord,
            11 => Usage::Records(number),
            12 => Usage::Lost,
            13 => Usage::Filling(number),
            _ => return None,
        })
    }

    /// Whether [`super::FrameTable::find`] finds it.
    pub(super) const fn is_found(self) -> bool {
        !matches!(self, Usage::Own | Usage::Lost | Usage::Filling(_) | Usage::Records(_) | Usage::Control | Usage::Root)
    }
}
