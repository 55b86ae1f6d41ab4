//! The table of disks: names, sizes, places. Changes are made to a copy, which is written and then takes the table's place.

use super::{BLOCK, DATA_FIRST, DISKS_MAX, ENTRY, EXTENTS_MAX};
use alloc::{borrow::ToOwned, collections::BTreeMap, string::String, vec::Vec};
use protocol::service::vdisk::NAME_MAX;
use server_runtime::ranges::Ranges;

/// Blocks of the partition that follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// First.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// A disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disk {
    /// Its blocks.
    pub blocks: u64,
    /// Where they are, in order.
    pub extents: Vec<Extent>,
}

impl Disk {
    /// Where `block` is on the partition, and how many of the `count` blocks from it on follow each other there. `None` if it is beyond
    /// the end.
    pub fn place(&self, block: u64, count: u64) -> Option<Extent> {
        let mut before = 0;
        for extent in &self.extents {
            if block - before < extent.count {
                let offset = block - before;
                return Some(Extent { first: extent.first + offset, count: count.min(extent.count - offset) });
            }
            before += extent.count;
        }
        None
    }

    /// Whether all of these blocks are on the disk.
    pub fn holds(&self, block: u64, count: u64) -> bool {
        block.checked_add(count).is_some_and(|end| end <= self.blocks)
    }
}

/// Why a disk is not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmade {
    /// There is one of this name.
    Exists,
    /// No room, or too many pieces, or no room in the table.
    Full,
    /// The name or the size makes no sense.
    BadArgument,
}

/// Whether a disk can be called so.
pub fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

/// The table.
#[derive(Clone, Debug)]
pub struct Table {
    disks: BTreeMap<String, Disk>,
    /// Blocks that no disk has.
    free: Ranges,
    /// Blocks of the partition.
    partition: u64,
}

impl Table {
    /// No disks on a partition of so many blocks.
    pub fn new(partition: u64) -> Table {
        let free = Ranges::new(DATA_FIRST, partition.saturating_sub(DATA_FIRST));
        Table { disks: BTreeMap::new(), free, partition }
    }

    /// Disks.
    pub fn len(&self) -> usize {
        self.disks.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.disks.is_empty()
    }

    /// Blocks of the partition.
    pub fn partition(&self) -> u64 {
        self.partition
    }

    /// Blocks that disks can have: all, and free ones.
    pub fn space(&self) -> (u64, u64) {
        (self.partition.saturating_sub(DATA_FIRST), self.free.total())
    }

    /// A disk.
    pub fn get(&self, name: &str) -> Option<&Disk> {
        self.disks.get(name)
    }

    /// Disks by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Disk)> {
        self.disks.iter().map(|(name, disk)| (name.as_str(), disk))
    }

    /// Adds a disk. What its blocks hold is what was left there.
    pub fn create(&mut self, name: &str, blocks: u64) -> Result<&Disk, Unmade> {
        if !is_name(name) || blocks == 0 {
            return Err(Unmade::BadArgument);
        }
        if self.disks.contains_key(name) {
            return Err(Unmade::Exists);
        }
        if self.disks.len() >= DISKS_MAX || blocks > self.free.total() {
            return Err(Unmade::Full);
        }
        let extents = self.take(blocks).ok_or(Unmade::Full)?;
        Ok(self.disks.entry(name.to_owned()).or_insert(Disk { blocks, extents }))
    }

    /// Takes blocks: in one piece, or the largest pieces that there are.
    fn take(&mut self, blocks: u64) -> Option<Vec<Extent>> {
        if let Some(first) = self.free.take(blocks, 1) {
            return Some(Vec::from([Extent { first, count: blocks }]));
        }
        let mut extents: Vec<Extent> = Vec::new();
        let mut missing = blocks;
        while missing > 0 {
            let largest = (extents.len() < EXTENTS_MAX).then(|| self.free.take_largest()).flatten();
            let Some((first, count)) = largest else {
                extents.iter().for_each(|extent| self.free.insert(extent.first, extent.count));
                return None;
            };
            let used = count.min(missing);
            self.free.insert(first + used, count - used);
            extents.push(Extent { first, count: used });
            missing -= used;
        }
        Some(extents)
    }

    /// Removes a disk; its blocks are free. `false` if there is none.
    pub fn delete(&mut self, name: &str) -> bool {
        let Some(disk) = self.disks.remove(name) else { return false };
        disk.extents.iter().for_each(|extent| self.free.insert(extent.first, extent.count));
        true
    }

    /// Appends the entries.
    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        for (name, disk) in &self.disks {
            let start = bytes.len();
            bytes.push(name.len() as u8);
            bytes.extend(name.as_bytes());
            bytes.resize(start + 64, 0);
            bytes.extend(disk.blocks.to_le_bytes());
            bytes.extend((disk.extents.len() as u64).to_le_bytes());
            for extent in &disk.extents {
                bytes.extend(extent.first.to_le_bytes());
                bytes.extend(extent.count.to_le_bytes());
            }
            bytes.resize(start + ENTRY, 0);
        }
    }

    /// From entries, for a partition of `partition` blocks; or what is wrong with them.
    pub(super) fn decode(entries: &[u8], partition: u64) -> Result<Table, &'static str> {
        let mut table = Table::new(partition);
        for entry in entries.chunks_exact(ENTRY) {
            let length = usize::from(entry[0]);
            let name = entry.get(1..1 + length).and_then(|name| core::str::from_utf8(name).ok());
            let name = name.filter(|name| is_name(name)).ok_or("an impossible name")?;
            let count = word64(entry, 72) as usize;
            if !(1..=EXTENTS_MAX).contains(&count) {
                return Err("an impossible number of extents");
            }
            let extent =
                |index| Extent { first: word64(entry, 80 + 16 * index), count: word64(entry, 88 + 16 * index) };
            let disk = Disk { blocks: word64(entry, 64), extents: (0..count).map(extent).collect() };
            let mut blocks = 0u64;
            for extent in &disk.extents {
                // Outside the partition, or in use already.
                if !table.free.take_exactly(extent.first, extent.count) {
                    return Err("an extent that is not free");
                }
                blocks += extent.count;
            }
            if blocks != disk.blocks {
                return Err("a size that is not that of its extents");
            }
            if table.disks.insert(name.to_owned(), disk).is_some() {
                return Err("a name twice");
            }
        }
        Ok(table)
    }
}

/// A number at an offset; 0 beyond the end.
pub(super) fn word32(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// A number at an offset; 0 beyond the end.
pub(super) fn word64(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

const _: () = assert!(ENTRY == 80 + 16 * EXTENTS_MAX && NAME_MAX == 63 && BLOCK.is_multiple_of(ENTRY));
