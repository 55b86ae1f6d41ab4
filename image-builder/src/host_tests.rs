//! Tests of the libraries: `cargo test` of every package that has one.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::boot_tests::Count;
use crate::interrupt;
use crate::process;
use crate::toolchain::cargo;
use crate::workspace::Workspace;

/// Runs the tests whose name contains `filter`.
pub fn run(workspace: &Workspace, filter: Option<&str>) -> Result<Count> {
    let mut libraries = cargo(&workspace.root);
    libraries.args(["test", "--no-fail-fast", "--lib"]);
    for package in workspace.libraries() {
        libraries.args(["--package", &package]);
    }
    let mut count = watch(libraries, filter)?;
    for (package, test) in workspace.integration_tests() {
        let mut command = cargo(&workspace.root);
        command.args(["test", "--no-fail-fast", "--package", &package, "--test", &test]);
        count += watch(command, filter)?;
    }
    Ok(count)
}

/// Runs one `cargo test`, shows what it prints and counts.
fn watch(mut command: Command, filter: Option<&str>) -> Result<Count> {
    command.arg("--").args(filter).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().into_diagnostic().wrap_err("`cargo test` cannot be started")?;
    let mut count = Count::default();
    let mut summaries = 0;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines().map_while(|line| line.ok()) {
            if let Some(summary) = summary(&line) {
                count += summary;
                summaries += 1;
            } else if !is_noise(&line) {
                println!("{line}");
            }
            if interrupt::requested() {
                process::end(&mut child);
                return Err(interrupt::Interrupted.into());
            }
        }
    }
    let status = child.wait().into_diagnostic()?;
    interrupt::check()?;
    // A test program that crashed or was not compiled prints no summary, or says nothing failed.
    if !status.success() && count.failed == 0 {
        return Err(miette!("`cargo test` failed without a failed test: see its messages above"));
    }
    if summaries == 0 {
        return Err(miette!("`cargo test` ran nothing"));
    }
    Ok(count)
}

/// What says only that all is well; cargo itself names each test program.
fn is_noise(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with("running ") || line.starts_with("test ") && line.ends_with(" ... ok")
}

/// The counts in "test result: ok. 26 passed; 3 failed; ...".
fn summary(line: &str) -> Option<Count> {
    let counts = line.strip_prefix("test result: ")?;
    let number = |what: &str| {
        let mut words =
            counts.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect::<Vec<_>>().into_iter().rev();
        words.find(|word| *word == what)?;
        words.next()?.parse().ok()
    };
    Some(Count { passed: number("passed")?, failed: number("failed")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_read() {
        let ok = "test result: ok. 26 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 2.10s";
        assert_eq!(summary(ok), Some(Count { passed: 26, failed: 0 }));
        let failed =
            "test result: FAILED. 1 passed; 12 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(summary(failed), Some(Count { passed: 1, failed: 12 }));
        assert_eq!(summary("test a ... ok"), None);
    }
}
