//! What goes into a bundle, and every check of it that can be made before booting.

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use protocol::bundle::{self, INIT, MANIFEST};
use protocol::image::Image;
use protocol::layout::{PAGE, STACK_SIZE};
use protocol::manifest::Manifest;

use crate::cpio;
use crate::elf;
use crate::system::problem::{Problem, Problems};
use crate::system::types::Size;
use crate::system::{System, disks};

/// The programs of a bundle, as they were compiled.
#[derive(Clone, Debug)]
pub struct Contents {
    /// The first server.
    pub init: Vec<u8>,
    /// The others and the guest images, by name.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Contents {
    /// The bundle of a system, checked and read back.
    pub fn bundle(&self, system: &System) -> Result<Vec<u8>> {
        self.check(system)?;
        let manifest =
            postcard::to_allocvec(&system.manifest).into_diagnostic().wrap_err("the manifest cannot be written")?;
        let init = elf::without_sections(&self.init).ok_or_else(|| miette!("`{INIT}` is no ELF program"))?;
        let mut files = vec![(INIT, init), (MANIFEST, manifest)];
        for (name, file) in &self.files {
            let file = elf::without_sections(file).ok_or_else(|| miette!("`{name}` is no ELF program"))?;
            files.push((name, file));
        }
        if let Some((name, file)) = files.iter().find(|(_, file)| file.len() as u64 > cpio::FILE_MAX) {
            return Err(miette!("`{name}` has {} bytes; a bundle takes files of up to 4 GiB", file.len()));
        }
        let archive = cpio::write(files.iter().map(|(name, file)| (*name, file.as_slice())));
        read_back(&archive, system, &files)?;
        Ok(archive)
    }

    fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.iter().find(|(file, _)| file == name).map(|(_, data)| data.as_slice())
    }

    /// Checks every program and image with the code that will check it on the machine.
    fn check(&self, system: &System) -> Result<()> {
        Image::program(&self.init).map_err(|reason| miette!("the program of `{INIT}` is refused: {reason}"))?;
        let mut problems = Vec::new();
        for (server, at) in system.manifest.servers.iter().zip(&system.server_places) {
            if let Some(message) = self.server_problem(server) {
                problems.push(system.source.problem(at.clone(), message));
            }
        }
        let mut checked = Vec::new();
        for plan in &system.vms {
            if checked.contains(&&plan.at) {
                continue;
            }
            checked.push(&plan.at);
            if let Some(reason) = self.guest_problem(&plan.vm.image, plan.vm.memory) {
                let message = format!("the image `{}` of VM `{}` is refused: {reason}", plan.vm.image, plan.vm.name);
                problems.push(system.source.problem(plan.at.clone(), message));
            } else if let Some(at) = plan.disks_at.first().filter(|_| !self.has_disk_window(&plan.vm.image)) {
                let message = format!("VM `{}` has disks, but its image `{}` uses none", plan.vm.name, plan.vm.image);
                let problem = system.source.problem(at.clone(), message);
                problems.push(problem.help("a guest asks for a disk window: `ilwaco::entry!(..., disk = BUFFERS)`"));
            }
        }
        problems.extend(self.memory_problem(system));
        if problems.is_empty() { Ok(()) } else { Err(Problems { file: system.name.clone(), problems }.into()) }
    }

    fn server_problem(&self, server: &protocol::manifest::Server) -> Option<String> {
        server.programs.iter().find_map(|program| self.program_problem(server, &program.file))
    }

    fn program_problem(&self, server: &protocol::manifest::Server, program: &str) -> Option<String> {
        let Some(file) = self.file(program) else {
            return Some(format!("program `{program}` is missing"));
        };
        let image = match Image::program(file) {
            Ok(image) => image,
            Err(reason) => {
                return Some(format!("program `{program}` of server `{}` is refused: {reason}", server.name));
            }
        };
        let pages = |segment: &protocol::image::Segment| {
            let end = (segment.address + segment.length).next_multiple_of(PAGE);
            end - (segment.address & !(PAGE - 1))
        };
        let needed = image.segments.iter().map(pages).sum::<u64>() + STACK_SIZE + PAGE;
        (needed > server.memory).then(|| {
            let needed = Size(needed);
            format!(
                "server `{}` needs {needed} for its program `{program}` and stack, and has {}",
                server.name,
                Size(server.memory)
            )
        })
    }

    fn guest_problem(&self, image: &str, memory: u64) -> Option<String> {
        let Some(file) = self.file(image) else { return Some("it is missing".into()) };
        Image::guest(file, memory).err().map(|reason| reason.to_string())
    }

    fn has_disk_window(&self, image: &str) -> bool {
        let image = self.file(image).and_then(|file| Image::guest(file, 0).ok());
        image.and_then(|(image, _)| image.note).is_some_and(|note| note.disk_length > 0)
    }

    /// Now that the images' notes are known: does it all fit into the machine?
    fn memory_problem(&self, system: &System) -> Option<Problem> {
        let memory = |plan: &crate::system::vms::VmPlan| {
            let file = self.file(&plan.vm.image)?;
            Image::guest(file, plan.vm.memory).ok().map(|(_, memory)| memory)
        };
        let swap = disks::swap_space(&system.disks);
        if swap > 0 {
            let at = system.vms.last()?.at.clone();
            return disks::swap_problem(swap, system.vms.iter().filter_map(memory), at, &system.source);
        }
        let vms = system.vms.iter().filter_map(memory).fold(0u64, u64::saturating_add);
        let servers: u64 = system.manifest.servers.iter().map(|server| server.memory).sum();
        let last = system.vms.last().filter(|_| servers.saturating_add(vms) > system.memory.0)?;
        let message = format!(
            "servers ({}) and VMs ({}) do not fit into a machine of {}",
            Size(servers),
            Size(vms),
            system.memory
        );
        let problem = system.source.problem(last.at.clone(), message);
        Some(problem.help("say `memory = \"...\"` under [machine], or make something smaller"))
    }
}

/// Reads a bundle as the machine will, and compares.
fn read_back(archive: &[u8], system: &System, expected: &[(&str, Vec<u8>)]) -> Result<()> {
    let files: Result<Vec<_>, _> = bundle::files(archive).collect();
    let files = files.into_diagnostic().wrap_err("the bundle that was just made cannot be read")?;
    let same = files.len() == expected.len()
        && files.iter().zip(expected).all(|(file, (name, data))| file.name == *name && file.data == data);
    if !same {
        return Err(miette!("the bundle that was just made holds other files than were put into it"));
    }
    let manifest =
        Manifest::decode(files[1].data).map_err(|e| miette!("the manifest in the bundle cannot be read: {e}"))?;
    if manifest != system.manifest {
        return Err(miette!("the manifest in the bundle is not the one that was put into it"));
    }
    for (name, data) in &expected[2..] {
        let guest = system.manifest.vms.iter().find(|vm| vm.image == *name);
        let refused = match guest {
            Some(vm) => Image::guest(data, vm.memory).err(),
            None => Image::program(data).err(),
        };
        if let Some(reason) = refused {
            return Err(miette!("`{name}` in the bundle is refused: {reason}"));
        }
    }
    Ok(())
}
