//! Requests of disks.
//!
//! A server writes and reads a disk through its driver, in batches. The disk is a file of the host's, so when requests are finished is not
//! quite the same each time; figures differ by some percent from run to run.

use std::time::{Duration, Instant};

use miette::{Result, miette};

use super::over_virtio;
use crate::bench::result::{self, Measurement};
use crate::interrupt;
use crate::machine::disk::Existing;
use crate::machine::qemu::DiskBus;
use crate::machine::{Running, is_last_word};
use crate::session::{self, Session};
use crate::ui::Step;

const SYSTEM: &str = "bench-drivers-disk";
/// What the measuring server says at its end.
const END: &str = "all is measured";
/// Measurements that it makes of a driver.
const COUNT: usize = 12;
const LIMIT: Duration = Duration::from_secs(180);

/// The disks, and their names. The first is what others are compared with.
const DISKS: [(DiskBus, &str); 3] = [(DiskBus::Virtio, "virtio-blk"), (DiskBus::Nvme, "nvme"), (DiskBus::Ahci, "ahci")];

/// Instructions of each driver for a request, and each against the virtio driver's.
pub(super) fn measure(session: &mut Session) -> Result<Vec<Measurement>> {
    let system = session.load(&session.workspace.system(SYSTEM))?;
    let built = session.build(&system)?;
    let mut all: Vec<Measurement> = Vec::new();
    for (bus, name) in DISKS {
        let step = Step::start(format!("Measuring {name}"));
        let mut machine = session.counting_machine(&system, &built);
        machine.disks = session::disks(&system, &built.folder, Existing::Replace)?;
        machine.disk_bus = bus;
        let qemu = session.qemu()?;
        let mut running = Running::start(&qemu, &machine, &built.folder.join("serial.log"), Box::new(|_| {}))?;
        let end = running.serial.wait(0, Instant::now() + LIMIT, |line| {
            line.contains(END) || is_last_word(line) || line.contains("server bench died")
        });
        interrupt::check()?;
        let lines = running.serial.since(0);
        running.stop();
        let results: Vec<_> = lines.iter().filter_map(|line| result::parse(&line.text)).collect();
        if end.is_none_or(|line| !line.text.contains(END)) || results.len() != COUNT {
            let help = format!("its output is in {}", running.log.display());
            return Err(miette!(help = help, "the system has made {} measurements of {COUNT}", results.len()));
        }
        for result in results {
            let mut result = result.map_err(|error| miette!("{error}"))?;
            result.name = "request-instructions".into();
            result.params.insert("disk".into(), name.into());
            all.push(result);
        }
        step.done("");
    }
    let (usual, others) = all.split_at(COUNT);
    let compared = others.chunks(COUNT).flat_map(|of_disk| of_disk.iter().zip(usual));
    let over: Vec<_> = compared.map(|(result, usual)| over_virtio("request-over-virtio", result, usual)).collect();
    all.extend(over);
    Ok(all)
}
