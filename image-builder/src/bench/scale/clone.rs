//! What a clone takes, in instructions: from the beginning of its creation to its first instruction, and to the first byte of its first answer.
//!
//! The machine's time counts instructions, and VMs read it. Each clone is started by the operator when all others have nothing to do; then a VM asks each of them once. What
//! they do in between is not measured, because nothing is done.

use std::time::Duration;

use miette::{Result, miette};

use crate::bench::result::{self, Measurement};
use crate::bench::swap::Bench;
use crate::session::Session;
use crate::ui::Step;

/// What the client tells.
const NAMES: [&str; 4] =
    ["clone-instructions", "clone-to-wait-instructions", "first-answer-instructions", "clone-to-http-instructions"];
/// VMs of the system file.
const VMS: usize = 20;
const LIMIT: Duration = Duration::from_secs(120);

pub(super) fn measure(session: &mut Session) -> Result<Vec<Measurement>> {
    let system = session.load(&session.workspace.system("bench-clone"))?;
    let built = session.build(&system)?;
    let machine = session.counting_machine(&system, &built);
    let step = Step::start(format!("Counting what {VMS} clones take"));
    let mut bench = Bench::start(session, &system, &built, machine, None)?;
    bench.wait(0, LIMIT, "that all VMs are started", |line| line.contains(" VMs started, 0 refused"))?;
    // The one that they are made from has started; they are to be made one by one.
    type_in(&mut bench, "stop client", "vm client stopped")?;
    type_in(&mut bench, "stop httpd-*", &format!("{VMS} VMs stopped"))?;
    for vm in (1..=VMS).rev() {
        // With the star it is answered; those whose names go on are there already.
        type_in(&mut bench, &format!("start httpd-{vm}*"), "1 VMs started")?;
    }
    let from = bench.running.serial.position();
    bench.running.send(b"start client\r")?;
    let last = NAMES[NAMES.len() - 1];
    bench.wait(from, LIMIT, "that the client has asked all", |line| line.contains(&format!("BENCH {last} ")))?;
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
