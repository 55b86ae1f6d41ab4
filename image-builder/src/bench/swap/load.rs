//! Many VMs with far more memory in use than the machine has.
//!
//! A host on their network asks VMs by chance, many at a time, whether some of their pages hold what they must. When all have filled their memory
//! the disk is held at [`SPEED`], which the emulated processor can keep up with.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use miette::{Result, miette};

use super::{Bench, build, result};
use crate::bench::figures::Figures;
use crate::bench::result::{Better, Measurement};
use crate::machine::lan::{Ask, Lan};
use crate::machine::qmp::Qmp;
use crate::session::Session;
use crate::ui::Step;

/// VMs, pages of each, and MiB of the machine: in the system file, and for `--long` as many as the project is to carry.
const USUAL: (u64, u64, u64) = (100, 512, 128);
const LONG: (u64, u64, u64) = (2000, 1024, 2048);
/// Bytes a second of the disk.
const SPEED: u64 = 20_000_000;
/// Pages that a question is about.
const PAGES: u64 = 64;
/// Questions at once.
const AT_ONCE: usize = 64;
/// How long the VMs are asked.
const TIME: Duration = Duration::from_secs(15);
/// How long a VM may take to fill its memory, and to answer.
const FILLING: Duration = Duration::from_secs(300);
const FILLING_LONG: Duration = Duration::from_secs(2400);
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn measure(session: &mut Session) -> Result<Vec<Measurement>> {
    let (count, pages_each, memory) = if session.long { LONG } else { USUAL };
    let (mib, swap) = (pages_each / 256 + 1, count * (pages_each / 256 + 2));
    let mut changes = vec![
        ("count = 100", format!("count = {count}")),
        ("memory = \"128 MiB\"", format!("memory = \"{memory} MiB\"")),
        ("memory = \"3 MiB\"", format!("memory = \"{mib} MiB\"")),
        ("pages=512", format!("pages={pages_each}")),
        ("\"400 MiB\"", format!("\"{} MiB\"", swap + 8)),
        ("\"350 MiB\"", format!("\"{swap} MiB\"")),
    ];
    if session.long {
        // Servers keep something of each VM.
        let more = || "memory = \"16 MiB\"".to_string();
        changes.extend([("memory = \"4 MiB\"", more()), ("memory = \"8 MiB\"", more())]);
    }
    let (system, built) = build(session, "bench-swap-load", &changes)?;
    let network = system.manifest.network;
    let mut lan = Lan::open(network.gateway.into(), network.prefix)?;
    let machine = session.machine(&system, &built, lan.network());
    let step = Step::start(format!("{count} VMs fill their memory"));
    let mut bench = Bench::start(session, &system, &built, machine, None)?;
    let addresses: Vec<Ipv4Addr> = system.manifest.vms.iter().map(|vm| vm.address.into()).collect();
    let port = pages::PORT;
    // Who does not answer has not filled its memory yet.
    let who: Vec<_> = addresses.iter().map(|address| Ask::line(*address, port, "who")).collect();
    let answers = lan.ask_all(&who, AT_ONCE, if session.long { FILLING_LONG } else { FILLING })?;
    let there = addresses.into_iter().zip(answers).filter_map(|(address, answer)| answer.is_ok().then_some(address));
    let addresses: Vec<_> = there.collect();
    let ready = 100.0 * addresses.len() as f64 / count as f64;
    step.done("");
    let params = format!("vms={count} vm={}-MiB memory={memory}-MiB block=16-KiB", pages_each / 256);
    if addresses.is_empty() {
        // That is a result, and there is no other: what is read and written meanwhile gets nobody on.
        return Ok(vec![result("vms-ready", ready, "percent", Better::Higher, &params)]);
    }
    Qmp::connect(&bench.socket())?.throttle("disk", SPEED)?;
    let step = Step::start("Asking them by chance");
    let from = bench.running.serial.position();
    let deadline = Instant::now() + TIME;
    let (mut number, mut failed, mut times) = (0u64, 0, Vec::new());
    while Instant::now() < deadline {
        let asks: Vec<_> = (0..2 * AT_ONCE)
            .map(|_| {
                number += 1;
                let chance = scatter(number);
                let address = addresses[(chance % addresses.len() as u64) as usize];
                let first = (chance >> 32) % (pages_each / PAGES) * PAGES;
                Ask::line(address, port, &format!("check {first} {PAGES}"))
            })
            .collect();
        for (ask, answer) in asks.iter().zip(lan.ask_all(&asks, AT_ONCE, PATIENCE)?) {
            match answer {
                Ok(answer) if answer.text() == format!("ok {PAGES}") => times.push(answer.time.as_secs_f64() * 1000.0),
                Ok(answer) => return Err(miette!("{} answers {:?}", ask.address, answer.text())),
                Err(_) => failed += 1,
            }
        }
    }
    let lines = bench.running.serial.since(from);
    bench.running.stop();
    let figures: Vec<_> = lines.iter().filter_map(Figures::of_line).collect();
    let (Some(first), Some(last)) = (figures.first(), figures.last()) else {
        step.failed();
        return Err(miette!("the system tells no figures"));
    };
    step.done("");
    let seconds = last.seconds_since(first);
    let rate = |key: &str| last.get(key).saturating_sub(first.get(key)) as f64 / seconds;
    let share = (rate("read") + rate("written")) * 4096.0 * 100.0 / SPEED as f64;
    times.sort_by(f64::total_cmp);
    let slow = times.get(times.len() * 99 / 100).copied().unwrap_or(f64::NAN);
    let params = format!("{params} disk=20-MB/s answers={} unanswered={failed}", times.len());
    let result = |name: &str, value, unit: &str, better| result(name, value, unit, better, &params);
    Ok(vec![
        result("vms-ready", ready, "percent", Better::Higher),
        result("page-ins-per-second", rate("page-ins"), "pages", Better::Higher),
        result("page-outs-per-second", rate("page-outs"), "pages", Better::Higher),
        result("faults-in-flight", last.get("most-reads") as f64, "faults", Better::Higher),
        result("disk-share", share, "percent", Better::Higher),
        result("answer-time-99-percent", slow, "ms", Better::Lower),
    ])
}

/// A number that looks like chance (SplitMix64).
fn scatter(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
