//! The compiler for the machine's own programs: finding it, choosing it, installing it.
//!
//! * [`findings`]: what is there.
//! * [`mod@choose`]: what to use or to install.
//! * [`install`]: carrying that out.

pub mod choose;
pub mod findings;
pub mod install;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{Result, miette};
use protocol::layout;

use crate::interrupt;
use crate::process::find;
use choose::{Decision, Preference, Way};
use findings::{Findings, Packages};

/// Whether missing things are installed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Installing {
    /// They are.
    Allowed,
    /// They are reported with the command to type.
    Forbidden,
}

/// Where a program of the machine runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ring {
    /// The microkernel: `x86_64-unknown-none`, soft-float.
    Kernel,
    /// Servers and guests: `x86_64-denali`, hard-float.
    User,
}

/// A complete toolchain.
#[derive(Clone, Debug)]
pub struct Toolchain {
    way: Way,
    /// Why it was chosen.
    pub why: String,
    rustc: PathBuf,
    linker: Option<PathBuf>,
}

impl Toolchain {
    /// The toolchain of this machine, after installing what is missing.
    pub fn ensure(preference: Preference, installing: Installing) -> Result<Toolchain> {
        let (mut rustup_refused, mut packages_refused) = (None, None);
        loop {
            let mut findings = Findings::gather();
            findings.rustup_refused = rustup_refused.clone();
            findings.packages_refused = packages_refused.clone();
            let (steps, why) = match choose::choose(&findings, preference) {
                Decision::Use(way, why) => return Ok(Toolchain::new(&findings, way, why)),
                Decision::Install(steps, why) => (steps, why),
                Decision::Impossible(why) => {
                    return Err(miette!(
                        help = "install a Rust toolchain with rustup, then type \
                                `rustup target add x86_64-unknown-none && rustup component add rust-src`; \
                                or on Debian type `apt-get install rustc-web rust-web-src lld`",
                        "nothing on this machine can build the system: {why}"
                    ));
                }
            };
            if installing == Installing::Forbidden {
                let help = format!("type: {}", install::commands(&steps, findings.packages).join(" && "));
                return Err(miette!(help = help, "a compiler for the system is missing: {why}"));
            }
            for step in &steps {
                let Err(error) = install::perform(step, findings.packages) else { continue };
                if error.is::<interrupt::Interrupted>() {
                    return Err(error);
                }
                let refused = match step {
                    choose::Step::SystemCompiler | choose::Step::SystemLinker => &mut packages_refused,
                    choose::Step::RustupTarget | choose::Step::RustupSource => &mut rustup_refused,
                };
                *refused = Some(error.to_string());
                break;
            }
        }
    }

    fn new(findings: &Findings, way: Way, why: String) -> Toolchain {
        let compiler = match way {
            Way::Rustup => &findings.rustup,
            Way::System => &findings.system,
        };
        Toolchain {
            way,
            why,
            rustc: compiler.as_ref().map(|compiler| compiler.rustc.clone()).unwrap_or_default(),
            linker: match way {
                Way::Rustup => None,
                Way::System => findings.linker().map(Path::to_path_buf),
            },
        }
    }

    /// The compiler.
    pub fn rustc(&self) -> &Path {
        &self.rustc
    }

    /// Which way was chosen.
    pub fn way(&self) -> Way {
        self.way
    }

    /// A `cargo` command (`build`, `check`, …) for one ring, without packages.
    pub fn cargo(&self, verb: &str, ring: Ring, root: &Path, target_folder: &Path) -> Command {
        let mut command = cargo(root);
        command.arg(verb).arg("--release").env("CARGO_TARGET_DIR", target_folder);
        let from_source = self.way == Way::System || ring == Ring::User;
        if from_source {
            // Building the library is not a stable feature of cargo.
            command.env("RUSTC_BOOTSTRAP", "1");
            command.args(["-Zbuild-std=core,alloc", "-Zbuild-std-features=compiler-builtins-mem"]);
        }
        if self.way == Way::System {
            command.env("RUSTC", &self.rustc);
        }
        let variable = match ring {
            Ring::Kernel => {
                command.args(["--target", "x86_64-unknown-none"]);
                "CARGO_TARGET_X86_64_UNKNOWN_NONE"
            }
            Ring::User => {
                command.arg("-Zjson-target-spec");
                command.arg("--target").arg(root.join("image-builder/targets/x86_64-denali.json"));
                command.env("CARGO_TARGET_X86_64_DENALI_RUSTFLAGS", user_flags());
                "CARGO_TARGET_X86_64_DENALI"
            }
        };
        if let Some(linker) = &self.linker {
            command.env(format!("{variable}_LINKER"), linker);
        }
        command
    }

    /// Folder below a target folder in which `cargo build` leaves the programs of a ring.
    pub fn output_folder(ring: Ring) -> &'static str {
        match ring {
            Ring::Kernel => "x86_64-unknown-none/release",
            Ring::User => "x86_64-denali/release",
        }
    }
}

/// Linker arguments of servers and guests: where they lie, and segments that do not share pages.
fn user_flags() -> String {
    let base = format!("-Clink-arg=--image-base={:#x}", layout::IMAGE_BASE);
    format!("{base} -Clink-arg=-zmax-page-size={} -Clink-arg=-zseparate-code", layout::PAGE)
}

/// The `cargo` that runs us, free of what it and the user put into the environment for host programs.
pub fn cargo(root: &Path) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root);
    for variable in
        ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "LD_LIBRARY_PATH", "RUSTC", "RUSTC_WRAPPER"]
    {
        command.env_remove(variable);
    }
    command
}

/// Makes sure that a program is in the search path.
pub fn ensure_program(program: &str, package: &str, installing: Installing) -> Result<PathBuf> {
    ensure_things(&[(program, package)], installing)?;
    find(program).ok_or_else(|| miette!("`{program}` has just disappeared"))
}

/// Makes sure that a file of a package is there.
pub fn ensure_file(file: &Path, package: &str, installing: Installing) -> Result<()> {
    ensure_things(&[(&file.display().to_string(), package)], installing)
}

/// Makes sure that programs, and files (which have a slash in their name), are there; each comes with its package.
pub fn ensure_things(things: &[(&str, &str)], installing: Installing) -> Result<()> {
    let missing = missing(things);
    let Some((first, _)) = missing.first() else { return Ok(()) };
    let names: BTreeSet<&str> = missing.iter().map(|(_, package)| *package).collect();
    let names: Vec<&str> = names.into_iter().collect();
    let packages = Findings::gather().packages;
    let help = format!("type: {}", install::apt_command(&names, packages));
    if installing == Installing::Forbidden || !matches!(packages, Packages::Root | Packages::Sudo) {
        return Err(miette!(help = help, "`{first}` is missing"));
    }
    if let Err(error) = install::apt(&names, packages) {
        return Err(match error.is::<interrupt::Interrupted>() {
            true => error,
            false => miette!(help = help, "{} could not be installed: {error}", names.join(", ")),
        });
    }
    match self::missing(things).first() {
        None => Ok(()),
        Some((thing, package)) => Err(miette!("package {package} was installed, but there is still no `{thing}`")),
    }
}

/// Those of programs and files that are not there.
pub fn missing<'a>(things: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let there = |thing: &str| if thing.contains('/') { Path::new(thing).is_file() } else { find(thing).is_some() };
    things.iter().copied().filter(|(thing, _)| !there(thing)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_files_that_are_missing() {
        let things = [("sh", "dash"), ("/bin/sh", "dash"), ("no-such-program", "a"), ("/no/such/file", "b")];
        assert_eq!(missing(&things), [("no-such-program", "a"), ("/no/such/file", "b")]);
        ensure_things(&things[..2], Installing::Forbidden).expect("they are there");
        let error = ensure_things(&things, Installing::Forbidden).expect_err("two are not there");
        assert!(format!("{error:?}").contains("apt-get install a b"), "{error:?}");
    }
}
