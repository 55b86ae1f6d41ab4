//! The command line of `cargo denali`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};

use crate::machine::hardware::{Chipset, DiskBus, Medium, Nic};
use crate::system::types::Size;
use crate::toolchain::Installing;
use crate::toolchain::choose::Preference;

/// Builds, boots, tests and measures isolation-kernel systems.
#[derive(Debug, Parser)]
#[command(name = "cargo denali", bin_name = "cargo denali", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build a system, boot it in QEMU and say where to point a browser
    Run(Run),
    /// Build a system: the microkernel and its bundle
    Build(Build),
    /// Make a bootable image of a system: for USB stick, disk and CD, for BIOS and UEFI
    Image(Image),
    /// Run all tests: those of the libraries, and those that boot systems
    Test(Test),
    /// Measure a system; without a name, list the benchmarks
    Bench(Bench),
    /// Check a system file and say what the system is made of
    Check(Check),
    /// List, make, delete, import or export virtual disks in the image of a disk
    Disk(Disk),
    /// Say what this machine has, what was chosen and why
    Doctor(Tools),
    /// Check formatting, and run clippy with warnings as errors
    Lint(Tools),
}

/// Choices about tools, common to most commands.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Tools {
    /// Install nothing; say what to type instead
    #[arg(long)]
    pub no_install: bool,
    /// Compiler for the machine's programs
    #[arg(long, value_enum, default_value_t)]
    pub toolchain: Preference,
}

impl Tools {
    /// Whether missing things are installed.
    pub fn installing(self) -> Installing {
        if self.no_install { Installing::Forbidden } else { Installing::Allowed }
    }
}

/// `build`
#[derive(Debug, Args)]
pub struct Build {
    /// System file [default: system.toml at the top of the project]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub system: Option<PathBuf>,
    /// Tools.
    #[command(flatten)]
    pub tools: Tools,
}

/// `image`
#[derive(Debug, Args)]
pub struct Image {
    /// System file [default: system.toml at the top of the project]
    #[arg(value_name = "SYSTEM.toml", value_hint = ValueHint::FilePath)]
    pub system: Option<PathBuf>,
    /// The image
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath, default_value = "denali.img")]
    pub output: PathBuf,
    /// Tools.
    #[command(flatten)]
    pub tools: Tools,
}

/// `run`
#[derive(Debug, Args)]
pub struct Run {
    /// System file [default: system.toml at the top of the project]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub system: Option<PathBuf>,
    /// Boot this image, made by `cargo denali image` of the same system file, and build nothing
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub image: Option<PathBuf>,
    /// Boot the image by UEFI firmware in place of a BIOS
    #[arg(long, requires = "image")]
    pub uefi: bool,
    /// What the image is put on
    #[arg(long, value_enum, default_value_t, requires = "image")]
    pub medium: Medium,
    /// Only show the console; what is typed does not go to it
    #[arg(long)]
    pub headless: bool,
    /// End after so many seconds; a failure if no web server has answered by then
    #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: Option<u64>,
    /// Memory of the machine in MiB [default: as the system file says]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(16..))]
    pub memory: Option<u64>,
    /// Processors of the machine [default: as the system file says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=255))]
    pub cpus: Option<u16>,
    /// Chipset of the machine
    #[arg(long, value_enum, default_value_t)]
    pub machine: Chipset,
    /// Network card of the machine
    #[arg(long, value_enum, default_value_t)]
    pub nic: Nic,
    /// What the machine's disks are connected to
    #[arg(long, value_enum, default_value_t)]
    pub disk_bus: DiskBus,
    /// Give the machine an IOMMU (Intel VT-d); Q35 only
    #[arg(long)]
    pub iommu: bool,
    /// First port on 127.0.0.1 that leads to a VM; the next services get the next ones
    #[arg(long, value_name = "BASE", default_value_t = crate::machine::ports::BASE, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Make the machine's disks anew: what is on them is lost
    #[arg(long)]
    pub new_disks: bool,
    /// Print QEMU's command line and do not start it
    #[arg(long)]
    pub dry_run: bool,
    /// Tools.
    #[command(flatten)]
    pub tools: Tools,
    /// More arguments for QEMU
    #[arg(last = true, value_name = "EXTRA QEMU ARGS")]
    pub extra: Vec<OsString>,
}

/// `test`
#[derive(Debug, Args)]
pub struct Test {
    /// Only tests whose name contains this
    pub filter: Option<String>,
    /// Only the tests of the libraries
    #[arg(long, conflicts_with = "boot")]
    pub host: bool,
    /// Only the tests that boot systems
    #[arg(long)]
    pub boot: bool,
    /// Also the tests that take long
    #[arg(long)]
    pub long: bool,
    /// List the tests that boot systems, and end
    #[arg(long)]
    pub list: bool,
    /// Tools.
    #[command(flatten)]
    pub tools: Tools,
}

/// `bench`
#[derive(Debug, Args)]
pub struct Bench {
    /// Name of a benchmark
    pub name: Option<String>,
    /// Also write the results to NAME.json in this folder
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub output: Option<PathBuf>,
    /// With as many VMs as the system is to carry, where that takes long
    #[arg(long)]
    pub long: bool,
    /// Tools.
    #[command(flatten)]
    pub tools: Tools,
}

/// `check`
#[derive(Debug, Args)]
pub struct Check {
    /// System file [default: system.toml at the top of the project]
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub system: Option<PathBuf>,
}

/// `disk`
#[derive(Debug, Args)]
pub struct Disk {
    /// What to do.
    #[command(subcommand)]
    pub command: DiskCommand,
    /// Image of the disk [default: the one that `run` keeps for the system]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "system", global = true)]
    pub image: Option<PathBuf>,
    /// System file [default: system.toml at the top of the project]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, global = true)]
    pub system: Option<PathBuf>,
}

/// What to do with virtual disks.
#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// List the virtual disks, and the room that is left
    List,
    /// Make a virtual disk that reads as zeros
    Create {
        /// Its name
        name: String,
        /// Its size: "16 MiB"
        size: Size,
    },
    /// Delete a virtual disk
    Delete {
        /// Its name
        name: String,
    },
    /// Make a virtual disk of a raw image, or of a folder: an archive of its files, as the web server reads it
    Import {
        /// Its name
        name: String,
        /// The file or folder
        #[arg(value_hint = ValueHint::AnyPath)]
        from: PathBuf,
    },
    /// Write a virtual disk to a new file, as a raw image
    Export {
        /// Its name
        name: String,
        /// The file
        #[arg(value_hint = ValueHint::FilePath)]
        to: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_two_dashes_goes_to_qemu() {
        let cli = Cli::parse_from(["denali", "run", "--for", "60", "--headless", "--", "-s", "-S"]);
        let Command::Run(run) = cli.command else { panic!("run was asked for") };
        assert_eq!((run.seconds, run.headless, run.port), (Some(60), true, 8080));
        assert_eq!(run.extra, ["-s", "-S"]);
    }

    #[test]
    fn firmware_and_medium_are_those_of_an_image() {
        for arguments in [["--uefi", "--headless"], ["--medium", "cd"]] {
            let line = ["denali", "run"].into_iter().chain(arguments);
            Cli::try_parse_from(line).expect_err(arguments[0]);
        }
        let cli = Cli::parse_from(["denali", "run", "--image", "denali.img", "--uefi", "--medium", "cd"]);
        let Command::Run(run) = cli.command else { panic!("run was asked for") };
        assert_eq!((run.uefi, run.medium), (true, Medium::Cd));
    }

    #[test]
    fn impossible_values_are_refused() {
        for arguments in [["--for", "0"], ["--memory", "1"], ["--cpus", "0"], ["--port", "0"], ["--port", "65536"]] {
            let line = ["denali", "run"].into_iter().chain(arguments);
            Cli::try_parse_from(line).expect_err(arguments[0]);
        }
    }
}
