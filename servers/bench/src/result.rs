//! Figures, and the lines that the builder reads.

use alloc::vec::Vec;
use core::fmt;

/// One measurement, repeated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Measurement {
    /// What.
    pub name: &'static str,
    /// One figure for each run: instructions for `each` repetitions.
    pub runs: Vec<u64>,
    /// Repetitions in one run.
    pub each: u64,
    /// Further conditions, `(key, value)`.
    pub conditions: &'static [(&'static str, &'static str)],
}

impl Measurement {
    /// The median of the runs; of an even number the lower of the two in the middle. 0 without runs.
    fn median(&self) -> u64 {
        let mut runs = self.runs.clone();
        runs.sort_unstable();
        runs.get(runs.len().saturating_sub(1) / 2).copied().unwrap_or(0)
    }

    /// Instructions for one repetition, in tenths, rounded.
    fn tenths(&self, run: u64) -> u64 {
        let each = self.each.max(1);
        (run.saturating_mul(10) + each / 2) / each
    }
}

/// A number of tenths.
struct Tenths(u64);

impl fmt::Display for Tenths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 % 10 {
            0 => write!(f, "{}", self.0 / 10),
            tenth => write!(f, "{}.{tenth}", self.0 / 10),
        }
    }
}

/// `BENCH name value unit better key=value…`
impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = self.runs.iter().min().copied().unwrap_or(0);
        let most = self.runs.iter().max().copied().unwrap_or(0);
        let [median, least, most] = [self.median(), least, most].map(|run| Tenths(self.tenths(run)));
        write!(f, "BENCH {} {median} instructions lower", self.name)?;
        write!(f, " runs={} each={} least={least} most={most}", self.runs.len(), self.each)?;
        self.conditions.iter().try_for_each(|(key, value)| write!(f, " {key}={value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn measurement(runs: &[u64], each: u64) -> Measurement {
        Measurement { name: "null-call", runs: runs.to_vec(), each, conditions: &[("bytes", "8")] }
    }

    #[test]
    fn the_line_is_what_the_builder_reads() {
        let line = measurement(&[600, 570, 9000], 10).to_string();
        assert_eq!(line, "BENCH null-call 60 instructions lower runs=3 each=10 least=57 most=900 bytes=8");
        assert!(measurement(&[125], 10).to_string().starts_with("BENCH null-call 12.5 instructions"));
        assert!(measurement(&[], 0).to_string().starts_with("BENCH null-call 0 instructions"));
    }

    proptest! {
        #[test]
        fn the_median_is_one_of_the_runs(runs in proptest::collection::vec(0u64..1000, 1..30)) {
            let median = measurement(&runs, 1).median();
            prop_assert!(runs.contains(&median));
            let half = runs.len() / 2;
            prop_assert!(runs.iter().filter(|run| **run < median).count() <= half);
            prop_assert!(runs.iter().filter(|run| **run > median).count() <= half);
        }
    }
}
