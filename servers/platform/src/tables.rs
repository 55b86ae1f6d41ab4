//! The ACPI tables, found and checked by the `acpi` crate through mappings of the devices extent.

use acpi::{AcpiHandler, AcpiTable, AcpiTables, PhysicalMapping, fadt::Fadt, madt::Madt, mcfg::Mcfg, sdt::SdtHeader};
use alloc::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    format,
    string::String,
    vec::Vec,
};
use core::ptr::NonNull;
use platform::{processors, routing::Routing};
use protocol::{
    layout::{MAPPINGS, PAGE},
    memory::Access,
};
use server_runtime::memory;

/// Bytes of the longest table that is read; a header that says more is not believed.
const TABLE_MAX: usize = 1 << 20;
/// Bytes of a MADT before its entries.
const MADT_HEADER: usize = 44;
/// Offset in the FADT of the number of the clock's century register.
const FADT_CENTURY: usize = 108;
/// Offset in the MCFG of the first address of memory-mapped configuration space.
const MCFG_ADDRESS: usize = 44;
/// First frame and frames of the area in which a BIOS keeps the root pointer.
const BIOS_AREA: (u64, u64) = (0xe0, 33);

/// What the tables say.
pub struct Tables {
    /// The wiring of interrupts, or why it could not be read.
    pub routing: Result<Routing, String>,
    /// Numbers of the local APICs of all processors.
    pub processors: Vec<u32>,
    /// Register of the clock that holds the century; 0: none.
    pub century: u8,
    /// Where configuration space is memory-mapped.
    pub ecam: Option<u64>,
}

/// Reads the tables. `rsdp`: physical address of the root pointer; 0: unknown, to be searched for as on a BIOS machine.
pub fn read(devices: u8, rsdp: u64) -> Result<Tables, String> {
    let mapper = Mapper { devices };
    let tables = match usize::try_from(rsdp) {
        Ok(0) | Err(_) => {
            // The search reads the area unconditionally.
            for (frame, frames) in [(0, 1), BIOS_AREA] {
                match memory::map_extent(devices, frame, frames, Access::empty()) {
                    // SAFETY: mapped just now and used by nobody.
                    Ok(base) => unsafe { memory::unmap(base, frames) },
                    Err(error) => return Err(format!("no root pointer was handed over, and the BIOS area: {error}")),
                }
            }
            // SAFETY: reading these areas has no effects; the mapper gives memory of the size asked for.
            unsafe { AcpiTables::search_for_rsdp_bios(mapper) }
        }
        // SAFETY: whatever is at the address is only read, and checked.
        Ok(rsdp) => unsafe { AcpiTables::from_rsdp(mapper, rsdp) },
    }
    .map_err(|error| format!("{error:?}"))?;
    let routing = with_table::<Madt, _>(&tables, |bytes| match bytes.get(MADT_HEADER..) {
        Some(entries) => Routing::from_madt(entries).map_err(|error| format!("MADT: {error}")),
        None => Err("MADT: too short".into()),
    });
    let processors = with_table::<Madt, _>(&tables, |bytes| bytes.get(MADT_HEADER..).map(processors::from_madt));
    let century = with_table::<Fadt, _>(&tables, |bytes| bytes.get(FADT_CENTURY).copied().unwrap_or(0));
    let ecam = with_table::<Mcfg, _>(&tables, |bytes| {
        bytes.get(MCFG_ADDRESS..).and_then(|bytes| bytes.first_chunk()).map(|bytes| u64::from_le_bytes(*bytes))
    });
    Ok(Tables {
        routing: routing.unwrap_or_else(|| Err("there is no valid MADT".into())),
        processors: processors.flatten().unwrap_or_default(),
        century: century.unwrap_or(0),
        ecam: ecam.flatten(),
    })
}

/// Lets `work` read the bytes of a table, if there is a valid one.
fn with_table<T: AcpiTable, R>(tables: &AcpiTables<Mapper>, work: impl FnOnce(&[u8]) -> R) -> Option<R> {
    let table = tables.find_table::<T>().ok()?;
    let start = table.virtual_start().cast::<u8>();
    // SAFETY: the whole table is mapped as long as `table` lives, and nobody writes to it.
    Some(work(unsafe { core::slice::from_raw_parts(start.as_ptr(), table.region_length()) }))
}

/// Maps physical memory for the `acpi` crate. Where that is impossible it gives zeros, which no check of a table accepts.
#[derive(Clone, Copy)]
struct Mapper {
    devices: u8,
}

impl Mapper {
    /// Maps the pages around a range; returns where its first byte is.
    fn map(&self, address: usize, size: usize) -> Option<NonNull<u8>> {
        let (first, offset) = (address as u64 / PAGE, address % PAGE as usize);
        let base = memory::map_extent(self.devices, first, pages(offset, size), Access::empty()).ok()?;
        // SAFETY: the offset is within the first page of the mapping.
        Some(unsafe { base.add(offset) })
    }

    fn unmap(start: NonNull<u8>, size: usize) {
        let offset = start.addr().get() % PAGE as usize;
        // SAFETY: `start` came from `map` with the same size, so the mapping begins at its page; the callers use it no more.
        unsafe { memory::unmap(start.sub(offset), pages(offset, size)) };
    }

    /// Whether the header at `start` belongs to a table that can be read whole.
    fn is_sound(&self, address: usize, start: NonNull<u8>) -> bool {
        // SAFETY: a header was mapped there; it is plain bytes.
        let header = unsafe { start.cast::<[u8; size_of::<SdtHeader>()]>().read() };
        if header.starts_with(b"RSD PTR ") {
            // The root pointer is as long as a header, and no table.
            return true;
        }
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        if !(size_of::<SdtHeader>()..=TABLE_MAX).contains(&length) || address.checked_add(length).is_none() {
            return false;
        }
        match self.map(address, length) {
            Some(whole) => {
                Mapper::unmap(whole, length);
                true
            }
            None => false,
        }
    }
}

fn pages(offset: usize, size: usize) -> u64 {
    ((offset + size) as u64).div_ceil(PAGE)
}

fn zeros(size: usize) -> Layout {
    // A size that has no layout is one that no table that was found sound has.
    Layout::from_size_align(size.max(1), 8).unwrap_or(Layout::new::<u64>())
}

impl AcpiHandler for Mapper {
    unsafe fn map_physical_region<T>(&self, address: usize, size: usize) -> PhysicalMapping<Self, T> {
        let start = self.map(address, size).filter(|start| {
            let good = size != size_of::<SdtHeader>() || self.is_sound(address, *start);
            if !good {
                Mapper::unmap(*start, size);
            }
            good
        });
        let start = start.unwrap_or_else(|| {
            // SAFETY: the layout is not empty.
            let zeros_start = unsafe { alloc_zeroed(zeros(size)) };
            NonNull::new(zeros_start).unwrap_or_else(|| handle_alloc_error(zeros(size)))
        });
        // SAFETY: `size` bytes from `start` are mapped, or are zeros from the heap, until `unmap_physical_region`.
        unsafe { PhysicalMapping::new(address, start.cast(), size, size, *self) }
    }

    fn unmap_physical_region<T>(region: &PhysicalMapping<Self, T>) {
        let (start, size) = (region.virtual_start().cast::<u8>(), region.region_length());
        if (start.addr().get() as u64) < MAPPINGS {
            // SAFETY: below the area of mappings is only what `map_physical_region` took from the heap, with this layout.
            unsafe { dealloc(start.as_ptr(), zeros(size)) };
        } else {
            Mapper::unmap(start, size);
        }
    }
}
