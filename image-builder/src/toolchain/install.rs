//! Installing what is missing, or saying how.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use miette::{Result, miette};

use super::choose::Step;
use super::findings::{OLDEST, Packages, Release};
use crate::process::{self, output_of};
use crate::ui;

/// Pairs of packages with a compiler and its library's source; the first pair that is new enough is taken.
const COMPILERS: [[&str; 2]; 2] = [["rustc-web", "rust-web-src"], ["rustc", "rust-src"]];

/// The lists of packages are fetched once a run, before the first installation.
static UPDATED: AtomicBool = AtomicBool::new(false);

/// The commands that a user would type for these steps.
pub fn commands(steps: &[Step], packages: Packages) -> Vec<String> {
    let mut commands = Vec::new();
    for step in steps {
        match step {
            Step::RustupTarget => commands.push("rustup target add x86_64-unknown-none".into()),
            Step::RustupSource => commands.push("rustup component add rust-src".into()),
            Step::SystemCompiler => commands.push(apt_command(&["rustc-web", "rust-web-src"], packages)),
            Step::SystemLinker => commands.push(apt_command(&["lld"], packages)),
        }
    }
    commands
}

/// What a user would type to install packages.
pub fn apt_command(names: &[&str], packages: Packages) -> String {
    let sudo = if packages == Packages::Root { "" } else { "sudo " };
    format!("{sudo}apt-get update && {sudo}apt-get install {}", names.join(" "))
}

/// Carries out one step. The error is the reason for which it failed.
pub fn perform(step: &Step, packages: Packages) -> Result<()> {
    match step {
        Step::RustupTarget => rustup(&["target", "add", "x86_64-unknown-none"]),
        Step::RustupSource => rustup(&["component", "add", "rust-src"]),
        Step::SystemLinker => apt(&["lld"], packages),
        Step::SystemCompiler => {
            update(packages)?;
            let [compiler, source] = COMPILERS
                .into_iter()
                .find(|[compiler, _]| candidate(compiler).is_some_and(|release| release >= OLDEST))
                .ok_or_else(|| miette!("the packages of this system have no compiler of release {OLDEST} or later"))?;
            apt(&[compiler, source], packages)
        }
    }
}

/// The package with the linter that belongs to the system's compiler.
pub fn clippy_package() -> &'static str {
    let web = output_of(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", "rustc-web"]));
    if web.as_deref() == Some("installed") { "rust-web-clippy" } else { "rust-clippy" }
}

/// Installs packages of the system.
pub fn apt(names: &[&str], packages: Packages) -> Result<()> {
    update(packages)?;
    let step = ui::Step::start(format!("Installing {}", names.join(", ")));
    let mut command = apt_get(packages)?;
    command.args(["install", "--yes", "--no-install-recommends"]).args(names);
    finish(process::run(command, Some(&step))?, step)
}

fn rustup(arguments: &[&str]) -> Result<()> {
    let step = ui::Step::start(format!("rustup {}", arguments.join(" ")));
    let mut command = Command::new("rustup");
    command.args(arguments);
    finish(process::run(command, Some(&step))?, step)
}

fn update(packages: Packages) -> Result<()> {
    if UPDATED.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    let step = ui::Step::start("Fetching the lists of packages");
    let mut command = apt_get(packages)?;
    command.arg("update");
    finish(process::run(command, Some(&step))?, step)
}

fn apt_get(packages: Packages) -> Result<Command> {
    let mut command = match packages {
        Packages::Root => Command::new("apt-get"),
        Packages::Sudo => {
            let mut command = Command::new("sudo");
            command.args(["-n", "apt-get"]);
            command
        }
        Packages::Unprivileged => return Err(miette!("installing packages needs root, and sudo asks for a password")),
        Packages::None => return Err(miette!("there is no apt-get on this machine")),
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}

/// The release of the compiler that a package would install.
fn candidate(package: &str) -> Option<Release> {
    let policy = output_of(Command::new("apt-cache").args(["policy", package]))?;
    Release::parse(policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?)
}

fn finish(outcome: process::Outcome, step: ui::Step) -> Result<()> {
    if outcome.status.success() {
        step.done("");
        return Ok(());
    }
    step.failed();
    // The last line that is not empty says why; the rest is progress.
    let reason = outcome.errors.lines().rev().find(|line| !line.trim().is_empty());
    Err(miette!("{}", reason.unwrap_or("it gave no reason").trim().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_what_one_would_type() {
        let steps = [Step::RustupTarget, Step::RustupSource, Step::SystemCompiler, Step::SystemLinker];
        assert_eq!(
            commands(&steps, Packages::Unprivileged),
            [
                "rustup target add x86_64-unknown-none",
                "rustup component add rust-src",
                "sudo apt-get update && sudo apt-get install rustc-web rust-web-src",
                "sudo apt-get update && sudo apt-get install lld",
            ]
        );
        assert_eq!(
            apt_command(&["qemu-system-x86"], Packages::Root),
            "apt-get update && apt-get install qemu-system-x86"
        );
    }

    #[test]
    fn without_rights_nothing_is_started() {
        let error = apt_get(Packages::Unprivileged).expect_err("sudo asks for a password");
        assert!(error.to_string().contains("root"));
        apt_get(Packages::None).expect_err("no apt-get");
    }
}
