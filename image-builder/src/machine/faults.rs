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

/// A sector that no disk has.
const NOWHERE: u64 = 1 << 50;

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

    /// Fails reads of a sector until the disk was read so many times, wherever.
    pub fn add_for(&mut self, sector: u64, reads: u32) {
        // Each read brings the rules into their next state. What fails goes on to fail until something else does: in the last state that is
        // a sector that no disk has.
        for state in 1..=reads + 1 {
            let (next, sector) = (state + 1, if state > reads { NOWHERE } else { sector });
            if state <= reads {
                let event = format!("event = \"read_aio\"\nstate = \"{state}\"\nnew_state = \"{next}\"\n");
                let _ = writeln!(self.0, "[set-state]\n{event}");
            }
            let event = format!("event = \"read_aio\"\niotype = \"read\"\nerrno = \"5\"\nstate = \"{state}\"\n");
            let _ = writeln!(self.0, "[inject-error]\n{event}sector = \"{sector}\"\n");
        }
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
        let mut lasting = Faults::default();
        lasting.add_for(34, 2);
        assert_eq!((lasting.0.matches("[set-state]").count(), lasting.0.matches("[inject-error]").count()), (2, 3));
        assert_eq!(lasting.0.matches("sector = \"34\"").count(), 2, "it ends");
    }
}
