//! A VM that is printing: the line it is in the middle of, and how much more it may print.
//!
//! Most VMs say nothing most of the time. Only those that did a moment ago have a record here; one that is quiet, and above all one that
//! has left memory, costs nothing but its place in the table of VMs.

use crate::limit::Bucket;
use alloc::vec::Vec;
use protocol::text::OUTPUT;

/// Bytes of a VM's line before it is printed without having ended.
pub const LINE_MAX: usize = 240;

/// A VM that is printing.
#[derive(Debug)]
pub struct Talk {
    /// Its allowance.
    pub bucket: Bucket,
    /// Bytes lost since the last report of it.
    pub lost: u64,
    /// Bytes taken, as in [`protocol::text::ConsolePage::read`].
    pub read: u32,
    /// The VM's page does not say yet that they were taken.
    pub unsaved: bool,
    line: Vec<u8>,
}

impl Talk {
    /// A VM that was quiet, whose page says that so many bytes were taken.
    pub const fn new(read: u32, now: u64) -> Talk {
        Talk { bucket: Bucket::new(now), lost: 0, read, unsaved: false, line: Vec::new() }
    }

    /// Takes the output in the VM's ring up to the index `written`, which may be nonsense, and gives each complete line to `print`.
    pub fn take(&mut self, written: u32, ring: &[u8; OUTPUT], now: u64, mut print: impl FnMut(&[u8])) {
        let unread = written.wrapping_sub(self.read);
        (self.read, self.unsaved) = (written, true);
        let kept = unread.min(OUTPUT as u32);
        let allowed = self.bucket.take(u64::from(kept), now) as u32;
        self.lost += u64::from(unread - allowed);
        let first = written.wrapping_sub(kept);
        for index in 0..allowed {
            let byte = ring[first.wrapping_add(index) as usize % OUTPUT];
            if byte != b'\n' {
                self.line.push(byte);
            }
            if byte == b'\n' || self.line.len() >= LINE_MAX {
                print(&self.line);
                self.line.clear();
            }
        }
        if self.line.is_empty() {
            self.line = Vec::new();
        }
    }

    /// Gives the line that the VM is in the middle of to `print`, if there is one.
    pub fn flush(&mut self, print: impl FnOnce(&[u8])) {
        if !self.line.is_empty() {
            print(&core::mem::take(&mut self.line));
        }
    }

    /// Whether the VM is in the middle of a line.
    pub fn has_begun_line(&self) -> bool {
        !self.line.is_empty()
    }

    /// Whether it is as good as new: nothing would be lost by forgetting it.
    pub fn is_over(&mut self, now: u64) -> bool {
        self.lost == 0 && self.line.is_empty() && self.bucket.is_full(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::{BURST, RATE};
    use alloc::string::String;
    use proptest::prelude::*;

    fn ring(text: &[u8], at: u32) -> [u8; OUTPUT] {
        let mut ring = [0; OUTPUT];
        for (index, byte) in text.iter().enumerate() {
            ring[(at as usize + index) % OUTPUT] = *byte;
        }
        ring
    }

    fn take(talk: &mut Talk, text: &str, at: u32) -> Vec<String> {
        let mut lines = Vec::new();
        let print = |line: &[u8]| lines.push(String::from_utf8_lossy(line).into_owned());
        talk.take(at.wrapping_add(text.len() as u32), &ring(text.as_bytes(), at), 0, print);
        lines
    }

    #[test]
    fn lines_are_put_together_across_the_end_of_the_ring() {
        let at = u32::MAX - 3;
        let mut talk = Talk::new(at, 0);
        assert_eq!(take(&mut talk, "hello\nwor", at), ["hello"]);
        assert!(talk.has_begun_line() && !talk.is_over(u64::MAX));
        assert_eq!(take(&mut talk, "ld\n", at.wrapping_add(9)), ["world"]);
        assert!(!talk.has_begun_line() && !talk.is_over(0));
        assert!(talk.is_over(1_000_000_000 * 12 / RATE + 1));
    }

    #[test]
    fn what_was_overwritten_is_counted() {
        let mut talk = Talk::new(0, 0);
        let ring = [b'\n'; OUTPUT];
        let mut lines = 0;
        talk.take(OUTPUT as u32 + 100, &ring, 0, |_| lines += 1);
        assert_eq!((lines, talk.lost), (OUTPUT, 100));
        assert!(!talk.is_over(u64::MAX), "the loss was not told yet");
    }

    proptest! {
        #[test]
        fn nonsense_indices_are_harmless(steps in prop::collection::vec((any::<u32>(), any::<u8>()), 1..50)) {
            let mut talk = Talk::new(0, 0);
            let mut printed = 0u64;
            for (written, fill) in steps {
                talk.take(written, &[fill; OUTPUT], 0, |line| {
                    assert!(line.len() <= LINE_MAX);
                    printed += line.len() as u64;
                });
                prop_assert!(printed <= BURST);
            }
        }
    }
}
