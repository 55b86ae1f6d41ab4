//! From the `[[vm]]` tables to the VMs of the manifest.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::Range;

use protocol::layout::{VM_MEMORY_MAX, VM_MEMORY_MIN};
use protocol::manifest::Vm;
use protocol::registers;
use toml::Spanned;

use super::file::VmTable;
use super::name_problem;
use super::network::{Addresses, Network};
use super::problem::{Problem, Source};
use super::programs::{Programs, Role};
use super::types::Size;
use super::vm_disks;

/// Most VMs started at boot.
const COUNT_MAX: u32 = 1_000_000;

/// A VM and what the host has to know of it.
#[derive(Clone, Debug)]
pub struct VmPlan {
    /// What goes into the manifest.
    pub vm: Vm,
    /// TCP ports to make reachable from the host.
    pub services: Vec<Service>,
    /// Where the system file speaks of its memory, or names its image.
    pub at: Range<usize>,
    /// Where it names its disks.
    pub disks_at: Vec<Range<usize>>,
}

impl VmPlan {
    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.vm.address)
    }
}

/// A TCP service of a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Service {
    /// TCP port in the VM.
    pub port: u16,
    /// Whether it answers HTTP.
    pub http: bool,
}

/// The VMs, in the order of the file.
pub fn vms(
    tables: &[Spanned<VmTable>],
    network: Network,
    programs: &mut Programs<'_>,
    source: &Source,
) -> (Vec<VmPlan>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut addresses = Addresses::new(network, source);
    let tables: Vec<&VmTable> = tables.iter().map(Spanned::get_ref).collect();
    let mut wanted: Vec<Option<(Vec<String>, String)>> = Vec::new();
    let mut seen = BTreeMap::new();
    for table in &tables {
        let wrong = table_problems(table, source);
        let image = programs.add(table.image.as_ref().unwrap_or(&table.name), Role::Guest, source);
        match image {
            Ok(image) if wrong.is_empty() => {
                let names = names(table);
                problems.extend(names.iter().filter_map(|name| {
                    let first = seen.insert(name.clone(), table.name.span())?;
                    let problem = source.problem(table.name.span(), format!("two VMs are called `{name}`"));
                    Some(problem.label("again here").first(first))
                }));
                wanted.push(Some((names, image)));
            }
            Ok(_) => wanted.push(None),
            Err(problem) => {
                problems.push(*problem);
                wanted.push(None);
            }
        }
        problems.extend(wrong);
    }
    // Addresses that the file names come first, so that the others are given around them.
    let mut given: Vec<Option<Vec<Ipv4Addr>>> = vec![None; tables.len()];
    for named in [true, false] {
        for (index, table) in tables.iter().enumerate().filter(|(_, table)| table.address.is_some() == named) {
            let Some((names, _)) = &wanted[index] else { continue };
            let result = match &table.address {
                Some(first) => addresses.named(table, first.get_ref().0, names),
                None => addresses.next(table, names),
            };
            match result {
                Ok(list) => given[index] = Some(list),
                Err(problem) => problems.push(problem),
            }
        }
    }
    let mut vms = Vec::new();
    for ((table, wanted), given) in tables.iter().zip(wanted).zip(given) {
        let (Some((names, image)), Some(given)) = (wanted, given) else { continue };
        for (index, (name, address)) in names.into_iter().zip(given).enumerate() {
            match addresses.mac(table, &name, address) {
                Ok(mac) => vms.push(plan(table, index, name, image.clone(), address, mac.0)),
                Err(problem) => problems.push(problem),
            }
        }
    }
    (vms, problems)
}

/// What is wrong with a table by itself.
fn table_problems(table: &VmTable, source: &Source) -> Vec<Problem> {
    let mut problems: Vec<Problem> = name_problem("VM", &table.name, source).into_iter().collect();
    let count = table.count.as_ref().map_or(1, |count| *count.get_ref());
    if let Some(entries) = &table.for_each {
        let other = table.count.as_ref().map(Spanned::span).or(table.arguments.as_ref().map(Spanned::span));
        if let Some(other) = other {
            let problem = source.problem(entries.span(), "`for-each` stands for `count` and `arguments`");
            problems.push(problem.label("not together").first(other));
        }
        if entries.get_ref().is_empty() {
            problems.push(source.problem(entries.span(), "`for-each` without entries makes no VM"));
        }
    }
    if let Some(at) = table.count.as_ref().filter(|_| !(1..=COUNT_MAX).contains(&count)) {
        let message = format!("{count} VMs of one kind are impossible: 1 to {COUNT_MAX}");
        problems.push(source.problem(at.span(), message));
    }
    let longest = names(table).into_iter().map(|name| name.len()).max().unwrap_or(0);
    if longest > registers::NAME {
        let message = format!("the name of a VM has at most {} bytes, this one {longest}", registers::NAME);
        problems.push(source.problem(table.name.span(), message));
    }
    if let Some(memory) = &table.memory {
        let size = *memory.get_ref();
        if !(VM_MEMORY_MIN..=VM_MEMORY_MAX).contains(&size.0) {
            let message = format!("{size} is an impossible size for a VM");
            let help = format!("a VM has {} to {}", Size(VM_MEMORY_MIN), Size(VM_MEMORY_MAX));
            problems.push(source.problem(memory.span(), message).help(help));
        }
    }
    let each = table.for_each.iter().flat_map(|entries| entries.get_ref());
    for arguments in table.arguments.iter().chain(each) {
        let length = arguments.get_ref().len();
        if length > registers::ARGUMENTS {
            let message = format!("the arguments of a VM have at most {} bytes, these {length}", registers::ARGUMENTS);
            problems.push(source.problem(arguments.span(), message));
        }
    }
    problems.extend(vm_disks::table_problems(table, &names(table), source));
    let count = count.max(table.for_each.as_ref().map_or(0, |entries| entries.get_ref().len() as u32));
    if let Some(mac) = table.mac.as_ref().filter(|_| count > 1) {
        let problem = source.problem(mac.span(), format!("{count} VMs cannot have the same MAC address"));
        problems.push(problem.help("leave it out: each VM gets one made from its IPv4 address"));
    }
    let mut ports = BTreeMap::new();
    for port in table.http.iter().chain(&table.tcp) {
        if *port.get_ref() == 0 {
            problems.push(source.problem(port.span(), "there is no TCP port 0"));
        }
        if let Some(first) = ports.insert(*port.get_ref(), port.span()) {
            let message = format!("TCP port {} is named twice", port.get_ref());
            problems.push(source.problem(port.span(), message).label("again here").first(first));
        }
    }
    problems
}

fn names(table: &VmTable) -> Vec<String> {
    let name = table.name.get_ref();
    match (&table.count, &table.for_each) {
        (Some(count), _) => (1..=(*count.get_ref()).min(COUNT_MAX)).map(|number| format!("{name}-{number}")).collect(),
        (None, Some(entries)) => {
            entries.get_ref().iter().map(|entry| format!("{name}-{}", name_of(entry.get_ref()))).collect()
        }
        (None, None) => vec![name.clone()],
    }
}

/// The part of a VM's name that an entry of `for-each` becomes.
pub fn name_of(entry: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    entry.chars().map(plain).collect()
}

fn plan(table: &VmTable, index: usize, name: String, image: String, address: Ipv4Addr, mac: [u8; 6]) -> VmPlan {
    let http = table.http.iter().map(|port| Service { port: *port.get_ref(), http: true });
    let tcp = table.tcp.iter().map(|port| Service { port: *port.get_ref(), http: false });
    let entry = table.for_each.as_ref().and_then(|entries| entries.get_ref().get(index));
    let arguments = entry.or(table.arguments.as_ref());
    let at = match (&table.memory, &table.image) {
        (Some(memory), _) => memory.span(),
        (None, Some(image)) => image.span(),
        (None, None) => table.name.span(),
    };
    let disks = vm_disks::disks(table, &name);
    VmPlan {
        vm: Vm {
            name,
            image,
            memory: table.memory.as_ref().map_or(0, |memory| memory.get_ref().0),
            mac,
            address: address.octets(),
            arguments: arguments.map_or_else(String::new, |text| text.get_ref().clone()),
            disks,
        },
        services: http.chain(tcp).collect(),
        at,
        disks_at: table.disks.iter().map(Spanned::span).collect(),
    }
}
