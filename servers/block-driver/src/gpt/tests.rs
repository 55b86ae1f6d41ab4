use super::*;
use ::gpt::{GptConfig, disk::LogicalBlockSize, mbr::ProtectiveMBR, partition_types};
use proptest::prelude::*;
use std::{collections::BTreeMap, io::Cursor, string::String};

const MIB: u64 = 1 << 20;

/// A disk of `size` bytes as the builder makes it, with these partitions: kind and MiB.
fn disk(size: u64, sector: LogicalBlockSize, partitions: &[(&str, u64)]) -> Vec<u8> {
    let mut device = Cursor::new(vec![0; size as usize]);
    let sectors = (size / sector.as_u64() - 1) as u32;
    ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(&mut device).unwrap();
    let mut disk = GptConfig::new().writable(true).logical_block_size(sector).create_from_device(device, None).unwrap();
    disk.update_partitions(BTreeMap::new()).unwrap();
    for (guid, mib) in partitions {
        let kind = partition_types::Type { guid: guid.parse().unwrap(), os: partition_types::OperatingSystem::None };
        disk.add_partition("x", mib * MIB, kind, 0, Some(MIB / sector.as_u64())).unwrap();
    }
    disk.write().unwrap().into_inner()
}

fn usual() -> Vec<u8> {
    let linux = "0fc63daf-8483-4772-8e79-3d69d8477de4";
    let partitions = [(linux, 1), (Partition::Vdisk.guid(), 2), (Partition::Swap.guid(), 1)];
    disk(8 * MIB, LogicalBlockSize::Lb512, &partitions)
}

fn read_bytes(bytes: &[u8], sector: u32) -> Result<Table, Problem> {
    let mut block = |number: u64, to: &mut [u8; BLOCK]| {
        let at = number as usize * BLOCK;
        to.copy_from_slice(bytes.get(at..at + BLOCK).expect("only blocks of the disk are read"));
        Ok(())
    };
    read(&mut block, (bytes.len() / BLOCK) as u64, sector)
}

fn kinds(table: &Table) -> Vec<(Partition, u64, u64)> {
    table.partitions.iter().map(|extent| (extent.kind, extent.first, extent.blocks)).collect()
}

#[test]
fn finds_the_projects_partitions() {
    let table = read_bytes(&usual(), 512).unwrap();
    assert_eq!(kinds(&table), [(Partition::Vdisk, 512, 512), (Partition::Swap, 1024, 256)]);
    assert_eq!((table.damage, table.partitions[0].guid == table.partitions[1].guid), (None, false));

    let large = disk(8 * MIB, LogicalBlockSize::Lb4096, &[(Partition::Scratch.guid(), 3)]);
    assert_eq!(kinds(&read_bytes(&large, 4096).unwrap()), [(Partition::Scratch, 256, 768)]);
    assert!(read_bytes(&large, 512).is_err());
}

#[test]
fn a_damaged_table_is_not_believed_and_the_backup_is() {
    let whole = usual();
    let expected = read_bytes(&whole, 512).unwrap().partitions;
    let last = whole.len() - 512;
    for (at, words) in
        [(512, "signature"), (512 + 60, "checksum of the header"), (1024 + 40, "checksum of the entries")]
    {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        let table = read_bytes(&damaged, 512).unwrap();
        assert_eq!(table.partitions, expected);
        assert!(table.damage.as_ref().is_some_and(|damage| damage.contains(words)), "{table:?}");
        damaged[last] ^= 1;
        let problem = read_bytes(&damaged, 512).unwrap_err();
        assert!(problem.contains("no partition table") && problem.contains("backup: no GPT signature"), "{problem}");
    }
}

#[test]
fn what_is_no_table_gives_none() {
    assert!(read_bytes(&vec![0; MIB as usize], 512).unwrap_err().contains("no GPT signature"));
    assert!(read_bytes(&[], 512).unwrap_err().contains("empty"));
    assert!(read_bytes(&vec![0; BLOCK], 512).is_err());
    for sector in [0, 1, 256, 513, 8192] {
        assert!(read_bytes(&usual(), sector).unwrap_err().contains("not supported"), "{sector}");
    }
    // Cut off: the first table says that the disk is larger, and the backup is gone.
    let whole = usual();
    assert!(read_bytes(&whole[..whole.len() / 2], 512).unwrap_err().contains("smaller than its table says"));
}

#[test]
fn an_error_of_the_disk_is_told() {
    let problem = read(&mut |_, _| Err(String::from("block 0 cannot be read")), 2048, 512).unwrap_err();
    assert!(problem.contains("block 0 cannot be read"));
}

/// Sets bytes of the first header or its entries and makes all checksums right again.
fn forge(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk[at..][..bytes.len()].copy_from_slice(bytes);
    let count = u32::from_le_bytes(disk[592..596].try_into().unwrap()) as usize;
    let size = u32::from_le_bytes(disk[596..600].try_into().unwrap()) as usize;
    let entries = count.saturating_mul(size).min(disk.len() - 1024);
    let crc = checksum(&disk[1024..][..entries]);
    disk[600..604].copy_from_slice(&crc.0.0);
    let header: GptHeader = bytemuck::pod_read_unaligned(&disk[512..604]);
    disk[528..532].copy_from_slice(&header.calculate_header_crc32().0.0);
}

#[test]
fn sums_that_are_right_do_not_make_nonsense_true() {
    let cases: [(usize, &[u8], &str); 5] = [
        (1024 + 32, &u64::MAX.to_le_bytes(), "impossible"),
        (1024 + 128 + 32, &2048u64.to_le_bytes(), "overlaps"),
        (1024 + 128 + 32, &4097u64.to_le_bytes(), "not aligned"),
        (592, &u32::MAX.to_le_bytes(), "not supported"),
        (596, &100u32.to_le_bytes(), "not supported"),
    ];
    for (at, bytes, words) in cases {
        let mut forged = usual();
        forge(&mut forged, at, bytes);
        let damage = read_bytes(&forged, 512).unwrap().damage.unwrap_or_default();
        assert!(damage.contains(words), "{words}: {damage}");
    }
}

proptest! {
    #[test]
    fn no_forged_table_reaches_beyond_the_disk(
        changes in prop::collection::vec((0usize..1024, any::<u64>(), any::<bool>()), 1..6)
    ) {
        let mut forged = usual();
        for (at, value, small) in changes {
            let value = if small { value % 20_000 } else { value };
            forge(&mut forged, 512 + 24 + at, &value.to_le_bytes());
        }
        if let Ok(table) = read_bytes(&forged, 512) {
            let blocks = (forged.len() / BLOCK) as u64;
            for extent in &table.partitions {
                prop_assert!(extent.blocks > 0 && extent.first + extent.blocks <= blocks);
            }
        }
    }
}
