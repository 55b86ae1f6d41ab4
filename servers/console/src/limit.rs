//! How much a VM may print: a token bucket.

/// Bytes that a quiet VM may print at once.
pub const BURST: u64 = 16 * 1024;
/// Bytes a second that it may print for ever.
pub const RATE: u64 = 4 * 1024;
/// Bytes that must have gathered before a VM that used up its allowance is listened to again.
pub const RESUME: u64 = 2 * 1024;

const SECOND: u64 = 1_000_000_000;

/// The allowance of one VM. Times are nanoseconds since kernel entry.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Bytes that may be printed, in billionths.
    level: u64,
    at: u64,
    muted: bool,
}

impl Bucket {
    /// A full bucket.
    pub const fn new(now: u64) -> Bucket {
        Bucket { level: BURST * SECOND, at: now, muted: false }
    }

    fn fill(&mut self, now: u64) {
        let gained = now.saturating_sub(self.at).saturating_mul(RATE);
        self.level = self.level.saturating_add(gained).min(BURST * SECOND);
        self.at = self.at.max(now);
        if self.level >= RESUME * SECOND {
            self.muted = false;
        }
    }

    /// Whether as much may be printed as ever.
    pub fn is_full(&mut self, now: u64) -> bool {
        self.fill(now);
        self.level >= BURST * SECOND
    }

    /// Takes up to `wanted` bytes; returns how many may be printed. Who takes the last is muted for a while.
    pub fn take(&mut self, wanted: u64, now: u64) -> u64 {
        self.fill(now);
        if self.muted {
            return 0;
        }
        let taken = wanted.min(self.level / SECOND);
        self.level -= taken * SECOND;
        self.muted = self.level < SECOND;
        taken
    }

    /// The time from which the VM is listened to again; `None` if it is listened to now.
    pub fn muted_until(&mut self, now: u64) -> Option<u64> {
        self.fill(now);
        let missing = (RESUME * SECOND).saturating_sub(self.level);
        self.muted.then(|| self.at.saturating_add(missing.div_ceil(RATE)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_flood_is_cut_and_comes_back() {
        let mut bucket = Bucket::new(0);
        assert_eq!(bucket.take(1 << 30, 0), BURST);
        assert_eq!(bucket.take(1, 0), 0);
        let until = bucket.muted_until(0).unwrap();
        assert_eq!(bucket.take(1, until - 1), 0);
        assert_eq!(bucket.muted_until(until), None);
        assert!(bucket.take(u64::MAX, until) >= RESUME);
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate(takes in prop::collection::vec((0u64..40_000, 0u64..SECOND * 2), 1..200)) {
            let mut bucket = Bucket::new(0);
            let (mut now, mut printed) = (0, 0);
            for (wanted, pause) in takes {
                now += pause;
                printed += bucket.take(wanted, now);
                prop_assert!(printed <= BURST + now * RATE / SECOND + 1);
            }
        }
    }
}
