//! System files: reading, checking, and what they say.
//!
//! * [`file`](mod@file): the keys of a system file.
//! * [`types`]: sizes, addresses and other values.
//! * [`servers`], [`owners`], [`graph`]: the rules for servers.
//! * [`vms`], [`vm_disks`], [`network`]: the rules for VMs.
//! * [`disks`]: the rules for disks.
//! * [`programs`]: what the bundle will hold.
//! * [`report`]: a readable account of a whole system.
//!
//! [`System::parse`] finds all that is wrong with a file, not only the first thing, except that a
//! file that is not TOML or has unknown keys is not looked at further.

pub mod disks;
pub mod file;
pub mod graph;
pub mod network;
pub mod owners;
pub mod problem;
pub mod programs;
pub mod report;
pub mod servers;
pub mod types;
pub mod vm_disks;
pub mod vms;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use protocol::manifest::{MANIFEST_VERSION, Manifest, Resource};
use toml::Spanned;

use disks::DiskPlan;
use file::SystemFile;
use problem::{Problem, Problems, Source};
use programs::{Program, Programs};
use types::Size;
use vms::VmPlan;

/// Memory of the machine if nothing else is said.
pub const MEMORY_DEFAULT: Size = Size(512 << 20);
/// Processors of the machine if nothing else is said.
pub const CPUS_DEFAULT: u16 = 2;
const CPUS_MAX: u16 = 255;

/// A system that passed all checks.
#[derive(Clone, Debug)]
pub struct System {
    /// Its name.
    pub name: String,
    /// Memory of the machine to boot it on.
    pub memory: Size,
    /// Processors of that machine.
    pub cpus: u16,
    /// What `init` will read.
    pub manifest: Manifest,
    /// Files of the bundle beside `init` and the manifest.
    pub programs: Vec<Program>,
    /// The machine's disks.
    pub disks: Vec<DiskPlan>,
    /// The VMs, as in the manifest.
    pub vms: Vec<VmPlan>,
    /// Where the system file names each server, in the manifest's order.
    pub server_places: Vec<std::ops::Range<usize>>,
    /// The file, for errors found later.
    pub source: Source,
}

impl System {
    /// Reads and checks a system file. `known` are the binaries of the workspace.
    pub fn load(path: &Path, known: &BTreeSet<String>) -> Result<System> {
        let text = fs::read_to_string(path)
            .into_diagnostic()
            .wrap_err_with(|| miette!("the system file {} cannot be read", path.display()))?;
        // Messages name the file as the user would.
        let shown =
            std::env::current_dir().ok().and_then(|folder| path.strip_prefix(folder).ok().map(Path::to_path_buf));
        Ok(System::parse(shown.as_deref().unwrap_or(path), &text, known)?)
    }

    /// Checks the text of a system file.
    pub fn parse(path: &Path, text: &str, known: &BTreeSet<String>) -> Result<System, Problems> {
        let name = path.display().to_string();
        let source = Source::new(&name, text);
        let fail = |problems| Problems { file: name.clone(), problems };
        let file: SystemFile = match toml::from_str(text) {
            Ok(file) => file,
            Err(error) => {
                let at = error.span().unwrap_or(0..0);
                return Err(fail(vec![source.problem(at, error.message())]));
            }
        };
        let folder: PathBuf = path.parent().map(Path::to_path_buf).unwrap_or_default();
        let mut programs = Programs::new(known, &folder);
        let (servers, mut problems) = servers::servers(&file.server, &mut programs, &source);
        let (network, wrong) = network::network(file.network.as_ref(), &source);
        problems.extend(wrong);
        let (vms, wrong) = vms::vms(&file.vm, network, &mut programs, &source);
        problems.extend(wrong);
        problems.extend(vm_disks::all_problems(&file.vm, &vms, &file.server, &source));
        let (disks, wrong) = disks::disks(&file.disk, &source);
        problems.extend(wrong);
        if let Some(name) = &file.name {
            problems.extend(name_problem("system", name, &source));
        }
        let server_places = servers.iter().map(|(index, _)| file.server[*index].get_ref().name.span()).collect();
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            name: file.name.as_ref().map_or_else(|| stem(path), |name| name.get_ref().clone()),
            servers: servers.into_iter().map(|(_, server)| server).collect(),
            vms: vms.iter().map(|plan| plan.vm.clone()).collect(),
            network: protocol::manifest::Network {
                address: network.cidr.address.octets(),
                prefix: network.cidr.prefix,
                gateway: network.gateway.octets(),
                name_server: network.name_server.octets(),
            },
        };
        if problems.is_empty() {
            problems.extend(whole_system(&file, &manifest, &disks, &source));
        }
        if !problems.is_empty() {
            return Err(fail(problems));
        }
        Ok(System {
            name: manifest.name.clone(),
            memory: file.machine.memory.as_ref().map_or(MEMORY_DEFAULT, |memory| *memory.get_ref()),
            cpus: file.machine.cpus.as_ref().map_or(CPUS_DEFAULT, |cpus| *cpus.get_ref()),
            manifest,
            programs: programs.finish(),
            disks,
            vms,
            server_places,
            source,
        })
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().map_or_else(|| "system".into(), |stem| stem.to_string_lossy().into_owned())
}

/// Rules about the system as a whole.
fn whole_system(file: &SystemFile, manifest: &Manifest, disks: &[DiskPlan], source: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(cpus) = file.machine.cpus.as_ref().filter(|cpus| !(1..=CPUS_MAX).contains(cpus.get_ref())) {
        let message = format!("a machine with {} processors is impossible here: 1 to {CPUS_MAX}", cpus.get_ref());
        problems.push(source.problem(cpus.span(), message));
    }
    if let Some(first) = file.vm.first() {
        let holds = |wanted: &Resource| manifest.servers.iter().any(|server| server.resources.contains(wanted));
        let at = first.get_ref().name.span();
        for (resource, what, key) in
            [(Resource::Pool, "holds their memory", "pool"), (Resource::Bundle, "loads them", "bundle")]
        {
            if !holds(&resource) {
                let message = format!("this system has VMs, but no server that {what}");
                problems.push(source.problem(at.clone(), message).help(format!("one server needs `{key} = true`")));
            }
        }
    }
    let servers: u64 = manifest.servers.iter().map(|server| server.memory).sum();
    let machine = file.machine.memory.as_ref().map_or(MEMORY_DEFAULT, |memory| *memory.get_ref());
    // VMs that are as large as their images say are counted when those are known.
    let memory = manifest.vms.iter().map(|vm| vm.memory).filter(|memory| *memory > 0);
    // With swap space VMs need not fit into memory.
    let swap = disks::swap_space(disks);
    let vms = if swap > 0 { 0 } else { memory.clone().fold(0u64, u64::saturating_add) };
    if let Some(last) = file.vm.last().filter(|_| swap > 0) {
        problems.extend(disks::swap_problem(swap, memory, last.get_ref().name.span(), source));
    }
    if servers.saturating_add(vms) > machine.0 {
        let at = match &file.machine.memory {
            Some(memory) => memory.span(),
            None => file.server.first().map_or(0..0, |server| server.get_ref().name.span()),
        };
        let message =
            format!("servers ({}) and VMs ({}) do not fit into a machine of {machine}", Size(servers), Size(vms));
        problems.push(
            source.problem(at, message).help("say `memory = \"...\"` under [machine], or make something smaller"),
        );
    }
    problems
}

/// Names are lower-case words: they appear in file names, on consoles and in commands.
fn name_problem(what: &str, name: &Spanned<String>, source: &Source) -> Option<Problem> {
    let text = name.get_ref();
    let good = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if good && text.starts_with(|c: char| c.is_ascii_lowercase()) && text.len() <= 64 {
        return None;
    }
    let problem = source.problem(name.span(), format!("`{text}` is no name for a {what}"));
    Some(problem.help("a name begins with a letter and has lower-case letters, digits and dashes, 64 at most"))
}
