//! The web-server VMs.

use std::collections::BTreeSet;
use std::time::Duration;

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use serde::Deserialize;

use super::BootTest;
use super::harness::Context;
use crate::machine::http;
use crate::machine::ports::Reachable;

pub(super) const TESTS: &[BootTest] = &[BootTest {
    name: "web",
    about: "two web-server VMs answer on two ports, each with a page about itself",
    limit: Duration::from_secs(60),
    long: false,
    run: web,
}];

/// What the front page tells of its VM, each under this label.
const LABELS: [&str; 8] = [
    "Number",
    "IP address",
    "MAC address",
    "Up for",
    "Memory",
    "Virtual interrupts",
    "Packets sent",
    "Packets received",
];

/// The parts of `/status.json` that tests look at.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(super) struct Status {
    /// Number of the VM.
    pub id: u64,
    name: String,
    uptime_ns: u64,
    memory_bytes: u64,
    interrupts: u64,
    packets_sent: u64,
    packets_received: u64,
}

/// What a VM says of itself.
pub(super) fn status(context: &Context<'_>, vm: &str) -> Result<Status> {
    let page = context.page(vm, "/status.json")?;
    serde_json::from_slice(&page.body).into_diagnostic().wrap_err_with(|| miette!("the status of VM `{vm}`"))
}

pub(super) fn web(context: &mut Context<'_>) -> Result<()> {
    context.boot(None)?;
    let servers: Vec<_> = context.services().iter().filter(|r| r.service.http).cloned().collect();
    if servers.len() < 2 {
        return Err(miette!("the default system has {} web servers; the test needs two", servers.len()));
    }
    let mut numbers = BTreeSet::new();
    for server in &servers {
        front_page(context, server)?;
        numbers.insert(status(context, &server.vm)?.id);
    }
    if numbers.len() != servers.len() {
        return Err(miette!("{} web servers have only {} different VM numbers", servers.len(), numbers.len()));
    }
    counters_move(context, &servers[0].vm)?;
    match http::get(context.port_of(&servers[0].vm)?, "/no-such-page", Duration::from_secs(5)) {
        Ok(page) if page.status == 404 => {}
        Ok(page) => return Err(miette!("a page that does not exist is answered with status {}", page.status)),
        Err(error) => return Err(miette!("a page that does not exist is not answered: {error}")),
    }
    context.line(0, &["first HTTP reply", "us after kernel entry"])?;
    context.healthy()
}

/// The front page tells what it should, and nothing of another VM.
fn front_page(context: &Context<'_>, server: &Reachable) -> Result<()> {
    let page = context.page(&server.vm, "/")?.text();
    let facts = text_of(&page);
    let status = status(context, &server.vm)?;
    for label in LABELS {
        if fact(&facts, label).is_none() {
            return Err(miette!("the page of VM `{}` does not tell `{label}`:\n{}", server.vm, facts.join("\n")));
        }
    }
    let own = [
        ("Number", status.id.to_string()),
        ("IP address", server.address.to_string()),
        ("Memory", (status.memory_bytes / 1024).to_string()),
    ];
    for (label, value) in own {
        let told = fact(&facts, label).unwrap_or_default();
        if !told.starts_with(&value) {
            return Err(miette!("the page of VM `{}` tells `{label}` {told}, not {value}", server.vm));
        }
    }
    if status.name != server.vm {
        return Err(miette!("port {} should lead to VM `{}`, but `{}` answers", server.host, server.vm, status.name));
    }
    Ok(())
}

/// Time passes and packets are counted.
fn counters_move(context: &Context<'_>, vm: &str) -> Result<()> {
    let before = status(context, vm)?;
    let after = status(context, vm)?;
    let moved = after.uptime_ns > before.uptime_ns
        && after.interrupts > before.interrupts
        && after.packets_sent > before.packets_sent
        && after.packets_received > before.packets_received;
    if moved { Ok(()) } else { Err(miette!("a request changes none of the counters: {before:?}, then {after:?}")) }
}

/// The pieces of text of a page, without tags.
fn text_of(page: &str) -> Vec<String> {
    let pieces = page.split('<').map(|piece| piece.split_once('>').map_or(piece, |(_, text)| text));
    pieces.map(|piece| piece.trim().to_string()).filter(|piece| !piece.is_empty()).collect()
}

/// The piece after a label.
fn fact(pieces: &[String], label: &str) -> Option<String> {
    let place = pieces.iter().position(|piece| piece == label)?;
    pieces.get(place + 1).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_a_page() {
        let page = "<h1>Number 7</h1><dl><dt>Number</dt><dd>7</dd>\n<dt>Up for</dt> <dd id=\"up\">1.2 s</dd>";
        let pieces = text_of(page);
        assert_eq!(fact(&pieces, "Number").as_deref(), Some("7"));
        assert_eq!(fact(&pieces, "Up for").as_deref(), Some("1.2 s"));
        assert_eq!(fact(&pieces, "Memory"), None);
    }
}
