//! VMs that have received what can wait: TCP acknowledgements that carry nothing else.
//!
//! A VM need not run for such a packet. More often than not the next packet of the same client comes soon behind it: the request behind the end of the handshake, the
//! end of the connection behind the acknowledgement of the answer. So its interrupt waits for that one, or for a second acknowledgement, for which somebody may
//! be waiting with more to send; at most for [`DELAY`]. Network cards moderate their interrupts in the same way (Intel 82599 datasheet, 7.3.2.1.2, low
//! latency interrupts: the other way round, those that cannot wait).

use crate::ports::PortId;
use alloc::collections::{BTreeSet, VecDeque};
use protocol::abi::NEVER;

/// Nanoseconds that such an interrupt waits at most.
pub const DELAY: u64 = 2_000_000;
/// Most VMs that wait at a time; others are told at once.
const MOST: usize = 1024;

/// The VMs that have not been told yet.
#[derive(Debug, Default)]
pub struct Quiet {
    waits: BTreeSet<PortId>,
    /// In the order in which they began to wait, and until when. Some have been told meanwhile.
    until: VecDeque<(PortId, u64)>,
}

impl Quiet {
    /// A VM has received something that can wait. `false`: it has to be told at once.
    pub fn begin(&mut self, id: PortId, now: u64) -> bool {
        if self.until.len() >= MOST || !self.waits.insert(id) {
            return false;
        }
        self.until.push_back((id, now.saturating_add(DELAY)));
        true
    }

    /// A VM is told, or has gone.
    pub fn end(&mut self, id: PortId) {
        self.waits.remove(&id);
    }

    /// When the next one has to be told, in nanoseconds since kernel entry.
    pub fn due(&mut self) -> u64 {
        while let Some((id, until)) = self.until.front() {
            if self.waits.contains(id) {
                return *until;
            }
            self.until.pop_front();
        }
        NEVER
    }

    /// One that has to be told now.
    pub fn take(&mut self, now: u64) -> Option<PortId> {
        if self.due() > now {
            return None;
        }
        let (id, _) = self.until.pop_front()?;
        self.end(id);
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_waits_once_and_not_for_long() {
        let mut quiet = Quiet::default();
        assert_eq!((quiet.due(), quiet.take(u64::MAX - 1)), (NEVER, None));
        assert!(quiet.begin(7, 100) && quiet.begin(8, 200) && quiet.begin(9, 300));
        assert!(!quiet.begin(7, 400), "the second one is told");
        quiet.end(7);
        assert_eq!((quiet.due(), quiet.take(DELAY + 199)), (DELAY + 200, None));
        assert_eq!((quiet.take(DELAY + 200), quiet.take(DELAY + 299)), (Some(8), None));
        assert!(quiet.begin(8, 500), "it may wait again");
        assert_eq!((quiet.take(DELAY + 900), quiet.take(DELAY + 900), quiet.take(NEVER - 1)), (Some(9), Some(8), None));
    }

    #[test]
    fn there_is_an_end_to_it() {
        let mut quiet = Quiet::default();
        let began = (0..5000).filter(|id| quiet.begin(*id, 0)).count();
        assert_eq!(began, MOST);
        while quiet.take(DELAY).is_some() {}
        assert!(quiet.begin(1, 0) && quiet.waits.len() == 1);
    }
}
