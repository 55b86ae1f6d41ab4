//! What a boot loader tells: memory map, bundle, ACPI root pointer, screen.
//!
//! Two doors lead into the kernel: PVH ([`pvh()`]) and Multiboot2 ([`multiboot2()`]). Both tables come down to one
//! [`StartInfo`]. What they say of the firmware's making is not believed blindly: lists are read as far as they are whole, and a
//! wrong length is an error, never a read elsewhere.

mod multiboot2;
mod pvh;
mod regions;
#[cfg(test)]
mod tests;

pub use multiboot2::{MAGIC as MULTIBOOT2, multiboot2};
pub use pvh::pvh;
pub use regions::{PAGE, REGIONS, Region, Regions};

use protocol::boot::Framebuffer;

/// What was told.
#[derive(Clone, Debug, Default)]
pub struct StartInfo {
    /// Memory that the firmware leaves to whoever boots. The screen and [`StartInfo::kept`] are taken out of it.
    pub memory: Regions,
    /// The bundle, which begins on a page boundary; its length is 0 if there is none.
    pub bundle: Region,
    /// The loader's table if it has to be kept, because the ACPI root pointer lies in it.
    pub kept: Region,
    /// Physical address of the ACPI root pointer, or 0.
    pub rsdp: u64,
    /// The screen.
    pub framebuffer: Framebuffer,
}

/// Why what the loader told cannot be used.
pub type Refusal = &'static str;

/// Kinds of memory in the tables of both loaders (ACPI 6.5, table 15.2); all others are not memory for us.
const USABLE: u32 = 1;
/// Most entries of a memory map that are looked at.
const ENTRIES: usize = 4096;
/// Bytes of an entry of a memory map that both loaders have alike: first byte, bytes, kind.
const ENTRY: usize = 24;

/// The memory that a map in pieces of `size` bytes leaves: what one entry calls usable and none calls anything else.
fn memory_map(map: &[u8], size: usize) -> Result<Regions, Refusal> {
    if size < ENTRY {
        return Err("the loader's memory map has too short entries");
    }
    let entries = || map.chunks_exact(size).take(ENTRIES);
    let region = |entry| Region { start: word64(entry, 0), length: word64(entry, 8) };
    let mut memory = Regions::default();
    entries().filter(|entry| word32(entry, 16) == USABLE).for_each(|entry| memory.add(region(entry)));
    entries().filter(|entry| word32(entry, 16) != USABLE).for_each(|entry| memory.subtract(region(entry)));
    Ok(memory)
}

/// Checks where the bundle lies.
fn bundle(start: u64, length: u64) -> Result<Region, Refusal> {
    if length > 0 && !start.is_multiple_of(PAGE) {
        return Err("the loader has put the bundle where no page begins");
    }
    Ok(Region { start, length })
}

/// A little-endian number of 4 bytes; 0 beyond the end.
fn word32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
}

/// A little-endian number of 8 bytes; 0 beyond the end.
fn word64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word))
}
