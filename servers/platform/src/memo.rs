//! What a restart of this server must not forget: a page that survives it.
//!
//! AML is somebody else's program, and its interpreter may panic on it, run out of memory, or be ended because it does not end. So it
//! is run once: before it begins that is noted, and then what it has found so far. A server that finds that it was begun and did not come to an end
//! goes on with what there is.

use crate::wiring::Findings;
use server_runtime::mmio::Region;

/// Name of the shared memory in the system file.
pub const NAME: &str = "platform";

/// Offsets of state, of length, and of whether anybody was ever served; what was found follows.
const STATE: usize = 0;
const LENGTH: usize = 4;
const SERVED: usize = 8;
const BYTES: usize = 12;
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
        let length = (self.0.read_u32(LENGTH) as usize).min(self.0.length() - BYTES);
        let mut bytes = alloc::vec![0; length];
        self.0.copy_out(BYTES, &mut bytes);
        match (state, postcard::from_bytes(&bytes)) {
            (DONE, Ok(findings)) => Before::Done(findings),
            (_, findings) => Before::Tried(findings.unwrap_or_default()),
        }
    }

    /// The interpreter runs, and has found this so far. What does not fit does not survive.
    pub fn so_far(&self, findings: &Findings) {
        self.0.write_u32(STATE, TRIED);
        self.0.write_u32(LENGTH, 0);
        if let Ok(bytes) = postcard::to_allocvec(findings)
            && bytes.len() <= self.0.length() - BYTES
        {
            self.0.copy_in(BYTES, &bytes);
            self.0.write_u32(LENGTH, bytes.len() as u32);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::{Line, Route};
    use alloc::{vec, vec::Vec};

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
        memo.0.write_u32(LENGTH, 2);
        assert_eq!(memo.read(), Before::Tried(Findings::default()));
        memo.0.write_u32(LENGTH, u32::MAX);
        let _ = memo.read();
        memo.0.write_u32(STATE, 7);
        assert!(matches!(memo.read(), Before::Tried(_)));
    }
}
