//! The store while no server runs: for the builder, which works on the image of a disk.

use super::{BLOCK, DATA_FIRST, Refusal, Store, table::Unmade};
use alloc::{string::String, vec::Vec};
use core::fmt;

/// Blocks written or read at a time.
const AT_ONCE: u64 = 256;

/// The partition. Positions are in blocks; lengths are whole blocks.
pub trait Blocks {
    /// What can go wrong.
    type Error;

    /// Blocks.
    fn blocks(&self) -> u64;
    /// Reads.
    fn read(&mut self, block: u64, bytes: &mut [u8]) -> Result<(), Self::Error>;
    /// Writes.
    fn write(&mut self, block: u64, bytes: &[u8]) -> Result<(), Self::Error>;
    /// Makes what was written safe.
    fn flush(&mut self) -> Result<(), Self::Error>;
}

/// Why something was not done.
#[derive(Debug)]
pub enum Fault<E> {
    /// The partition cannot be used.
    Refused(Refusal),
    /// Reading or writing failed.
    Device(E),
    /// The disk cannot be made.
    Unmade(Unmade),
    /// There is no disk of this name.
    NotFound(String),
}

impl<E: fmt::Display> fmt::Display for Fault<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Refused(refusal) => refusal.fmt(f),
            Fault::Device(error) => error.fmt(f),
            Fault::Unmade(Unmade::Exists) => f.write_str("there is a disk of this name already"),
            Fault::Unmade(Unmade::Full) => f.write_str("no room for a disk of this size, or for another disk"),
            Fault::Unmade(Unmade::BadArgument) => f.write_str(
                "the name or the size makes no sense: a name has 1 to 63 letters, digits, `-`, `_`, `.`; a size is not 0",
            ),
            Fault::NotFound(name) => write!(f, "there is no disk `{name}`"),
        }
    }
}

impl<E> From<E> for Fault<E> {
    fn from(error: E) -> Fault<E> {
        Fault::Device(error)
    }
}

/// A store on a partition.
#[derive(Debug)]
pub struct Offline<B> {
    partition: B,
    store: Store,
}

impl<B: Blocks> Offline<B> {
    /// Opens the store; one on a new partition is empty, and is written with the first change.
    pub fn open(mut partition: B) -> Result<Offline<B>, Fault<B::Error>> {
        let blocks = partition.blocks();
        let mut first = alloc::vec![0; DATA_FIRST.min(blocks) as usize * BLOCK];
        partition.read(0, &mut first)?;
        let store = Store::read(&first, blocks).map_err(Fault::Refused)?;
        Ok(Offline { partition, store: store.unwrap_or_else(|| Store::format(blocks)) })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Makes a disk that reads as zeros.
    pub fn create(&mut self, name: &str, blocks: u64) -> Result<(), Fault<B::Error>> {
        let zeros = alloc::vec![0; AT_ONCE as usize * BLOCK];
        self.create_with(name, blocks, |_, bytes| {
            bytes.copy_from_slice(&zeros[..bytes.len()]);
            Ok(())
        })
    }

    /// Makes a disk with what `fill` puts into the blocks from a position on; then it is written into the table.
    pub fn create_with(
        &mut self,
        name: &str,
        blocks: u64,
        mut fill: impl FnMut(u64, &mut [u8]) -> Result<(), B::Error>,
    ) -> Result<(), Fault<B::Error>> {
        let mut table = self.store.table.clone();
        let disk = table.create(name, blocks).map_err(Fault::Unmade)?.clone();
        let mut bytes = Vec::new();
        let mut done = 0;
        while let Some(part) = disk.place(done, AT_ONCE.min(blocks - done)).filter(|part| part.count > 0) {
            bytes.resize(part.count as usize * BLOCK, 0);
            fill(done, &mut bytes)?;
            self.partition.write(part.first, &bytes)?;
            done += part.count;
        }
        self.partition.flush()?;
        self.write(table)
    }

    /// Deletes a disk.
    pub fn delete(&mut self, name: &str) -> Result<(), Fault<B::Error>> {
        let mut table = self.store.table.clone();
        if !table.delete(name) {
            return Err(Fault::NotFound(name.into()));
        }
        self.write(table)
    }

    /// Reads a disk from beginning to end.
    pub fn read(
        &mut self,
        name: &str,
        mut take: impl FnMut(&[u8]) -> Result<(), B::Error>,
    ) -> Result<(), Fault<B::Error>> {
        let disk = self.store.table.get(name).ok_or_else(|| Fault::NotFound(name.into()))?;
        let mut bytes = Vec::new();
        let mut done = 0;
        while let Some(part) = disk.place(done, AT_ONCE.min(disk.blocks - done)).filter(|part| part.count > 0) {
            bytes.resize(part.count as usize * BLOCK, 0);
            self.partition.read(part.first, &mut bytes)?;
            take(&bytes)?;
            done += part.count;
        }
        Ok(())
    }

    fn write(&mut self, table: super::Table) -> Result<(), Fault<B::Error>> {
        let (block, bytes) = self.store.next(&table);
        self.partition.write(block, &bytes)?;
        self.partition.flush()?;
        self.store.settle(table);
        Ok(())
    }
}
