//! How long answers took.

use std::time::Duration;

/// Times of answers, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Latencies(Vec<Duration>);

/// The percentiles that tables show.
pub const SHOWN: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

impl Latencies {
    /// Of these times.
    pub fn new(mut times: Vec<Duration>) -> Latencies {
        times.sort_unstable();
        Latencies(times)
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The time that so many percent did not exceed, in milliseconds; not a number if there are none.
    pub fn percentile(&self, percent: f64) -> f64 {
        let rank = (self.0.len() as f64 * percent / 100.0).ceil() as usize;
        self.0.get(rank.clamp(1, self.0.len().max(1)) - 1).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_there_were() {
        let times = Latencies::new((1..=1000).rev().map(Duration::from_millis).collect());
        assert_eq!(SHOWN.map(|percent| times.percentile(percent)), [500.0, 900.0, 990.0, 999.0]);
        assert_eq!((times.percentile(0.0), times.percentile(100.0), times.count()), (1.0, 1000.0, 1000));
        assert!(Latencies::new(Vec::new()).percentile(50.0).is_nan());
    }
}
