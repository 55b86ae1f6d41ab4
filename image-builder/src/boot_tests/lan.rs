//! VMs reached by their own addresses, from a host on their network.

use std::net::Ipv4Addr;
use std::time::Duration;

use miette::{Result, WrapErr, miette};

use super::BootTest;
use super::harness::Context;
use super::pages::{AT_ONCE, PATIENCE, boot_changed};
use crate::machine::lan::{Answer, Ask, End, Outcome, page};

pub(super) const TESTS: &[BootTest] = &[BootTest {
    name: "lan",
    about: "a host on the VMs' network reaches each VM by its address, many connections at once",
    limit: Duration::from_secs(60),
    long: false,
    run: lan,
}];

/// Connections that a web server serves at a time, and how long the end of those before may take.
const CONNECTIONS: usize = 24;
const BURSTS: usize = 3;
const PAUSE: Duration = Duration::from_millis(300);
/// Requests to each web server.
const REQUESTS: usize = 30;

/// The answers, if all VMs gave one.
fn all(outcomes: Vec<Outcome>, asks: &[Ask]) -> Result<Vec<Answer>> {
    let answers = outcomes.into_iter().zip(asks);
    answers
        .map(|(outcome, ask)| outcome.map_err(|failure| miette!("{} port {}: {failure}", ask.address, ask.port)))
        .collect()
}

fn lan(context: &mut Context<'_>) -> Result<()> {
    let (system, mut lan) = boot_changed(context, None, |_, _| Ok(()))?;
    let addresses = |image: &str| -> Vec<(String, Ipv4Addr)> {
        let vms = system.manifest.vms.iter().filter(|vm| vm.image == image);
        vms.map(|vm| (vm.name.clone(), vm.address.into())).collect()
    };
    let (web, echo) = (addresses("httpd"), addresses("echo"));
    // As many at once as one server serves, of which few have a socket that listens before they come: none is refused.
    for _ in 0..BURSTS {
        lan.rest(PAUSE)?;
        let burst = vec![Ask::page(web[0].1, 80, "/"); CONNECTIONS];
        all(lan.ask_all(&burst, CONNECTIONS, PATIENCE)?, &burst)?;
        if lan.refused() > 0 {
            return Err(miette!("of {CONNECTIONS} connections at once {} were refused", lan.refused()));
        }
    }
    // Page by page, each VM in turn: the page says which VM it comes from.
    let asks: Vec<_> =
        (0..REQUESTS).flat_map(|_| web.iter().map(|(_, address)| Ask::page(*address, 80, "/"))).collect();
    let answers = all(lan.ask_all(&asks, AT_ONCE, PATIENCE)?, &asks)?;
    for (answer, (name, address)) in answers.iter().zip(web.iter().cycle()) {
        let text = answer.text();
        if !page::is_of(&text, name, *address) {
            return Err(miette!("{address} answers with something else than the page of VM `{name}`: {text:.200}"));
        }
    }
    // More than any buffer on the way holds comes back whole.
    let sent: Vec<u8> = (0..60_000usize).map(|index| (index * 31 + index / 251) as u8).collect();
    for (name, address) in &echo {
        let ask = Ask { address: *address, port: 7, request: sent.clone(), end: End::Bytes(sent.len()) };
        let answer = lan.ask(ask, PATIENCE).wrap_err_with(|| miette!("echo VM `{name}`"))?;
        if answer.bytes != sent {
            return Err(miette!("of {} bytes, {} came back, or not the same", sent.len(), answer.bytes.len()));
        }
    }
    // Nobody answers at a port that no VM serves, and the next request is answered all the same.
    let nobody = Ask::line(web[0].1, 9, "x");
    if let Ok(answer) = lan.ask(nobody, Duration::from_millis(500)) {
        return Err(miette!("port 9 answers {:?}", answer.text()));
    }
    lan.ask(Ask::page(web[0].1, 80, "/"), PATIENCE)?;
    context.healthy()
}
