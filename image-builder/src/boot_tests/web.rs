//! The web-server VMs.

use std::collections::BTreeSet;
use std::time::Duration;

use miette::{Result, miette};

use super::BootTest;
use super::harness::Context;

pub(super) const TESTS: &[BootTest] = &[BootTest {
    name: "web",
    about: "two web-server VMs answer on two ports, each with a page about itself",
    limit: Duration::from_secs(60),
    long: false,
    run: web,
}];

/// What the front page tells of the VM, each under this label.
const LABELS: [&str; 7] = ["vm", "name", "address", "uptime", "memory", "interrupts", "packets"];

fn web(context: &mut Context<'_>) -> Result<()> {
    context.boot(None)?;
    let servers: Vec<_> = context.services().iter().filter(|r| r.service.http).cloned().collect();
    if servers.len() < 2 {
        return Err(miette!("the default system has {} web servers; the test needs two", servers.len()));
    }
    let mut numbers = BTreeSet::new();
    for server in &servers {
        let page = context.page(&server.vm, "/")?.text();
        let facts = text_of(&page);
        for label in LABELS {
            if fact(&facts, label).is_none() {
                return Err(miette!("the page of VM `{}` does not tell its {label}:\n{}", server.vm, facts.join("\n")));
            }
        }
        for own in [server.vm.clone(), server.address.to_string()] {
            if !page.contains(&own) {
                return Err(miette!("the page of VM `{}` does not show {own}:\n{}", server.vm, facts.join("\n")));
            }
        }
        numbers.insert(number(&page));
    }
    if numbers.len() != servers.len() {
        return Err(miette!("{} web servers show only {} different VM numbers", servers.len(), numbers.len()));
    }
    // A second look: the page is made anew for each request.
    let first = &servers[0].vm;
    let before = packets(context, first)?;
    let after = packets(context, first)?;
    if before == after {
        return Err(miette!("VM `{first}` has answered a request, but its packet counts stay at {before}"));
    }
    let missing = crate::machine::http::get(context.port_of(first)?, "/no-such-page", Duration::from_secs(5));
    match missing {
        Ok(page) if page.status == 404 => context.healthy(),
        Ok(page) => Err(miette!("a page that does not exist is answered with status {}", page.status)),
        Err(error) => Err(miette!("a page that does not exist is not answered: {error}")),
    }
}

/// The VM's number as its page tells it.
pub(super) fn number(page: &str) -> Option<String> {
    fact(&text_of(page), "vm")
}

fn packets(context: &Context<'_>, vm: &str) -> Result<String> {
    let page = context.page(vm, "/")?.text();
    fact(&text_of(&page), "packets").ok_or_else(|| miette!("the page of VM `{vm}` tells no packet counts"))
}

/// The pieces of text of a page, without tags.
fn text_of(page: &str) -> Vec<String> {
    let pieces = page.split('<').map(|piece| piece.split_once('>').map_or(piece, |(_, text)| text));
    pieces.map(|piece| piece.trim().to_string()).filter(|piece| !piece.is_empty()).collect()
}

/// The piece after the one that is or begins with a label.
fn fact(pieces: &[String], label: &str) -> Option<String> {
    let is_label =
        |piece: &String| piece.to_lowercase().trim_end_matches(':').split_whitespace().any(|word| word == label);
    pieces.iter().zip(pieces.iter().skip(1)).find(|(piece, _)| is_label(piece)).map(|(_, fact)| fact.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_a_page() {
        let page =
            "<title>Denali</title><table><tr><th>VM</th><td>7</td></tr>\n<tr><th>IPv4 address</th> <td>10.0.2.15</td>";
        let pieces = text_of(page);
        assert_eq!(fact(&pieces, "vm").as_deref(), Some("7"));
        assert_eq!(fact(&pieces, "address").as_deref(), Some("10.0.2.15"));
        assert_eq!(fact(&pieces, "uptime"), None);
    }
}
