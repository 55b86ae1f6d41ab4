//! What a clone takes, in instructions: from the beginning of its creation until it has run for the first time, and to the first byte of its first answer.
//!
//! The machine's time counts instructions, and VMs read it. The operator has all of them made with one command: all that the processor does from the beginning of the first
//! to the first wait of the last is for them. When they wait, a VM asks each of them once, one after the other: the rest is what it takes from its first packet to the first byte
//! of the answer, its own work included.

use std::time::Duration;

use miette::{Result, miette};

use crate::bench::harness::Bench;
use crate::bench::result::{self, Measurement};
use crate::session::Session;
use crate::ui::Step;

/// What the client tells last.
const LAST: &str = "clone-to-http-instructions";
/// VMs of the system file.
const VMS: usize = 200;
const LIMIT: Duration = Duration::from_secs(120);

pub(super) fn measure(session: &mut Session) -> Result<Vec<Measurement>> {
    let system = session.load(&session.workspace.system("bench-clone"))?;
    let built = session.build(&system)?;
    let machine = session.counting_machine(&system, &built);
    let step = Step::start(format!("Counting what {VMS} clones take"));
    let mut bench = Bench::start(session, &system, &built, machine, None)?;
    bench.wait(0, LIMIT, "that all VMs are started", |line| line.contains(" VMs started, 0 refused"))?;
    let told = format!("BENCH {LAST} ");
    // From the first clone, and its first answer, the pager learns what others need at once.
    bench.wait(0, LIMIT, "that the client has asked all", |line| line.contains(&told))?;
    type_in(&mut bench, "stop httpd-*", &format!("{VMS} VMs stopped"))?;
    type_in(&mut bench, "start httpd-*", &format!("{VMS} VMs started"))?;
    let from = bench.running.serial.position();
    bench.running.send(b"start client\r")?;
    bench.wait(from, LIMIT, "that the client has asked all", |line| line.contains(&told))?;
    let lines = bench.running.serial.since(from);
    bench.running.stop();
    step.done("");
    let results: Result<Vec<_>, _> = lines.iter().filter_map(|line| result::parse(&line.text)).collect();
    let results = results.map_err(|error| miette!("{error}"))?;
    match results.iter().find(|result| result.params.get("clones") != Some(&VMS.to_string())) {
        None => Ok(results),
        Some(result) => Err(miette!("of {VMS} VMs {:?} are clones that have answered", result.params.get("clones"))),
    }
}

/// Has the operator type a command, and waits for what is answered.
fn type_in(bench: &mut Bench, command: &str, answer: &str) -> Result<()> {
    let from = bench.running.serial.position();
    bench.running.send(format!("{command}\r").as_bytes())?;
    bench.wait(from, LIMIT, &format!("that `{command}` is answered"), |line| line.contains(answer))?;
    Ok(())
}
