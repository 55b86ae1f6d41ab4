//! `bench drivers`: what drivers execute for a packet, against the virtio driver of the same kind.
//!
//! The machine's time counts instructions. They are those of the driver's domain: its own, and the kernel's on its behalf.

mod nics;

use miette::Result;

use super::Benchmark;
use super::result::Measurement;
use crate::session::Session;

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "drivers",
    about: "what drivers take for a packet, against the virtio driver: in instructions",
    run,
};

fn run(session: &mut Session) -> Result<Vec<Measurement>> {
    nics::measure(session)
}
