//! The rules for the virtual disks of VMs.

use std::collections::BTreeMap;
use std::ops::Range;

use protocol::disk::{BLOCK, DISKS};
use protocol::manifest::Disk;
use toml::Spanned;
use vdisk::store::table::is_name;

use super::file::{DoorbellName, ServerTable, VmTable};
use super::problem::{Problem, Source};
use super::types::Size;
use super::vms::VmPlan;

/// What stands for the VM's name in the name of a disk.
const VM: &str = "{vm}";

/// What is wrong with the disks of a table by themselves.
pub fn table_problems(table: &VmTable, names: &[String], source: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(more) = table.disks.get(DISKS) {
        let message = format!("a VM has at most {DISKS} disks, this one {}", table.disks.len());
        problems.push(source.problem(more.span(), message));
    }
    for disk in table.disks.iter().map(Spanned::get_ref) {
        let wrong = names.iter().map(|vm| disk.name.get_ref().replace(VM, vm)).find(|name| !is_name(name));
        if let Some(name) = wrong {
            let problem = source.problem(disk.name.span(), format!("`{name}` is no name for a virtual disk"));
            let help = "a name has 1 to 63 letters, digits, `-`, `_` and `.`; `{vm}` in it stands for the VM's name";
            problems.push(problem.help(help));
        }
    }
    problems
}

/// The disks of a VM, for the manifest.
pub fn disks(table: &VmTable, vm: &str) -> Vec<Disk> {
    let disk = |disk: &super::file::VmDiskTable| Disk {
        name: disk.name.get_ref().replace(VM, vm),
        read_only: disk.read_only,
        blocks: disk.size.as_ref().map_or(0, |size| size.get_ref().0 / BLOCK as u64),
    };
    table.disks.iter().map(|table| disk(table.get_ref())).collect()
}

/// A disk as a VM has it.
struct User<'a> {
    vm: &'a str,
    disk: &'a Disk,
    at: Range<usize>,
}

/// What is wrong with the disks of all VMs together.
pub fn all_problems(
    tables: &[Spanned<VmTable>],
    plans: &[VmPlan],
    servers: &[Spanned<ServerTable>],
    source: &Source,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let first = tables.iter().find_map(|table| table.get_ref().disks.first());
    let serves = |server: &Spanned<ServerTable>| {
        server.get_ref().doorbells.iter().any(|doorbell| *doorbell.get_ref() == DoorbellName::Disk)
    };
    if let Some(first) = first.filter(|_| !servers.iter().any(serves)) {
        let problem = source.problem(first.span(), "this system has virtual disks, but no server for them");
        problems.push(problem.help("one server (vdisk) needs `doorbells = [\"disk\"]`"));
    }
    let mut seen: BTreeMap<&str, User<'_>> = BTreeMap::new();
    let mut told = Vec::new();
    for plan in plans {
        for (disk, at) in plan.vm.disks.iter().zip(&plan.disks_at) {
            let user = User { vm: &plan.vm.name, disk, at: at.clone() };
            let Some(other) = seen.get(disk.name.as_str()) else {
                seen.insert(&disk.name, user);
                continue;
            };
            // One message for each pair of places, not one for each of a thousand VMs.
            let pair = (other.at.clone(), user.at.clone());
            if told.contains(&pair) {
                continue;
            }
            let mut problem = None;
            if !(other.disk.read_only && disk.read_only) {
                let message = format!(
                    "virtual disk `{}` is written by VM `{}`, and VM `{}` has it too",
                    disk.name,
                    if disk.read_only { other.vm } else { user.vm },
                    if disk.read_only { user.vm } else { other.vm },
                );
                let help = "a disk is written by one VM, or `read-only = true` wherever it is named; \
                            `{vm}` in its name gives each VM its own";
                problem = Some(source.problem(user.at.clone(), message).help(help));
            } else if disk.blocks != 0 && other.disk.blocks != 0 && disk.blocks != other.disk.blocks {
                let size = |disk: &Disk| Size(disk.blocks * BLOCK as u64);
                let message =
                    format!("virtual disk `{}` is to have {} and {}", disk.name, size(other.disk), size(disk));
                problem = Some(source.problem(user.at.clone(), message));
            }
            if let Some(problem) = problem {
                let one_place = pair.0 == pair.1;
                problems.push(if one_place { problem } else { problem.label("again here").first(other.at.clone()) });
                told.push(pair);
            }
        }
    }
    problems
}
