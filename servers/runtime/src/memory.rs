//! Memory that a server is given at run time, mapped into its address space.

use crate::{mapping, mmio::Region, state};
use core::ptr::NonNull;
use protocol::{
    abi::{Error, Target},
    layout::PAGE,
    memory::{Access, MapKind, MapOperation},
};

/// Pages of address space left unmapped after each mapping, so that running over its end is a fault.
const GUARD: u64 = 1;

/// Maps `pages` frames from `first_frame` of the memory capability in `slot`, and returns where.
///
/// Device memory is mapped uncached. Errors: those of the kernel; `Exhausted` if address space or own frames for page
/// tables ran out.
pub fn map_extent(slot: u8, first_frame: u64, pages: u64, access: Access) -> Result<NonNull<u8>, Error> {
    let count = u32::try_from(pages).map_err(|_| Error::BadArgument)?;
    let state = state::get().ok_or(Error::Exhausted)?;
    let span = (pages + GUARD) * PAGE;
    let address = state.addresses.lock().take(span, PAGE).ok_or(Error::Exhausted)?;
    let operation = MapOperation {
        kind: MapKind::Map as u8,
        access: access.bits(),
        slot,
        reserved: 0,
        count,
        address,
        frame: first_frame,
    };
    // SAFETY: nothing is mapped in this range of addresses, which was free until now, so nothing is replaced.
    let map = |operations: &[MapOperation]| unsafe { hypercall::map(Target::OWN, operations) };
    match mapping::apply(operation, state.own_slot, map, || state.own_free.lock().take(1, 1)) {
        Ok(()) => {
            let pointer = core::ptr::with_exposed_provenance_mut(address as usize);
            NonNull::new(pointer).ok_or(Error::BadAddress)
        }
        Err((error, done)) => {
            unmap_pages(address, done);
            state.addresses.lock().insert(address, span);
            Err(error)
        }
    }
}

/// Maps like [`map_extent`], for access by offset.
pub fn map_region(slot: u8, first_frame: u64, pages: u64, access: Access) -> Result<Region, Error> {
    let base = map_extent(slot, first_frame, pages, access)?;
    // SAFETY: mapped just now, and only `unmap` takes it away, whose caller vouches that no region is used any more.
    Ok(unsafe { Region::new(base, (pages * PAGE) as usize) })
}

/// Unmaps what [`map_extent`] has mapped.
///
/// # Safety
/// `base` and `pages` must be those of one mapping, and nothing may use it any more.
pub unsafe fn unmap(base: NonNull<u8>, pages: u64) {
    let address = base.as_ptr().expose_provenance() as u64;
    unmap_pages(address, pages);
    if let Some(state) = state::get() {
        state.addresses.lock().insert(address, (pages + GUARD) * PAGE);
    }
}

/// Memory that `init` has mapped for this server before it started, by its place in [`crate::Startup::resources`].
/// `None` if there is no such resource or it is not mapped.
pub fn resource(index: usize) -> Option<Region> {
    let resource = state::get()?.resources.get(index)?;
    let base = NonNull::new(core::ptr::with_exposed_provenance_mut(resource.address as usize))?;
    // SAFETY: `init` has mapped this extent at this address for the whole life of the server.
    Some(unsafe { Region::new(base, (resource.count * PAGE) as usize) })
}

/// The shared memory called `name`: mapped by `init`, at a physical address that devices can be told
/// (`StartupResource::first`, a frame number).
pub fn shared(name: &str) -> Option<Region> {
    use protocol::manifest::Resource;
    let named = |resource: &Resource| matches!(resource, Resource::Shared { name: n, .. } if n == name);
    resource(state::get()?.resources.iter().position(|r| named(&r.resource))?)
}

/// Unmaps pages, whether they are mapped or not.
fn unmap_pages(address: u64, pages: u64) {
    let Ok(count @ 1..) = u32::try_from(pages) else {
        return;
    };
    let operation = MapOperation { kind: MapKind::Unmap as u8, count, address, ..Default::default() };
    // SAFETY: the callers vouch that nothing uses these pages.
    let unmap = |operations: &[MapOperation]| unsafe { hypercall::map(Target::OWN, operations) };
    // Unmapping needs no table and passes over what is not there: it cannot fail half-way.
    let _ = mapping::apply(operation, 0, unmap, || None);
}
