//! What a PVH loader tells: memory map, the bundle, the ACPI root pointer (Xen, `xen/include/public/arch-x86/hvm/start_info.h`).

use crate::physical;

/// Value of the first word.
const MAGIC: u32 = 0x336e_c578;
/// Most regions of memory looked at.
pub const REGIONS: usize = 32;

/// A range of physical addresses: first byte, bytes.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

impl Region {
    /// First byte after it.
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }
}

/// What was told.
pub struct StartInfo {
    /// Memory.
    pub memory: [Region; REGIONS],
    /// The bundle; its length is 0 if there is none.
    pub bundle: Region,
    /// Physical address of the ACPI root pointer, or 0.
    pub rsdp: u64,
}

fn word32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn word64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Reads the structure at `address`.
///
/// # Safety
/// `address` is what the loader handed over; it and what it points to lie in the first 4 GiB and are still as the loader left them.
pub unsafe fn read(address: u64) -> Result<StartInfo, &'static str> {
    // SAFETY: by the caller's promise, for this and the tables that it points to.
    let table = |address: u64, length: usize| unsafe { physical::bytes(address, length) };
    let header = table(address, 56);
    if word32(header, 0) != MAGIC {
        return Err("the loader's start information has the wrong magic number");
    }
    if word32(header, 4) < 1 {
        return Err("the loader's start information has no memory map (version 0)");
    }
    let (modules, module_list) = (word32(header, 12), word64(header, 16));
    let (memory_map, entries) = (word64(header, 40), word32(header, 48) as usize);
    let mut memory = [Region::default(); REGIONS];
    let map = table(memory_map, entries.min(1024) * 24);
    let usable = map.chunks_exact(24).filter(|entry| word32(entry, 16) == 1);
    for (region, entry) in memory.iter_mut().zip(usable) {
        *region = Region { start: word64(entry, 0), length: word64(entry, 8) };
    }
    let bundle = if modules == 0 {
        Region::default()
    } else {
        let module = table(module_list, 16);
        Region { start: word64(module, 0), length: word64(module, 8) }
    };
    Ok(StartInfo { memory, bundle, rsdp: word64(header, 32) })
}
