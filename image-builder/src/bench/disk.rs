//! `bench disk`: what a driver reaches on a disk, from one server, by the size of its requests.
//!
//! The disk is a file of the host, mostly in the host's memory: absolute figures say more about the host than about the
//! system. What others reach through more servers is to be compared with these, of the same run of the same machine.

use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, miette};
use tempfile::TempDir;

use super::Benchmark;
use super::result::{self, Measurement};
use crate::interrupt;
use crate::machine::disk::Existing;
use crate::machine::qemu::Network;
use crate::machine::qmp::Qmp;
use crate::machine::{Running, is_last_word};
use crate::session::{self, Session};
use crate::ui::Step;

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "disk",
    about: "throughput of a disk through its driver, sequential and random, 4 to 64 KiB: in MiB a second",
    run,
};

/// What the measuring server says at its end.
const END: &str = "all is measured";
/// Measurements that it makes.
const COUNT: usize = 20;
const LIMIT: Duration = Duration::from_secs(180);

fn run(session: &mut Session) -> Result<Vec<Measurement>> {
    measure(session, "bench-disk", None)
}

/// Boots a system that measures all cases, on a disk that moves so many bytes a second; `None`: as many as the host does.
pub(super) fn measure(session: &mut Session, name: &str, speed: Option<u64>) -> Result<Vec<Measurement>> {
    let system = session.load(&session.workspace.system(name))?;
    let built = session.build(&system)?;
    let mut machine = session.machine(&system, &built, Network::None);
    machine.disks = session::disks(&system, &built.folder, Existing::Replace)?;
    let qemu = session.qemu()?;
    let sockets = TempDir::with_prefix("denali-").into_diagnostic()?;
    machine.qmp = Some(sockets.path().join("qmp"));
    let step = Step::start("Measuring");
    let mut running = Running::start(&qemu, &machine, &built.folder.join("serial.log"), Box::new(|_| {}))?;
    if let (Some(speed), Some(socket)) = (speed, &machine.qmp) {
        let mut qmp = Qmp::connect(socket)?;
        machine.disks.iter().try_for_each(|disk| qmp.throttle(&disk.name, speed))?;
    }
    let deadline = Instant::now() + LIMIT;
    let end = running.serial.wait(0, deadline, |line| line.contains(END) || is_last_word(line));
    interrupt::check()?;
    let lines = running.serial.since(0);
    running.stop();
    let results: Vec<_> = lines.iter().filter_map(|line| result::parse(&line.text)).collect();
    if end.is_none_or(|line| !line.text.contains(END)) || results.len() != COUNT {
        step.failed();
        let help = format!("its output is in {}", running.log.display());
        return Err(miette!(help = help, "the system has made {} measurements of {COUNT}", results.len()));
    }
    step.done("");
    results.into_iter().map(|result| result.map_err(|error| miette!("{error}"))).collect()
}
