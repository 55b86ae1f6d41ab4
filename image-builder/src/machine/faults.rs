//! Rules of QEMU's `blkdebug` by which a disk fails requests, with an input/output error.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use miette::{IntoDiagnostic, Result};

/// What fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Reads of a sector.
    Read(u64),
    /// Writes of a sector.
    Write(u64),
    /// Flushes.
    Flush,
}

/// The rules. Sectors are of 512 bytes and of the whole image ([`super::disk::Image::first_sector`]); a request fails that touches one.
#[derive(Debug, Default)]
pub struct Faults(String);

impl Faults {
    /// Fails these requests; `once`: only the first.
    pub fn add(&mut self, kind: Kind, once: bool) {
        let (event, operation, sector) = match kind {
            Kind::Read(sector) => ("read_aio", "read", Some(sector)),
            Kind::Write(sector) => ("write_aio", "write", Some(sector)),
            Kind::Flush => ("flush_to_disk", "flush", None),
        };
        let sector = sector.map_or(String::new(), |sector| format!("sector = \"{sector}\"\n"));
        let once = if once { "once = \"on\"\n" } else { "" };
        let rule = format!("event = \"{event}\"\niotype = \"{operation}\"\nerrno = \"5\"\n{once}{sector}");
        let _ = writeln!(self.0, "[inject-error]\n{rule}");
    }

    /// Writes them to the file that a disk's `faults` names.
    pub fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, &self.0).into_diagnostic()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_what_qemu_reads() {
        let mut faults = Faults::default();
        faults.add(Kind::Read(34), true);
        faults.add(Kind::Flush, false);
        let read = "[inject-error]\nevent = \"read_aio\"\niotype = \"read\"\nerrno = \"5\"\nonce = \"on\"\nsector = \"34\"\n\n";
        let flush = "[inject-error]\nevent = \"flush_to_disk\"\niotype = \"flush\"\nerrno = \"5\"\n\n";
        assert_eq!(faults.0, format!("{read}{flush}"));
    }
}
