//! `bench vdisk`: what a guest reaches on a virtual disk, and which part that is of what the driver reaches.
//!
//! The driver is measured first (`bench disk`), by a server that does nothing else, with as many requests under way; then the guest, with the whole
//! way: its ring, `vdisk`, one copy, the driver. The ratio is what counts; the absolute figures are those of the host.

use miette::Result;

use super::result::{Better, Measurement};
use super::{Benchmark, disk};
use crate::session::Session;

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "vdisk",
    about: "throughput of a guest on a virtual disk, sequential and random, 4 to 64 KiB: in MiB a second, and in percent of the driver's",
    run,
};

fn run(session: &mut Session) -> Result<Vec<Measurement>> {
    let driver = disk::measure(session, "bench-disk")?;
    let guest = disk::measure(session, "bench-vdisk")?;
    let mut all = Vec::new();
    for measured in guest {
        let name = format!("v{}", measured.name);
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
