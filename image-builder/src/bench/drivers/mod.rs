//! `bench drivers`: what drivers execute for a packet or for a request of a disk, against the virtio driver of the same kind.
//!
//! The machine's time counts instructions. They are those of the driver's domain: its own, and the kernel's on its behalf.

mod disks;
mod nics;

use miette::Result;

use super::result::{Better, Measurement};
use super::{Benchmark, measurement};
use crate::session::Session;

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "drivers",
    about: "what drivers take for a packet or a request, against the virtio driver: in instructions",
    run,
};

fn run(session: &mut Session) -> Result<Vec<Measurement>> {
    let mut measured = nics::measure(session)?;
    measured.extend(disks::measure(session)?);
    Ok(measured)
}

/// A result in percent of another one, under the same conditions.
fn over_virtio(name: &str, result: &Measurement, usual: &Measurement) -> Measurement {
    let percent = result.value / usual.value * 100.0;
    Measurement { params: result.params.clone(), ..measurement(name, percent, "%", Better::Lower, "") }
}
