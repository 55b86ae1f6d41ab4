//! How much of a processor a server that VMs talk to may take to serve them.
//!
//! Servers run before the VMs, and serving a VM costs more than filling a ring costs the VM. Without a limit a few VMs that flood
//! would keep the processor in the server, and all VMs from running. Among each other the VMs are served in turn; here they
//! all together are kept to a share of the time.

/// Nanoseconds that may be used at once after a quiet time.
pub const BURST: u64 = 5_000_000;
/// Nanoseconds that must have gathered before the VMs are served again.
pub const RESUME: u64 = 500_000;
/// Percent of a processor if the system file does not say.
pub const SHARE: u64 = 50;

const FULL: i64 = BURST as i64 * 100;
const ENOUGH: i64 = RESUME as i64 * 100;

/// The budget. Times are nanoseconds since kernel entry.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    share: u64,
    /// Nanoseconds times 100 that may be used; below 0 after work that took longer than there was left.
    credit: i64,
    at: u64,
    open: bool,
}

impl Budget {
    /// A full budget of `share` percent of a processor, 1-100.
    pub fn new(share: u64, now: u64) -> Budget {
        Budget { share: share.clamp(1, 100), credit: FULL, at: now, open: true }
    }

    /// Whether the VMs may be served.
    pub fn is_open(&mut self, now: u64) -> bool {
        let gained = now.saturating_sub(self.at).saturating_mul(self.share);
        self.credit = self.credit.saturating_add_unsigned(gained).min(FULL);
        self.at = self.at.max(now);
        self.open |= self.credit >= ENOUGH;
        self.open
    }

    /// Takes the time that serving them has used. At 100 percent there is no limit.
    pub fn spend(&mut self, used: u64) {
        if self.share < 100 {
            self.credit = self.credit.saturating_sub_unsigned(used.saturating_mul(100));
            self.open = self.credit > 0;
        }
    }

    /// When the VMs may be served again, if they may not now.
    pub fn opens_at(&self) -> u64 {
        let missing = ENOUGH.saturating_sub(self.credit).max(0).unsigned_abs();
        self.at.saturating_add(missing.div_ceil(self.share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_busy_switch_pauses_and_goes_on() {
        let mut budget = Budget::new(50, 0);
        assert!(budget.is_open(0));
        budget.spend(BURST);
        assert!(!budget.is_open(0));
        let opens = budget.opens_at();
        assert_eq!(opens, RESUME * 2);
        assert!(!budget.is_open(opens - 1));
        assert!(budget.is_open(opens));
    }

    #[test]
    fn all_of_a_processor_is_no_limit() {
        let mut budget = Budget::new(100, 0);
        budget.spend(u64::MAX);
        assert!(budget.is_open(0));
    }

    proptest! {
        #[test]
        fn the_share_is_kept(share in 1u64..100, steps in prop::collection::vec((0u64..2_000_000, 0u64..2_000_000), 1..300)) {
            let mut budget = Budget::new(share, 0);
            let (mut now, mut used) = (0, 0);
            for (pause, work) in steps {
                now += pause;
                if budget.is_open(now) {
                    budget.spend(work);
                    (now, used) = (now + work, used + work);
                } else {
                    now = now.max(budget.opens_at());
                    prop_assert!(budget.is_open(now), "it opens when it says");
                }
                // One piece of work may run over the end of the budget.
                prop_assert!(used <= BURST + now * share / 100 + 2_000_000);
            }
        }
    }
}
