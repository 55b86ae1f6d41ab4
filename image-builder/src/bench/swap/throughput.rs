//! Throughput of page-ins by the size of the pager's blocks, and which part that is of what the driver reaches.
//!
//! One VM with several times as much memory as the machine has for it reads a byte of each of its pages, in order, and block by block in an order
//! by chance: always the same order, so that every page is gone when its turn comes again. It waits for one page at a time; what is read ahead for
//! it is the rest of the block. The driver is measured alone, by a server with many requests of that size under way, on a disk of the same speed.
//!
//! Everything is decrypted and authenticated by the processor, and an emulated one is slow at that: on a disk that is as fast as the host's memory,
//! that is all that is measured. So the disk is also held at [`SPEED`], which the emulated processor can keep up with.

use std::collections::BTreeMap;
use std::time::Duration;

use miette::{Result, miette};

use super::{Bench, build, plain, result};
use crate::bench::disk;
use crate::bench::figures::{numbers, rate};
use crate::bench::result::{Better, Measurement};
use crate::session::Session;
use crate::ui::Step;

/// Bytes a second of the slower disk: about half of those of the paper's, which had 2001's.
const SPEED: u64 = 20_000_000;
/// KiB of the pager's blocks.
const BLOCKS: [u32; 5] = [4, 8, 16, 32, 64];
const ORDERS: [&str; 2] = ["sequential", "random"];
const END: &str = "all is touched";
const LIMIT: Duration = Duration::from_secs(90);
/// MiB of a page.
const PAGE: f64 = 4096.0 / 1_048_576.0;

pub(super) fn measure(session: &mut Session) -> Result<Vec<Measurement>> {
    let mut all = Vec::new();
    for (disk_name, speed) in [("20-MB/s", Some(SPEED)), ("unlimited", None)] {
        let driver = disk::measure(session, "bench-disk", speed)?;
        let raw: BTreeMap<_, _> = driver.into_iter().map(|measured| (measured.name, measured.value)).collect();
        for block in BLOCKS {
            for (order, reached) in ORDERS.into_iter().zip(swap(session, block, speed)?) {
                let name = format!("disk-{order}-read-{block}k");
                let raw = raw.get(&name).copied().ok_or_else(|| miette!("there is no {name}"))?;
                // A disk that is held at a speed lets short bursts pass, and the driver is measured for a short time.
                let limit = speed.map_or(f64::INFINITY, |speed| speed as f64 / 1_048_576.0);
                let raw = (raw.min(limit) * 10.0).round() / 10.0;
                let params = format!("block={block}-KiB pattern={order} disk={disk_name} raw={raw}");
                all.push(result("swap-throughput", reached, "MiB/s", Better::Higher, &params));
                let share = if raw > 0.0 { reached * 100.0 / raw } else { 0.0 };
                all.push(result("swap-over-raw", share, "percent", Better::Higher, &params));
            }
        }
    }
    Ok(all)
}

/// MiB of page-ins a second, for each order.
fn swap(session: &mut Session, block: u32, speed: Option<u64>) -> Result<Vec<f64>> {
    let changes = [("block = 16", format!("block = {block}")), ("block=16", format!("block={block}"))];
    let (system, built) = build(session, "bench-swap", &changes)?;
    let step = Step::start(format!("Swapping by {block} KiB"));
    let machine = plain(session, &system, &built);
    let mut bench = Bench::start(session, &system, &built, machine, speed)?;
    bench.wait(0, LIMIT, END, |line| line.contains(END))?;
    let figures = bench.figures();
    let lines = bench.running.serial.since(0);
    bench.running.stop();
    let reached = |order: &str| {
        let line = lines.iter().find(|line| line.text.contains(&format!("touched order={order}")))?;
        let times = numbers(&line.text, "touched")?;
        Some(rate(&figures, (*times.get("from")?, *times.get("until")?), "page-ins")? * PAGE)
    };
    let all = ORDERS.into_iter().map(|order| reached(order).ok_or_else(|| miette!("{order} was not measured")));
    let all = all.collect::<Result<_>>()?;
    step.done("");
    Ok(all)
}
