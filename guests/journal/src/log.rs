//! The log on the disk.
//!
//! The disk is divided into two areas of the same size. One of them is in use: it begins with a **snapshot** of all keys and values, and
//! **batches** of new records follow, each beginning at a block of 4 KiB. A batch that does not fit any more is written into the
//! *other* area as a snapshot that contains it, and that area is in use then.
//!
//! Snapshot and batch look alike, numbers little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `JOURNAL1` |
//! | 8 | 8 | number of its last record. Records are numbered from 1 |
//! | 16 | 4 | records in it |
//! | 20 | 4 | 1: snapshot, 0: batch |
//! | 24 | 8 | bytes of records |
//! | 32 | 8 | CRC-64/XZ of header and records, with these 8 bytes zero |
//! | 40 | | records: length of the key (1 byte), of the value (2), key, value |
//!
//! A write is answered after the batch was written *and* flushed. Only one batch is under way at a time, and its blocks held nothing that is needed: so a
//! power cut in the middle leaves a batch with a wrong CRC, which ends the log, or a snapshot with a wrong CRC, and then the other area is the one in use.

use alloc::{
    collections::BTreeMap,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;
use crc::{CRC_64_XZ, Crc};

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Longest key and value, in bytes.
pub const KEY_MAX: usize = 64;
/// See [`KEY_MAX`].
pub const VALUE_MAX: usize = 1024;
/// Most bytes of the records of all keys and values.
pub const LIVE_MAX: usize = 128 * 1024;
/// Most records of a batch.
pub const BATCH_MAX: usize = 32;
/// Least blocks of a disk: in each area a full snapshot and as much for batches.
pub const BLOCKS_MIN: u64 = 2 * 2 * (LIVE_MAX / BLOCK) as u64;

const MAGIC: &[u8; 8] = b"JOURNAL1";
const HEADER: usize = 40;
const SUM: usize = 32;
const CRC: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);
/// Most bytes of the records of a snapshot: all that is there, and the batches under way.
const RECORDS_MAX: usize = 2 * LIVE_MAX - HEADER;
/// Bytes of a record besides key and value.
const LENGTHS: usize = 3;
const _: () = assert!(LIVE_MAX + 2 * BATCH_MAX * (LENGTHS + KEY_MAX + VALUE_MAX) <= RECORDS_MAX);

/// Why the log is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unusable {
    /// The disk has too few blocks.
    TooSmall(u64),
    /// Neither area begins with a snapshot, and the disk is not empty.
    Foreign,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unusable::TooSmall(blocks) => write!(f, "the disk has {blocks} blocks; {BLOCKS_MIN} at least are needed"),
            Unusable::Foreign => f.write_str("the disk holds something that is no journal, or a damaged one"),
        }
    }
}

/// A record: key and value.
pub type Record = (String, String);

/// Something to write, and the state after it.
#[derive(Debug)]
pub struct Planned {
    /// First block.
    pub block: u64,
    /// Whole blocks.
    pub bytes: Vec<u8>,
    area: usize,
    position: u64,
    sequence: u64,
}

/// Why records are not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// The log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Log {
    values: BTreeMap<String, String>,
    /// Bytes of the records of all keys and values.
    live: usize,
    sequence: u64,
    /// Blocks of an area; the area in use; the next free block in it.
    area_blocks: u64,
    area: usize,
    position: u64,
}

impl Log {
    /// An empty log on a disk of so many blocks. Write [`Log::snapshot`] and flush before it is used.
    pub fn new(blocks: u64) -> Result<Log, Unusable> {
        if blocks < BLOCKS_MIN {
            return Err(Unusable::TooSmall(blocks));
        }
        Ok(Log { area_blocks: blocks / 2, area: 1, ..Log::default() })
    }

    /// First blocks of the two areas of a disk.
    pub fn areas(blocks: u64) -> [u64; 2] {
        [0, blocks / 2]
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// Number of the last record.
    pub fn last(&self) -> u64 {
        self.sequence
    }

    /// Keys.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Whether there is room for a record beside all that is there.
    pub fn has_room(&self, key: &str, value: &str, pending: &[Record]) -> bool {
        let pending: usize = pending.iter().map(|(key, value)| LENGTHS + key.len() + value.len()).sum();
        self.live + pending + LENGTHS + key.len() + value.len() <= LIVE_MAX
    }

    /// What to write for these records, at most [`BATCH_MAX`]. When it is written and flushed, [`Log::commit`].
    pub fn plan(&self, records: &[Record]) -> Planned {
        let sequence = self.sequence + records.len() as u64;
        let bytes = encode(sequence, false, records.iter().map(|(key, value)| (key, value)));
        let blocks = (bytes.len() / BLOCK) as u64;
        if self.position + blocks <= self.area_blocks {
            let block = self.area as u64 * self.area_blocks + self.position;
            return Planned { block, bytes, area: self.area, position: self.position + blocks, sequence };
        }
        let mut whole = self.clone();
        records.iter().for_each(|(key, value)| whole.put(key, value));
        whole.sequence = sequence;
        whole.snapshot()
    }

    /// A snapshot in the other area.
    pub fn snapshot(&self) -> Planned {
        let bytes = encode(self.sequence, true, self.values.iter());
        let area = 1 - self.area;
        let position = (bytes.len() / BLOCK) as u64;
        Planned { block: area as u64 * self.area_blocks, bytes, area, position, sequence: self.sequence }
    }

    /// What was planned for these records is safe on the disk.
    pub fn commit(&mut self, planned: &Planned, records: &[Record]) {
        records.iter().for_each(|(key, value)| self.put(key, value));
        (self.area, self.position, self.sequence) = (planned.area, planned.position, planned.sequence);
    }

    fn put(&mut self, key: &str, value: &str) {
        self.live += value.len();
        match self.values.insert(key.to_string(), value.to_string()) {
            Some(old) => self.live -= old.len(),
            None => self.live += LENGTHS + key.len(),
        }
    }
}

fn encode<'a>(sequence: u64, snapshot: bool, records: impl Iterator<Item = (&'a String, &'a String)>) -> Vec<u8> {
    let mut bytes = alloc::vec![0; HEADER];
    let mut count = 0u32;
    for (key, value) in records {
        bytes.push(key.len() as u8);
        bytes.extend((value.len() as u16).to_le_bytes());
        bytes.extend(key.as_bytes());
        bytes.extend(value.as_bytes());
        count += 1;
    }
    let length = (bytes.len() - HEADER) as u64;
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
    bytes[16..20].copy_from_slice(&count.to_le_bytes());
    bytes[20..24].copy_from_slice(&u32::from(snapshot).to_le_bytes());
    bytes[24..32].copy_from_slice(&length.to_le_bytes());
    let sum = CRC.checksum(&bytes);
    bytes[SUM..HEADER].copy_from_slice(&sum.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn word(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Reads an area, block after block, until the log ends.
#[derive(Debug)]
pub struct Reader {
    log: Log,
    area: usize,
    /// The part at work.
    part: Vec<u8>,
    /// Blocks of the parts that were whole.
    whole: u64,
    /// Whether any block was not zero.
    is_used: bool,
}

impl Reader {
    /// For an area (0 or 1) of a disk of so many blocks.
    pub fn new(area: usize, blocks: u64) -> Reader {
        let log = Log { area_blocks: blocks / 2, area, ..Log::default() };
        Reader { log, area, part: Vec::new(), whole: 0, is_used: false }
    }

    /// Takes the next block. Returns whether another one is wanted.
    pub fn push(&mut self, block: &[u8]) -> bool {
        if self.part.is_empty() {
            self.is_used |= block.iter().any(|byte| *byte != 0);
            let length = word(block, 24);
            if !block.starts_with(MAGIC) || length > RECORDS_MAX as u64 {
                return false;
            }
        }
        self.part.extend(block);
        let length = HEADER + word(&self.part, 24) as usize;
        if self.part.len() < length {
            return true;
        }
        let part = core::mem::take(&mut self.part);
        let blocks = (part.len() / BLOCK) as u64;
        if !self.apply(part, length) {
            return false;
        }
        self.whole += blocks;
        self.log.position = self.whole;
        self.whole < self.log.area_blocks
    }

    /// Takes a part over, if it is intact and the one that follows.
    fn apply(&mut self, mut part: Vec<u8>, length: usize) -> bool {
        part.truncate(length);
        let sum = word(&part, SUM);
        part[SUM..HEADER].fill(0);
        let (sequence, count) = (word(&part, 8), word(&part, 16));
        let (count, is_snapshot) = (count & 0xffff_ffff, count >> 32 == 1);
        let follows = is_snapshot || sequence == self.log.sequence.wrapping_add(count);
        if CRC.checksum(&part) != sum || is_snapshot != (self.whole == 0) || !follows {
            return false;
        }
        let mut records = &part[HEADER..];
        while let [key_length, low, high, rest @ ..] = records {
            let key_length = usize::from(*key_length);
            let end = key_length + usize::from(u16::from_le_bytes([*low, *high]));
            let (Some(key), Some(value)) = (rest.get(..key_length), rest.get(key_length..end)) else { return false };
            let (Ok(key), Ok(value)) = (core::str::from_utf8(key), core::str::from_utf8(value)) else { return false };
            self.log.put(key, value);
            records = &rest[end..];
        }
        self.log.sequence = sequence;
        true
    }

    /// The log, if the area begins with an intact snapshot.
    fn log(self) -> Option<Log> {
        (self.whole > 0).then_some(self.log)
    }
}

/// The log that a disk of so many blocks holds, by what was read of its areas; `None` if the disk is new.
pub fn recover(blocks: u64, readers: [Reader; 2]) -> Result<Option<Log>, Unusable> {
    if blocks < BLOCKS_MIN {
        return Err(Unusable::TooSmall(blocks));
    }
    let is_used = readers.iter().any(|reader| reader.is_used);
    // A new snapshot contains all that the other area holds, and more.
    let log = readers.into_iter().filter_map(Reader::log).max_by_key(|log| log.sequence);
    match log {
        Some(log) => Ok(Some(log)),
        None if is_used => Err(Unusable::Foreign),
        None => Ok(None),
    }
}

impl Reader {
    /// The area that it reads.
    pub fn area(&self) -> usize {
        self.area
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: u64 = BLOCKS_MIN + 7;

    fn read(disk: &[u8]) -> Result<Option<Log>, Unusable> {
        let blocks = (disk.len() / BLOCK) as u64;
        let readers = [0, 1].map(|area| {
            let mut reader = Reader::new(area, blocks);
            let start = Log::areas(blocks)[area] as usize * BLOCK;
            let _ = disk[start..start + (blocks / 2) as usize * BLOCK].chunks(BLOCK).all(|block| reader.push(block));
            reader
        });
        recover(blocks, readers)
    }

    fn write(disk: &mut [u8], planned: &Planned) {
        disk[planned.block as usize * BLOCK..][..planned.bytes.len()].copy_from_slice(&planned.bytes);
    }

    fn fresh() -> (Vec<u8>, Log) {
        let mut disk = vec![0; BLOCKS as usize * BLOCK];
        let mut log = Log::new(BLOCKS).unwrap();
        let first = log.snapshot();
        write(&mut disk, &first);
        log.commit(&first, &[]);
        (disk, log)
    }

    #[test]
    fn a_new_disk_and_others() {
        assert_eq!(read(&vec![0; BLOCKS as usize * BLOCK]), Ok(None));
        assert_eq!(read(&vec![7; BLOCKS as usize * BLOCK]), Err(Unusable::Foreign));
        assert_eq!(Log::new(5), Err(Unusable::TooSmall(5)));
        let (disk, log) = fresh();
        assert_eq!(read(&disk), Ok(Some(log)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// A cut in the middle of any write, with any of its sectors lost: all that was committed is there, and of the batch that was
        /// cut all or nothing.
        #[test]
        fn a_cut_loses_nothing_that_was_committed(
            batches in prop::collection::vec((1usize..4, 0usize..VALUE_MAX, 0u8..40), 1..250),
            lost: u64,
        ) {
            let (mut disk, mut log) = fresh();
            let mut chance = lost | 1;
            for (number, (records, length, key)) in batches.into_iter().enumerate() {
                let record = |n: usize| (format!("key{}", key as usize + n), format!("{number}").repeat(length / 4));
                let records: Vec<Record> = (0..records).map(record).collect();
                let planned = log.plan(&records);
                let start = planned.block as usize * BLOCK;
                let mut torn = disk.clone();
                for (sector, bytes) in planned.bytes.chunks(512).enumerate() {
                    chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    if chance >> 60 != 0 {
                        torn[start + sector * 512..][..512].copy_from_slice(bytes);
                    }
                }
                let found = read(&torn).unwrap().unwrap();
                write(&mut disk, &planned);
                let before = log.clone();
                log.commit(&planned, &records);
                prop_assert!(found.values == before.values && found.sequence == before.sequence || found.values == log.values && found.sequence == log.sequence);
                if number % 16 == 0 {
                    prop_assert_eq!(read(&disk).unwrap().unwrap(), log.clone());
                }
            }
            prop_assert!(log.live <= LIVE_MAX);
        }

        #[test]
        fn any_disk_is_harmless(at in 0usize..200, value: u8, words in prop::collection::vec(any::<u8>(), 0..100)) {
            let (mut disk, log) = fresh();
            let records = [("a".to_string(), "b".to_string())];
            write(&mut disk, &log.plan(&records));
            disk[at] = value;
            disk[BLOCK + at..][..words.len()].copy_from_slice(&words);
            let _ = read(&disk);
        }
    }
}
