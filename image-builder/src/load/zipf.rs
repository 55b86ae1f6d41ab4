//! Zipf's law: the k-th of n VMs is asked in proportion to 1/k^alpha. With alpha 0 all are asked alike; the web has about 1.

/// The law for so many VMs.
#[derive(Clone, Debug)]
pub struct Zipf {
    /// Sums of the weights up to each VM.
    sums: Vec<f64>,
}

impl Zipf {
    /// The law for `count` VMs, at least one.
    pub fn new(count: usize, alpha: f64) -> Zipf {
        let mut sum = 0.0;
        let weights = (1..=count.max(1)).map(|rank| (rank as f64).powf(-alpha));
        let sums = weights.map(|weight| {
            sum += weight;
            sum
        });
        Zipf { sums: sums.collect() }
    }

    /// The VM, from 0, for a number by chance.
    pub fn pick(&self, chance: u64) -> usize {
        let all = self.sums.last().copied().unwrap_or(1.0);
        // 53 bits are what a float holds.
        let point = (chance >> 11) as f64 / (1u64 << 53) as f64 * all;
        self.sums.partition_point(|sum| *sum <= point).min(self.sums.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::power::Chance;

    fn counts(alpha: f64) -> [u32; 4] {
        let (zipf, mut chance) = (Zipf::new(4, alpha), Chance(7));
        let mut counts = [0; 4];
        (0..60_000).for_each(|_| counts[zipf.pick(chance.next())] += 1);
        counts
    }

    #[test]
    fn shares_are_those_of_the_law() {
        for (alpha, shares) in [(0.0, [1.0, 1.0, 1.0, 1.0]), (1.0, [1.0, 1.0 / 2.0, 1.0 / 3.0, 1.0 / 4.0])] {
            let all: f64 = shares.iter().sum();
            for (count, share) in counts(alpha).into_iter().zip(shares) {
                let expected = 60_000.0 * share / all;
                assert!((f64::from(count) - expected).abs() < 1_000.0, "{count} instead of {expected}");
            }
        }
    }

    #[test]
    fn ends_are_within() {
        let zipf = Zipf::new(3, 0.8);
        assert_eq!((zipf.pick(0), zipf.pick(u64::MAX)), (0, 2));
        assert_eq!(Zipf::new(0, 1.0).pick(u64::MAX), 0);
    }
}
