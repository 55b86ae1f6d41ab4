//! Things that only one server may hold, and memory that several share.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;

use super::file::ServerTable;
use super::problem::{Problem, Source};
use super::types::Size;

/// Everything that two servers both want.
pub fn check(servers: &[Spanned<ServerTable>], source: &Source) -> Vec<Problem> {
    let servers: Vec<&ServerTable> = servers.iter().map(Spanned::get_ref).collect();
    let mut problems = Vec::new();
    ports(&servers, source, &mut problems);
    shared(&servers, source, &mut problems);
    pci(&servers, source, &mut problems);
    let mut owners = Owners { source, problems };
    let mut once = Claims::default();
    for server in &servers {
        let name = server.name.get_ref().as_str();
        for line in &server.isa_interrupts {
            owners.claim(&mut once, format!("interrupt {}", line.get_ref()), name, line.span());
        }
        for doorbell in &server.doorbells {
            let doorbell_name = format!("{:?}", doorbell.get_ref()).to_lowercase();
            owners.claim(&mut once, format!("the {doorbell_name} doorbell of the VMs"), name, doorbell.span());
        }
        let alone = [
            (&server.platform, "the platform (firmware tables and all device registers)"),
            (&server.pool, "the memory pool of the VMs"),
            (&server.screen, "the screen"),
        ];
        for (value, what) in alone {
            if let Some(value) = value.as_ref().filter(|value| *value.get_ref()) {
                owners.claim(&mut once, what.to_string(), name, value.span());
            }
        }
        for line in server.isa_interrupts.iter().filter(|line| *line.get_ref() > 15) {
            let message = format!("interrupt {} does not exist: the legacy PC has 0 to 15", line.get_ref());
            owners.problems.push(source.problem(line.span(), message));
        }
    }
    owners.problems
}

/// What was claimed, by whom and where.
type Claims<'a> = BTreeMap<String, (&'a str, Range<usize>)>;

struct Owners<'a> {
    source: &'a Source,
    problems: Vec<Problem>,
}

impl Owners<'_> {
    fn claim<'b>(&mut self, claims: &mut Claims<'b>, what: String, server: &'b str, at: Range<usize>) {
        if let Some((owner, first)) = claims.get(&what) {
            let message = match *owner == server {
                true => format!("server `{server}` is given {what} twice"),
                false => format!("{what} cannot belong to both `{owner}` and `{server}`"),
            };
            self.problems.push(self.source.problem(at, message).label("again here").first(first.clone()));
        } else {
            claims.insert(what, (server, at));
        }
    }
}

fn ports(servers: &[&ServerTable], source: &Source, problems: &mut Vec<Problem>) {
    let all: Vec<_> = servers
        .iter()
        .flat_map(|server| server.ports.iter().map(|range| (server.name.get_ref(), range.span(), *range.get_ref())))
        .collect();
    for (index, (server, at, range)) in all.iter().enumerate() {
        let overlapping =
            all[..index].iter().find(|(.., other)| range.first <= other.last && other.first <= range.last);
        if let Some((owner, first, other)) = overlapping {
            let message = format!("I/O ports {range} of `{server}` overlap {other} of `{owner}`");
            problems.push(source.problem(at.clone(), message).label("again here").first(first.clone()));
        }
    }
}

/// Several servers may drive devices of one kind, each its own, if they have the same programs: the platform server
/// hands them out in the order of the bus.
fn pci(servers: &[&ServerTable], source: &Source, problems: &mut Vec<Problem>) {
    let mut owners: BTreeMap<String, (&ServerTable, Range<usize>)> = BTreeMap::new();
    let programs = |server: &ServerTable| -> Vec<String> {
        server.alternatives().iter().map(|(program, _)| program.get_ref().clone()).collect()
    };
    for server in servers {
        let mut seen: BTreeMap<String, Range<usize>> = BTreeMap::new();
        let name = server.name.get_ref();
        for id in server.alternatives().into_iter().flat_map(|(_, ids)| ids) {
            let what = format!("PCI device {}", id.get_ref().0);
            let (owner, place) = owners.entry(what.clone()).or_insert((*server, id.span()));
            let (message, first) = if let Some(first) = seen.insert(what.clone(), id.span()) {
                (format!("server `{name}` is given {what} twice"), first)
            } else if programs(owner) != programs(server) {
                (format!("{what} cannot belong to both `{}` and `{name}`", owner.name.get_ref()), place.clone())
            } else {
                continue;
            };
            let mut problem = source.problem(id.span(), message).label("again here").first(first);
            if owner.name != server.name {
                problem = problem.help("only servers of the same programs may drive devices of the same kind");
            }
            problems.push(problem);
        }
    }
}

fn shared(servers: &[&ServerTable], source: &Source, problems: &mut Vec<Problem>) {
    let mut sizes: BTreeMap<&str, (Size, Range<usize>)> = BTreeMap::new();
    for server in servers {
        let mut seen = Vec::new();
        for region in &server.shared {
            let (name, size) = (region.get_ref().name.as_str(), region.get_ref().size);
            if seen.contains(&name) {
                let message = format!("server `{}` names shared memory `{name}` twice", server.name.get_ref());
                problems.push(source.problem(region.span(), message));
            }
            seen.push(name);
            let (other, first) = sizes.entry(name).or_insert((size, region.span()));
            if *other != size {
                let message = format!("shared memory `{name}` has {size} here and {other} elsewhere");
                problems.push(source.problem(region.span(), message).first(first.clone()));
            }
        }
    }
}
