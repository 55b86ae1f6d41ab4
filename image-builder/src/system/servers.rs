//! From the `[[server]]` tables to the servers of the manifest.

use std::collections::BTreeMap;

use protocol::capability::SLOTS;
use protocol::domain::{Device, line};
use protocol::layout::{HEAP, PAGE, STACK_SIZE, STACK_TOP};
use protocol::manifest::{Channel, Program, Resource, Restart, Server};
use toml::Spanned;

use super::file::{BandName, DoorbellName, RestartName, RestartValue, ServerTable};
use super::graph::{self, Node};
use super::problem::{Problem, Source};
use super::programs::{Programs, Role};
use super::types::Size;
use super::{name_problem, owners};

/// Name of the server that the kernel starts; it is in every system and in no system file.
pub const INIT: &str = "init";
/// Least memory of a server: its stack, its tables and a small program.
const MEMORY_MIN: u64 = 4 * STACK_SIZE;
/// Most memory of a server.
const MEMORY_MAX: u64 = 512 << 20;
/// All of it could be heap, and must end below the stack and its guard page.
const _: () = assert!(HEAP + MEMORY_MAX <= STACK_TOP - STACK_SIZE - PAGE);
/// Programs of a server.
const PROGRAMS_MAX: usize = 16;
/// Peers of a server: so many lines there are for them.
const PEERS_MAX: usize = (line::HARDWARE_FIRST - line::PEER_FIRST) as usize;
/// Capabilities that a server gets at most; the others are its own to use.
const CAPABILITIES_MAX: usize = SLOTS - 16;

/// The servers in starting order, each with the index of its table.
pub fn servers(
    tables: &[Spanned<ServerTable>],
    programs: &mut Programs<'_>,
    source: &Source,
) -> (Vec<(usize, Server)>, Vec<Problem>) {
    let mut problems = owners::check(tables, source);
    let tables: Vec<&ServerTable> = tables.iter().map(Spanned::get_ref).collect();
    let mut indices: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, table) in tables.iter().enumerate() {
        let name = table.name.get_ref().as_str();
        problems.extend(name_problem("server", &table.name, source));
        if name == INIT {
            let problem = source.problem(table.name.span(), "server `init` is part of every system");
            problems.push(problem.help("remove this table; there is nothing to say about `init`"));
        }
        if let Some(first) = indices.get(name) {
            let problem = source.problem(table.name.span(), format!("two servers are called `{name}`"));
            problems.push(problem.label("again here").first(tables[*first].name.span()));
        } else {
            indices.insert(name, index);
        }
        problems.extend(size_problem(&table.memory, source));
    }
    let nodes: Vec<Node<'_>> = tables.iter().map(|table| node(table, &indices, source, &mut problems)).collect();
    let order = match graph::order(&nodes, source) {
        Ok(order) => order,
        Err(wrong) => {
            problems.extend(wrong);
            return (Vec::new(), problems);
        }
    };
    let mut position = vec![0; order.len()];
    for (at, index) in order.iter().enumerate() {
        position[*index] = at;
    }
    let mut lines = Lines { next: vec![line::PEER_FIRST; order.len()], init: line::PEER_FIRST };
    let mut servers = Vec::new();
    for index in order {
        let table = tables[index];
        let channels = table.calls.iter().filter_map(|callee| match callee.get_ref().as_str() {
            INIT => Some(lines.channel(index, None, &position)),
            callee => indices.get(callee).map(|callee| lines.channel(index, Some(*callee), &position)),
        });
        let channels: Vec<Channel> = channels.collect();
        if table.name.get_ref() == INIT {
            continue; // said already
        }
        problems.extend(programs_problem(table, source));
        let mut own = Vec::new();
        for (program, pci) in table.alternatives() {
            match programs.add(program, Role::Server, source) {
                Ok(file) => {
                    let pci_devices = pci.iter().map(|devices| devices.get_ref().0).collect();
                    own.push(Program { file, pci_devices });
                }
                Err(problem) => problems.push(*problem),
            }
        }
        servers.push((index, server(table, own, channels)));
    }
    problems.extend(too_many(&tables, &lines, source));
    (servers, problems)
}

/// Programs of which only one can be meant, or none.
fn programs_problem(table: &ServerTable, source: &Source) -> Option<Problem> {
    let programs = table.programs.as_ref()?;
    let name = table.name.get_ref();
    if programs.get_ref().is_empty() || programs.get_ref().len() > PROGRAMS_MAX {
        let message = format!("server `{name}` has {} programs, not 1 to {PROGRAMS_MAX}", programs.get_ref().len());
        return Some(source.problem(programs.span(), message));
    }
    let other = table.program.as_ref().map(|program| ("program", program.span()));
    let (key, at) = other.or_else(|| table.pci.first().map(|id| ("pci", id.span())))?;
    let message = format!("server `{name}` has both `programs` and `{key}`");
    let problem = source.problem(at, message).first(programs.span());
    Some(problem.help("each entry of `programs` names its own: { program = \"e1000\", pci = [\"8086:100e\"] }"))
}

fn size_problem(memory: &Spanned<Size>, source: &Source) -> Option<Problem> {
    let size = *memory.get_ref();
    if (MEMORY_MIN..=MEMORY_MAX).contains(&size.0) {
        return None;
    }
    let message = format!("{size} is an impossible size for a server");
    let help = format!("a server has {} to {}", Size(MEMORY_MIN), Size(MEMORY_MAX));
    Some(source.problem(memory.span(), message).help(help))
}

fn node<'a>(
    table: &'a ServerTable,
    indices: &BTreeMap<&str, usize>,
    source: &Source,
    problems: &mut Vec<Problem>,
) -> Node<'a> {
    let name = table.name.get_ref().as_str();
    let mut calls = Vec::new();
    let mut seen: BTreeMap<&str, _> = BTreeMap::new();
    for callee in &table.calls {
        let callee_name = callee.get_ref().as_str();
        if let Some(first) = seen.insert(callee_name, callee.span()) {
            let problem = source.problem(callee.span(), format!("server `{name}` names `{callee_name}` twice"));
            problems.push(problem.label("again here").first(first));
        } else if let Some(index) = indices.get(callee_name) {
            calls.push((*index, callee.span()));
        } else if callee_name != INIT {
            let known: Vec<_> = indices.keys().copied().collect();
            let message = format!("server `{name}` calls `{callee_name}`, which this system does not have");
            problems.push(source.problem(callee.span(), message).help(format!("its servers: {}", known.join(", "))));
        }
    }
    Node { name, band: table.band, calls }
}

/// Hands out virtual interrupt lines for peers.
struct Lines {
    next: Vec<u8>,
    init: u8,
}

impl Lines {
    fn channel(&mut self, caller: usize, callee: Option<usize>, position: &[usize]) -> Channel {
        let line = take(&mut self.next[caller]);
        match callee {
            Some(callee) => {
                let remote_line = take(&mut self.next[callee]);
                Channel { to: position[callee] as u16, line, remote_line }
            }
            None => Channel { to: Channel::INIT, line, remote_line: take(&mut self.init) },
        }
    }
}

fn take(next: &mut u8) -> u8 {
    let line = *next;
    *next = next.saturating_add(1);
    line
}

fn too_many(tables: &[&ServerTable], lines: &Lines, source: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (table, next) in tables.iter().zip(&lines.next) {
        let name = table.name.get_ref();
        let peers = usize::from(next - line::PEER_FIRST);
        if peers > PEERS_MAX {
            let message = format!("server `{name}` has {peers} peers; there are lines for {PEERS_MAX}");
            problems.push(source.problem(table.name.span(), message));
        }
        let held = peers + resources(table).len();
        if held > CAPABILITIES_MAX {
            let message = format!("server `{name}` is given {held} capabilities; at most {CAPABILITIES_MAX} fit");
            problems.push(source.problem(table.name.span(), message));
        }
    }
    problems
}

fn server(table: &ServerTable, programs: Vec<Program>, channels: Vec<Channel>) -> Server {
    Server {
        name: table.name.get_ref().clone(),
        programs,
        band: match table.band {
            BandName::Driver => 0,
            BandName::Server => 1,
        },
        memory: table.memory.get_ref().0,
        restart: match table.restart.as_ref().map(Spanned::get_ref) {
            None | Some(RestartValue::Name(RestartName::Always)) => Restart::DEFAULT,
            Some(RestartValue::Name(RestartName::Never)) => Restart::Never,
            Some(RestartValue::Limits(limits)) => {
                Restart::Always { pause: limits.pause_ms, most: limits.most, window: limits.window_ms }
            }
        },
        channels,
        resources: resources(table),
        options: table.options.iter().map(|(key, value)| (key.clone(), value.text())).collect(),
    }
}

fn resources(table: &ServerTable) -> Vec<Resource> {
    let is_true = |value: &Option<Spanned<bool>>| value.as_ref().is_some_and(|value| *value.get_ref());
    let mut resources = Vec::new();
    if is_true(&table.platform) {
        resources.push(Resource::Platform);
    }
    for range in table.ports.iter().map(Spanned::get_ref) {
        // A range of all 65,536 ports does not fit; nobody can own that many beside the platform server.
        resources.push(Resource::Ports { first: range.first, count: (range.last - range.first).saturating_add(1) });
    }
    for number in &table.isa_interrupts {
        resources.push(Resource::IsaInterrupt { number: *number.get_ref() });
    }
    for shared in table.shared.iter().map(Spanned::get_ref) {
        resources.push(Resource::Shared { name: shared.name.clone(), bytes: shared.size.0 });
    }
    for doorbell in &table.doorbells {
        let device = match doorbell.get_ref() {
            DoorbellName::Nic => Device::Nic,
            DoorbellName::Disk => Device::Disk,
            DoorbellName::Console => Device::Console,
        };
        resources.push(Resource::Devices { device: device as u8 });
    }
    if is_true(&table.pool) {
        resources.push(Resource::Pool);
    }
    if table.bundle {
        resources.push(Resource::Bundle);
    }
    if table.debug {
        resources.push(Resource::Debug);
    }
    if is_true(&table.screen) {
        resources.push(Resource::Screen);
    }
    resources
}
