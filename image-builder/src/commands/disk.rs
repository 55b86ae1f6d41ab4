//! `cargo denali disk`

use std::process::ExitCode;

use miette::{Result, miette};
use protocol::service::block_driver::Partition;
use vdisk::store::BLOCK;

use crate::cli::{Disk, DiskCommand};
use crate::machine::disk::{Existing, Image};
use crate::machine::virtual_disks::{self, VirtualDisks};
use crate::system::System;
use crate::system::types::Size;
use crate::ui;
use crate::workspace::Workspace;

pub(super) fn run(options: &Disk) -> Result<ExitCode> {
    let mut disks = virtual_disks::open(&image(options)?)?;
    let bytes = |blocks: u64| Size(blocks * BLOCK as u64);
    match &options.command {
        DiskCommand::List => list(&disks),
        DiskCommand::Create { name, size } => {
            disks.create(name, size.0 / BLOCK as u64).map_err(virtual_disks::failed)?;
        }
        DiskCommand::Delete { name } => disks.delete(name).map_err(virtual_disks::failed)?,
        DiskCommand::Import { name, from } => {
            let blocks = virtual_disks::import(&mut disks, name, from)?;
            ui::note(&format!("Virtual disk {name}: {}", bytes(blocks)));
        }
        DiskCommand::Export { name, to } => {
            let blocks = virtual_disks::export(&mut disks, name, to)?;
            ui::note(&format!("{}: {}", to.display(), bytes(blocks)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The image that is meant: the one named, or the first of the system that has room for virtual disks, made if it is not there.
fn image(options: &Disk) -> Result<Image> {
    if let Some(path) = &options.image {
        return Ok(Image::at(path));
    }
    let workspace = Workspace::find()?;
    let path = options.system.clone().unwrap_or_else(|| workspace.default_system());
    let system = System::load(&path, &workspace.program_names())?;
    let plan = system.disks.iter().find(|plan| plan.partitions.iter().any(|(kind, _)| *kind == Partition::Vdisk));
    let plan = plan.ok_or_else(|| {
        let help = "give a [[disk]] a partition `vdisk = \"256 MiB\"`";
        miette!(help = help, "system {} has no disk with room for virtual disks", system.name)
    })?;
    Image::ensure(&workspace.output(&system.name), plan, Existing::Keep)
}

fn list(disks: &VirtualDisks) {
    let table = &disks.store().table;
    let width = table.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(4);
    println!("{:width$}  {:>10}  PIECES", "NAME", "SIZE");
    for (name, disk) in table.iter() {
        let size = Size(disk.blocks * BLOCK as u64).to_string();
        println!("{name:width$}  {size:>10}  {:>6}", disk.extents.len());
    }
    let (all, free) = table.space();
    println!("{} of {} free", Size(free * BLOCK as u64), Size(all * BLOCK as u64));
}
