//! Throughput of all web servers together, by their number. All are in memory.
//!
//! It is told by the clock and by the emulated processor's own time: by the clock, the client on the host has a share in it, and one VM, whose clients wait for each
//! other, does not keep the processor busy.

use std::time::Instant;

use miette::{Result, miette};

use super::fleet::{Fleet, PATIENCE, Size};
use super::result;
use crate::bench::result::{Better, Measurement};
use crate::machine::lan::Ask;
use crate::machine::power::Chance;
use crate::session::Session;
use crate::ui::Step;

/// Numbers of VMs; the last one only for `--long`.
const VMS: [u64; 5] = [1, 10, 100, 1000, 10_000];
/// Requests that are counted, and connections at once.
const REQUESTS: usize = 20_000;
const AT_ONCE: usize = 16;
/// KiB of memory for each VM, and MiB besides.
const MEMORY: (u64, u64) = (160, 128);
/// Characters of the longest bar.
const BAR: f64 = 50.0;

pub(super) fn measure(session: &mut Session) -> Result<Vec<Measurement>> {
    let mut rates = Vec::new();
    let mut all = Vec::new();
    let count = if session.long { VMS.len() } else { VMS.len() - 1 };
    for vms in VMS.into_iter().take(count) {
        let (rate, by_the_clock) = rate(session, vms)?;
        rates.push((vms, rate, by_the_clock));
        let params = format!("vms={vms} object=2258 by-the-clock={by_the_clock:.0}");
        all.push(result("http-aggregate", rate, "requests/s", Better::Higher, &params));
    }
    let most = rates.iter().fold(0.0, |most: f64, (_, rate, _)| most.max(*rate));
    println!("\nRequests a second of processor time, by the number of VMs:");
    for (vms, rate, _) in &rates {
        println!("{vms:>8}  {}  {rate:.0}", "█".repeat((rate / most * BAR).round() as usize));
    }
    println!();
    if let (Some((_, one, one_by_the_clock)), Some((vms, last, last_by_the_clock))) = (rates.first(), rates.last()) {
        for (name, share) in [("", last / one), ("-by-the-clock", last_by_the_clock / one_by_the_clock)] {
            all.push(result(
                &format!("http-{vms}-over-1{name}"),
                100.0 * share,
                "percent",
                Better::Higher,
                "object=2258",
            ));
        }
    }
    Ok(all)
}

/// Requests in a second of the processor's time, and in one that passes.
fn rate(session: &mut Session, vms: u64) -> Result<(f64, f64)> {
    let (mut fleet, asks) = warm(session, vms, REQUESTS, false)?;
    let step = Step::start(format!("Asking {vms} VMs by chance"));
    let (busy, begun) = (fleet.busy()?, Instant::now());
    ask(&mut fleet, &asks)?;
    let (busy, passed) = (fleet.busy()?.saturating_sub(busy), begun.elapsed());
    step.done("");
    fleet.end();
    Ok((REQUESTS as f64 / busy.as_secs_f64(), REQUESTS as f64 / passed.as_secs_f64()))
}

/// A machine whose VMs have all answered before, and requests to them by chance.
pub(super) fn warm(session: &mut Session, vms: u64, requests: usize, counting: bool) -> Result<(Fleet, Vec<Ask>)> {
    let memory = MEMORY.1 + vms * MEMORY.0 / 1024;
    let mut fleet = Fleet::start(session, Size { vms, memory, processors: 1, serving: 0, counting })?;
    // The first requests of a VM bring its pages into being: that of the page, and that of the object.
    let (answered, _) = fleet.ask_each()?;
    if answered as u64 != vms {
        return Err(miette!("of {vms} VMs {answered} have answered"));
    }
    let object = |vm: u64| Ask::page(fleet.vms[vm as usize].1, 80, "/objects/2258");
    let each: Vec<_> = (0..vms).map(object).collect();
    let mut chance = Chance(vms);
    let asks = (0..requests).map(|_| object(chance.next() % vms)).collect();
    ask(&mut fleet, &each)?;
    Ok((fleet, asks))
}

/// Asks all of these, some at once.
pub(super) fn ask(fleet: &mut Fleet, asks: &[Ask]) -> Result<()> {
    let outcomes = fleet.lan.ask_all(asks, AT_ONCE, PATIENCE)?;
    match outcomes.iter().filter(|outcome| outcome.is_err()).count() {
        0 => Ok(()),
        failed => Err(miette!("of {} requests {failed} failed", asks.len())),
    }
}
