//! A thousand web servers on one machine.

use std::net::Ipv4Addr;
use std::time::Duration;

use miette::{Result, miette};

use super::BootTest;
use super::harness::Context;
use super::pages::{AT_ONCE, PATIENCE, boot_changed};
use crate::machine::lan::{Ask, page};

pub(super) const TESTS: &[BootTest] = &[BootTest {
    name: "scale",
    about: "a thousand web servers on 256 MiB: each answers at its own address, twice, with its own page",
    limit: Duration::from_secs(240),
    long: false,
    run: scale,
}];

fn scale(context: &mut Context<'_>) -> Result<()> {
    let (system, mut lan) = boot_changed(context, Some("scale"), |_, _| Ok(()))?;
    context.line(0, &["loader: 1000 VMs started, 0 refused"])?;
    let vms: Vec<(String, Ipv4Addr)> =
        system.manifest.vms.iter().map(|vm| (vm.name.clone(), vm.address.into())).collect();
    let asks: Vec<_> = vms.iter().map(|(_, address)| Ask::page(*address, 80, "/")).collect();
    for round in 1..=2 {
        for (outcome, (name, address)) in lan.ask_all(&asks, AT_ONCE, PATIENCE)?.into_iter().zip(&vms) {
            let text = outcome.map_err(|failure| miette!("{name} at {address}, round {round}: {failure}"))?.text();
            if !page::is_of(&text, name, *address) {
                return Err(miette!("{address} answers with something else than the page of `{name}`: {text:.300}"));
            }
        }
    }
    context.healthy()
}
