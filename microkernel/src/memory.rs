//! Memory at boot: the physical map, the frame table, and what is left for domains.

use crate::{cpu, physical, start_info::MAPPED_AT_BOOT};
use microkernel_logic::{
    Frame,
    boot::{PAGE, Region, Regions, StartInfo},
    frames::{FrameEntry, FrameKind, FrameTable},
    paging::{Entry, Table},
};

const LARGE_PAGE: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
/// The physical map ends here: it has one entry of the top-level table.
const HIGHEST: u64 = 512 * GIB;
/// The first MiB belongs to firmware and old devices; the kernel is loaded behind it.
const FIRST_USABLE: u64 = 1 << 20;
/// Present, writable, 2 MiB, no execute.
const LARGE: u64 = 0x83 | 1 << 63;
/// In an entry of a directory: it maps a large page.
const LARGE_SIZE: u64 = 0x80;
/// Uncached.
const UNCACHED: u64 = 0x18;
/// Present; present and writable; no execute: for the kernel's own pages.
const PRESENT: u64 = 1;
const WRITABLE: u64 = 3;
const NO_EXECUTE: u64 = 1 << 63;

unsafe extern "C" {
    static kernel_text_start: u8;
    static kernel_text_end: u8;
    static kernel_rodata_end: u8;
    static kernel_end: u8;
}

/// What boot made of the memory.
pub struct Memory {
    /// The frame table: all memory that is left is free, the bundle too.
    pub frames: FrameTable,
    /// What is left.
    pub free: Regions,
    /// Bytes of memory found.
    pub total: u64,
}

/// Maps all memory, makes the frame table. What is beyond the physical map is no memory any more.
///
/// # Safety
/// To be called once, at boot, with what the loader told.
#[inline(never)] // So that the stack that it needs is not the rest of boot's, too.
pub unsafe fn initialise(info: &mut StartInfo) -> Result<Memory, &'static str> {
    let memory = &mut info.memory;
    // Loaders put it where firmware keeps something of its own (SeaBIOS for NVMe disks, at the end of memory): it is memory all the same.
    memory.add(Region::between(info.bundle.start & !(PAGE - 1), info.bundle.end().next_multiple_of(PAGE)));
    let all = memory.total();
    memory.subtract(Region::between(HIGHEST, u64::MAX));
    let unused = all - memory.total() + memory.lost();
    if unused > 0 {
        crate::say!("{} KiB of memory stay unused: above 512 GiB, or in too small pieces", unused >> 10);
    }
    let mut free = memory.clone();
    // The first MiB belongs to firmware and old devices; then comes the kernel.
    free.subtract(Region::between(0, (&raw const kernel_end) as u64 - physical::KERNEL_BASE));
    free.subtract(info.bundle);
    let top = memory.end();
    // SAFETY: by the caller's promise this runs once, before anything else uses these tables.
    unsafe { map_all(memory, &mut free, top)? };

    let entries = (top / PAGE) as usize;
    let table = free.take(entries as u64 * size_of::<FrameEntry>() as u64, u64::MAX).ok_or("too little memory")?;
    // SAFETY: memory that `take` took out of the free regions for ever; entries are plain integers, and
    // `FrameTable::new` writes them all.
    let slice = unsafe { core::slice::from_raw_parts_mut(physical::address(table) as *mut FrameEntry, entries) };
    let mut frames = FrameTable::new(slice);
    frames.declare(0, entries as Frame, FrameKind::Device);
    for region in memory.list() {
        declare(&mut frames, *region, FrameKind::Reserved);
    }
    // The first MiB holds tables of the firmware, and frame 0, which nobody gets.
    declare(&mut frames, Region::between(PAGE, FIRST_USABLE), FrameKind::Device);
    for region in free.list() {
        declare(&mut frames, *region, FrameKind::Free);
    }
    declare(&mut frames, info.bundle, FrameKind::Free);
    Ok(Memory { frames, free, total: memory.total() })
}

/// Declares all frames that a region touches.
fn declare(frames: &mut FrameTable, region: Region, kind: FrameKind) {
    if region.length > 0 {
        let first = region.start / PAGE;
        frames.declare(first as Frame, (region.end().div_ceil(PAGE) - first) as u32, kind);
    }
}

/// Maps physical memory at [`physical::BASE`] by large pages: memory cached, all else below 4 GiB uncached. Takes away the
/// first mapping of low addresses.
///
/// # Safety
/// As for [`initialise`].
unsafe fn map_all(memory: &Regions, free: &mut Regions, top: u64) -> Result<(), &'static str> {
    let end = top.max(MAPPED_AT_BOOT).next_multiple_of(GIB);
    let pointers = new_table(free)?;
    for gib in 0..end / GIB {
        let directory = new_table(free)?;
        for index in 0..512 {
            let start = gib * GIB + index * LARGE_PAGE;
            let inside = |region: &Region| start < region.end() && start + LARGE_PAGE > region.start;
            let memory = memory.list().iter().any(inside);
            // SAFETY: a table that was just made, mapped by the first page tables.
            unsafe {
                (*physical::table(directory))[index as usize] =
                    Entry(start | LARGE | if memory { 0 } else { UNCACHED });
            }
        }
        // SAFETY: as above.
        unsafe { (*physical::table(pointers))[gib as usize] = Entry(u64::from(directory) << 12 | 3) };
    }
    let kernel = map_kernel(free)?;
    // SAFETY: the only reference; the new tables map all that the kernel uses. Low addresses are no longer used.
    unsafe {
        let top: &mut Table = cpu::top();
        top[256] = Entry(u64::from(pointers) << 12 | 3);
        top[511] = Entry(u64::from(kernel) << 12 | 3);
        top[0] = Entry::EMPTY;
    }
    x86_64::instructions::tlb::flush_all();
    Ok(())
}

impl Memory {
    /// Takes a page out of the physical map for ever: what lies above it is a stack, whose overflow is to be an exception. `None` if there is no
    /// memory for the page table that this may need.
    pub fn unmap(&mut self, page: u64) -> Option<()> {
        // SAFETY: the tables that `map_all` has made, which nobody else uses or holds a reference to while the kernel boots.
        let entry = unsafe {
            let pointers = &*physical::table(cpu::top()[256].frame());
            let directory = physical::table(pointers[(page / GIB) as usize].frame());
            &mut (*directory)[(page % GIB / LARGE_PAGE) as usize]
        };
        if entry.0 & LARGE_SIZE != 0 {
            let table = new_table(&mut self.free).ok()?;
            self.frames.declare(table, 1, FrameKind::Reserved);
            for index in 0..512 {
                // SAFETY: a table that was just made. Its pages are as the large one was.
                unsafe { (*physical::table(table))[index as usize] = Entry(entry.0 - LARGE_SIZE + index * PAGE) };
            }
            *entry = Entry(u64::from(table) << 12 | WRITABLE);
        }
        // SAFETY: as above.
        unsafe { (*physical::table(entry.frame()))[(page / PAGE % 512) as usize] = Entry::EMPTY };
        x86_64::instructions::tlb::flush_all();
        Some(())
    }
}

/// Maps the kernel's own pages where it is linked, each as it is used: code cannot be written, nothing else executed.
fn map_kernel(free: &mut Regions) -> Result<Frame, &'static str> {
    let pointers = new_table(free)?;
    let directory = new_table(free)?;
    // SAFETY: tables that were just made, mapped by the first page tables.
    unsafe { (*physical::table(pointers))[510] = Entry(u64::from(directory) << 12 | WRITABLE) };
    let parts = [
        (&raw const kernel_text_start, &raw const kernel_text_end, PRESENT),
        (&raw const kernel_text_end, &raw const kernel_rodata_end, PRESENT | NO_EXECUTE),
        (&raw const kernel_rodata_end, &raw const kernel_end, WRITABLE | NO_EXECUTE),
    ];
    for (start, end, flags) in parts {
        let (start, end) = (start as u64 - physical::KERNEL_BASE, end as u64 - physical::KERNEL_BASE);
        for page in (start..end).step_by(PAGE as usize) {
            if page + physical::KERNEL_BASE == cpu::stack_guard() {
                continue;
            }
            let index = (page / LARGE_PAGE) as usize;
            // SAFETY: as above; the index is below 512, for the kernel lies in the first GiB.
            let mut entry = unsafe { (*physical::table(directory))[index] };
            if !entry.is_present() {
                entry = Entry(u64::from(new_table(free)?) << 12 | WRITABLE);
                // SAFETY: as above.
                unsafe { (*physical::table(directory))[index] = entry };
            }
            // SAFETY: as above.
            unsafe { (*physical::table(entry.frame()))[(page / PAGE % 512) as usize] = Entry(page | flags) };
        }
    }
    Ok(pointers)
}

fn new_table(free: &mut Regions) -> Result<Frame, &'static str> {
    let start = free.take(PAGE, MAPPED_AT_BOOT).ok_or("too little memory below 4 GiB")?;
    // SAFETY: memory just taken out of the free regions.
    unsafe { physical::copy(None, start, PAGE as usize) };
    Ok((start / PAGE) as Frame)
}
