//! Formatting and clippy, for the host's packages and, with their own targets, for those of the machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use miette::Result;

use crate::session::Session;
use crate::toolchain::choose::Way;
use crate::toolchain::{self, Ring, Toolchain, cargo};
use crate::workspace::Workspace;

/// Debian's package with the linter that belongs to its compiler.
const SYSTEM_CLIPPY: &str = "/usr/bin/clippy-driver";

/// The checks: what each looks at, and the command.
pub fn checks(session: &mut Session) -> Result<Vec<(String, Command)>> {
    let toolchain = session.toolchain()?.clone();
    let wrapper = match toolchain.way() {
        Way::Rustup => None,
        Way::System => Some(session.system_clippy()?),
    };
    let workspace = &session.workspace;
    let mut format = cargo(&workspace.root);
    format.args(["fmt", "--all", "--check"]);
    let mut checks = vec![("formatting".to_string(), format)];
    checks.extend(host(workspace));
    let kernel: Vec<String> = workspace.kernel().into_iter().collect();
    checks.push(("the microkernel".into(), metal(workspace, &toolchain, Ring::Kernel, wrapper.as_deref(), &kernel)));
    let packages: Vec<String> = workspace.metal_packages().into_iter().collect();
    checks.push(("servers and guests".into(), metal(workspace, &toolchain, Ring::User, wrapper.as_deref(), &packages)));
    Ok(checks)
}

/// What runs on the host: whole packages, and the libraries and tests of the others.
fn host(workspace: &Workspace) -> Vec<(String, Command)> {
    let metal = workspace.metal_packages();
    let kernel = workspace.kernel();
    let on_metal = |package: &String| kernel.as_ref() == Some(package) || metal.contains(package);
    let (libraries, whole): (Vec<_>, Vec<_>) = workspace.libraries().into_iter().partition(on_metal);
    let clippy = |packages: &[String], targets: &[&str]| {
        let mut command = cargo(&workspace.root);
        command.arg("clippy").args(targets);
        for package in packages {
            command.args(["--package", package]);
        }
        command.args(["--", "-D", "warnings"]);
        command
    };
    let mut checks = vec![("the host's packages".to_string(), clippy(&whole, &["--all-targets"]))];
    if !libraries.is_empty() {
        checks.push(("libraries of servers and guests".into(), clippy(&libraries, &["--lib", "--tests"])));
    }
    checks
}

fn metal(
    workspace: &Workspace,
    toolchain: &Toolchain,
    ring: Ring,
    wrapper: Option<&Path>,
    packages: &[String],
) -> Command {
    let target = workspace.target.join("metal-clippy");
    let verb = if wrapper.is_some() { "check" } else { "clippy" };
    let mut command = toolchain.cargo(verb, ring, &workspace.root, &target);
    for package in packages {
        command.args(["--package", package]);
    }
    match wrapper {
        // `cargo clippy` would take the linter beside cargo, which belongs to another compiler.
        Some(wrapper) => {
            command.env("RUSTC_WORKSPACE_WRAPPER", wrapper).env("CLIPPY_ARGS", "-Dwarnings");
        }
        None => {
            command.args(["--", "-D", "warnings"]);
        }
    }
    command
}

impl Session {
    /// The linter that belongs to the system's compiler, installed if need be.
    fn system_clippy(&mut self) -> Result<PathBuf> {
        let path = PathBuf::from(SYSTEM_CLIPPY);
        if path.is_file() {
            return Ok(path);
        }
        let package = toolchain::install::clippy_package();
        toolchain::ensure_file(&path, package, self.installing())?;
        Ok(path)
    }
}
