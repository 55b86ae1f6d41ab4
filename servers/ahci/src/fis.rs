//! What is said to a disk: register FISes (Serial ATA 3.0, 10.3.4), in entries of the command list and their tables (4.2.2, 4.2.3).

use block_driver::Dma;

/// Bytes of an entry of the command list.
pub const HEADER: usize = 32;
/// Bytes of a command table with one piece of memory.
pub const TABLE: usize = 256;
/// Where in a table the first piece of memory stands.
const PIECES: usize = 0x80;
/// Double words of a register FIS.
const WORDS: u32 = 5;
/// In an entry: the data goes to the disk.
const WRITE: u32 = 1 << 6;
/// In the first double word: a register FIS to the disk, with a command.
const COMMAND: u32 = 0x27 | 1 << 15;
/// In the second: block addresses.
const BLOCKS: u32 = 1 << 30;

/// A command of a disk (ACS 7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Tells what it is.
    Identify,
    /// Reads so many sectors from one on.
    Read(u64, u16),
    /// Writes so many sectors from one on.
    Write(u64, u16),
    /// The same, queued: others may be under way.
    ReadQueued(u64, u16),
    /// The same, queued.
    WriteQueued(u64, u16),
    /// Writes its cache to the medium; `true`: by 48-bit addresses.
    Flush(bool),
}

impl Command {
    /// Its code.
    const fn code(self) -> u8 {
        match self {
            Command::Identify => 0xec,
            Command::Read(..) => 0x25,
            Command::Write(..) => 0x35,
            Command::ReadQueued(..) => 0x60,
            Command::WriteQueued(..) => 0x61,
            Command::Flush(true) => 0xea,
            Command::Flush(false) => 0xe7,
        }
    }

    /// The FIS, of a command with this tag.
    #[inline]
    pub const fn words(self, tag: usize) -> [u32; WORDS as usize] {
        let (sector, features, count) = match self {
            Command::Identify | Command::Flush(_) => (0, 0, 0),
            Command::Read(sector, count) | Command::Write(sector, count) => (sector, 0, count),
            Command::ReadQueued(sector, count) | Command::WriteQueued(sector, count) => {
                (sector, count, (tag as u16) << 3)
            }
        };
        let features = features as u32;
        [
            COMMAND | (self.code() as u32) << 16 | features << 24,
            (sector & 0xff_ffff) as u32 | BLOCKS,
            (sector >> 24 & 0xff_ffff) as u32 | features >> 8 << 24,
            count as u32,
            0,
        ]
    }

    /// Writes it into an entry of the command list and its table. `data` is what it reads or writes.
    #[inline]
    pub fn put(self, tag: usize, header: Dma, table: Dma, data: Option<Dma>) {
        for (index, word) in self.words(tag).into_iter().enumerate() {
            table.memory.write_u32(index * 4, word);
        }
        let mut first = WORDS;
        if matches!(self, Command::Write(..) | Command::WriteQueued(..)) {
            first |= WRITE;
        }
        if let Some(data) = data {
            first |= 1 << 16;
            table.memory.write_u64(PIECES, data.physical);
            table.memory.write_u64(PIECES + 8, (data.memory.length() as u64 - 1) << 32);
        }
        header.memory.write_u64(0, first.into());
        header.memory.write_u64(8, table.physical);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_laid_out() {
        let bytes = |command: Command, tag| command.words(tag).map(u32::to_le_bytes).concat();
        let sector = 0x6655_4433_2211;
        assert_eq!(
            bytes(Command::Read(sector, 0x1234), 3),
            [0x27, 0x80, 0x25, 0, 0x11, 0x22, 0x33, 0x40, 0x44, 0x55, 0x66, 0, 0x34, 0x12, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            bytes(Command::WriteQueued(sector, 0x1234), 31),
            [0x27, 0x80, 0x61, 0x34, 0x11, 0x22, 0x33, 0x40, 0x44, 0x55, 0x66, 0x12, 31 << 3, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(bytes(Command::Flush(true), 1)[2], 0xea);
    }
}
