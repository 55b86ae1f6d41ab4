//! Building a system: the microkernel, the programs that its system file names, and the bundle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use protocol::bundle;

use crate::bundle::Contents;
use crate::process;
use crate::system::System;
use crate::system::programs::{Origin, Role};
use crate::toolchain::{Ring, Toolchain};
use crate::ui::Step;
use crate::workspace::{KERNEL, Workspace};

/// The files of a system that was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// The microkernel.
    pub kernel: PathBuf,
    /// The bundle.
    pub bundle: PathBuf,
    /// Folder of both; logs go there too.
    pub folder: PathBuf,
}

/// Builds a system.
pub fn build(workspace: &Workspace, toolchain: &Toolchain, system: &System) -> Result<Built> {
    let package = workspace.kernel().ok_or_else(|| miette!("package `{KERNEL}` of this workspace has no program"))?;
    let kernel = compile(workspace, toolchain, Ring::Kernel, &[(KERNEL.into(), package)].into())?;
    let packages = workspace.programs();
    let mut wanted = BTreeMap::new();
    let named = system.programs.iter().filter_map(|program| match &program.origin {
        Origin::Workspace(name) => Some(name.as_str()),
        Origin::File(_) => None,
    });
    for name in named.chain([bundle::INIT]) {
        let package =
            packages.get(name).ok_or_else(|| miette!("no package of this workspace has a program `{name}`"))?;
        wanted.insert(name.to_string(), package.clone());
    }
    let programs = compile(workspace, toolchain, Ring::User, &wanted)?;

    let step = Step::start("Making the bundle");
    let read =
        |path: &Path| fs::read(path).into_diagnostic().wrap_err_with(|| miette!("{} cannot be read", path.display()));
    let built = |name: &str| read(&programs[name]);
    let mut contents = Contents { init: built(bundle::INIT)?, files: Vec::new() };
    for program in &system.programs {
        let file = match &program.origin {
            Origin::Workspace(name) => built(name)?,
            Origin::File(path) => read(path)?,
        };
        contents.files.push((program.file.clone(), file));
    }
    let archive = contents.bundle(system)?;
    let folder = workspace.output(&system.name);
    let output = Built { kernel: folder.join(KERNEL), bundle: folder.join("bundle.cpio"), folder };
    write(&output, &read(&kernel[KERNEL])?, &archive)?;
    let guests = system.programs.iter().filter(|program| program.role == Role::Guest).count();
    let servers = system.programs.len() - guests + 1;
    step.done(&format!("{} KiB: {servers} server programs, {guests} guest images", archive.len() >> 10));
    Ok(output)
}

/// Writes the files and reads the bundle back: a full disk is noticed here and not at boot.
fn write(output: &Built, kernel: &[u8], archive: &[u8]) -> Result<()> {
    let folder = &output.folder;
    fs::create_dir_all(folder).into_diagnostic().wrap_err_with(|| miette!("{} cannot be made", folder.display()))?;
    for (path, data) in [(&output.kernel, kernel), (&output.bundle, archive)] {
        let failed = || miette!("{} cannot be written", path.display());
        // Written beside it and renamed: a running QEMU keeps the file that it has open.
        let fresh = path.with_extension("new");
        fs::write(&fresh, data).into_diagnostic().wrap_err_with(failed)?;
        fs::rename(&fresh, path).into_diagnostic().wrap_err_with(failed)?;
        let read = fs::read(path).into_diagnostic().wrap_err_with(failed)?;
        if read != data {
            return Err(miette!("{} does not hold what was written into it", path.display()));
        }
    }
    Ok(())
}

/// Compiles programs (program → package) of one ring; the answer says where each lies.
fn compile(
    workspace: &Workspace,
    toolchain: &Toolchain,
    ring: Ring,
    programs: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, PathBuf>> {
    let what = match ring {
        Ring::Kernel => "Building the microkernel".into(),
        Ring::User => format!("Building {} servers and guests", programs.len()),
    };
    let target = workspace.metal();
    let mut command = toolchain.cargo("build", ring, &workspace.root, &target);
    let packages: BTreeSet<&String> = programs.values().collect();
    for package in packages {
        command.args(["--package", package]);
    }
    for program in programs.keys() {
        command.args(["--bin", program]);
    }
    let step = Step::start(what);
    let outcome = process::run(command, Some(&step))?;
    if !outcome.status.success() {
        step.failed();
        eprint!("{}", outcome.errors);
        return Err(miette!("the build failed; the compiler's messages are above"));
    }
    step.done("");
    eprint!("{}", warnings(&outcome.errors));
    let folder = target.join(Toolchain::output_folder(ring));
    Ok(programs.keys().map(|program| (program.clone(), folder.join(program))).collect())
}

/// Cargo's messages without its account of progress.
fn warnings(messages: &str) -> String {
    let progress = [
        "Compiling",
        "Finished",
        "Updating",
        "Downloading",
        "Downloaded",
        "Locking",
        "Adding",
        "Blocking",
        "Building",
        "Fresh",
        "Checking",
        "Dirty",
    ];
    let is_progress =
        |line: &&str| line.starts_with(' ') && progress.iter().any(|word| line.trim_start().starts_with(word));
    messages.lines().filter(|line| !is_progress(line)).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_warnings_are_left_of_cargos_messages() {
        let messages =
            "   Compiling init v0.1.0 (/x)\nwarning: unused\n  --> a.rs:1:1\n    Finished `release` profile\n";
        assert_eq!(warnings(messages), "warning: unused\n  --> a.rs:1:1\n");
    }
}
