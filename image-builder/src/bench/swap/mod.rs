//! `bench swap`: what swapping costs.
//!
//! | file | results |
//! |---|---|
//! | `throughput` | `swap-throughput`, `swap-over-raw`: by the size of the pager's blocks, against the driver alone |
//! | `bytes` | `bytes-per-swapped-vm` |
//! | `wake` | `wake-instructions`, `wake-disk-reads` |
//! | `load` | `page-ins-per-second`, `faults-in-flight`, `disk-share` |
//!
//! All figures are the system's own ([`super::figures`]): a server that does nothing else asks the pager, the driver and the others for them.

mod bytes;
mod load;
mod throughput;
mod wake;

use miette::Result;

use super::harness::Bench;
use super::result::Measurement;
use super::{Benchmark, build, measurement as result};
use crate::build::Built;
use crate::machine::qemu::{Machine, Network};
use crate::session::Session;
use crate::system::System;

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "swap",
    about: "swapping: throughput by block size, memory of a swapped-out VM, its wake, and many VMs at once",
    run,
};

fn run(session: &mut Session) -> Result<Vec<Measurement>> {
    let mut all = wake::measure(session)?;
    all.extend(bytes::measure(session)?);
    all.extend(throughput::measure(session)?);
    all.extend(load::measure(session)?);
    Ok(all)
}

/// A machine without a network.
fn plain(session: &Session, system: &System, built: &Built) -> Machine {
    session.machine(system, built, Network::None)
}
