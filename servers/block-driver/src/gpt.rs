//! The partition table of a disk (UEFI 2.10, chapter 5.3).
//!
//! Only partitions of the project's own types are of interest. A table whose checksums, sizes or places are wrong is not
//! believed in part either: then the backup table at the end of the disk is read, and if that is damaged too, the disk has no
//! partitions. Nothing is ever repaired here.

use crate::Problem;
use alloc::{format, vec, vec::Vec};
use gpt_disk_types::{GptHeader, GptHeaderRevision, GptPartitionEntry, Guid};
use protocol::service::block_driver::{BLOCK, Partition};

/// Bytes of a header that are described; longer ones do not exist so far.
const HEADER: u32 = size_of::<GptHeader>() as u32;
/// Most bytes of the table's entries: 1,024 of the usual size.
const ENTRIES_MAX: u64 = 128 * 1024;

/// A partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Its kind.
    pub kind: Partition,
    /// Its own GUID, as it is on the disk.
    pub guid: [u8; 16],
    /// First block of the disk.
    pub first: u64,
    /// Blocks.
    pub blocks: u64,
}

/// What a disk holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Table {
    /// Partitions of the project's types, in the table's order.
    pub partitions: Vec<Extent>,
    /// Why the backup table was read instead of the first one.
    pub damage: Option<Problem>,
}

impl Table {
    /// The first partition of a kind.
    pub fn find(&self, kind: Partition) -> Option<Extent> {
        self.partitions.iter().find(|extent| extent.kind == kind).copied()
    }
}

/// Reads one block of the disk.
pub type ReadBlock<'a> = dyn FnMut(u64, &mut [u8; BLOCK]) -> Result<(), Problem> + 'a;

struct Disk<'a> {
    read: &'a mut ReadBlock<'a>,
    bytes: u64,
    sector: u64,
}

/// Reads the table of a disk of `blocks` blocks whose own sectors have `sector` bytes. The error says what is wrong.
pub fn read<'a>(read: &'a mut ReadBlock<'a>, blocks: u64, sector: u32) -> Result<Table, Problem> {
    if !sector.is_power_of_two() || !(512..=BLOCK as u32).contains(&sector) {
        return Err(format!("sectors of {sector} bytes are not supported"));
    }
    let bytes = blocks.checked_mul(BLOCK as u64).ok_or("an impossible size")?;
    let mut disk = Disk { read, bytes, sector: u64::from(sector) };
    let last = (bytes / disk.sector).checked_sub(1).ok_or("the disk is empty")?;
    match disk.table(1) {
        Ok(partitions) => Ok(Table { partitions, damage: None }),
        Err(damage) => match disk.table(last) {
            Ok(partitions) => Ok(Table { partitions, damage: Some(damage) }),
            Err(backup) => Err(format!("no partition table ({damage}; backup: {backup})")),
        },
    }
}

impl Disk<'_> {
    /// Copies bytes of the disk.
    fn copy(&mut self, mut offset: u64, mut to: &mut [u8]) -> Result<(), Problem> {
        let end = offset.checked_add(to.len() as u64);
        if end.is_none_or(|end| end > self.bytes) {
            return Err("it reaches beyond the disk".into());
        }
        let mut block = [0; BLOCK];
        while !to.is_empty() {
            (self.read)(offset / BLOCK as u64, &mut block)?;
            let within = (offset % BLOCK as u64) as usize;
            let length = to.len().min(BLOCK - within);
            let (now, later) = to.split_at_mut(length);
            now.copy_from_slice(&block[within..][..length]);
            offset += length as u64;
            to = later;
        }
        Ok(())
    }

    fn header(&mut self, sector: u64) -> Result<GptHeader, Problem> {
        let mut bytes = [0; HEADER as usize];
        self.copy(sector.checked_mul(self.sector).ok_or("an impossible size")?, &mut bytes)?;
        let header: GptHeader = bytemuck::pod_read_unaligned(&bytes);
        if !header.is_signature_valid() {
            return Err("no GPT signature".into());
        }
        if header.revision != GptHeaderRevision::VERSION_1_0 || header.header_size.to_u32() != HEADER {
            return Err("a GPT of another version".into());
        }
        if header.calculate_header_crc32() != header.header_crc32 {
            return Err("the checksum of the header is wrong".into());
        }
        if header.my_lba.to_u64() != sector {
            return Err("the header belongs somewhere else".into());
        }
        let (first, last) = (header.first_usable_lba.to_u64(), header.last_usable_lba.to_u64());
        if first > last || last >= self.bytes / self.sector {
            return Err("the disk is smaller than its table says".into());
        }
        Ok(header)
    }

    fn table(&mut self, sector: u64) -> Result<Vec<Extent>, Problem> {
        let header = self.header(sector)?;
        let (count, size) = (header.number_of_partition_entries.to_u32(), header.size_of_partition_entry.to_u32());
        let length = u64::from(count) * u64::from(size);
        if !size.is_multiple_of(size_of::<GptPartitionEntry>() as u32) || size == 0 || length > ENTRIES_MAX {
            return Err(format!("{count} entries of {size} bytes are not supported"));
        }
        let start = header.partition_entry_lba.to_u64().checked_mul(self.sector).ok_or("an impossible size")?;
        let mut bytes = vec![0; length as usize];
        self.copy(start, &mut bytes)?;
        if checksum(&bytes) != header.partition_entry_array_crc32 {
            return Err("the checksum of the entries is wrong".into());
        }
        self.extents(&header, bytes.chunks_exact(size as usize))
    }

    fn extents<'b>(&self, header: &GptHeader, entries: impl Iterator<Item = &'b [u8]>) -> Result<Vec<Extent>, Problem> {
        let usable = header.first_usable_lba.to_u64()..=header.last_usable_lba.to_u64();
        let mut found = Vec::new();
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for bytes in entries {
            let entry: GptPartitionEntry = bytemuck::pod_read_unaligned(&bytes[..size_of::<GptPartitionEntry>()]);
            if !entry.is_used() {
                continue;
            }
            let (first, last) = (entry.starting_lba.to_u64(), entry.ending_lba.to_u64());
            if first > last || !usable.contains(&first) || !usable.contains(&last) {
                return Err(format!("a partition from sector {first} to {last} is impossible"));
            }
            if taken.iter().any(|(begin, end)| first <= *end && *begin <= last) {
                return Err(format!("the partition from sector {first} to {last} overlaps another"));
            }
            taken.push((first, last));
            let Some(kind) = kind(entry.partition_type_guid.0) else {
                continue;
            };
            // No overflow: the last sector lies on the disk, whose bytes are counted in 64 bits.
            let (start, end) = (first * self.sector, (last + 1) * self.sector);
            if !start.is_multiple_of(BLOCK as u64) || end - start < BLOCK as u64 {
                return Err(format!("the {} partition is not aligned to {BLOCK} bytes, or shorter", kind.name()));
            }
            let blocks = (end - start) / BLOCK as u64;
            let guid = entry.unique_partition_guid;
            found.push(Extent { kind, guid: guid.to_bytes(), first: start / BLOCK as u64, blocks });
        }
        Ok(found)
    }
}

fn checksum(bytes: &[u8]) -> gpt_disk_types::Crc32 {
    let crc = gpt_disk_types::crc::Crc::<u32>::new(&gpt_disk_types::Crc32::ALGORITHM);
    gpt_disk_types::Crc32(gpt_disk_types::U32Le(crc.checksum(bytes).to_le_bytes()))
}

/// The kind of partition with this type.
fn kind(guid: Guid) -> Option<Partition> {
    Partition::ALL.into_iter().find(|kind| Guid::try_parse(kind.guid()) == Ok(guid))
}

#[cfg(test)]
mod tests;
