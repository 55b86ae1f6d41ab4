//! Guests that misbehave in every way we know of, beside two that do not.

use std::time::{Duration, Instant};

use miette::{Result, miette};

use super::BootTest;
use super::harness::{self, Context};
use crate::machine::http;

pub(super) const TESTS: &[BootTest] = &[BootTest {
    name: "hostile",
    about: "misbehaving VMs are stopped or slowed, each alone and with a reason; the others go on serving",
    limit: Duration::from_secs(240),
    long: false,
    run: hostile,
}];

/// Image of the misbehaving guests.
const IMAGE: &str = "hostile";
/// Modes that are allowed to go on: they harm nobody but themselves. All others must be stopped.
const TOLERATED: [&str; 4] = ["loop", "flood", "deaf", "hypercalls"];
/// A page must be answered within this time, whatever the hostile VMs do.
const PATIENCE: Duration = Duration::from_secs(10);

fn hostile(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(Some("hostile"))?;
    context.boot_built(&system, &built)?;
    let web: Vec<String> = context.services().iter().filter(|r| r.service.http).map(|r| r.vm.clone()).collect();
    for vm in &web {
        context.page(vm, "/")?;
    }
    for vm in system.manifest.vms.iter().filter(|vm| vm.image == IMAGE) {
        if !TOLERATED.contains(&vm.arguments.as_str()) {
            let stopped = context.ended(&vm.name);
            stopped.map_err(|error| miette!("mode {}: {error}", vm.arguments))?;
        }
        serves(context, &web)?;
    }
    // Those that go on doing harm have had their chance: serve on for a while.
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        serves(context, &web)?;
    }
    let lines = context.running()?.serial.since(0);
    for vm in &web {
        if let Some(line) = lines.iter().find(|line| harness::tells_end(&line.text, vm)) {
            return Err(miette!("an innocent VM was stopped: {}", line.text));
        }
    }
    context.healthy()
}

fn serves(context: &mut Context<'_>, web: &[String]) -> Result<()> {
    crate::interrupt::check()?;
    for vm in web {
        let port = context.port_of(vm)?;
        let page = http::wait(port, "/", Instant::now() + PATIENCE);
        let page = page.map_err(|error| miette!("VM `{vm}` does not serve beside the hostile ones: {error}"))?;
        if page.status != 200 {
            return Err(miette!("VM `{vm}` answers with status {}", page.status));
        }
    }
    context.healthy()
}
