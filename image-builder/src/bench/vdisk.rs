//! `bench vdisk`: what a guest reaches on a virtual disk, and which part that is of what the driver reaches.
//!
//! The driver is measured first (`bench disk`), by a server that does nothing else, with as many requests under way; then the guest, with the whole
//! way: its ring, `vdisk`, one copy, the driver. Twice: on a disk of the speed of [`SPEED`], where the disk is the limit, and on one that is as fast
//! as the host, which has it in its memory: there the time of the processor is all that is measured.

use miette::Result;

use super::result::{Better, Measurement};
use super::{Benchmark, disk};
use crate::session::Session;

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "vdisk",
    about: "throughput of a guest on a virtual disk, sequential and random, 4 to 64 KiB: in MiB a second, and in percent of the driver's",
    run,
};

/// Bytes a second of the slower disk: those of a SATA SSD.
const SPEED: u64 = 500_000_000;

fn run(session: &mut Session) -> Result<Vec<Measurement>> {
    let mut all = compare(session, Some(SPEED), "-at-500-mb")?;
    all.extend(compare(session, None, "")?);
    Ok(all)
}

/// Measures driver and guest on a disk of a speed.
fn compare(session: &mut Session, speed: Option<u64>, suffix: &str) -> Result<Vec<Measurement>> {
    let driver = disk::measure(session, "bench-disk", speed)?;
    let guest = disk::measure(session, "bench-vdisk", speed)?;
    let mut all = Vec::new();
    for measured in guest {
        let name = format!("v{}{suffix}", measured.name);
        if let Some(raw) = driver.iter().find(|raw| raw.name == measured.name && raw.value > 0.0) {
            let mut params = measured.params.clone();
            params.insert("driver".into(), format!("{:.1}", raw.value));
            let percent = (measured.value * 1000.0 / raw.value).round() / 10.0;
            let unit = "percent".to_string();
            all.push(Measurement {
                name: format!("{name}-share"),
                value: percent,
                unit,
                better: Better::Higher,
                params,
            });
        }
        all.push(Measurement { name, ..measured });
    }
    Ok(all)
}
