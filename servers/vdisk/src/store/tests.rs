use super::{offline::*, *};
use proptest::prelude::*;
use std::{collections::BTreeMap, format, string::String, vec, vec::Vec};

/// A partition with a cache: at a cut, any of the 512-byte sectors written since the last flush are lost.
#[derive(Clone, Debug)]
struct Partition {
    safe: Vec<u8>,
    now: Vec<u8>,
    /// Writes that are still carried out; then the power is cut.
    left: usize,
}

impl Partition {
    fn new(blocks: u64) -> Partition {
        let bytes = vec![0; blocks as usize * BLOCK];
        Partition { safe: bytes.clone(), now: bytes, left: usize::MAX }
    }

    /// What is there after a cut.
    fn cut(&self, mut keeps: impl FnMut() -> bool) -> Partition {
        let mut bytes = self.safe.clone();
        for (old, new) in bytes.chunks_mut(512).zip(self.now.chunks(512)) {
            if old != new && keeps() {
                old.copy_from_slice(new);
            }
        }
        Partition { safe: bytes.clone(), now: bytes, left: usize::MAX }
    }

    fn step(&mut self) -> Result<(), Cut> {
        self.left = self.left.checked_sub(1).ok_or(Cut)?;
        Ok(())
    }
}

#[derive(Debug, PartialEq)]
struct Cut;

impl Blocks for &mut Partition {
    type Error = Cut;

    fn blocks(&self) -> u64 {
        (self.now.len() / BLOCK) as u64
    }
    fn read(&mut self, block: u64, bytes: &mut [u8]) -> Result<(), Cut> {
        bytes.copy_from_slice(&self.now[block as usize * BLOCK..][..bytes.len()]);
        Ok(())
    }
    fn write(&mut self, block: u64, bytes: &[u8]) -> Result<(), Cut> {
        let cut = self.step();
        // The last one may be carried out or not.
        self.now[block as usize * BLOCK..][..bytes.len()].copy_from_slice(bytes);
        cut
    }
    fn flush(&mut self) -> Result<(), Cut> {
        self.step()?;
        self.safe.clone_from(&self.now);
        Ok(())
    }
}

fn fill(bytes: &mut [u8], value: u8) -> Result<(), Cut> {
    bytes.fill(value);
    Ok(())
}

fn contents(offline: &mut Offline<&mut Partition>) -> BTreeMap<String, Vec<u8>> {
    let names: Vec<String> = offline.store().table.iter().map(|(name, _)| name.into()).collect();
    let read = |name: &String| {
        let mut bytes = Vec::new();
        offline
            .read(name, |part| {
                bytes.extend(part);
                Ok(())
            })
            .unwrap();
        (name.clone(), bytes)
    };
    names.iter().map(read).collect()
}

#[test]
fn a_new_partition_is_formatted_and_found_again() {
    let mut partition = Partition::new(200);
    let mut offline = Offline::open(&mut partition).unwrap();
    assert_eq!(offline.store().table.space(), (72, 72));
    offline.create("a", 10).unwrap();
    offline.create_with("b", 3, |at, bytes| fill(bytes, at as u8 + 5)).unwrap();
    assert!(matches!(offline.create("a", 1), Err(Fault::Unmade(Unmade::Exists))));
    assert!(matches!(offline.create("c", 60), Err(Fault::Unmade(Unmade::Full))));
    for bad in ["", "a b", "ä", "../x/", &"n".repeat(64)] {
        assert!(matches!(offline.create(bad, 1), Err(Fault::Unmade(Unmade::BadArgument))));
    }
    let mut offline = Offline::open(&mut partition).unwrap();
    assert_eq!(contents(&mut offline)["b"], [5; 3 * BLOCK]);
    offline.delete("a").unwrap();
    assert!(matches!(offline.delete("a"), Err(Fault::NotFound(_))));
    assert_eq!(Offline::open(&mut partition).unwrap().store().table.space(), (72, 69));
}

use table::Unmade;

#[test]
fn what_is_foreign_or_damaged_is_left_alone() {
    let refusal = |partition: &mut Partition| match Offline::open(partition) {
        Err(Fault::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    let mut foreign = Partition::new(200);
    foreign.now[1080] = 7;
    assert_eq!(refusal(&mut foreign), Refusal::Foreign);
    assert!(matches!(refusal(&mut Partition::new(128)), Refusal::TooSmall(128)));

    let mut good = Partition::new(200);
    let mut offline = Offline::open(&mut good).unwrap();
    offline.create("a", 1).unwrap();
    offline.create("b", 1).unwrap();
    // One damaged copy: the other one is used.
    let mut half = good.clone();
    half.now[300] ^= 1;
    assert_eq!(Offline::open(&mut half).unwrap().store().table.len(), 2);
    let mut half = good.clone();
    half.now[64 * BLOCK + 300] ^= 1;
    assert_eq!(Offline::open(&mut half).unwrap().store().table.len(), 1);
    half.now[300] ^= 1;
    assert!(matches!(refusal(&mut half), Refusal::Damaged(..)));
    assert!(format!("{}", refusal(&mut half)).contains("wrong checksum"));
    let mut smaller = Partition { now: good.now[..190 * BLOCK].to_vec(), ..good.clone() };
    assert_eq!(refusal(&mut smaller), Refusal::Smaller(190, 200));
    // A larger partition only has more room.
    let mut larger = good.clone();
    larger.now.resize(300 * BLOCK, 0);
    assert_eq!(Offline::open(&mut larger).unwrap().store().table.space(), (172, 170));
    let mut newer = good.clone();
    newer.now[8] = 2;
    let sum = super::sum(&newer.now[..ENTRY * (1 + table::word32(&newer.now, 12) as usize)]);
    newer.now[SUM..SUM + 8].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(refusal(&mut newer), Refusal::Version(2));
}

#[test]
fn a_full_table_fits_into_its_copy() {
    let mut table = Table::new(3000);
    for number in 0..DISKS_MAX {
        table.create(&format!("{number:0>63}"), 1).unwrap();
    }
    assert_eq!(table.create("more", 1), Err(Unmade::Full));
    let bytes = encode(&table, 9);
    assert_eq!((DISKS_MAX, bytes.len()), (1023, COPY_BLOCKS as usize * BLOCK));
    assert!(matches!(read_copy(&bytes, 3000), Copy::Intact(9, read) if read.iter().eq(table.iter())));
}

#[test]
fn a_disk_in_pieces_is_one_disk() {
    let mut table = Table::new(DATA_FIRST + 30);
    for name in ["a", "b", "c", "d", "e"] {
        table.create(name, 6).unwrap();
    }
    for name in ["a", "c", "e"] {
        assert!(table.delete(name));
    }
    let disk = table.create("x", 14).unwrap().clone();
    assert_eq!(disk.extents.len(), 3);
    let blocks: Vec<_> = (0..14).map(|block| disk.place(block, 9).unwrap()).collect();
    let mut seen: Vec<_> = blocks.iter().map(|extent| extent.first).collect();
    assert!(blocks.iter().all(|extent| (1..=6).contains(&extent.count)));
    seen.sort_unstable();
    seen.dedup();
    assert_eq!((seen.len(), disk.place(14, 1)), (14, None));
    assert!(disk.holds(0, 14) && !disk.holds(1, 14) && !disk.holds(u64::MAX, 2));
}

#[derive(Clone, Debug)]
enum Change {
    Create(u8, u64),
    Delete(u8),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![(0u8..5, 1u64..30).prop_map(|(n, b)| Change::Create(n, b)), (0u8..5).prop_map(Change::Delete)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A cut at any write, with any sectors lost: the table is that before the change that was cut or that after it,
    /// and no disk has lost or gained anything.
    #[test]
    fn a_cut_leaves_the_old_or_the_new(changes in prop::collection::vec(change(), 1..12), left in 0usize..40, seed: u64) {
        let mut partition = Partition::new(DATA_FIRST + 64);
        partition.left = left;
        let apply = |offline: &mut Offline<&mut Partition>, change: &Change| match change {
            Change::Create(name, blocks) => {
                offline.create_with(&format!("d{name}"), *blocks, |at, bytes| fill(bytes, *name ^ *blocks as u8 ^ at as u8))
            }
            Change::Delete(name) => offline.delete(&format!("d{name}")),
        };
        let mut before = BTreeMap::new();
        let mut after = BTreeMap::new();
        let mut offline = Offline::open(&mut partition).unwrap();
        for change in &changes {
            let result = apply(&mut offline, change);
            if let Err(Fault::Device(Cut)) = result {
                // What would be there had it gone on.
                if let Change::Create(name, blocks) = change {
                    after.insert(format!("d{name}"), *blocks as usize * BLOCK);
                } else if let Change::Delete(name) = change {
                    after.remove(&format!("d{name}"));
                }
                break;
            }
            before = contents(&mut offline);
            after = before.iter().map(|(name, bytes)| (name.clone(), bytes.len())).collect();
        }
        let mut state = seed | 1;
        let mut cut = partition.cut(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 63 == 1
        });
        let found = contents(&mut Offline::open(&mut cut).unwrap());
        let sizes: BTreeMap<_, _> = found.iter().map(|(name, bytes)| (name.clone(), bytes.len())).collect();
        if found != before {
            prop_assert_eq!(sizes, after);
        }
        for (name, bytes) in found.iter().filter(|(name, _)| before.contains_key(*name)) {
            prop_assert_eq!(bytes, &before[name]);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000), blocks in 0u64..300, magic: bool, summed: bool) {
        let mut bytes = bytes;
        if magic && bytes.len() >= ENTRY {
            bytes[..8].copy_from_slice(&MAGIC);
            let entries = (bytes.len() / ENTRY - 1) as u8;
            bytes[8..16].copy_from_slice(&[1, 0, 0, 0, entries, 0, 0, 0]);
            if summed {
                let used = bytes.len() / ENTRY * ENTRY;
                let sum = sum(&bytes[..used]);
                bytes[SUM..SUM + 8].copy_from_slice(&sum.to_le_bytes());
            }
        }
        let _ = Store::read(&bytes, blocks);
    }

    #[test]
    fn no_two_disks_share_a_block(changes in prop::collection::vec(change(), 1..60)) {
        let mut table = Table::new(DATA_FIRST + 64);
        for change in changes {
            match change {
                Change::Create(name, blocks) => _ = table.create(&format!("d{name}"), blocks),
                Change::Delete(name) => _ = table.delete(&format!("d{name}")),
            }
            let mut used: Vec<u64> = table.iter().flat_map(|(_, d)| &d.extents).flat_map(|e| e.first..e.first + e.count).collect();
            let count = used.len();
            used.sort_unstable();
            used.dedup();
            prop_assert_eq!((used.len(), count as u64 + table.space().1), (count, 64));
            prop_assert!(used.iter().all(|block| (DATA_FIRST..DATA_FIRST + 64).contains(block)));
            let Copy::Intact(_, read) = read_copy(&encode(&table, 1), DATA_FIRST + 64) else { panic!() };
            prop_assert!(read.iter().eq(table.iter()));
        }
    }
}
