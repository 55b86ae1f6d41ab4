//! What a request takes, in instructions, by the number of VMs. All are in memory.
//!
//! The throughput by time tells what an emulator makes of it: each run of another VM changes address spaces, after which it looks up anew what a processor would
//! still have. This tells what the system does. Counted is the processor time of the VMs, of the switch and of the card's driver, what the kernel does
//! for them included, on a machine whose time counts instructions.

use std::time::{Duration, Instant};

use miette::{Result, miette};

use super::aggregate::{ask, warm};
use super::fleet::Fleet;
use super::result;
use crate::bench::figures::Figures;
use crate::bench::result::{Better, Measurement};
use crate::interrupt;
use crate::session::Session;
use crate::ui::Step;

/// Numbers of VMs.
const VMS: [u64; 4] = [1, 10, 100, 1000];
/// Requests that are counted.
const REQUESTS: usize = 5_000;
/// Figures that are told by the processor's time.
const PARTS: [(&str, &str); 3] = [("vms", "vms-time"), ("vswitch", "time-vswitch"), ("driver", "time-virtio-net")];
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn measure(session: &mut Session) -> Result<Vec<Measurement>> {
    let (mut all, mut sums) = (Vec::new(), Vec::new());
    for vms in VMS {
        let parts = instructions(session, vms)?;
        let sum: f64 = parts.iter().sum();
        sums.push(sum);
        let each = PARTS.iter().zip(&parts).map(|((part, _), part_of)| format!(" {part}={part_of:.0}"));
        let params = format!("vms={vms} object=2258{}", each.collect::<String>());
        all.push(result("http-instructions", sum, "instructions", Better::Lower, &params));
    }
    if let (Some(one), Some(last), Some(vms)) = (sums.first(), sums.last(), VMS.last()) {
        let name = format!("http-{vms}-over-1-by-instructions");
        all.push(result(&name, 100.0 * one / last, "percent", Better::Higher, "object=2258"));
    }
    Ok(all)
}

/// Instructions of a request, by part.
fn instructions(session: &mut Session, vms: u64) -> Result<[f64; PARTS.len()]> {
    let (mut fleet, asks) = warm(session, vms, REQUESTS, true)?;
    let step = Step::start(format!("Counting what {REQUESTS} requests to {vms} VMs take"));
    let before = told_next(&fleet)?;
    ask(&mut fleet, &asks)?;
    let after = told_next(&fleet)?;
    step.done("");
    fleet.end();
    Ok(PARTS.map(|(_, key)| after.get(key).saturating_sub(before.get(key)) as f64 / REQUESTS as f64))
}

/// Figures of a time when all that was asked before is done.
fn told_next(fleet: &Fleet) -> Result<Figures> {
    let told = fleet.bench.figures().len();
    let deadline = Instant::now() + LIMIT;
    loop {
        // What is told next may have been gathered before.
        if let Some(figures) = fleet.bench.figures().into_iter().nth(told + 1) {
            return Ok(figures);
        }
        interrupt::check()?;
        if Instant::now() >= deadline {
            return Err(miette!("the machine tells no figures"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
