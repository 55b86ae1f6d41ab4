//! Creation of many VMs, whether each answers, and what an idle one takes.
//!
//! What a VM takes is the difference between two machines that differ in the number of VMs only: frames of VMs, frames and heaps of servers, and memory
//! that the pool does not have at all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use miette::{Result, miette};

use super::fleet::{Fleet, Size};
use super::result;
use crate::bench::figures::Figures;
use crate::bench::result::{Better, Measurement};
use crate::interrupt;
use crate::machine::power::Chance;
use crate::session::Session;

/// Numbers of VMs of which the difference is what one takes: none of them leaves memory.
const IDLE: [u64; 2] = [250, 1250];
/// MiB of that machine.
const IDLE_MEMORY: u64 = 512;
/// VMs, MiB of memory, and how often each is asked.
const USUAL: &[(u64, u64, usize)] = &[(1000, 256, 2)];
const LONG: &[(u64, u64, usize)] = &[(10_000, 1024, 2), (100_000, 8192, 1)];
/// A million, for `--long`: VMs, MiB of the machine (more than half of the VMs fit into it), and how many are asked, by chance.
const MOST: (u64, u64, usize) = (1_000_000, 16_384, 2_000);
/// Figures in a row that must be the same before the machine is taken to be at rest.
const SAME: usize = 3;
const REST: Duration = Duration::from_secs(60);

pub(super) fn measure(session: &mut Session) -> Result<Vec<Measurement>> {
    let mut all = idle(session)?;
    for (vms, memory, rounds) in USUAL.iter().chain(if session.long { LONG } else { &[] }) {
        let mut fleet =
            Fleet::start(session, Size { vms: *vms, memory: *memory, processors: 2, serving: 0, counting: false })?;
        let params = format!("vms={vms} ram-mib={memory}");
        all.push(result("create-seconds", fleet.created_in, "seconds", Better::Lower, &params));
        let (mut answered, mut took) = (usize::MAX, Vec::new());
        for _ in 0..*rounds {
            let (count, time) = fleet.ask_each()?;
            answered = answered.min(count);
            took.push(format!("{:.1}", time.as_secs_f64()));
        }
        let last = fleet.bench.figures().last().cloned();
        let suspended = last.map_or(0, |last| last.get("suspended"));
        let params = format!("{params} suspended={suspended} seconds={}", took.join("+"));
        all.push(result("vms-answered", answered as f64, "vms", Better::Higher, &params));
        fleet.end();
    }
    if session.long {
        all.extend(most(session)?);
    }
    Ok(all)
}

/// As many as fit.
fn most(session: &mut Session) -> Result<Vec<Measurement>> {
    let (vms, memory, sample) = MOST;
    let mut fleet = Fleet::start(session, Size { vms, memory, processors: 2, serving: 0, counting: false })?;
    let params = format!("vms={vms} ram-mib={memory}");
    let created = result("create-seconds", fleet.created_in, "seconds", Better::Lower, &params);
    let mut chance = Chance(vms);
    fleet.vms = (0..sample).map(|_| fleet.vms[(chance.next() % vms) as usize].clone()).collect();
    let (count, time) = fleet.ask_each()?;
    let suspended = fleet.bench.figures().last().map_or(0, |last| last.get("suspended"));
    let params = format!("{params} asked={sample} suspended={suspended} seconds={:.1}", time.as_secs_f64());
    fleet.end();
    Ok(vec![created, result("vms-answered", count as f64, "vms", Better::Higher, &params)])
}

/// What an idle VM takes, part by part: once when it has started, and once when it has answered a client.
fn idle(session: &mut Session) -> Result<Vec<Measurement>> {
    let [fewer, more] = IDLE;
    let (before, after) = (states(session, fewer)?, states(session, more)?);
    let mut all = Vec::new();
    for (state, (before, after)) in ["started", "has-answered"].into_iter().zip(before.into_iter().zip(after)) {
        let mut sum = 0.0;
        let mut rows = Vec::new();
        for (part, bytes) in &after {
            let more_bytes = bytes - before.get(part).copied().unwrap_or(0);
            let kib = more_bytes as f64 / 1024.0 / (more - fewer) as f64;
            sum += kib;
            let params = format!("part={part} state={state}");
            rows.push(result("kib-per-idle-vm-part", kib, "KiB", Better::Lower, &params));
        }
        let params = format!("image=httpd state={state} vms={fewer}-{more}");
        all.push(result("kib-per-idle-vm", sum, "KiB", Better::Lower, &params));
        all.extend(rows);
    }
    Ok(all)
}

/// Bytes in use by part, of VMs that have started, and of VMs that have answered.
fn states(session: &mut Session, vms: u64) -> Result<[BTreeMap<String, i64>; 2]> {
    let mut fleet =
        Fleet::start(session, Size { vms, memory: IDLE_MEMORY, processors: 1, serving: 0, counting: false })?;
    let started = at_rest(&mut fleet)?;
    let (answered, _) = fleet.ask_each()?;
    if answered as u64 != vms {
        return Err(miette!("of {vms} VMs {answered} have answered"));
    }
    let asked = at_rest(&mut fleet)?;
    fleet.end();
    Ok([started, asked])
}

/// Bytes in use by part, once nothing changes any more.
fn at_rest(fleet: &mut Fleet) -> Result<BTreeMap<String, i64>> {
    let begun = fleet.bench.figures().len();
    let deadline = Instant::now() + REST;
    loop {
        let figures = fleet.bench.figures();
        let last = &figures[figures.len().saturating_sub(SAME).max(begun.min(figures.len()))..];
        let used = |figures: &Figures| ["free", "own", "vms"].map(|key| figures.get(key));
        let same = last.len() == SAME && last.windows(2).all(|two| used(&two[0]) == used(&two[1]));
        if let Some(figures) = last.last().filter(|_| same) {
            if figures.get("suspended") != 0 {
                return Err(miette!("VMs have left memory: what they take cannot be told"));
            }
            let mut parts = figures.parts();
            let used = figures.get("frames").saturating_sub(figures.get("free") + figures.get("own"));
            parts.insert("frames-of-vms".into(), (used * 4096) as i64);
            return Ok(parts);
        }
        interrupt::check()?;
        if Instant::now() >= deadline {
            return Err(miette!("the machine does not come to rest: {:?}", last.last()));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
