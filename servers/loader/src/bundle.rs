//! The bundle, which `init` has mapped read-only.

use server_runtime::protocol::{layout::PAGE, manifest::StartupResource};

/// The bytes of the bundle behind this resource.
pub fn mapped(resource: &StartupResource) -> Option<&'static [u8]> {
    let length = usize::try_from(resource.length).ok()?;
    if resource.address == 0 || resource.length > resource.count.checked_mul(PAGE)? {
        return None;
    }
    let base = core::ptr::with_exposed_provenance::<u8>(resource.address as usize);
    // SAFETY: `init` has mapped `count` frames at `address`, read-only, for the whole life of this server; the bundle lies in
    // frames that nobody can write, and `length` bytes of it are within.
    Some(unsafe { core::slice::from_raw_parts(base, length) })
}
