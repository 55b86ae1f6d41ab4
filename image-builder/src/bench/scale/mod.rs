//! `bench scale`: many VMs.
//!
//! | file | results |
//! |---|---|
//! | `clone` | `clone-instructions`, `clone-to-http-instructions` |
//! | `many` | `create-seconds`, `vms-answered`, `kib-per-idle-vm` and its parts |
//! | `aggregate` | `http-aggregate` by the number of VMs, `http-10000-over-1` |
//! | `request` | `http-instructions` by the number of VMs, `http-1000-over-1-by-instructions` |
//! | `latency` | `latency`: by load and object, and while VMs are ended and started |
//!
//! All VMs are web servers, and a host on their network is the client of each at its own address ([`crate::machine::lan`]). `--long` goes as far as
//! the project is to go.

mod aggregate;
mod clone;
mod fleet;
mod latency;
mod many;
mod request;

use miette::Result;

use super::result::Measurement;
use super::{Benchmark, measurement as result};
use crate::session::Session;

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "scale",
    about: "many web servers: creation, memory of an idle one, throughput of all together, and how long answers take",
    run,
};

fn run(session: &mut Session) -> Result<Vec<Measurement>> {
    let mut all = clone::measure(session)?;
    all.extend(many::measure(session)?);
    all.extend(latency::measure(session)?);
    all.extend(aggregate::measure(session)?);
    all.extend(request::measure(session)?);
    Ok(all)
}
