//! Guests that misbehave in every way we know of, beside two that do not.

use std::time::{Duration, Instant};

use hostile::{MODES, Mode};
use miette::{Result, miette};

use super::BootTest;
use super::harness::{self, Context};
use crate::machine::http;
use crate::system::vms;

pub(super) const TESTS: &[BootTest] = &[BootTest {
    name: "hostile",
    about: "misbehaving VMs are stopped or slowed, each alone and with a reason; the others go on serving",
    limit: Duration::from_secs(300),
    long: false,
    run: hostile,
}];

/// Image of the misbehaving guests, and the first part of their names.
const IMAGE: &str = "hostile";
/// A page must be answered within this time, whatever the hostile VMs do.
const PATIENCE: Duration = Duration::from_secs(15);
/// So many VMs end between two looks at the web servers.
const BETWEEN: usize = 10;

pub(super) fn hostile(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(Some(IMAGE))?;
    context.boot_built(&system, &built)?;
    let web: Vec<String> = context.services().iter().filter(|r| r.service.http).map(|r| r.vm.clone()).collect();
    if web.len() < 2 {
        return Err(miette!("the system needs two web servers"));
    }
    let mut wrong = Vec::new();
    for (index, mode) in MODES.iter().filter(|mode| mode.expected.is_end()).enumerate() {
        match context.ended(&name(mode)) {
            Ok(line) if mode.expected.is_met_by(&line.text) => {}
            Ok(line) => wrong.push(format!("{}: {:?} was expected, but: {}", mode.name, mode.expected, line.text)),
            Err(error) => wrong.push(format!("{}: {error}", mode.name)),
        }
        if index % BETWEEN == 0 {
            serves(context, &web)?;
        }
    }
    // Those that go on doing harm have their chance: serve on for a while.
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        serves(context, &web)?;
    }
    let lines = context.running()?.serial.since(0);
    let must_live = MODES.iter().filter(|mode| !mode.expected.is_end()).map(name).chain(web);
    for vm in must_live {
        if let Some(line) = lines.iter().find(|line| harness::tells_end(&line.text, &vm)) {
            wrong.push(format!("{vm} should go on, but: {}", line.text));
        }
    }
    if wrong.is_empty() { context.healthy() } else { Err(miette!("{}", wrong.join("\n"))) }
}

/// The VM with this mode.
fn name(mode: &Mode) -> String {
    format!("{IMAGE}-{}", vms::name_of(mode.name))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::System;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn the_system_has_a_vm_for_every_mode() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systems/hostile.toml");
        let text = std::fs::read_to_string(&path).expect("the system file is there");
        let programs =
            ["platform", "console", "virtio-net", "swap", "vswitch", "loader", "supervisor", "httpd", "hostile"];
        let system = System::parse(&path, &text, &programs.map(String::from).into()).expect("a possible system");
        let vms = system.manifest.vms.iter().filter(|vm| vm.image == IMAGE);
        let vms: BTreeSet<_> = vms.map(|vm| (vm.name.clone(), vm.arguments.clone())).collect();
        let modes: BTreeSet<_> = MODES.iter().map(|mode| (name(mode), mode.name.to_string())).collect();
        assert_eq!(vms, modes, "the list in systems/hostile.toml is not that of the guest");
    }
}
