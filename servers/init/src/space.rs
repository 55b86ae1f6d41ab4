//! What a server's memory and address space look like.
//!
//! Its extent holds, in this order: the control block, the root page table, the program, the stack, the startup page, the
//! heap, and then page tables: those needed now, and free ones for what the server maps later.

use crate::extents::Place;
use alloc::{collections::BTreeSet, vec::Vec};
use protocol::{
    image::Image,
    layout::{HEAP, MAPPINGS, PAGE, STACK_SIZE, STACK_TOP, STARTUP},
    memory::Access,
};

/// Frames for page tables that a server has at least for its own mappings, and one more for so many of its frames.
const FREE_FRAMES: u64 = 16;
const FRAMES_PER_FREE_FRAME: u64 = 64;
/// Frames of the smallest heap.
const HEAP_MIN: u64 = 16;
/// Frames of the largest heap: it ends below the stack's guard page.
const HEAP_MAX: u64 = (STACK_TOP - STACK_SIZE - PAGE - HEAP) / PAGE;

/// Frames to map at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// First page.
    pub address: u64,
    /// Frames.
    pub place: Place,
    /// Access.
    pub access: Access,
}

/// A part of the program to copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// First byte in the program's file.
    pub data_offset: u64,
    /// Bytes.
    pub length: u64,
    /// Physical address.
    pub physical: u64,
}

/// The plan of one server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Space {
    /// Frame of the control block.
    pub block: u64,
    /// Frame of the root page table.
    pub root: u64,
    /// Frames that are mapped, to be zeroed first: program, stack, startup page, heap.
    pub zero: Place,
    /// What to copy then.
    pub loads: Vec<Load>,
    /// What to map.
    pub mappings: Vec<Mapping>,
    /// Frame of the startup page.
    pub startup: u64,
    /// Bytes of heap.
    pub heap: u64,
    /// Frames for page tables.
    pub tables: Place,
    /// Page tables that the mappings need.
    pub tables_needed: u64,
    /// Addresses of the foreign mappings, in their order.
    pub foreign: Vec<u64>,
}

/// How much memory a server would need at least.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooSmall {
    /// Bytes.
    pub needed: u64,
}

/// Plans a server with the program `image` in the frames `own`, with `foreign` memory mapped besides, and so many more frames for page
/// tables of what it maps itself.
pub fn plan(own: Place, image: &Image, foreign: &[(Place, Access)], more_tables: u64) -> Result<Space, TooSmall> {
    let mut tables = TableCount::default();
    let mut mappings = Vec::new();
    let mut next = own.first + 2;
    let mut own_frames = |address: u64, pages: u64, access| {
        let mapping = Mapping { address, place: Place { slot: own.slot, first: next, count: pages }, access };
        next += pages;
        mapping
    };
    let mut loads = Vec::new();
    for segment in &image.segments {
        let start = segment.address / PAGE * PAGE;
        let pages = (segment.address - start + segment.length).div_ceil(PAGE);
        let mapping = own_frames(start, pages, segment.access);
        loads.push(Load {
            data_offset: segment.data_offset,
            length: segment.data_length,
            physical: mapping.place.first * PAGE + (segment.address - start),
        });
        mappings.push(mapping);
    }
    mappings.push(own_frames(STACK_TOP - STACK_SIZE, STACK_SIZE / PAGE, Access::WRITE));
    let startup = own_frames(STARTUP, 1, Access::empty());
    mappings.push(startup);
    let mut address = MAPPINGS;
    let foreign: Vec<Mapping> = foreign
        .iter()
        .map(|(place, access)| {
            let mapping = Mapping { address, place: *place, access: *access };
            // An unmapped page behind each, so that running over its end is a fault.
            address += (place.count + 1) * PAGE;
            mapping
        })
        .collect();
    for mapping in mappings.iter().chain(&foreign) {
        tables.cover(mapping.address, mapping.place.count);
    }

    let used = mappings.iter().map(|mapping| mapping.place.count).sum::<u64>() + 2;
    let spare = |frames: u64| FREE_FRAMES.max(frames / FRAMES_PER_FREE_FRAME) + more_tables;
    let left = own.count.saturating_sub(used + spare(own.count) + tables.count());
    // A page table maps 512 pages, and one more table is needed for every 512 of them.
    let heap_tables = |heap: u64| heap.div_ceil(512) + heap.div_ceil(512 * 512);
    let mut heap = left.min(HEAP_MAX);
    while heap > 0 && heap + heap_tables(heap) > left {
        heap -= (heap + heap_tables(heap) - left).min(heap);
    }
    if heap < HEAP_MIN {
        let least = used + tables.count() + HEAP_MIN + heap_tables(HEAP_MIN);
        let mut needed = least + FREE_FRAMES;
        while needed < least + spare(needed) {
            needed = least + spare(needed);
        }
        return Err(TooSmall { needed: needed * PAGE });
    }
    mappings.push(own_frames(HEAP, heap, Access::WRITE));
    tables.cover(HEAP, heap);
    let zero = Place { slot: own.slot, first: own.first + 2, count: next - own.first - 2 };
    let rest = Place { slot: own.slot, first: next, count: own.first + own.count - next };
    let addresses = foreign.iter().map(|mapping| mapping.address).collect();
    mappings.extend(foreign);
    Ok(Space {
        block: own.first,
        root: own.first + 1,
        zero,
        loads,
        mappings,
        startup: startup.place.first,
        heap: heap * PAGE,
        tables: rest,
        tables_needed: tables.count(),
        foreign: addresses,
    })
}

/// Counts the page tables below the root that mappings need.
#[derive(Default)]
struct TableCount {
    upper: BTreeSet<u64>,
    lower: BTreeSet<u64>,
}

impl TableCount {
    fn cover(&mut self, address: u64, pages: u64) {
        let last = address + pages.saturating_sub(1) * PAGE;
        self.upper.extend(address >> 30..=last >> 30);
        self.lower.extend(address >> 21..=last >> 21);
    }

    fn count(&self) -> u64 {
        (self.upper.len() + self.lower.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protocol::image::Segment;

    fn image(segments: &[(u64, u64, u64)]) -> Image {
        let segment = |&(address, length, data_length): &(u64, u64, u64)| Segment {
            address,
            length,
            data_offset: 0x1000,
            data_length,
            access: Access::EXECUTE,
        };
        Image { entry: 0x20_1000, segments: segments.iter().map(segment).collect(), note: None }
    }

    fn own(count: u64) -> Place {
        Place { slot: 1, first: 1000, count }
    }

    #[test]
    fn a_small_server() {
        let space = plan(own(256), &image(&[(0x20_1000, 0x1800, 0x1234), (0x20_3010, 0x10, 0)]), &[], 0).unwrap();
        assert_eq!((space.block, space.root), (1000, 1001));
        assert_eq!(space.loads[0], Load { data_offset: 0x1000, length: 0x1234, physical: 1002 << 12 });
        assert_eq!(space.loads[1].physical, (1004 << 12) + 0x10);
        assert_eq!(space.mappings[0].place.count, 2);
        assert_eq!(space.zero.first, 1002);
        assert_eq!(space.tables.first, space.zero.first + space.zero.count);
        assert_eq!(space.tables.first + space.tables.count, 1256);
        // Program and startup page, heap and stack: two upper tables; four lower ones.
        assert_eq!(space.tables_needed, 2 + 4);
    }

    #[test]
    fn too_small_says_what_would_do() {
        let image = image(&[(0x20_1000, 100 * PAGE, 0)]);
        let TooSmall { needed } = plan(own(2), &image, &[], 9).unwrap_err();
        assert!(plan(own(needed / PAGE), &image, &[], 9).is_ok());
        assert!(plan(own(needed / PAGE - 1), &image, &[], 9).is_err());
    }

    proptest! {
        #[test]
        fn every_plan_holds(count in 0u64..2_000_000, more in 0u64..500, program in 1u64..5000, foreign in proptest::collection::vec(1u64..3000, 0..5)) {
            let foreign: Vec<_> = foreign.iter().map(|c| (Place { slot: 2, first: 9, count: *c }, Access::WRITE)).collect();
            let Ok(space) = plan(own(count), &image(&[(0x20_1000, program * PAGE, 7)]), &foreign, more) else {
                prop_assert!(count < program + 16_000 / 512 + 8192 + more);
                return Ok(());
            };
            // No frame twice, all within.
            let mut next = 1002;
            for mapping in space.mappings.iter().filter(|m| m.place.slot == 1) {
                prop_assert_eq!(mapping.place.first, next);
                next += mapping.place.count;
            }
            prop_assert_eq!(space.tables.first, next);
            prop_assert_eq!(space.tables.first + space.tables.count, 1000 + count);
            // Enough tables, and some to spare.
            let mut needed = TableCount::default();
            space.mappings.iter().for_each(|m| needed.cover(m.address, m.place.count));
            prop_assert_eq!(space.tables_needed, needed.count());
            prop_assert!(space.tables.count >= space.tables_needed + FREE_FRAMES + more);
            // No address twice.
            let mut ranges: Vec<_> = space.mappings.iter().map(|m| (m.address, m.address + m.place.count * PAGE)).collect();
            ranges.sort();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
            prop_assert_eq!(space.foreign.len(), foreign.len());
            prop_assert!(space.heap / PAGE >= HEAP_MIN);
        }
    }
}
