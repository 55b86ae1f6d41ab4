//! Tables as loaders write them, damaged ones, and regions against a simple model.

use super::*;
use proptest::{collection::vec as many, prelude::*};
use std::{collections::BTreeSet, vec, vec::Vec};

/// Physical memory from [`BASE`] on.
struct Memory(Vec<u8>);

const BASE: u64 = 0x9000;

impl Memory {
    fn read<'a>(&'a self) -> impl Fn(u64, usize) -> Option<&'a [u8]> {
        |address, length| {
            let start = usize::try_from(address.checked_sub(BASE)?).ok()?;
            self.0.get(start..start.checked_add(length)?)
        }
    }

    fn multiboot2(&self) -> Result<StartInfo, Refusal> {
        multiboot2(BASE, self.read())
    }

    fn pvh(&self) -> Result<StartInfo, Refusal> {
        pvh(BASE, self.read())
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn entry(start: u64, length: u64, kind: u32) -> Vec<u8> {
    [&start.to_le_bytes()[..], &length.to_le_bytes(), &words(&[kind, 0])].concat()
}

fn region(start: u64, length: u64) -> Region {
    Region { start, length }
}

fn table(tags: &[(u32, Vec<u8>)]) -> Memory {
    let mut bytes = vec![0; 8];
    for (kind, content) in tags {
        bytes.extend(words(&[*kind, content.len() as u32 + 8]));
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes.extend(words(&[0, 8]));
    let length = bytes.len() as u32;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    Memory(bytes)
}

fn screen(kind: u8) -> Vec<u8> {
    let mut content = [&0x8000_0000u64.to_le_bytes()[..], &words(&[4096, 1024, 768])].concat();
    content.extend([32, kind, 0, 0, 16, 8, 8, 8, 0, 8]);
    content
}

fn usual() -> Vec<(u32, Vec<u8>)> {
    let map = [
        words(&[24, 0]),
        entry(0x10_0000, 0x700_0000, 1),
        entry(0, 0x9_fc00, 1),
        entry(0x9_fc00, 0x400, 2),
        entry(0x70f_0000, 0x1_0000, 3),
    ];
    vec![
        (1, b"command line\0".to_vec()),
        (3, [words(&[0x20_0000, 0x20_1234]), b"bundle\0".to_vec()].concat()),
        (6, map.concat()),
        (8, screen(1)),
        (14, b"RSD PTR 1...........".to_vec()),
        (15, b"RSD PTR 2...........................".to_vec()),
    ]
}

#[test]
fn what_grub_tells() {
    let memory = table(&usual());
    let info = memory.multiboot2().unwrap();
    assert_eq!(info.bundle, region(0x20_0000, 0x1234));
    // The page with the table itself, which holds the root pointer, is no memory any more.
    let usable = [region(0, 0x9000), region(0xa000, 0x9_5000), region(0x10_0000, 0x6ff_0000)];
    assert_eq!(info.memory.list(), usable);
    assert_eq!((info.kept.start, info.kept.length), (BASE, memory.0.len() as u64));
    assert!(memory.read()(info.rsdp, 9).unwrap().starts_with(b"RSD PTR 2"));
    let screen = info.framebuffer;
    assert_eq!((screen.kind, screen.width, screen.height, screen.pitch), (Framebuffer::PIXELS, 1024, 768, 4096));
    assert_eq!((screen.red_position, screen.green_position, screen.blue_position), (16, 8, 0));
}

#[test]
fn the_older_root_pointer_is_taken_if_there_is_no_newer() {
    let mut tags = usual();
    tags.reverse();
    let newer = table(&tags);
    assert!(newer.read()(newer.multiboot2().unwrap().rsdp, 9).unwrap().ends_with(b"2"));
    tags.retain(|(kind, _)| *kind != 15);
    let older = table(&tags);
    assert!(older.read()(older.multiboot2().unwrap().rsdp, 9).unwrap().ends_with(b"1"));
    tags.retain(|(kind, _)| *kind != 14);
    let none = table(&tags).multiboot2().unwrap();
    assert_eq!((none.rsdp, none.kept.length), (0, 0));
    assert_eq!(none.memory.list()[0], region(0, 0x9_f000), "then the table need not be kept");
}

#[test]
fn a_screen_that_makes_no_sense_is_none() {
    let told = |content: Vec<u8>| {
        let mut tags = usual();
        tags[3].1 = content;
        table(&tags).multiboot2().unwrap().framebuffer
    };
    assert_eq!(told(screen(2)).kind, Framebuffer::TEXT);
    assert_eq!(told(screen(0)), Framebuffer::default(), "indexed colours");
    assert_eq!(told(Vec::new()), Framebuffer::default());
    for (at, value) in [(7, 0xff), (9, 0), (15, 1), (20, 0), (24, 30), (25, 17)] {
        let mut content = screen(1);
        content[at] = value;
        assert_eq!(told(content), Framebuffer::default(), "byte {at} = {value}");
    }
}

#[test]
fn a_screen_in_memory_is_no_memory() {
    let mut tags = usual();
    tags[3].1[..8].copy_from_slice(&0x400_0000u64.to_le_bytes());
    let info = table(&tags).multiboot2().unwrap();
    assert!(info.memory.list().contains(&region(0x10_0000, 0x3f0_0000)), "{:?}", info.memory.list());
    assert!(info.memory.list().contains(&region(0x430_0000, 0x2df_0000)), "{:?}", info.memory.list());
}

#[test]
fn damaged_tables_are_refused() {
    let mut memory = table(&usual());
    let length = memory.0.len() as u32;
    for (wrong, reason) in
        [(0, "impossible"), (15, "impossible"), (u32::MAX, "impossible"), (length + 1, "4 GiB"), (24, "damaged")]
    {
        memory.0[..4].copy_from_slice(&wrong.to_le_bytes());
        assert!(memory.multiboot2().unwrap_err().contains(reason), "{wrong}");
    }
    let without = |kind: u32| usual().into_iter().filter(|tag| tag.0 != kind).collect::<Vec<_>>();
    assert!(table(&without(6)).multiboot2().unwrap_err().contains("no memory"));
    assert_eq!(table(&without(3)).multiboot2().unwrap().bundle.length, 0);
    let mut tags = usual();
    tags[2].1[0] = 23;
    assert!(table(&tags).multiboot2().unwrap_err().contains("too short"));
    tags = usual();
    tags[1].1[0] = 1;
    assert!(table(&tags).multiboot2().unwrap_err().contains("no page begins"));
}

fn pvh_table() -> Memory {
    let at = |offset: u64| (BASE + offset).to_le_bytes();
    let header =
        [&words(&[0x336e_c578, 1, 0, 1])[..], &at(56), &at(0), &0xf_5000u64.to_le_bytes(), &at(88), &words(&[2, 0])];
    let module = [&0x40_0000u64.to_le_bytes()[..], &0x777u64.to_le_bytes(), &[0; 16]];
    Memory([header.concat(), module.concat(), entry(0x10_0000, 0x100_0000, 1), entry(0, 0x1000, 2)].concat())
}

#[test]
fn what_qemu_tells() {
    let info = pvh_table().pvh().unwrap();
    assert_eq!(info.memory.list(), [region(0x10_0000, 0x100_0000)]);
    assert_eq!((info.bundle, info.rsdp), (region(0x40_0000, 0x777), 0xf_5000));
    assert_eq!(info.framebuffer, Framebuffer::default());
    let mut memory = pvh_table();
    memory.0[0] = 0;
    assert!(memory.pvh().unwrap_err().contains("magic"));
    memory = pvh_table();
    memory.0[4] = 0;
    assert!(memory.pvh().unwrap_err().contains("version 0"));
    memory = pvh_table();
    memory.0.pop();
    assert!(memory.pvh().unwrap_err().contains("4 GiB"));
}

#[test]
fn with_too_many_regions_the_smallest_are_given_up() {
    let mut regions = Regions::default();
    for index in 0..REGIONS as u64 + 10 {
        regions.add(region(index * 10 * PAGE, if index < 10 { PAGE } else { 3 * PAGE }));
    }
    assert_eq!((regions.list().len(), regions.lost()), (REGIONS, 10 * PAGE));
    assert!(regions.list().iter().all(|region| region.length == 3 * PAGE));
    // One more that would have to be split.
    let middle = regions.list()[5].start + PAGE;
    regions.subtract(region(middle, 1));
    assert_eq!((regions.list().len(), regions.lost()), (REGIONS, 11 * PAGE));
}

#[test]
fn regions_at_the_end_of_all_addresses() {
    let mut regions = Regions::default();
    regions.add(region(u64::MAX - 5, u64::MAX));
    assert!(regions.list().is_empty());
    regions.add(region(1, u64::MAX));
    assert_eq!(regions.list(), [region(PAGE, (1 << 52) - PAGE)]);
    regions.subtract(region(u64::MAX, u64::MAX));
    regions.subtract(region(0x10_0001, u64::MAX));
    assert_eq!(regions.list(), [region(PAGE, 0x10_0000 - PAGE)]);
    assert_eq!(regions.take(u64::MAX, u64::MAX), None);
    assert_eq!(regions.take(5000, 3 * PAGE), Some(PAGE));
    assert_eq!(regions.take(5000, 4 * PAGE), None);
}

proptest! {
    /// Whatever bytes a table consists of, reading it ends, and memory is a proper list.
    #[test]
    fn any_bytes_are_read_without_harm(mut bytes in many(any::<u8>(), 0..600), length in 0u32..700) {
        if let Some(word) = bytes.first_chunk_mut() { *word = length.to_le_bytes(); }
        if let Ok(info) = Memory(bytes.clone()).multiboot2() { proper(&info.memory)?; }
        if let Some(words) = bytes.first_chunk_mut() { *words = *pvh_table().0.first_chunk::<8>().unwrap(); }
        if let Ok(info) = Memory(bytes).pvh() { proper(&info.memory)?; }
    }

    /// The same for good tables with a few bytes changed, which get further.
    #[test]
    fn changed_tables_are_read_without_harm(changes in many((any::<usize>(), any::<u8>()), 1..8), cut in any::<usize>()) {
        let change = |mut memory: Memory| {
            let length = memory.0.len();
            for (at, value) in &changes { memory.0[at % length] = *value; }
            memory.0.truncate(if cut % 4 == 0 { cut % length } else { length });
            memory
        };
        if let Ok(info) = change(table(&usual())).multiboot2() { proper(&info.memory)?; }
        if let Ok(info) = change(pvh_table()).pvh() { proper(&info.memory)?; }
    }

    /// Adding, subtracting and taking agree with a set of pages, as long as nothing has to be given up.
    #[test]
    fn regions_agree_with_a_set_of_pages(steps in many((0u8..5, 0u64..0x4_0000, 0u64..0x1_8000), 0..60)) {
        let mut regions = Regions::default();
        let mut pages = BTreeSet::new();
        for (step, start, length) in steps {
            let end = start + length;
            match step {
                0 | 1 => {
                    regions.add(region(start, length));
                    pages.extend(start.div_ceil(PAGE)..end / PAGE);
                }
                2 | 3 => {
                    regions.subtract(region(start, length));
                    let touched = start / PAGE..if length == 0 { 0 } else { end.div_ceil(PAGE) };
                    pages.retain(|page| !touched.contains(page));
                }
                _ => {
                    let taken = regions.take(length, end);
                    let count = length.div_ceil(PAGE);
                    if let Some(first) = taken {
                        prop_assert!(first + count * PAGE <= end);
                        prop_assert!((first / PAGE..first / PAGE + count).all(|page| pages.remove(&page)));
                    }
                }
            }
            proper(&regions)?;
            prop_assert_eq!(regions.lost(), 0);
            let listed: Vec<u64> = regions.list().iter().flat_map(|r| r.start / PAGE..r.end() / PAGE).collect();
            prop_assert_eq!(listed, pages.iter().copied().collect::<Vec<_>>());
        }
        let (largest, others) = regions.largest();
        let others: Vec<Region> = others.collect();
        prop_assert!(others.iter().all(|other| other.length <= largest.length));
        prop_assert_eq!(largest.length + others.iter().map(|r| r.length).sum::<u64>(), regions.total());
    }
}

/// Regions are of whole pages, in order, and do not touch.
fn proper(regions: &Regions) -> Result<(), TestCaseError> {
    let list = regions.list();
    prop_assert!(
        list.iter().all(|r| r.length > 0 && r.start % PAGE == 0 && r.length % PAGE == 0 && r.end() <= 1 << 52)
    );
    prop_assert!(list.windows(2).all(|pair| pair[0].end() < pair[1].start));
    Ok(())
}
