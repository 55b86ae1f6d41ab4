//! What a disk holds after a power cut, if it has a cache that forgets.
//!
//! QEMU hands writes to the host, and the host keeps them when QEMU is killed; a disk with a cache of its own keeps for certain only what was
//! flushed. So QEMU logs all writes and flushes (`blklogwrites`, the format of Linux's `dm-log-writes`), and the disk is put together anew
//! from what it held before and that log: everything up to the last flush, and of what came later each sector only perhaps.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use miette::{IntoDiagnostic, Result, miette};

use super::disk::Image;
use super::qemu::Disk;

/// Bytes of a sector of disk and log.
const SECTOR: usize = 512;
/// First word of a log.
const MAGIC: u64 = 0x006a_7366_7773_6872;
/// Flags of an entry.
const FLUSH: u64 = 1;
const FORCED: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
/// Bytes that are looked at at once when an image is copied.
const PIECE: usize = 1 << 20;

/// How many sectors came through and how many did not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fate {
    /// Written before the last flush.
    pub flushed: u64,
    /// Written after it, and kept.
    pub kept: u64,
    /// Written after it, and lost.
    pub lost: u64,
}

/// A disk with such a cache: what it held when its machine was started.
#[derive(Debug)]
pub struct Volatile {
    image: PathBuf,
    base: PathBuf,
    log: PathBuf,
}

impl Volatile {
    /// Gives a disk of a machine that is not running yet such a cache.
    pub fn give(disk: &mut Disk) -> Result<Volatile> {
        let volatile = Volatile {
            image: disk.image.clone(),
            base: disk.image.with_extension("base"),
            log: disk.image.with_extension("log"),
        };
        copy(&volatile.image, &volatile.base)?;
        File::create(&volatile.log).into_diagnostic()?;
        disk.log = Some(volatile.log.clone());
        Ok(volatile)
    }

    /// After the machine's end: makes the image what such a disk might hold. Each `seed` makes another one.
    pub fn forget(self, seed: u64) -> Result<Fate> {
        copy(&self.base, &self.image)?;
        replay(&self.log, &Image::at(&self.image), seed)
    }
}

/// Copies an image, leaving holes where it is zero.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut from = File::open(from).into_diagnostic()?;
    let to = File::create(to).into_diagnostic()?;
    to.set_len(from.metadata().into_diagnostic()?.len()).into_diagnostic()?;
    let (mut piece, mut at) = (vec![0; PIECE], 0);
    loop {
        let length = from.read(&mut piece).into_diagnostic()?;
        if length == 0 {
            return Ok(());
        }
        if piece[..length].iter().any(|byte| *byte != 0) {
            to.write_all_at(&piece[..length], at).into_diagnostic()?;
        }
        at += length as u64;
    }
}

/// An entry of a log.
struct Entry {
    sector: u64,
    sectors: u64,
    flags: u64,
    /// Where its data lies in the log.
    data: u64,
}

/// The entries. What was being logged when the machine ended is none.
fn entries(log: &File) -> Result<Vec<Entry>> {
    let end = log.metadata().into_diagnostic()?.len();
    let word = |at: u64| {
        let mut bytes = [0; 8];
        log.read_exact_at(&mut bytes, at).map(|()| u64::from_le_bytes(bytes)).into_diagnostic()
    };
    // The first sector is written at the first flush: until then it is empty.
    if end < SECTOR as u64 || ![0, MAGIC].contains(&word(0)?) {
        return Err(miette!("QEMU has written no log of the disk's writes"));
    }
    let (mut entries, mut at) = (Vec::new(), SECTOR as u64);
    // The number of entries in the first sector is brought up to date only now and then.
    while at + SECTOR as u64 <= end {
        let data = at + SECTOR as u64;
        let entry = Entry { sector: word(at)?, sectors: word(at + 8)?, flags: word(at + 16)?, data };
        let length = if entry.flags & (DISCARD | MARK) != 0 { 0 } else { entry.sectors.saturating_mul(SECTOR as u64) };
        if entry.sectors == 0 && entry.flags == 0 || length > end - data {
            break;
        }
        entries.push(entry);
        at = data + length;
    }
    Ok(entries)
}

fn replay(log: &Path, image: &Image, seed: u64) -> Result<Fate> {
    let log = File::open(log).into_diagnostic()?;
    let entries = entries(&log)?;
    let disk = OpenOptions::new().write(true).open(image.path()).into_diagnostic()?;
    let flushed = entries.iter().rposition(|entry| entry.flags & FLUSH != 0).map_or(0, |last| last + 1);
    let mut chance = Chance(seed);
    let mut fate = Fate::default();
    for (number, entry) in entries.iter().enumerate() {
        let safe = number < flushed || entry.flags & FORCED != 0;
        // A disk loses whole requests as well as parts of them.
        let odds = chance.next() % 5;
        for sector in (0..entry.sectors).take_while(|_| entry.flags & MARK == 0) {
            let keeps = safe || chance.next() % 4 < odds;
            *match (safe, keeps) {
                (true, _) => &mut fate.flushed,
                (false, true) => &mut fate.kept,
                (false, false) => &mut fate.lost,
            } += 1;
            // A sector that was discarded may hold anything: what it held is as good.
            if keeps && entry.flags & DISCARD == 0 {
                let mut bytes = [0; SECTOR];
                log.read_exact_at(&mut bytes, entry.data + sector * SECTOR as u64).into_diagnostic()?;
                disk.write_all_at(&bytes, (entry.sector + sector) * SECTOR as u64).into_diagnostic()?;
            }
        }
    }
    Ok(fate)
}

/// Numbers that look like chance: SplitMix64.
pub struct Chance(pub u64);

impl Chance {
    /// The next one.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of these: first sector, flags, the byte that fills each sector.
    fn log(entries: &[(u64, u64, &[u8])]) -> Vec<u8> {
        let sector = |words: &[u64]| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.resize(SECTOR, 0);
            bytes
        };
        let mut log = sector(&[MAGIC, 1, 0, SECTOR as u64]);
        for (first, flags, fill) in entries {
            log.extend(sector(&[*first, fill.len() as u64, *flags, 0]));
            fill.iter().for_each(|byte| log.extend([*byte; SECTOR]));
        }
        log
    }

    #[test]
    fn what_was_flushed_is_kept_and_the_rest_perhaps() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut disk = Disk::new("disk", &folder.path().join("disk.img"));
        let entries: [(u64, u64, &[u8]); 5] =
            [(1, 0, &[1; 4]), (0, FLUSH, &[]), (2, 0, &[2; 3]), (9, FORCED, &[9]), (3, 0, &[3; 2])];
        let mut whole = log(&entries);
        // The last entry's data is not all there: the machine ended.
        whole.extend(&log(&[(0, 0, &[7; 2])])[SECTOR..2 * SECTOR + 100]);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..100 {
            std::fs::write(&disk.image, [0xee; 16 * SECTOR]).expect("written");
            let volatile = Volatile::give(&mut disk).expect("it is there");
            // The machine writes.
            std::fs::write(&disk.image, [0xff; 16 * SECTOR]).expect("written");
            std::fs::write(disk.log.as_ref().expect("it has a log"), &whole).expect("written");
            let fate = volatile.forget(seed).expect("a log");
            assert_eq!((fate.flushed, fate.kept + fate.lost), (5, 5));
            let bytes = std::fs::read(&disk.image).expect("there");
            let sectors: Vec<u8> = bytes.chunks(SECTOR).map(|sector| sector[0]).collect();
            assert_eq!((sectors[0], sectors[1], sectors[5..9].to_vec(), sectors[9]), (0xee, 1, vec![0xee; 4], 9));
            assert!(sectors[2..5].iter().all(|byte| (1..=3).contains(byte)), "{sectors:?}");
            seen.insert(sectors);
        }
        assert!(seen.len() > 8, "{seen:?}");
    }

    #[test]
    fn no_log_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut disk = Disk::new("disk", &folder.path().join("disk.img"));
        std::fs::write(&disk.image, [0; SECTOR]).expect("written");
        Volatile::give(&mut disk).expect("it is there").forget(0).expect_err("nothing was logged");
    }
}
