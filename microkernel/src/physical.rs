//! Physical memory as ring 0 sees it: all of it, at one base.
//!
//! The one place where the kernel makes references to memory by number. Addresses come from the
//! frame table and from page tables that the kernel wrote itself, so they are addresses of memory.

use core::sync::atomic::{Ordering, compiler_fence};
use microkernel_logic::{Frame, block::ControlBlock, paging::Table};

/// Where physical address 0 is mapped: entry 256 of the top-level table.
pub const BASE: u64 = 0xffff_8000_0000_0000;
/// Where the kernel is linked; physical address 0 of the first GiB is mapped here, too.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;

/// Address of a physical address in the physical map.
pub const fn address(physical: u64) -> u64 {
    BASE + physical
}

fn of_frame(frame: Frame) -> u64 {
    address(u64::from(frame) << 12)
}

/// The control block in a frame.
///
/// # Safety
/// The frame table says that the frame is a control block (or it is about to), and no other reference to it is alive.
#[inline]
pub unsafe fn block(frame: Frame) -> *mut ControlBlock {
    of_frame(frame) as *mut ControlBlock
}

/// The page table in a frame.
///
/// # Safety
/// The frame table says that the frame is a page table (or it is about to), and no other reference to it is alive.
#[inline]
pub unsafe fn table(frame: Frame) -> *mut Table {
    of_frame(frame) as *mut Table
}

/// A range of physical memory as bytes.
///
/// # Safety
/// The range is memory that the boot loader filled or nobody uses, and it is not written while the slice lives.
pub unsafe fn bytes(physical: u64, length: usize) -> &'static [u8] {
    // SAFETY: all memory is mapped at BASE; the rest is the caller's promise.
    unsafe { core::slice::from_raw_parts(address(physical) as *const u8, length) }
}

/// Copies bytes within memory (`None`: zero bytes), eight at a time.
///
/// # Safety
/// Both ranges are memory that is no control block, page table or the kernel's own; they do not overlap.
#[inline]
pub unsafe fn copy(from: Option<u64>, to: u64, length: usize) {
    let (words, rest) = (length / 8, length % 8);
    match from {
        // SAFETY: both ranges are mapped at BASE and by the caller's promise nobody's but domains'; domains do not run
        // on this processor now, and what another does to its own bytes meanwhile only changes which bytes are copied.
        Some(from) => unsafe {
            core::arch::asm!(
                "rep movsq", "mov rcx, {rest}", "rep movsb",
                rest = in(reg) rest,
                inout("rcx") words => _, inout("rsi") address(from) => _, inout("rdi") address(to) => _,
                options(nostack, preserves_flags),
            );
        },
        // SAFETY: as above.
        None => unsafe {
            core::arch::asm!(
                "rep stosq", "mov rcx, {rest}", "rep stosb",
                rest = in(reg) rest,
                inout("rcx") words => _, in("rax") 0, inout("rdi") address(to) => _,
                options(nostack, preserves_flags),
            );
        },
    }
}

/// Reads bytes of memory into the kernel's own, once: a domain that runs on another processor may write them meanwhile, and what was
/// checked must be what is used.
///
/// # Safety
/// As for [`copy`]'s source.
#[inline]
pub unsafe fn read(physical: u64, into: &mut [u8]) {
    // SAFETY: the source is mapped at BASE and disjoint from the kernel's own memory, where `into` lies.
    unsafe { core::ptr::copy_nonoverlapping(address(physical) as *const u8, into.as_mut_ptr(), into.len()) }
    // The compiler may not read the source again in place of the copy: behind this line it could be another.
    compiler_fence(Ordering::SeqCst);
}

/// Writes the kernel's own bytes to memory.
///
/// # Safety
/// As for [`copy`]'s destination.
#[inline]
pub unsafe fn write(physical: u64, from: &[u8]) {
    // SAFETY: as for `read`.
    unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), address(physical) as *mut u8, from.len()) }
}

/// Reads a 32-bit device register by its physical address below 4 GiB.
///
/// # Safety
/// A device that the kernel drives has a register there.
pub unsafe fn read_register(physical: u64) -> u32 {
    // SAFETY: mapped uncached at BASE; by the caller's promise a register.
    unsafe { (address(physical) as *const u32).read_volatile() }
}

/// Writes a 32-bit device register.
///
/// # Safety
/// As for [`read_register`]; the write does what the caller wants.
pub unsafe fn write_register(physical: u64, value: u32) {
    // SAFETY: as above.
    unsafe { (address(physical) as *mut u32).write_volatile(value) }
}
