//! Mapping with page tables supplied as they are found missing.

use hypercall::MapError;
use protocol::{
    abi::Error,
    layout::PAGE,
    memory::{MapKind, MapOperation},
};

/// Applies `operation` whole: where a page table is missing, takes a frame from `table` (of the memory behind `table_slot`)
/// and goes on. `map` is the kernel's call for the one address space.
///
/// Errors: what the kernel said, with the pages done before it; `Exhausted` if `table` has no more.
pub fn apply(
    mut operation: MapOperation,
    table_slot: u8,
    mut map: impl FnMut(&[MapOperation]) -> Result<(), MapError>,
    mut table: impl FnMut() -> Option<u64>,
) -> Result<(), (Error, u64)> {
    let whole = operation.count;
    loop {
        let Err(stop) = map(&[operation]) else {
            return Ok(());
        };
        let pages = if stop.operations > 0 { operation.count } else { stop.pages.min(operation.count) };
        operation.count -= pages;
        operation.address += u64::from(pages) * PAGE;
        operation.frame += u64::from(pages);
        if operation.count == 0 {
            return Ok(());
        }
        let done = u64::from(whole - operation.count);
        match stop.error {
            Error::Again if pages > 0 => {}
            Error::NoTable => {
                let frame = table().ok_or((Error::Exhausted, done))?;
                let kind = MapKind::Table as u8;
                let supply = MapOperation {
                    kind,
                    slot: table_slot,
                    count: 1,
                    address: operation.address,
                    frame,
                    ..Default::default()
                };
                map(&[supply]).map_err(|stop| (stop.error, done))?;
            }
            error => return Err((error, done)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protocol::memory::MAP_PAGES;
    use std::collections::{BTreeMap, BTreeSet};

    /// The kernel's side: two levels of tables under the root.
    #[derive(Default)]
    struct Space {
        upper: BTreeSet<u64>,
        lower: BTreeSet<u64>,
        pages: BTreeMap<u64, u64>,
        frames_used: BTreeSet<u64>,
    }

    impl Space {
        fn map(&mut self, operation: &MapOperation) -> Result<(), MapError> {
            let error = |error, pages| Err(MapError { error, operations: 0, pages });
            if operation.kind == MapKind::Table as u8 {
                assert!(self.frames_used.insert(operation.frame), "a frame is one table only");
                let address = operation.address;
                if !self.upper.insert(address >> 30) && !self.lower.insert(address >> 21) {
                    return error(Error::Occupied, 0);
                }
                return Ok(());
            }
            for page in 0..operation.count {
                let address = operation.address + u64::from(page) * PAGE;
                if page == MAP_PAGES {
                    return error(Error::Again, page);
                }
                if !self.upper.contains(&(address >> 30)) || !self.lower.contains(&(address >> 21)) {
                    return error(Error::NoTable, page);
                }
                if self.pages.insert(address, operation.frame + u64::from(page)).is_some() {
                    return error(Error::Occupied, page);
                }
            }
            Ok(())
        }
    }

    fn operation(address: u64, count: u32) -> MapOperation {
        MapOperation { kind: MapKind::Map as u8, count, address, frame: 500, ..Default::default() }
    }

    proptest! {
        #[test]
        fn maps_every_page(page in 0u64..(1 << 26), count in 1u32..3000) {
            let mut space = Space::default();
            let mut frames = 1_000_000u64..;
            apply(operation(page * PAGE, count), 1, |o| space.map(&o[0]), || frames.next()).unwrap();
            prop_assert_eq!(space.pages.len(), count as usize);
            prop_assert!(space.pages.iter().all(|(address, frame)| frame - 500 == address / PAGE - page));
            prop_assert_eq!(space.frames_used.len(), space.upper.len() + space.lower.len());
        }
    }

    #[test]
    fn says_how_far_it_came() {
        let mut space = Space::default();
        let mut frames = 1u64..;
        space.pages.insert(700 * PAGE, 1);
        let result = apply(operation(0, 1000), 1, |o| space.map(&o[0]), || frames.next());
        assert_eq!(result, Err((Error::Occupied, 700)));
        let result = apply(operation(1 << 30, 1000), 1, |o| space.map(&o[0]), || None);
        assert_eq!(result, Err((Error::Exhausted, 0)));
    }
}
