//! From the `[[disk]]` tables to the disks of the machine.

use std::collections::BTreeMap;
use std::ops::Range;

use protocol::service::block_driver::{BLOCK, BUFFER, Partition};
use swap::{region::Stripes, space::Space};
use toml::Spanned;

use super::file::DiskTable;
use super::name_problem;
use super::problem::{Problem, Source};
use super::types::Size;

/// Partitions begin and end at multiples of this.
pub const ALIGNMENT: u64 = 1 << 20;
/// What the two partition tables take: the first and the last MiB.
pub const TABLES: u64 = 2 * ALIGNMENT;
/// Longest name: a virtio disk's serial number has room for it.
const NAME_MAX: usize = 20;
/// Most disks: each takes a place on the machine's bus.
const COUNT_MAX: usize = 16;

/// A disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskPlan {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size: Size,
    /// Its partitions, in their order on the disk.
    pub partitions: Vec<(Partition, Size)>,
}

/// The disks, in the order of the file, which is that of the bus.
pub fn disks(tables: &[Spanned<DiskTable>], source: &Source) -> (Vec<DiskPlan>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut names = BTreeMap::new();
    let mut disks = Vec::new();
    for table in tables.iter().map(Spanned::get_ref) {
        let name = table.name.get_ref();
        problems.extend(name_problem("disk", &table.name, source));
        if name.len() > NAME_MAX {
            let message = format!("`{name}` is too long a name for a disk: at most {NAME_MAX} characters");
            problems.push(source.problem(table.name.span(), message));
        }
        if let Some(first) = names.insert(name.clone(), table.name.span()) {
            let problem = source.problem(table.name.span(), format!("two disks are called `{name}`"));
            problems.push(problem.label("again here").first(first));
        }
        disks.push(disk(table, source, &mut problems));
    }
    if let Some(more) = tables.get(COUNT_MAX) {
        let message = format!("{} disks are too many for one machine: at most {COUNT_MAX}", tables.len());
        problems.push(source.problem(more.get_ref().name.span(), message));
    }
    (disks, problems)
}

/// Bytes of swap space that the pager makes of these disks: it stripes over all of them, so as much of each as the smallest has.
pub fn swap_space(disks: &[DiskPlan]) -> u64 {
    let swap = |disk: &DiskPlan| Some(disk.partitions.iter().find(|(kind, _)| *kind == Partition::Swap)?.1.0);
    let blocks: Vec<u64> = disks.iter().filter_map(swap).map(|bytes| bytes / BLOCK as u64).collect();
    u64::from(Stripes::new(&blocks).units) * BUFFER as u64
}

/// Bytes of swap space that a VM with so much memory is given when it is created.
pub fn region(memory: u64) -> u64 {
    Space::new(memory).map_or(0, |space| u64::from(swap::region::units(space)) * BUFFER as u64)
}

/// Do VMs with so much memory each get their regions? `at`: where they are said to be.
pub fn swap_problem(
    swap: u64,
    memory: impl Iterator<Item = u64>,
    at: Range<usize>,
    source: &Source,
) -> Option<Problem> {
    let needed = memory.map(region).fold(0u64, u64::saturating_add);
    (needed > swap).then(|| {
        let message = format!("the VMs need {} of swap space, and there are {}", Size(needed), Size(swap));
        let help = "say `swap = \"...\"` under [[disk]], or make something smaller";
        source.problem(at, message).help(help)
    })
}

fn disk(table: &DiskTable, source: &Source, problems: &mut Vec<Problem>) -> DiskPlan {
    let name = table.name.get_ref();
    let sizes =
        [(Partition::Swap, &table.swap), (Partition::Vdisk, &table.vdisk), (Partition::Scratch, &table.scratch)];
    let sizes: Vec<_> = sizes.into_iter().filter_map(|(kind, size)| Some((kind, size.as_ref()?))).collect();
    for size in sizes.iter().map(|(_, size)| *size).chain([&table.size]) {
        if !size.get_ref().0.is_multiple_of(ALIGNMENT) {
            let message = format!("{} is not a multiple of {}", size.get_ref(), Size(ALIGNMENT));
            problems.push(source.problem(size.span(), message).help("disks and partitions have whole MiB"));
        }
    }
    if sizes.is_empty() {
        let problem = source.problem(table.name.span(), format!("disk `{name}` has no partition"));
        problems.push(problem.help("say at least one of `swap`, `vdisk` and `scratch`"));
    }
    let wanted = sizes.iter().fold(TABLES, |sum, (_, size)| sum.saturating_add(size.get_ref().0));
    let size = *table.size.get_ref();
    if wanted > size.0 {
        let message = format!("the partitions of disk `{name}` do not fit into {size}");
        let help = format!("with the partition tables they take {}", Size(wanted));
        problems.push(source.problem(table.size.span(), message).help(help));
    }
    let partitions = sizes.iter().map(|(kind, size)| (*kind, *size.get_ref())).collect();
    DiskPlan { name: name.clone(), size, partitions }
}
