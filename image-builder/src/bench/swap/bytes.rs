//! What the system keeps in memory of a VM that is swapped out.
//!
//! The same system is booted with two numbers of VMs. All idle; as many of them as fit are in memory, the same number each time, and all others are
//! suspended. So what there is more of with more VMs is what the system keeps of those that are suspended: in the heaps of all servers, in frames that
//! the pager has for itself, and in memory that the pool does not have at all (the kernel's own, and the manifest, which names every VM).

use std::time::{Duration, Instant};

use miette::{Result, miette};

use super::{Bench, build, plain, result};
use crate::bench::figures::Figures;
use crate::bench::result::{Better, Measurement};
use crate::interrupt;
use crate::session::Session;
use crate::ui::Step;

/// Numbers of VMs: so many that what servers keep of the last ones that did something, a bounded number, is full both times.
const COUNTS: [u64; 2] = [1100, 2200];
/// Figures in a row that must be the same before the system is taken to be at rest.
const SAME: usize = 3;
const LIMIT: Duration = Duration::from_secs(120);

pub(super) fn measure(session: &mut Session) -> Result<Vec<Measurement>> {
    let fewer = at_rest(session, COUNTS[0])?;
    let more = at_rest(session, COUNTS[1])?;
    let suspended = more.get("suspended").saturating_sub(fewer.get("suspended"));
    if suspended == 0 {
        return Err(miette!("no more VMs are suspended of {} than of {}", COUNTS[1], COUNTS[0]));
    }
    let [before, after] = [fewer.parts(), more.parts()];
    let mut all = Vec::new();
    let mut sum = 0.0;
    for (part, bytes) in &after {
        let each = (*bytes as f64 - before.get(part).copied().unwrap_or(0) as f64) / suspended as f64;
        sum += each;
        let params = format!("part={part} vms={}-{} suspended={suspended}", COUNTS[0], COUNTS[1]);
        all.push(result("bytes-per-swapped-vm-part", each, "bytes", Better::Lower, &params));
    }
    let params = format!("vms={}-{} suspended={suspended}", COUNTS[0], COUNTS[1]);
    all.insert(0, result("bytes-per-swapped-vm", sum, "bytes", Better::Lower, &params));
    Ok(all)
}

/// The figures of a system with so many VMs, once nothing changes any more.
fn at_rest(session: &mut Session, count: u64) -> Result<Figures> {
    let (system, built) = build(session, "bench-swap-count", &[("count = 200", format!("count = {count}"))])?;
    let step = Step::start(format!("Waiting until {count} VMs are at rest"));
    let machine = plain(session, &system, &built);
    let mut bench = Bench::start(session, &system, &built, machine, None)?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let figures = bench.figures();
        let last = &figures[figures.len().saturating_sub(SAME)..];
        let state = |figures: &Figures| ["suspended", "requests", "waiting"].map(|key| figures.get(key));
        let same = last.len() == SAME && last.windows(2).all(|two| state(&two[0]) == state(&two[1]));
        if let Some(figures) = last.last().filter(|last| same && last.get("vms") == count && last.get("waiting") == 0) {
            bench.running.stop();
            step.done("");
            return Ok(figures.clone());
        }
        interrupt::check()?;
        if Instant::now() >= deadline || bench.running.ended()?.is_some() {
            step.failed();
            let help = format!("its output is in {}", bench.running.log.display());
            return Err(miette!(help = help, "{count} VMs do not come to rest: {:?}", last.last()));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
