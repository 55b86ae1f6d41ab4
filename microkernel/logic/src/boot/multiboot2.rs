//! The table of a Multiboot2 loader (Multiboot2 Specification 2.0, chapter 3.6).

use super::{Refusal, Region, StartInfo, bundle, memory_map, word32, word64};
use protocol::boot::Framebuffer;

/// Value of EAX at the entry.
pub const MAGIC: u32 = 0x36d7_6289;
/// Most bytes of the table: a memory map of thousands of entries and the kernel's sections are far smaller.
const LONGEST: usize = 1 << 20;
/// Bytes of the table's header, and of a tag's.
const HEADER: usize = 8;

/// Kinds of tags.
mod tag {
    pub const END: u32 = 0;
    pub const MODULE: u32 = 3;
    pub const MEMORY_MAP: u32 = 6;
    pub const FRAMEBUFFER: u32 = 8;
    pub const RSDP_1: u32 = 14;
    pub const RSDP_2: u32 = 15;
}

/// Reads the table at `address`; `read` gives bytes of physical memory, as far as they can be read.
pub fn multiboot2<'a>(address: u64, read: impl Fn(u64, usize) -> Option<&'a [u8]>) -> Result<StartInfo, Refusal> {
    let read = |address, length| read(address, length).ok_or("the loader's table lies above 4 GiB");
    let length = word32(read(address, HEADER)?, 0) as usize;
    if !(2 * HEADER..=LONGEST).contains(&length) {
        return Err("the loader's table has an impossible length");
    }
    let table = read(address, length)?;
    let mut info = StartInfo::default();
    let mut mapped = false;
    let mut at = HEADER;
    loop {
        let (kind, size) = (word32(table, at), word32(table, at + 4) as usize);
        if kind == tag::END {
            break;
        }
        let end = at.saturating_add(size);
        let content = table.get(at + HEADER..end).ok_or("the loader's table is damaged")?;
        match kind {
            tag::MEMORY_MAP => {
                info.memory = memory_map(content.get(8..).unwrap_or_default(), word32(content, 0) as usize)?;
                mapped = true;
            }
            tag::MODULE if info.bundle.length == 0 => {
                let (start, end) = (word32(content, 0), word32(content, 4));
                info.bundle = bundle(start.into(), end.saturating_sub(start).into())?;
            }
            tag::FRAMEBUFFER => info.framebuffer = framebuffer(content),
            // The pointer itself is in the tag: a copy, which on UEFI can be found nowhere else. That of ACPI 2.0 counts more.
            tag::RSDP_2 => info.rsdp = address + (at + HEADER) as u64,
            tag::RSDP_1 if info.rsdp == 0 => info.rsdp = address + (at + HEADER) as u64,
            _ => {}
        }
        at = end.next_multiple_of(8);
    }
    if !mapped {
        return Err("the loader tells of no memory");
    }
    if info.rsdp != 0 {
        info.kept = Region { start: address, length: length as u64 };
        info.memory.subtract(info.kept);
    }
    let screen = &info.framebuffer;
    let bytes = u64::from(screen.pitch) * u64::from(screen.height);
    info.memory.subtract(Region { start: screen.address, length: bytes });
    Ok(info)
}

/// The screen that a tag describes; none if it is of another kind or makes no sense.
fn framebuffer(content: &[u8]) -> Framebuffer {
    let byte = |at: usize| content.get(at).copied().unwrap_or(0);
    let mut screen = Framebuffer {
        address: word64(content, 0),
        pitch: word32(content, 8),
        width: word32(content, 12),
        height: word32(content, 16),
        bits_per_pixel: byte(20),
        ..Framebuffer::default()
    };
    match byte(21) {
        1 => {
            screen.kind = Framebuffer::PIXELS;
            (screen.red_position, screen.red_size) = (byte(24), byte(25));
            (screen.green_position, screen.green_size) = (byte(26), byte(27));
            (screen.blue_position, screen.blue_size) = (byte(28), byte(29));
        }
        2 => {
            screen.kind = Framebuffer::TEXT;
            screen.bits_per_pixel = 16;
        }
        _ => return Framebuffer::default(),
    }
    if possible(&screen) { screen } else { Framebuffer::default() }
}

/// Whether lines lie in their pitch, colours in their pixel, and all of it below 2^52.
fn possible(screen: &Framebuffer) -> bool {
    const MOST: u32 = 1 << 16;
    let bits = u32::from(screen.bits_per_pixel);
    let line = screen.width.saturating_mul(bits.div_ceil(8));
    let bytes = u64::from(screen.pitch) * u64::from(screen.height);
    let colour = |position: u8, size: u8| u32::from(position) + u32::from(size) <= bits && size <= 16;
    (8..=64).contains(&bits)
        && (1..=MOST).contains(&screen.width)
        && (1..=MOST).contains(&screen.height)
        && (line..=MOST * 8).contains(&screen.pitch)
        && screen.address.checked_add(bytes).is_some_and(|end| screen.address > 0 && end <= 1 << 52)
        && colour(screen.red_position, screen.red_size)
        && colour(screen.green_position, screen.green_size)
        && colour(screen.blue_position, screen.blue_size)
}
