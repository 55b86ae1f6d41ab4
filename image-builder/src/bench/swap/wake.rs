//! What it takes to wake a VM that is swapped out.
//!
//! The machine's time counts instructions. A small VM idles until a deadline, again and again; before some of them another VM has taken all memory
//! and idles too, so that the small one has left memory whole. How late it is tells the instructions from the deadline to its first one, but only while
//! nothing has to be waited for: with a disk in between, time goes on while the processor idles. So for a wake from disk those instructions are
//! counted that pager and driver execute from just before the deadline until the VM idles again, less what they execute when nothing happens, and
//! to them what a wake in memory takes is added.

use std::time::{Duration, Instant};

use miette::{Result, miette};

use super::{Bench, build, result};
use crate::bench::figures::{Figures, numbers};
use crate::bench::result::{Better, Measurement};
use crate::session::Session;
use crate::ui::Step;

/// Nanoseconds of the machine's time after which enough VMs have woken.
const END: u64 = 45_000_000_000;
const LIMIT: Duration = Duration::from_secs(180);
/// Nanoseconds before a wake in which nothing else must happen, and after it until which it is over.
const BEFORE: u64 = 500_000_000;
const AFTER: u64 = 700_000_000;
/// The servers that have to do with it.
const SERVERS: [&str; 2] = ["time-swap", "time-virtio-blk"];

/// A wake.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Wake {
    /// Whether the VM was on the disk.
    from_disk: bool,
    /// Instructions from the deadline to the VM's first one, if it did not wait for a disk.
    late: f64,
    /// Instructions of the servers, one by one.
    servers: [f64; SERVERS.len()],
    /// Requests of disks.
    requests: f64,
}

pub(super) fn measure(session: &mut Session) -> Result<Vec<Measurement>> {
    let (system, built) = build(session, "bench-swap-wake", &[])?;
    let step = Step::start("Waking VMs");
    let machine = session.counting_machine(&system, &built);
    let mut bench = Bench::start(session, &system, &built, machine, None)?;
    let now = Instant::now();
    bench.wait(0, LIMIT, "figures until its end", |line| Figures::parse(line, now).is_some_and(|f| f.at >= END))?;
    let figures = bench.figures();
    let lines = bench.running.serial.since(0);
    bench.running.stop();
    let woken = lines.iter().filter_map(|line| numbers(&line.text, "woken"));
    let wakes: Vec<_> = woken.filter_map(|woken| wake(&figures, *woken.get("at")?, *woken.get("late")?)).collect();
    let (disk, memory): (Vec<_>, Vec<_>) = wakes.into_iter().partition(|wake| wake.from_disk);
    if disk.is_empty() || memory.is_empty() {
        step.failed();
        let help = format!("its output is in {}", bench.running.log.display());
        return Err(miette!(help = help, "{} wakes were from disk, {} in memory", disk.len(), memory.len()));
    }
    step.done("");
    let of = |wakes: &[Wake], what: &dyn Fn(&Wake) -> f64| median(wakes.iter().map(what).collect());
    let late = of(&memory, &|wake| wake.late);
    let [pager, driver] = [0, 1].map(|server| of(&disk, &|wake| wake.servers[server]));
    let params = |from: &str, wakes: &[Wake]| format!("from={from} wakes={} statistic=median", wakes.len());
    let parts = format!("{} pager={pager} driver={driver}", params("disk", &disk));
    let instructions =
        |value: f64, params: &str| result("wake-instructions", value, "instructions", Better::Lower, params);
    let reads = of(&disk, &|wake| wake.requests);
    Ok(vec![
        instructions(late, &params("memory", &memory)),
        instructions(late + pager + driver, &parts),
        result("wake-disk-reads", reads, "requests", Better::Lower, &params("disk", &disk)),
    ])
}

/// What a wake at a time took; `None` if something else happened around it, or too few figures were told.
fn wake(figures: &[Figures], at: u64, late: u64) -> Option<Wake> {
    let before: Vec<_> = figures.iter().filter(|figures| (at - BEFORE..at).contains(&figures.at)).collect();
    let after: Vec<_> = figures.iter().filter(|figures| (at..at + AFTER).contains(&figures.at)).collect();
    let (first, last, end) = (before.first()?, before.last()?, after.last()?);
    let grown = |from: &Figures, to: &Figures, key: &str| to.get(key).saturating_sub(from.get(key)) as f64;
    let is_quiet = before.len() > 2 && ["requests", "suspended"].iter().all(|key| first.get(key) == last.get(key));
    let was_read_only = grown(last, end, "written") == 0.0;
    let each = |key: &str| grown(first, last, key) / (before.len() as f64 - 1.0);
    (is_quiet && was_read_only).then(|| Wake {
        from_disk: last.get("suspended") > end.get("suspended"),
        late: late as f64,
        servers: SERVERS.map(|key| grown(last, end, key) - each(key) * after.len() as f64),
        requests: grown(last, end, "requests"),
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures each 50 ms; from the wake on, 5,000 instructions and a request more.
    fn figures(at: u64) -> Vec<Figures> {
        let told = Instant::now();
        let line = |number: u64| {
            let now = number * 50_000_000;
            let woken = u64::from(now > at);
            let (time, requests, suspended) = (number * 100 + woken * 5000, 7 + woken, 1 - woken);
            let times = format!("time-swap={time} time-virtio-blk={time}");
            Figures::parse(
                &format!("FIGURES at={now} suspended={suspended} requests={requests} written=3 {times}"),
                told,
            )
        };
        (0..100).filter_map(line).collect()
    }

    #[test]
    fn what_happens_anyway_is_not_counted() {
        let at = 3_025_000_000;
        let expected = Wake { from_disk: true, late: 9.0, servers: [5000.0; 2], requests: 1.0 };
        assert_eq!(wake(&figures(at), at, 9), Some(expected));
        assert_eq!(wake(&figures(at - 200_000_000), at, 9), None, "something else happened just before");
    }
}
