//! The lines in which the server `bench` tells figures of the pager and of others: `FIGURES at=NANOSECONDS key=value…`.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::machine::serial::Line;

/// What they begin with, wherever in a line of the console.
const MARK: &str = "FIGURES";
/// Bytes of a frame.
const PAGE: u64 = 4096;

/// All figures of one time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Figures {
    /// Nanoseconds since kernel entry, by the machine's clock.
    pub at: u64,
    /// When the host was told. The clock of an emulated machine is set by a measurement when it starts, which a busy host can spoil by a third.
    pub told: Instant,
    values: BTreeMap<String, u64>,
}

impl Figures {
    /// The figures in a line that came at a time; `None` if there are none, or they make no sense.
    pub fn parse(line: &str, told: Instant) -> Option<Figures> {
        let mut values = numbers(line, MARK)?;
        Some(Figures { at: values.remove("at")?, told, values })
    }

    /// The figures in a line of the serial line.
    pub fn of_line(line: &Line) -> Option<Figures> {
        Figures::parse(&line.text, line.at)
    }

    /// Seconds of the host's from those figures to these.
    pub fn seconds_since(&self, earlier: &Figures) -> f64 {
        self.told.saturating_duration_since(earlier.told).as_secs_f64()
    }

    /// One of them; 0 if it was not told.
    pub fn get(&self, key: &str) -> u64 {
        self.values.get(key).copied().unwrap_or(0)
    }

    /// Those whose names begin so, with the rest of the name.
    pub fn of<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, u64)> {
        self.values.iter().filter_map(move |(key, value)| Some((key.strip_prefix(prefix)?, *value)))
    }

    /// Bytes in use by part of the system. What the pool does not have counts from the most that it could have.
    pub fn parts(&self) -> BTreeMap<String, i64> {
        let mut parts: BTreeMap<_, _> =
            self.of("heap-").map(|(server, bytes)| (format!("heap-of-{server}"), bytes as i64)).collect();
        parts.insert("frames-of-the-pager".into(), (self.get("own") * PAGE) as i64);
        parts.insert("outside-the-pool".into(), -((self.get("frames") * PAGE) as i64));
        parts
    }
}

/// The words `key=value` behind the word `mark` whose values are numbers.
pub fn numbers(line: &str, mark: &str) -> Option<BTreeMap<String, u64>> {
    let mut words = line.split_whitespace();
    words.find(|word| *word == mark)?;
    let pair = |word: &str| word.split_once('=').and_then(|(key, value)| Some((key.to_string(), value.parse().ok()?)));
    Some(words.filter_map(pair).collect())
}

/// How much a figure grew each second of the host's, from the first to the last of those told between two times of the machine's. `None` if fewer than two
/// were.
pub fn rate(all: &[Figures], (from, until): (u64, u64), key: &str) -> Option<f64> {
    let within: Vec<_> = all.iter().filter(|figures| (from..=until).contains(&figures.at)).collect();
    let (first, last) = (within.first()?, within.last()?);
    let seconds = last.seconds_since(first);
    (seconds > 0.0).then(|| last.get(key).saturating_sub(first.get(key)) as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn figures_are_read_wherever_they_stand() {
        let now = Instant::now();
        let figures = Figures::parse("bench: FIGURES at=5 page-ins=7 heap-swap=8 heap-loader=9 odd", now).unwrap();
        assert_eq!((figures.at, figures.get("page-ins"), figures.get("other")), (5, 7, 0));
        assert_eq!(figures.of("heap-").collect::<Vec<_>>(), [("loader", 9), ("swap", 8)]);
        assert_eq!(Figures::parse("bench: FIGURES page-ins=7", now), None);
        assert_eq!(Figures::parse("bench: started at=5", now), None);
    }

    #[test]
    fn rates_are_of_what_lies_between() {
        let now = Instant::now();
        // The machine's clock is too slow by half.
        let told = |at: u64| now + Duration::from_nanos(at * 2);
        let line = |at: u64, value: u64| Figures::parse(&format!("FIGURES at={at} n={value}"), told(at)).unwrap();
        let all = [line(0, 0), line(1_000_000_000, 100), line(3_000_000_000, 200), line(4_000_000_000, 900)];
        assert_eq!(rate(&all, (500_000_000, 3_500_000_000), "n"), Some(25.0));
        assert_eq!(rate(&all, (1_500_000_000, 3_500_000_000), "n"), None);
    }
}
