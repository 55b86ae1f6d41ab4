//! What is on the `vdisk` partition, in blocks of 4 KiB. Numbers are little-endian.
//!
//! | blocks | what |
//! |---|---|
//! | 0 to 63 | copy A of the table of disks |
//! | 64 to 127 | copy B |
//! | 128 to the end | blocks of disks |
//!
//! A copy begins with a header of 256 bytes; entries of 256 bytes follow, one for each disk, at most
//! [`DISKS_MAX`]. Only as many blocks of a copy are written as are used.
//!
//! | offset in the header | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `DENALIVD` |
//! | 8 | 4 | version of this layout: 1 |
//! | 12 | 4 | entries |
//! | 16 | 8 | generation: of two intact copies the one with the greater is the truth |
//! | 24 | 8 | blocks of the partition that the table was made for; it may have become larger since |
//! | 32 | 8 | CRC-64/XZ of header and entries, taken with these 8 bytes zero |
//! | 40 | 216 | 0 |
//!
//! | offset in an entry | bytes | what |
//! |---|---|---|
//! | 0 | 1 | bytes of the name |
//! | 1 | 63 | the name: letters, digits, `-`, `_`, `.` |
//! | 64 | 8 | blocks of the disk |
//! | 72 | 4 | extents, 1 to [`EXTENTS_MAX`] |
//! | 76 | 4 | 0 |
//! | 80 | 176 | the extents: first block on the partition and number of blocks, 8 bytes each; the disk's blocks in order |
//!
//! # Why a power cut harms nothing
//!
//! * A change writes the *older* copy whole, with the next generation, and flushes. Until that is done the newer copy is untouched and is
//!   the truth; a copy that was cut in the middle fails its CRC. So after a cut the table is that before the change or that after it.
//! * A change is answered after the flush. So what was answered is there.
//! * A server that begins flushes what it has read. What it found may be a table that one before it wrote and died before it was safe; and the next
//!   change overwrites the other copy, which would be the only one after a cut.
//! * A disk's blocks are zeroed, and that flushed, before the table that names them is written: a disk never shows what was deleted.
//! * Blocks of a deleted disk are given to another one only after the table without it is safe. So no two disks that a table after a cut
//!   can name share blocks, and writing to one never changes another.
//! * When a change fails in the middle, it is unknown which of the two tables a restart would find. Until the table as
//!   it is in memory was written again (with a still greater generation), no disk is attached, made or deleted: otherwise what is written to a
//!   disk whose deletion failed could be lost with it.
//! * Writing a disk's blocks never touches the table. Their order is the VM's affair (flush).
//!
//! A partition whose first 128 blocks are all zero is new, and is given an empty table. If the first of all writes is cut, either it is still
//! so, or copy A is intact: its header lies in the first 512 bytes, which a disk writes whole, and the rest of it is zero. Everything else
//! without an intact copy is refused with a reason and never written to.

pub mod offline;
pub mod table;

pub use table::{Disk, Extent, Table};

use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;
use crc::{CRC_64_XZ, Crc};

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Blocks of a copy of the table.
pub const COPY_BLOCKS: u64 = 64;
/// First block that disks can have.
pub const DATA_FIRST: u64 = 2 * COPY_BLOCKS;
/// Most disks of a store: what a copy has room for.
pub const DISKS_MAX: usize = COPY_BLOCKS as usize * BLOCK / ENTRY - 1;
/// Most pieces of a disk. A new disk is in one piece if there is room for that, else in as few as can be.
pub const EXTENTS_MAX: usize = 11;
/// Bytes of the header and of an entry.
const ENTRY: usize = 256;
/// Least blocks of a partition: both copies and something to keep.
pub const BLOCKS_MIN: u64 = DATA_FIRST + 1;

const MAGIC: [u8; 8] = *b"DENALIVD";
const VERSION: u32 = 1;
/// Offset of the CRC in the header.
const SUM: usize = 32;
const CRC: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);

/// Why a partition is not used. It is not written to then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Something else is on it.
    Foreign,
    /// A version of the layout that is not known here.
    Version(u32),
    /// Neither copy is intact; what is wrong with the one and the other.
    Damaged(String, String),
    /// It has become smaller: it has so many blocks, the table was made for so many.
    Smaller(u64, u64),
    /// It has too few blocks for any disk.
    TooSmall(u64),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Foreign => f.write_str("the partition holds something else; it is left as it is"),
            Refusal::Version(version) => {
                write!(f, "the partition has version {version} of the layout, not {VERSION}; it is left as it is")
            }
            Refusal::Damaged(a, b) => {
                write!(f, "both tables of disks are damaged (A: {a}; B: {b}); the partition is left as it is")
            }
            Refusal::Smaller(is, was) => {
                write!(f, "the partition has {is} blocks, but its table of disks was made for {was}")
            }
            Refusal::TooSmall(blocks) => {
                write!(f, "the partition has {blocks} blocks; virtual disks need {BLOCKS_MIN} at least")
            }
        }
    }
}

impl core::error::Error for Refusal {}

/// What a copy turned out to be.
enum Copy {
    Zeros,
    Intact(u64, Table),
    Foreign,
    Version(u32),
    Smaller(u64),
    Damaged(&'static str),
}

/// The store: the table, and which copy of it is the newer one.
#[derive(Clone, Debug)]
pub struct Store {
    /// The disks.
    pub table: Table,
    generation: u64,
    /// The copy that is the truth: 0 or 1.
    newest: usize,
    /// Whether a change failed since the table was last written.
    unsettled: bool,
}

impl Store {
    /// Reads the first [`DATA_FIRST`] blocks of a partition of `blocks` blocks. `None`: it is new ([`Store::format`]).
    pub fn read(first: &[u8], blocks: u64) -> Result<Option<Store>, Refusal> {
        if blocks < BLOCKS_MIN {
            return Err(Refusal::TooSmall(blocks));
        }
        let (a, b) = first.split_at_checked(COPY_BLOCKS as usize * BLOCK).unwrap_or((first, &[]));
        let store = |newest, generation, table| Ok(Some(Store { table, generation, newest, unsettled: false }));
        match (read_copy(a, blocks), read_copy(b, blocks)) {
            // A newer version of the server has been here, and perhaps has made a table that is not understood here.
            (Copy::Version(version), _) | (_, Copy::Version(version)) => Err(Refusal::Version(version)),
            (Copy::Smaller(was), _) | (_, Copy::Smaller(was)) => Err(Refusal::Smaller(blocks, was)),
            (Copy::Intact(a, table), Copy::Intact(b, _)) if a >= b => store(0, a, table),
            (_, Copy::Intact(b, table)) => store(1, b, table),
            (Copy::Intact(a, table), _) => store(0, a, table),
            (Copy::Zeros, Copy::Zeros) => Ok(None),
            (Copy::Foreign, Copy::Foreign | Copy::Zeros) | (Copy::Zeros, Copy::Foreign) => Err(Refusal::Foreign),
            (a, b) => Err(Refusal::Damaged(a.fault().to_string(), b.fault().to_string())),
        }
    }

    /// An empty store for a new partition of `blocks` blocks. Write [`Store::next`] and flush, then it is there.
    pub fn format(blocks: u64) -> Store {
        Store { table: Table::new(blocks), generation: 0, newest: 1, unsettled: true }
    }

    /// What to write to make `table` the truth: first block and whole blocks. Call [`Store::settle`] when it is written and flushed,
    /// [`Store::unsettle`] if that failed.
    pub fn next(&self, table: &Table) -> (u64, Vec<u8>) {
        ((1 - self.newest) as u64 * COPY_BLOCKS, encode(table, self.generation.saturating_add(1)))
    }

    /// `table` is the truth now.
    pub fn settle(&mut self, table: Table) {
        (self.newest, self.generation) = (1 - self.newest, self.generation.saturating_add(1));
        (self.table, self.unsettled) = (table, false);
    }

    /// A change failed: it is unknown which table a restart finds. The next one that is written has a greater generation than either.
    pub fn unsettle(&mut self) {
        self.unsettled = true;
        self.generation = self.generation.saturating_add(1);
    }

    /// Whether a change failed and the table is to be written again before anything relies on it.
    pub fn is_unsettled(&self) -> bool {
        self.unsettled
    }
}

impl Copy {
    /// What is wrong with it.
    fn fault(&self) -> &'static str {
        match self {
            Copy::Zeros => "empty",
            Copy::Damaged(fault) => fault,
            Copy::Foreign => "no table",
            Copy::Intact(..) | Copy::Version(_) | Copy::Smaller(_) => "not used",
        }
    }
}

fn read_copy(bytes: &[u8], blocks: u64) -> Copy {
    if bytes.iter().all(|byte| *byte == 0) {
        return Copy::Zeros;
    }
    if !bytes.starts_with(&MAGIC) {
        return Copy::Foreign;
    }
    let entries = table::word32(bytes, 12) as usize;
    let Some(used) = bytes.get(..ENTRY * (entries.min(DISKS_MAX) + 1)) else { return Copy::Damaged("cut short") };
    if sum(used) != table::word64(bytes, SUM) {
        return Copy::Damaged("wrong checksum");
    }
    let version = table::word32(bytes, 8);
    if version != VERSION {
        return Copy::Version(version);
    }
    if entries > DISKS_MAX {
        return Copy::Damaged("too many entries");
    }
    let was = table::word64(bytes, 24);
    if was > blocks {
        return Copy::Smaller(was);
    }
    match Table::decode(&used[ENTRY..], blocks) {
        Ok(table) => Copy::Intact(table::word64(bytes, 16), table),
        Err(fault) => Copy::Damaged(fault),
    }
}

fn encode(table: &Table, generation: u64) -> Vec<u8> {
    let mut bytes = alloc::vec![0; ENTRY];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&(table.len() as u32).to_le_bytes());
    bytes[16..24].copy_from_slice(&generation.to_le_bytes());
    bytes[24..32].copy_from_slice(&table.partition().to_le_bytes());
    table.encode(&mut bytes);
    let sum = sum(&bytes);
    bytes[SUM..SUM + 8].copy_from_slice(&sum.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// The checksum of header and entries.
fn sum(used: &[u8]) -> u64 {
    let mut digest = CRC.digest();
    digest.update(&used[..SUM]);
    digest.update(&[0; 8]);
    digest.update(&used[SUM + 8..]);
    digest.finalize()
}

#[cfg(test)]
mod tests;
