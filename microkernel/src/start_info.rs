//! What the loader tells, wherever the kernel was entered.

use crate::physical;
use microkernel_logic::boot::{self, Refusal, StartInfo};

/// The first page tables map this much.
pub const MAPPED_AT_BOOT: u64 = 4 << 30;

/// Reads the loader's table. `loader` is [`boot::MULTIBOOT2`], or 0 for PVH.
///
/// # Safety
/// `address` is what the loader handed over; its tables are as the loader left them, and stay so until memory is handed out.
#[inline(never)] // So that the stack that it needs is not the rest of boot's, too.
pub unsafe fn read(loader: u32, address: u64) -> Result<StartInfo, Refusal> {
    let bytes = |address: u64, length: usize| {
        let end = address.checked_add(length as u64)?;
        // SAFETY: mapped by the first page tables; that nobody writes there is the caller's promise.
        (end <= MAPPED_AT_BOOT).then(|| unsafe { physical::bytes(address, length) })
    };
    let info = match loader {
        0 => boot::pvh(address, bytes),
        boot::MULTIBOOT2 => boot::multiboot2(address, bytes),
        _ => Err("the boot loader speaks neither PVH nor Multiboot2"),
    }?;
    if info.bundle.end() > MAPPED_AT_BOOT {
        return Err("the loader has put the bundle above 4 GiB");
    }
    Ok(info)
}
