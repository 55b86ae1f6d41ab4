//! `bench smp`: what a second processor brings.
//!
//! The emulator runs each processor of the machine in a thread of its own. What counts is for how long the busier of these threads
//! has run: on a host with a free core for each that is the time that passes, and on a busy one it is still what the work took. The time that
//! passed stands beside it.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use super::Benchmark;
use super::result::{Better, Measurement};
use crate::interrupt;
use crate::machine::{Running, is_last_word, ports};
use crate::session::Session;
use crate::system::System;
use crate::ui::Step;

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "smp",
    about: "throughput of VMs that compute and of web servers with two processors, against one",
    run,
};

/// VMs of each kind.
const VMS: usize = 4;
/// Where in the system file the VMs that compute begin, and those of the web servers.
const COMPUTE: &str = "[[vm]]\nname = \"compute\"";
const HTTP: &str = "[[vm]]\nname = \"httpd\"";
/// How long a part may take.
const LIMIT: Duration = Duration::from_secs(240);
/// How long pages are counted.
const COUNTING: Duration = Duration::from_secs(10);

/// What some work took.
struct Took {
    /// Units of work.
    work: f64,
    /// Of each processor.
    busy: Vec<Duration>,
    /// That passed.
    passed: Duration,
}

impl Took {
    /// Work in a second of the busiest processor.
    fn rate(&self) -> f64 {
        self.work / self.busy.iter().max().map_or(f64::NAN, Duration::as_secs_f64)
    }
    fn rate_by_the_clock(&self) -> f64 {
        self.work / self.passed.as_secs_f64()
    }
}

fn run(session: &mut Session) -> Result<Vec<Measurement>> {
    let mut results = Vec::new();
    for (name, measure) in [("compute", compute as fn(&mut Session, u16) -> Result<Took>), ("http", http)] {
        let step = Step::start(format!("Measuring {name} with one processor, and with two"));
        let (one, two) = (measure(session, 1)?, measure(session, 2)?);
        step.done("");
        let result = |name: String, value: f64, unit: &str, took: &[&Took]| {
            let busy = took.iter().flat_map(|took| &took.busy).map(|time| format!("{:.2}", time.as_secs_f64()));
            let passed = took.iter().map(|took| format!("{:.2}", took.passed.as_secs_f64()));
            let params = [
                ("vms", VMS.to_string()),
                ("busy-seconds", busy.collect::<Vec<_>>().join("+")),
                ("passed-seconds", passed.collect::<Vec<_>>().join("+")),
            ];
            let params = params.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
            let value = (value * 100.0).round() / 100.0;
            Measurement { name, value, unit: unit.into(), better: Better::Higher, params }
        };
        let unit = if name == "compute" { "million-steps/s" } else { "pages/s" };
        results.push(result(format!("{name}-1"), one.rate(), unit, &[&one]));
        results.push(result(format!("{name}-2"), two.rate(), unit, &[&two]));
        let mut gain = result(format!("{name}-gain"), two.rate() / one.rate(), "times", &[]);
        let by_the_clock = two.rate_by_the_clock() / one.rate_by_the_clock();
        gain.params = BTreeMap::from([("by-the-clock".to_string(), format!("{by_the_clock:.2}"))]);
        results.push(gain);
    }
    Ok(results)
}

/// A machine with the VMs of one kind only.
fn start(session: &mut Session, cpus: u16, compute: bool) -> Result<Running> {
    let path = session.workspace.system("bench-smp");
    let failed = || miette!("{} cannot be read", path.display());
    let text = std::fs::read_to_string(&path).into_diagnostic().wrap_err_with(failed)?;
    let parts = text.split_once(COMPUTE).and_then(|(servers, rest)| Some((servers, rest.split_once(HTTP)?)));
    let (servers, (computing, http)) = parts.ok_or_else(|| miette!("{} has not the VMs", path.display()))?;
    let vms = if compute { format!("{COMPUTE}{computing}") } else { format!("{HTTP}{http}") };
    let system = System::parse(&path, &format!("{servers}{vms}"), &session.workspace.program_names())?;
    let built = session.build(&system)?;
    let mut machine = session.machine(&system, &built, ports::network(&system, &[]));
    machine.cpus = cpus;
    machine.extra.extend(["-name".into(), "denali,debug-threads=on".into()]);
    let qemu = session.qemu()?;
    let mut running = Running::start(&qemu, &machine, &built.folder.join("serial.log"), Box::new(|_| {}))?;
    if cpus > 1 {
        let all = format!("{cpus} processors run domains");
        wait(&mut running, 1, |line| line.contains(&all))?;
    }
    Ok(running)
}

/// Waits for so many lines.
fn wait(running: &mut Running, count: usize, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let mut from = 0;
    for _ in 0..count {
        let line = running.serial.wait(from, deadline, |line| wanted(line) || is_last_word(line));
        interrupt::check()?;
        let Some(line) = line.filter(|line| wanted(&line.text)) else {
            let help = format!("its output is in {}", running.log.display());
            return Err(miette!(help = help, "the system does not say what it should"));
        };
        let lines = running.serial.since(from);
        from += lines.iter().position(|other| *other == line).map_or(lines.len(), |index| index + 1);
    }
    Ok(())
}

/// What happens while `work` runs.
fn during(running: &mut Running, work: impl FnOnce(&mut Running) -> Result<f64>) -> Result<Took> {
    let (before, start) = (running.processor_times()?, Instant::now());
    let work = work(running)?;
    let (after, passed) = (running.processor_times()?, start.elapsed());
    let busy = before.iter().zip(after).map(|(before, after)| after.saturating_sub(*before)).collect();
    Ok(Took { work, busy, passed })
}

fn compute(session: &mut Session, cpus: u16) -> Result<Took> {
    let mut running = start(session, cpus, true)?;
    wait(&mut running, 1, |line| line.contains("COMPUTE begins"))?;
    let took = during(&mut running, |running| {
        wait(running, VMS, |line| line.contains("COMPUTE ends"))?;
        Ok(1000.0 * VMS as f64)
    })?;
    running.stop();
    Ok(took)
}

fn http(session: &mut Session, cpus: u16) -> Result<Took> {
    let mut running = start(session, cpus, false)?;
    // All have begun when each has told of some pages.
    let deadline = Instant::now() + LIMIT;
    while pages(&running).len() < VMS {
        interrupt::check()?;
        if Instant::now() > deadline {
            return Err(miette!("the web servers are not all asked: {}", running.log.display()));
        }
        thread::sleep(Duration::from_millis(100));
    }
    let took = during(&mut running, |running| {
        let before: u64 = pages(running).values().sum();
        thread::sleep(COUNTING);
        let after: u64 = pages(running).values().sum();
        Ok((after - before) as f64)
    })?;
    running.stop();
    Ok(took)
}

/// How many pages each VM that asks has told of, last; those that have got none yet are left out.
fn pages(running: &Running) -> BTreeMap<String, u64> {
    let of_line = |line: &str| {
        let (vm, rest) = line.split_once("| LOAD pages=")?;
        let count: u64 = rest.split_whitespace().next()?.parse().ok()?;
        (count > 0).then(|| (vm.split_whitespace().last().unwrap_or_default().to_string(), count))
    };
    running.serial.since(0).iter().filter_map(|line| of_line(&line.text)).collect()
}
