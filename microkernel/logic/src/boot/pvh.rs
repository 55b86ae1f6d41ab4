//! The table of a PVH loader (Xen, `xen/include/public/arch-x86/hvm/start_info.h`).

use super::{ENTRIES, ENTRY, Refusal, StartInfo, bundle, memory_map, word32, word64};

/// Value of the first word.
const MAGIC: u32 = 0x336e_c578;
/// Bytes of the table.
const HEADER: usize = 56;
/// Bytes of a module's entry.
const MODULE: usize = 32;

/// Reads the table at `address`; `read` gives bytes of physical memory, as far as they can be read.
pub fn pvh<'a>(address: u64, read: impl Fn(u64, usize) -> Option<&'a [u8]>) -> Result<StartInfo, Refusal> {
    let read = |address, length| read(address, length).ok_or("the loader's start information lies above 4 GiB");
    let header = read(address, HEADER)?;
    if word32(header, 0) != MAGIC {
        return Err("the loader's start information has the wrong magic number");
    }
    if word32(header, 4) < 1 {
        return Err("the loader's start information has no memory map (version 0)");
    }
    let entries = (word32(header, 48) as usize).min(ENTRIES);
    let mut info = StartInfo { rsdp: word64(header, 32), ..StartInfo::default() };
    info.memory = memory_map(read(word64(header, 40), entries * ENTRY)?, ENTRY)?;
    if word32(header, 12) > 0 {
        let module = read(word64(header, 16), MODULE)?;
        info.bundle = bundle(word64(module, 0), word64(module, 8))?;
    }
    Ok(info)
}
