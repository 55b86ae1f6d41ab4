//! What a command works with: the workspace, the toolchain and QEMU, each found when first needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use miette::Result;

use crate::accelerator;
use crate::build::{self, Built};
use crate::cli::Tools;
use crate::image;
use crate::machine::disk::{Existing, Image};
use crate::machine::firmware;
use crate::machine::qemu::{self, Boot, Chipset, Disk, DiskBus, Machine, Network, Nic, Rest, Uefi};
use crate::system::System;
use crate::system::disks::DiskPlan;
use crate::toolchain::{self, Installing, Toolchain};
use crate::workspace::Workspace;

/// The disks of a system, with their images in `folder`.
pub fn disks(system: &System, folder: &Path, existing: Existing) -> Result<Vec<Disk>> {
    let disk = |plan: &DiskPlan| Ok(Disk::new(&plan.name, Image::ensure(folder, plan, existing)?.path()));
    system.disks.iter().map(disk).collect()
}

/// A command's working state.
#[derive(Debug)]
pub struct Session {
    /// The workspace.
    pub workspace: Workspace,
    /// Whether also what takes long is measured.
    pub long: bool,
    tools: Tools,
    toolchain: Option<Toolchain>,
    qemu: Option<PathBuf>,
    built: BTreeMap<PathBuf, (System, Built)>,
}

impl Session {
    /// Finds the workspace.
    pub fn start(tools: Tools) -> Result<Session> {
        Ok(Session {
            workspace: Workspace::find()?,
            long: false,
            tools,
            toolchain: None,
            qemu: None,
            built: BTreeMap::new(),
        })
    }

    /// Whether missing things are installed.
    pub fn installing(&self) -> Installing {
        self.tools.installing()
    }

    /// Reads and checks a system file.
    pub fn load(&self, path: &Path) -> Result<System> {
        System::load(path, &self.workspace.program_names())
    }

    /// The toolchain, installed if need be.
    pub fn toolchain(&mut self) -> Result<&Toolchain> {
        let toolchain = match self.toolchain.take() {
            Some(toolchain) => toolchain,
            None => Toolchain::ensure(self.tools.toolchain, self.tools.installing())?,
        };
        Ok(self.toolchain.insert(toolchain))
    }

    /// QEMU, installed if need be.
    pub fn qemu(&mut self) -> Result<PathBuf> {
        if let Some(qemu) = &self.qemu {
            return Ok(qemu.clone());
        }
        let qemu = toolchain::ensure_program(qemu::PROGRAM, qemu::PACKAGE, self.tools.installing())?;
        Ok(self.qemu.insert(qemu).clone())
    }

    /// UEFI firmware, installed if need be.
    pub fn uefi(&self) -> Result<Uefi> {
        firmware::ensure(self.tools.installing())
    }

    /// Makes the image of a system that was built; the tools for it are installed if need be. The answer is its size in bytes.
    pub fn image(&self, built: &Built, to: &Path) -> Result<u64> {
        image::ensure_tools(self.tools.installing())?;
        image::make(built, to)
    }

    /// Reads and builds a system, once in a run of this program.
    pub fn build_once(&mut self, path: &Path) -> Result<(System, Built)> {
        if let Some(built) = self.built.get(path) {
            return Ok(built.clone());
        }
        let system = self.load(path)?;
        let built = self.build(&system)?;
        Ok(self.built.entry(path.to_path_buf()).or_insert((system, built)).clone())
    }

    /// Builds a system.
    pub fn build(&mut self, system: &System) -> Result<Built> {
        let toolchain = self.toolchain()?.clone();
        build::build(&self.workspace, &toolchain, system)
    }

    /// The machine that a system file asks for, on this host's accelerator, without its disks ([`disks`]).
    pub fn machine(&self, system: &System, built: &Built, network: Network) -> Machine {
        self.machine_booting(Boot::direct(built), system, network)
    }

    /// The same, booting something else.
    pub fn machine_booting(&self, boot: Boot, system: &System, network: Network) -> Machine {
        let (accelerator, _) = accelerator::choose(&accelerator::Findings::gather());
        Machine {
            boot,
            chipset: Chipset::default(),
            memory: system.memory.0.div_ceil(1 << 20),
            cpus: system.cpus,
            accelerator,
            count_instructions: None,
            nic: Nic::default(),
            debug_exit: true,
            network,
            disk_bus: DiskBus::default(),
            disks: Vec::new(),
            iommu: false,
            qmp: None,
            extra: Vec::new(),
        }
    }

    /// A machine whose time counts instructions, and which nobody outside talks to: TCG, one processor.
    pub fn counting_machine(&self, system: &System, built: &Built) -> Machine {
        self.machine(system, built, Network::None).counting(Rest::Skipped)
    }
}
