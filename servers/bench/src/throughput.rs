//! Throughput of a disk, and the lines that the builder reads.

use core::fmt;

/// How a disk is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    /// Writes, or reads.
    pub write: bool,
    /// At places all over, or one after the other.
    pub random: bool,
    /// Blocks of 4 KiB of a request.
    pub blocks: u32,
}

impl Case {
    /// All cases: 4 to 64 KiB.
    pub fn all() -> impl Iterator<Item = Case> {
        let sizes = [1, 2, 4, 8, 16].into_iter();
        sizes.flat_map(|blocks| {
            let kinds = [(false, false), (true, false), (false, true), (true, true)].into_iter();
            kinds.map(move |(write, random)| Case { write, random, blocks })
        })
    }

    /// The first block of request `number` on `area` blocks.
    pub fn place(&self, number: u64, area: u64) -> u64 {
        let places = (area / u64::from(self.blocks)).max(1);
        let place = if self.random { scatter(number) % places } else { number % places };
        place * u64::from(self.blocks)
    }
}

/// A number that looks like chance: the finalizer of SplitMix64.
fn scatter(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// What was measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Throughput {
    /// What.
    pub case: Case,
    /// Bytes moved.
    pub bytes: u64,
    /// Nanoseconds that it took.
    pub nanoseconds: u64,
    /// Requests under way at a time.
    pub in_flight: usize,
}

/// `BENCH name value unit better key=value…`
impl fmt::Display for Throughput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { write, random, blocks } = self.case;
        let kind = if write { "write" } else { "read" };
        let order = if random { "random" } else { "sequential" };
        let nanoseconds = u128::from(self.nanoseconds.max(1));
        let tenths = u128::from(self.bytes) * 10_000_000_000 / (nanoseconds << 20);
        let requests = u128::from(self.bytes) * 1_000_000_000 / (u128::from(blocks) * 4096) / nanoseconds;
        write!(f, "BENCH disk-{order}-{kind}-{}k {}.{} MiB/s higher", blocks * 4, tenths / 10, tenths % 10)?;
        write!(f, " in-flight={} requests-per-second={requests}", self.in_flight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{string::ToString, vec::Vec};
    use std::collections::BTreeSet;

    #[test]
    fn the_line_is_what_the_builder_reads() {
        let case = Case { write: true, random: false, blocks: 16 };
        let measured = Throughput { case, bytes: 3 << 20, nanoseconds: 2_000_000, in_flight: 32 };
        let line = "BENCH disk-sequential-write-64k 1500.0 MiB/s higher in-flight=32 requests-per-second=24000";
        assert_eq!(measured.to_string(), line);
        assert!(Throughput { nanoseconds: 0, bytes: u64::MAX, ..measured }.to_string().contains("MiB/s"));
    }

    #[test]
    fn places_lie_on_the_area() {
        for case in Case::all() {
            let places: Vec<u64> = (0..1000).map(|number| case.place(number, 4096)).collect();
            assert!(places.iter().all(|place| place + u64::from(case.blocks) <= 4096), "{case:?}");
            assert_eq!(places.windows(2).all(|pair| pair[0] < pair[1]), !case.random && case.blocks < 8);
            assert!(places.iter().collect::<BTreeSet<_>>().len() > 200, "{case:?}");
        }
        assert_eq!(Case::all().count(), 20);
        assert_eq!(Case { write: false, random: true, blocks: 16 }.place(5, 3), 0);
    }
}
