//! `bench ipc`: what crossing a protection boundary costs, in instructions.
//!
//! The machine's time counts instructions (`-icount shift=0`), so the numbers are exact and the same
//! on every host.

use std::time::{Duration, Instant};

use miette::{Result, miette};

use super::Benchmark;
use super::result::{self, Measurement};
use crate::interrupt;
use crate::machine::Running;
use crate::machine::qemu;
use crate::session::Session;
use crate::ui::Step;

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "ipc",
    about: "null call, call and reply, virtual interrupt, page fault, context switch: in instructions",
    run,
};

/// What must be measured, and in this order it is shown.
const NAMES: [&str; 5] = ["null-call", "call-reply", "virtual-interrupt", "page-fault", "context-switch"];
const LIMIT: Duration = Duration::from_secs(180);

fn run(session: &mut Session) -> Result<Vec<Measurement>> {
    let system = session.load(&session.workspace.system("bench-ipc"))?;
    let built = session.build(&system)?;
    let machine = session.counting_machine(&system, &built);
    let qemu = session.qemu()?;
    let step = Step::start("Measuring");
    let mut running = Running::start(&qemu, &machine, &built.folder.join("serial.log"), Box::new(|_| {}))?;
    let deadline = Instant::now() + LIMIT;
    let log = running.log.display().to_string();
    let mut results: Vec<Measurement> = Vec::new();
    let mut from = 0;
    let is_result = |line: &str| result::parse(line).is_some();
    while NAMES.iter().any(|name| !results.iter().any(|result| result.name == *name)) {
        let Some(line) = running.serial.wait(from, deadline, is_result) else {
            interrupt::check()?;
            step.failed();
            let status = running.ended()?.and_then(|status| status.code());
            let why = match status {
                Some(qemu::EXIT_FAILURE) => "it ended itself with a failure",
                Some(_) => "it has ended",
                None => "the time is up",
            };
            let missing = NAMES.iter().filter(|name| !results.iter().any(|result| result.name == **name));
            let missing: Vec<_> = missing.copied().collect();
            let help = format!("its output is in {log}");
            return Err(miette!(help = help, "the system has not measured {}: {why}", missing.join(", ")));
        };
        // Lines are taken one by one: go on after this one.
        let lines = running.serial.since(from);
        from += lines.iter().position(|other| *other == line).map_or(lines.len(), |index| index + 1);
        results.extend(result::parse(&line.text).transpose().map_err(|error| miette!("{error}"))?);
    }
    running.stop();
    step.done("");
    let place = |result: &Measurement| NAMES.iter().position(|name| *name == result.name);
    results.sort_by_key(|result| place(result).unwrap_or(NAMES.len()));
    Ok(results)
}
