//! What a restart of this server must not forget: a page that survives it.
//!
//! AML is somebody else's program, and its interpreter may panic on it, run out of memory, or be ended because it does not end. So it
//! is run once: before it begins that is noted, and then what it has found so far. A server that finds that it was begun and did not come to an end
//! goes on with what there is.
//!
//! How long devices' registers are is found once as well: to find it disturbs drivers, and those live on.

use crate::{bars::Lengths, wiring::Findings};
use alloc::{collections::BTreeMap, vec::Vec};
use serde::{Serialize, de::DeserializeOwned};
use server_runtime::mmio::Region;

/// Name of the shared memory in the system file.
pub const NAME: &str = "platform";

/// Offsets of the state of the interpreter, and of whether anybody was ever served; the records follow.
const STATE: usize = 0;
const SERVED: usize = 4;
const RECORDS: usize = 8;
/// States; the memory begins as zeros.
const TRIED: u32 = u32::from_le_bytes(*b"try!");
const DONE: u32 = u32::from_le_bytes(*b"done");

/// What is known of earlier lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Before {
    /// Nothing: the interpreter has not run.
    Nothing,
    /// It was begun and did not come to an end; until then it had found this.
    Tried(Findings),
    /// It has found this.
    Done(Findings),
}

/// The page.
#[derive(Clone, Copy, Debug)]
pub struct Memo(pub Region);

impl Memo {
    /// What it says.
    pub fn read(&self) -> Before {
        let state = self.0.read_u32(STATE);
        if state == 0 {
            return Before::Nothing;
        }
        match (state, self.findings().read()) {
            (DONE, Some(findings)) => Before::Done(findings),
            (_, findings) => Before::Tried(findings.unwrap_or_default()),
        }
    }

    /// The interpreter runs, and has found this so far. What does not fit does not survive.
    pub fn so_far(&self, findings: &Findings) {
        self.0.write_u32(STATE, TRIED);
        self.findings().write(findings);
    }

    /// How long the registers of these functions are, by [`crate::config::location`]. Returns whether there was room.
    pub fn keep_lengths(&self, lengths: impl Iterator<Item = (u16, Lengths)>) -> bool {
        self.lengths().write(&lengths.collect::<Vec<_>>())
    }

    /// How long registers are, if that was found by an earlier life that served drivers.
    pub fn known_lengths(&self) -> BTreeMap<u16, Lengths> {
        let lengths = self.has_served().then(|| self.lengths().read::<Vec<_>>());
        lengths.flatten().into_iter().flatten().collect()
    }

    fn findings(&self) -> Record {
        Record(self.0.part(RECORDS, self.half()))
    }

    fn lengths(&self) -> Record {
        Record(self.0.part(RECORDS + self.half(), self.half()))
    }

    /// Bytes of each of the two records.
    const fn half(&self) -> usize {
        (self.0.length() - RECORDS) / 2
    }

    /// Whether an earlier life came so far that it served drivers.
    pub fn has_served(&self) -> bool {
        self.0.read_u32(SERVED) != 0
    }

    /// Drivers are served from here on.
    pub fn serve(&self) {
        self.0.write_u32(SERVED, 1);
    }

    /// It has come to an end, with what was noted last.
    pub fn end(&self) {
        self.0.write_u32(STATE, DONE);
    }
}

/// A part of the page that holds one value: 4 bytes of length, then so many of postcard.
struct Record(Region);

impl Record {
    const VALUE: usize = 4;

    fn read<T: DeserializeOwned>(&self) -> Option<T> {
        let length = (self.0.read_u32(0) as usize).min(self.0.length() - Self::VALUE);
        let mut bytes = alloc::vec![0; length];
        self.0.copy_out(Self::VALUE, &mut bytes);
        postcard::from_bytes(&bytes).ok()
    }

    /// `false`, and no value from then on, if it does not fit.
    fn write(&self, value: &impl Serialize) -> bool {
        self.0.write_u32(0, 0);
        let bytes = postcard::to_allocvec(value).ok();
        let Some(bytes) = bytes.filter(|bytes| bytes.len() <= self.0.length() - Self::VALUE) else {
            return false;
        };
        self.0.copy_in(Self::VALUE, &bytes);
        self.0.write_u32(0, bytes.len() as u32);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::{Line, Route};
    use alloc::vec;

    fn page() -> Memo {
        Memo(Region::of(vec![0; 512].leak()))
    }

    fn findings(routes: u32) -> Findings {
        let route = |number| Route { bus: 255, device: 31, pin: 4, line: Line::pci(number) };
        Findings { sleep: Some([5, 0]), routes: (0..routes).map(route).collect::<Vec<_>>() }
    }

    #[test]
    fn remembers() {
        let memo = page();
        assert_eq!(memo.read(), Before::Nothing);
        memo.so_far(&Findings::default());
        assert_eq!(memo.read(), Before::Tried(Findings::default()));
        memo.so_far(&findings(7));
        assert_eq!(memo.read(), Before::Tried(findings(7)));
        // One for each function that is looked for.
        memo.so_far(&findings(256));
        memo.end();
        assert_eq!(memo.read(), Before::Done(findings(256)));
        assert!(!memo.has_served());
        memo.serve();
        assert_eq!((memo.has_served(), memo.read()), (true, Before::Done(findings(256))));
        memo.so_far(&findings(2000));
        memo.end();
        assert_eq!(memo.read(), Before::Tried(Findings::default()));
    }

    #[test]
    fn a_page_that_makes_no_sense_is_an_attempt() {
        let memo = page();
        memo.so_far(&findings(3));
        memo.end();
        memo.0.write_u32(RECORDS, 2);
        assert_eq!(memo.read(), Before::Tried(Findings::default()));
        memo.0.write_u32(RECORDS, u32::MAX);
        let _ = memo.read();
        memo.0.write_u32(STATE, 7);
        assert!(matches!(memo.read(), Before::Tried(_)));
    }

    #[test]
    fn lengths_are_known_once_drivers_were_served() {
        let memo = page();
        let lengths: Lengths = postcard::from_bytes(&[4, 12, 0, 36, 0, 2]).unwrap();
        let some = |count: u16| (0..count).map(move |function| (function << 3, lengths));
        assert!(memo.keep_lengths(some(200)));
        memo.so_far(&findings(256));
        assert!(memo.known_lengths().is_empty());
        memo.serve();
        assert_eq!(memo.known_lengths(), some(200).collect());
        assert_eq!(memo.read(), Before::Tried(findings(256)));
        assert!(!memo.keep_lengths(some(300)));
        assert!(memo.known_lengths().is_empty());
    }
}
