//! What this machine has for building programs without an operating system.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{find, output_of};

/// Oldest compiler that builds the project: naked functions are stable from this release on.
pub const OLDEST: Release = Release { major: 1, minor: 88 };

/// A release of the compiler.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Release {
    /// 1
    pub major: u32,
    /// Counts up every six weeks.
    pub minor: u32,
}

impl Release {
    /// From "1.95.0" or "rustc 1.95.0 (59807616e 2026-04-14)".
    pub fn parse(text: &str) -> Option<Release> {
        let number = text.strip_prefix("rustc ").unwrap_or(text);
        let mut parts = number.split(|c: char| !c.is_ascii_digit());
        Some(Release { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
    }
}

impl std::fmt::Display for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A compiler and what belongs to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compiler {
    /// The compiler.
    pub rustc: PathBuf,
    /// What it calls itself.
    pub version: String,
    /// Its release.
    pub release: Release,
    /// Whether the library for `x86_64-unknown-none` is there, compiled.
    pub target: bool,
    /// Whether the library's source is there.
    pub source: bool,
    /// Its own linker.
    pub linker: Option<PathBuf>,
}

/// How packages of the system can be installed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packages {
    /// `apt-get`, as root.
    Root,
    /// `sudo -n apt-get`: no password is asked.
    Sudo,
    /// There is `apt-get`, but this user may not use it without a password.
    Unprivileged,
    /// No `apt-get`.
    None,
}

/// Everything that the choice of a toolchain depends on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Findings {
    /// The active compiler of rustup.
    pub rustup: Option<Compiler>,
    /// Why rustup could not download what was missing, if that was tried.
    pub rustup_refused: Option<String>,
    /// The compiler of the system's packages.
    pub system: Option<Compiler>,
    /// A linker of the system's packages.
    pub system_linker: Option<PathBuf>,
    /// How packages are installed.
    pub packages: Packages,
    /// Why the packages could not be installed, if that was tried.
    pub packages_refused: Option<String>,
}

impl Findings {
    /// Looks at this machine.
    pub fn gather() -> Findings {
        let rustup = find("rustup").and_then(|_| {
            // rustup's own `rustc` asks for the active toolchain; the compiler itself lies in its sysroot.
            let proxy = find("rustc")?;
            let sysroot = output_of(Command::new(&proxy).args(["--print", "sysroot"]))?;
            let rustc = Path::new(&sysroot).join("bin/rustc");
            if rustc == Path::new("/usr/bin/rustc") { None } else { compiler(&rustc) }
        });
        let system_linker = ["rust-lld", "ld.lld"].iter().find_map(|name| {
            let path = Path::new("/usr/bin").join(name);
            path.is_file().then_some(path)
        });
        Findings {
            rustup,
            rustup_refused: None,
            system: compiler(Path::new("/usr/bin/rustc")),
            system_linker,
            packages: packages(),
            packages_refused: None,
        }
    }

    /// The linker for the system's compiler.
    pub fn linker(&self) -> Option<&Path> {
        let of_rustup = self.rustup.as_ref().and_then(|compiler| compiler.linker.as_ref());
        of_rustup.or(self.system_linker.as_ref()).map(PathBuf::as_path)
    }
}

fn compiler(rustc: &Path) -> Option<Compiler> {
    let version = output_of(Command::new(rustc).arg("--version"))?;
    let sysroot = PathBuf::from(output_of(Command::new(rustc).args(["--print", "sysroot"]))?);
    let library = sysroot.join("lib/rustlib");
    let host = output_of(Command::new(rustc).arg("-vV"))?;
    let host = host.lines().find_map(|line| line.strip_prefix("host: "))?.to_string();
    let linker = library.join(host).join("bin/rust-lld");
    Some(Compiler {
        rustc: rustc.to_path_buf(),
        release: Release::parse(&version)?,
        version,
        target: library.join("x86_64-unknown-none/lib").is_dir(),
        source: library.join("src/rust/library/core/src/lib.rs").is_file(),
        linker: linker.is_file().then_some(linker),
    })
}

fn packages() -> Packages {
    if find("apt-get").is_none() {
        Packages::None
    } else if nix::unistd::geteuid().is_root() {
        Packages::Root
    } else if output_of(Command::new("sudo").args(["-n", "true"])).is_some() {
        Packages::Sudo
    } else {
        Packages::Unprivileged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        let parse = |text| Release::parse(text).map(|release| (release.major, release.minor));
        assert_eq!(parse("rustc 1.95.0 (59807616e 2026-04-14)"), Some((1, 95)));
        assert_eq!(parse("1.96.0+dfsg1-1~deb12u2"), Some((1, 96)));
        assert_eq!(parse("rustc 1.97.0-nightly"), Some((1, 97)));
        assert_eq!(parse("nonsense"), None);
        assert!(Release { major: 1, minor: 85 } < OLDEST && OLDEST < Release { major: 1, minor: 95 });
    }
}
