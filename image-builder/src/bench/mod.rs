//! Benchmarks: systems that measure themselves, or that are measured from outside.
//!
//! To add one, write a file with a function that boots a system and collects [`Measurement`]s, and put
//! it into [`all`].

mod boot;
mod disk;
mod drivers;
mod figures;
mod harness;
mod ipc;
pub mod result;
mod scale;
mod smp;
mod swap;
mod vdisk;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::build::Built;
use crate::lines;
use crate::process::output_of;
use crate::session::Session;
use crate::system::System;
use result::{Better, Measurement, Results};

/// A benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Benchmark {
    /// Its name.
    pub name: &'static str,
    /// What it measures.
    pub about: &'static str,
    /// Measures.
    pub run: fn(&mut Session) -> Result<Vec<Measurement>>,
}

/// All benchmarks.
pub fn all() -> [Benchmark; 8] {
    [
        ipc::BENCHMARK,
        boot::BENCHMARK,
        smp::BENCHMARK,
        drivers::BENCHMARK,
        disk::BENCHMARK,
        vdisk::BENCHMARK,
        swap::BENCHMARK,
        scale::BENCHMARK,
    ]
}

/// Runs a benchmark: prints a table and, if wanted, writes a file.
pub fn run(session: &mut Session, benchmark: &Benchmark, output: Option<&Path>) -> Result<()> {
    let measured = (benchmark.run)(session)?;
    print!("{}", result::table(&measured));
    println!(
        "\nThe microkernel has {} lines of code (at most {}).",
        lines::microkernel(&session.workspace.root)?,
        lines::LIMIT
    );
    if let Some(folder) = output {
        let results = Results {
            bench: benchmark.name.into(),
            machine: machine(session)?,
            commit: commit(&session.workspace.root),
            results: measured,
        };
        let path = folder.join(benchmark.name).with_extension("json");
        let failed = || miette!("{} cannot be written", path.display());
        fs::create_dir_all(folder).into_diagnostic().wrap_err_with(failed)?;
        let json = serde_json::to_string_pretty(&results).into_diagnostic()?;
        fs::write(&path, json + "\n").into_diagnostic().wrap_err_with(failed)?;
        println!("Written to {}.", path.display());
    }
    Ok(())
}

/// A measurement. `params`: `key=value`, with spaces between.
fn measurement(name: &str, value: f64, unit: &str, better: Better, params: &str) -> Measurement {
    let pair = |word: &str| word.split_once('=').map(|(key, value)| (key.to_string(), value.to_string()));
    let params: BTreeMap<_, _> = params.split_whitespace().filter_map(pair).collect();
    Measurement { name: name.into(), value: (value * 100.0).round() / 100.0, unit: unit.into(), better, params }
}

/// Builds the system in a file of `systems/`, in whose text words are replaced: each must be there.
fn build(session: &mut Session, name: &str, changes: &[(&str, String)]) -> Result<(System, Built)> {
    let path = session.workspace.system(name);
    let mut text = std::fs::read_to_string(&path)
        .into_diagnostic()
        .wrap_err_with(|| miette!("{} cannot be read", path.display()))?;
    for (from, to) in changes {
        if !text.contains(from) {
            return Err(miette!("{} does not say `{from}`", path.display()));
        }
        text = text.replace(from, to);
    }
    let system = System::parse(&path, &text, &session.workspace.program_names())?;
    let built = session.build(&system)?;
    Ok((system, built))
}

/// On what is measured: the emulator, and the processor below it.
fn machine(session: &mut Session) -> Result<String> {
    let qemu = session.qemu()?;
    let version = output_of(Command::new(qemu).arg("--version")).unwrap_or_default();
    let version = version.lines().next().unwrap_or("QEMU").to_string();
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(format!("{version}, TCG, on {}", model.map_or("an unknown processor", |(_, model)| model)))
}

fn commit(root: &Path) -> String {
    let git = |arguments: &[&str]| output_of(Command::new("git").current_dir(root).args(arguments));
    let Some(commit) = git(&["rev-parse", "HEAD"]) else { return "unknown".into() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|status| !status.is_empty());
    if changed { format!("{commit}+changes") } else { commit }
}
