//! When requests of an open loop arrive: independent of each other (a Poisson process) and of the answers, as those of many people are.

use std::time::Duration;

use crate::machine::power::Chance;

/// When so many requests arrive, at `rate` a second on average.
pub fn poisson(count: usize, rate: f64, chance: &mut Chance) -> Vec<Duration> {
    let mut at = 0.0;
    let mut next = || {
        // From just above 0 to 1, so that its logarithm is finite.
        let point = ((chance.next() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        at -= point.ln() / rate;
        Duration::from_secs_f64(at)
    };
    (0..count).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_come_in_order_and_as_often_as_said() {
        let times = poisson(20_000, 500.0, &mut Chance(3));
        assert!(times.is_sorted());
        let seconds = times.last().unwrap().as_secs_f64();
        assert!((38.0..42.0).contains(&seconds), "{seconds}");
        // Pauses are anything but alike: of a Poisson process a share of 1/e is longer than the mean.
        let long = times.windows(2).filter(|two| (two[1] - two[0]).as_secs_f64() > 1.0 / 500.0).count();
        assert!((7_000..7_800).contains(&long), "{long}");
    }
}
