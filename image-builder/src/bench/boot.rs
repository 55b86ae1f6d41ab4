//! `bench boot`: from the kernel's first instruction to the first HTTP reply.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use miette::{Result, miette};

use super::Benchmark;
use super::result::{Better, Measurement};
use crate::interrupt;
use crate::machine::disk::Existing;
use crate::machine::{Running, http, ports};
use crate::session::{self, Session};
use crate::ui::Step;

pub(super) const BENCHMARK: Benchmark =
    Benchmark { name: "boot", about: "from the kernel's entry to the first HTTP reply: in microseconds", run };

/// The web server's own words about it: `first HTTP reply N us after kernel entry`.
const WORDS: (&str, &str) = ("first HTTP reply ", " us after kernel entry");
const ROUNDS: usize = 5;
const LIMIT: Duration = Duration::from_secs(60);

fn run(session: &mut Session) -> Result<Vec<Measurement>> {
    let system = session.load(&session.workspace.default_system())?;
    let built = session.build(&system)?;
    let qemu = session.qemu()?;
    let mut inside = Vec::new();
    let mut outside = Vec::new();
    for round in 1..=ROUNDS {
        let reachable = ports::assign_free(&system)?;
        let web =
            reachable.iter().find(|r| r.service.http).ok_or_else(|| miette!("the default system has no web server"))?;
        let mut machine = session.machine(&system, &built, ports::network(&system, &reachable));
        machine.disks = session::disks(&system, &built.folder.join("bench"), Existing::Replace)?;
        let step = Step::start(format!("Booting, {round} of {ROUNDS}"));
        let mut running = Running::start(&qemu, &machine, &built.folder.join("serial.log"), Box::new(|_| {}))?;
        let deadline = Instant::now() + LIMIT;
        let page = http::wait(web.host, "/", deadline);
        interrupt::check()?;
        let log = running.log.display().to_string();
        page.map_err(|error| {
            miette!(help = format!("its output is in {log}"), "no reply from VM `{}`: {error}", web.vm)
        })?;
        outside.push(running.started.elapsed().as_micros() as f64);
        let line = running.serial.wait(0, deadline, |line| reply_time(line).is_some());
        let time = line.and_then(|line| reply_time(&line.text));
        inside.push(time.ok_or_else(|| miette!("VM `{}` does not tell when it first replied", web.vm))?);
        running.stop();
        step.done("");
    }
    let accelerator = crate::accelerator::choose(&crate::accelerator::Findings::gather()).0.to_string();
    let params = BTreeMap::from([
        ("accelerator".to_string(), accelerator.to_lowercase()),
        ("cpus".to_string(), system.cpus.to_string()),
        ("rounds".to_string(), ROUNDS.to_string()),
        ("statistic".to_string(), "median".to_string()),
    ]);
    let measurement = |name: &str, values| Measurement {
        name: name.into(),
        value: median(values),
        unit: "us".into(),
        better: Better::Lower,
        params: params.clone(),
    };
    Ok(vec![measurement("kernel-entry-to-first-reply", inside), measurement("power-on-to-first-reply", outside)])
}

/// The time in a web server's line about its first reply.
fn reply_time(line: &str) -> Option<f64> {
    let (_, rest) = line.split_once(WORDS.0)?;
    rest.split_once(WORDS.1)?.0.parse().ok()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_read_from_the_line() {
        assert_eq!(reply_time("httpd-1: first HTTP reply 812345 us after kernel entry"), Some(812_345.0));
        assert_eq!(reply_time("httpd-1: first HTTP reply soon us after kernel entry"), None);
        assert_eq!(reply_time("httpd-1: ready"), None);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
    }
}
