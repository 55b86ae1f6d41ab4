//! How long answers take: under loads that do and do not wait for them, for small and large objects, evenly and by Zipf's law; and while many other VMs
//! are ended, or started, all at once.

use std::time::Duration;

use miette::{Result, miette};

use super::fleet::{Fleet, PATIENCE, Size};
use super::result;
use crate::bench::result::{Better, Measurement};
use crate::load::arrivals::poisson;
use crate::load::latency::{Latencies, SHOWN};
use crate::load::zipf::Zipf;
use crate::machine::lan::{Ask, Outcome};
use crate::machine::power::Chance;
use crate::session::Session;
use crate::ui::Step;

/// VMs, and for `--long`; MiB of memory for each thousand, and besides.
const VMS: [u64; 2] = [1000, 10_000];
const MEMORY: (u64, u64) = (160, 128);
/// Objects in bytes, with the requests a second of the open loop and the number of requests.
const OBJECTS: [(usize, f64, usize); 2] = [(2_258, 400.0, 4000), (100_000, 60.0, 600)];
/// Exponents of Zipf's law.
const ALPHAS: [f64; 2] = [0.0, 1.0];
/// Connections of the closed loop; most of the open one.
const CLOSED: usize = 16;
const OPEN: usize = 512;
/// VMs that are asked while all others are ended and started.
const SERVING: u64 = 10;

pub(super) fn measure(session: &mut Session) -> Result<Vec<Measurement>> {
    let vms = VMS[usize::from(session.long)];
    let memory = MEMORY.1 + vms * MEMORY.0 / 1000;
    let mut fleet = Fleet::start(session, Size { vms, memory, processors: 2, serving: SERVING, counting: false })?;
    let (answered, _) = fleet.ask_each()?;
    if answered != fleet.vms.len() {
        return Err(miette!("of {vms} VMs {answered} have answered"));
    }
    let mut all = Vec::new();
    let mut chance = Chance(1);
    for (bytes, rate, count) in OBJECTS {
        for alpha in ALPHAS {
            let zipf = Zipf::new(fleet.vms.len(), alpha);
            for times in [Vec::new(), poisson(count, rate, &mut chance)] {
                let name = if times.is_empty() { "closed".to_string() } else { format!("open-{rate:.0}/s") };
                let step = Step::start(format!("Asking for {bytes} bytes, {name}, alpha {alpha}"));
                let asks: Vec<_> = (0..count).map(|_| fleet.ask(zipf.pick(chance.next()), bytes)).collect();
                let at_once = if times.is_empty() { CLOSED } else { OPEN };
                let outcomes = fleet.lan.ask_at(&asks, &times, at_once, PATIENCE)?;
                step.done("");
                let params = format!("vms={vms} loop={name} alpha={alpha} object={bytes}");
                all.extend(rows(outcomes, bytes, &params));
            }
        }
    }
    for (what, command) in [("ending", "stop"), ("starting", "start")] {
        all.extend(storm(&mut fleet, what, command)?);
    }
    fleet.end();
    Ok(all)
}

impl Fleet {
    /// A request to a VM for an object of so many bytes.
    fn ask(&self, vm: usize, bytes: usize) -> Ask {
        Ask::page(self.vms[vm].1, 80, &format!("/objects/{bytes}"))
    }
}

/// Percentiles of whole answers, and how many requests got none.
fn rows(outcomes: Vec<Outcome>, bytes: usize, params: &str) -> Vec<Measurement> {
    let count = outcomes.len();
    let whole = |outcome: Outcome| {
        let answer = outcome.ok()?;
        let body = answer.bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        (answer.bytes.starts_with(b"HTTP/1.1 200") && answer.bytes.len() - body == bytes).then_some(answer.time)
    };
    let times = Latencies::new(outcomes.into_iter().filter_map(whole).collect());
    let unanswered = count - times.count();
    let row = |percent: f64| {
        let params = format!("{params} percentile={percent} answers={} unanswered={unanswered}", times.count());
        result("latency", times.percentile(percent), "ms", Better::Lower, &params)
    };
    SHOWN.into_iter().map(row).collect()
}

/// How long some VMs take to answer while the operator has all others ended, or started, with one command.
fn storm(fleet: &mut Fleet, what: &str, command: &str) -> Result<Vec<Measurement>> {
    let (bytes, rate, count) = OBJECTS[0];
    // Those that are asked come last.
    let others = fleet.vms.len() - SERVING as usize;
    let step = Step::start(format!("Asking {SERVING} VMs while {others} are {what}"));
    let mut chance = Chance(2);
    let times = poisson(count, rate, &mut chance);
    let asks: Vec<_> = (0..count).map(|_| fleet.ask(others + (chance.next() % SERVING) as usize, bytes)).collect();
    let from = fleet.bench.running.serial.position();
    fleet.bench.running.send(format!("{command} httpd-*\r").as_bytes())?;
    let outcomes = fleet.lan.ask_at(&asks, &times, OPEN, PATIENCE)?;
    let done = format!("{others} VMs {}", if command == "stop" { "stopped" } else { "started" });
    fleet.bench.wait(from, Duration::from_secs(600), "that it is done", |line| line.contains(&done))?;
    step.done("");
    let params = format!("vms={} loop=open-{rate:.0}/s object={bytes} while={what}-{others}", fleet.vms.len());
    Ok(rows(outcomes, bytes, &params))
}
