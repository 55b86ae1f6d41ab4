//! `cargo denali doctor`

use std::collections::BTreeSet;
use std::process::{Command, ExitCode};

use miette::Result;

use crate::accelerator;
use crate::cli::Tools;
use crate::image;
use crate::lines;
use crate::machine::firmware;
use crate::machine::qemu;
use crate::process::{find, output_of};
use crate::toolchain;
use crate::toolchain::choose::{self, Decision, Way};
use crate::toolchain::findings::{Compiler, Findings, Packages};
use crate::toolchain::install;
use crate::workspace::Workspace;

pub(super) fn run(tools: Tools) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let findings = Findings::gather();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    println!("What is there");
    item("cargo", output_of(Command::new(cargo).arg("--version")).as_deref());
    compiler("rustup's compiler", findings.rustup.as_ref());
    compiler("the system's compiler", findings.system.as_ref());
    item("linker", findings.linker().map(|path| path.display().to_string()).as_deref());
    let qemu = find(qemu::PROGRAM).and_then(|path| output_of(Command::new(path).arg("--version")));
    item("QEMU", qemu.as_deref().and_then(|version| version.lines().next()));
    let firmware = firmware::find().map(|uefi| uefi.code.display().to_string());
    item("UEFI firmware (OVMF)", Some(firmware.as_deref().unwrap_or("missing; only `run --uefi` and `test` need it")));
    let missing = toolchain::missing(&image::NEEDED);
    let missing: BTreeSet<&str> = missing.into_iter().map(|(_, package)| package).collect();
    let makers = match missing.is_empty() {
        true => "GRUB, xorriso, mtools".into(),
        false => {
            let names: Vec<&str> = missing.into_iter().collect();
            format!("missing, of packages {}; only `image` and `test` need it", names.join(", "))
        }
    };
    item("what makes images", Some(&makers));
    let accelerator = accelerator::Findings::gather();
    item("virtualisation", Some(accelerator.flag.unwrap_or("the processor shows neither vmx nor svm")));
    let device =
        accelerator.device.as_ref().map_or_else(|error| format!("does not open: {error}"), |()| "opens".into());
    item("/dev/kvm", Some(&device));
    let packages = match findings.packages {
        Packages::Root => "apt-get, as root",
        Packages::Sudo => "apt-get, by sudo without a password",
        Packages::Unprivileged => "apt-get, but this user may not use it",
        Packages::None => "no apt-get",
    };
    item("packages", Some(packages));

    println!("\nWhat was chosen, and why");
    let mut missing = Vec::new();
    match choose::choose(&findings, tools.toolchain) {
        Decision::Use(way, why) => {
            let way = match way {
                Way::Rustup => "rustup's compiler",
                Way::System => "the system's compiler",
            };
            item("compiler", Some(&format!("{way}: {why}")));
        }
        Decision::Install(steps, why) => {
            item("compiler", Some(&format!("none yet: {why}")));
            missing.extend(install::commands(&steps, findings.packages));
        }
        Decision::Impossible(why) => {
            item("compiler", Some(&format!("none: {why}")));
            missing.push("install Rust with rustup, or on Debian: apt-get install rustc-web rust-web-src lld".into());
        }
    }
    item("kernel's target", Some("x86_64-unknown-none: soft-float, so ring 0 never touches a domain's FPU registers"));
    item(
        "servers' and guests' target",
        Some(
            "x86_64-denali: hard-float (SSE2 and up), so copies and cryptography are fast; its library is built from source",
        ),
    );
    let (chosen, why) = accelerator::choose(&accelerator);
    item("accelerator", Some(&format!("{chosen}: {why}")));
    if qemu.is_none() {
        missing.push(install::apt_command(&[qemu::PACKAGE], findings.packages));
    }

    println!("\nThe microkernel");
    let count = lines::microkernel(&workspace.root)?;
    item(
        "lines of code",
        Some(&format!("{count} of at most {} (without tests, comments and blank lines)", lines::LIMIT)),
    );

    if missing.is_empty() {
        println!("\nNothing is missing.");
    } else {
        println!("\nWhat is missing: `run`, `build` and `test` install it by themselves where they may, or type");
        missing.iter().for_each(|command| println!("  {command}"));
    }
    let healthy = missing.is_empty() && count <= lines::LIMIT;
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn item(name: &str, value: Option<&str>) {
    println!("  {name}: {}", value.unwrap_or("missing"));
}

fn compiler(name: &str, compiler: Option<&Compiler>) {
    let Some(compiler) = compiler else { return item(name, None) };
    let yes = |there: bool| if there { "yes" } else { "no" };
    println!("  {name}: {} at {}", compiler.version, compiler.rustc.display());
    println!("    target x86_64-unknown-none: {}", yes(compiler.target));
    println!("    library's source (rust-src): {}", yes(compiler.source));
}
