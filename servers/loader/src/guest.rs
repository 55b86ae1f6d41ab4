//! From a guest image in the bundle to what the pager is asked to create.

use alloc::vec::Vec;
use core::fmt;
use protocol::{
    abi::Lend,
    bundle::{self, BundleError},
    image::{Image, ImageError},
    layout::PAGE,
    memory::Access,
    note::FLAG_READY,
    service::pager::Part,
};

/// A guest image that passed the check, for a VM of a certain memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guest {
    /// First instruction.
    pub entry: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Parts; data offsets count from `offset`.
    pub parts: Vec<Part>,
    /// Offset in the bundle of the pages that hold all data.
    pub offset: u64,
    /// How many pages.
    pub pages: u64,
    /// Windows of NIC, disk and console: address and bytes.
    pub windows: [(u64, u64); 3],
    /// Whether it says `ready` once it has started.
    pub says_ready: bool,
}

/// Why a guest image was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The bundle has no such file.
    Missing,
    /// The bundle is damaged.
    Bundle(BundleError),
    /// The image did not pass the check.
    Image(ImageError),
    /// The image has more data than can be lent.
    TooLarge,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Missing => f.write_str("the bundle has no such image"),
            Refused::Bundle(error) => error.fmt(f),
            Refused::Image(error) => error.fmt(f),
            Refused::TooLarge => write!(f, "the image has more than {} KiB of data", Lend::MAX_PAGES * PAGE / 1024),
        }
    }
}

impl core::error::Error for Refused {}

impl Guest {
    /// Looks up and checks the image `name`, for a VM of `memory` bytes (0: as the image says).
    pub fn find(bundle: &[u8], name: &str, memory: u64) -> Result<Guest, Refused> {
        let file = bundle::find(bundle, name).map_err(Refused::Bundle)?.ok_or(Refused::Missing)?;
        let (image, memory) = Image::guest(file.data, memory).map_err(Refused::Image)?;
        let note = image.note.ok_or(Refused::Image(ImageError::NoNote))?;
        // The check has seen to it that no sum here is beyond the file, and the file is within the bundle.
        let base = file.offset as u64;
        let with_data = || image.segments.iter().filter(|segment| segment.data_length > 0);
        let first = with_data().map(|segment| base + segment.data_offset).min().unwrap_or(base);
        let end =
            with_data().map(|segment| base + segment.data_offset + segment.data_length).max().unwrap_or(first + 1);
        let offset = first / PAGE * PAGE;
        let pages = (end - offset).div_ceil(PAGE);
        if pages > Lend::MAX_PAGES {
            return Err(Refused::TooLarge);
        }
        let part = |segment: &protocol::image::Segment| Part {
            address: segment.address,
            length: segment.length,
            data_offset: if segment.data_length > 0 { base + segment.data_offset - offset } else { 0 },
            data_length: segment.data_length,
            write: segment.access.contains(Access::WRITE),
            execute: segment.access.contains(Access::EXECUTE),
        };
        let windows = [(note.nic, note.nic_length), (note.disk, note.disk_length), (note.console, note.console_length)];
        Ok(Guest {
            entry: image.entry,
            memory,
            parts: image.segments.iter().map(part).collect(),
            offset,
            pages,
            windows,
            says_ready: note.flags & FLAG_READY != 0,
        })
    }

    /// The NIC window, if the guest has a NIC.
    pub fn nic(&self) -> Option<(u64, u64)> {
        Some(self.windows[0]).filter(|(_, length)| *length > 0)
    }

    /// The disk window, if the guest uses disks.
    pub fn disk(&self) -> Option<(u64, u64)> {
        Some(self.windows[1]).filter(|(_, length)| *length > 0)
    }

    /// Address of the console page, if the guest has a console.
    pub fn console(&self) -> Option<u64> {
        Some(self.windows[2]).filter(|(_, length)| *length > 0).map(|(address, _)| address)
    }
}
