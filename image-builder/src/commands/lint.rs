//! `cargo denali lint`

use std::process::{Command, ExitCode};

use miette::Result;

use crate::cli::Tools;
use crate::lint;
use crate::session::Session;
use crate::ui;

pub(super) fn run(tools: Tools) -> Result<ExitCode> {
    let mut session = Session::start(tools)?;
    let checks = lint::checks(&mut session)?;
    let mut wrong = Vec::new();
    for (what, mut command) in checks {
        ui::note(&format!("Checking {what} …"));
        if !passes(&mut command)? {
            wrong.push(what);
        }
    }
    if wrong.is_empty() {
        ui::note("Nothing to complain about.");
        return Ok(ExitCode::SUCCESS);
    }
    ui::note(&format!("Not clean: {}", wrong.join(", ")));
    Ok(ExitCode::FAILURE)
}

fn passes(command: &mut Command) -> Result<bool> {
    use miette::IntoDiagnostic;
    let status = command.status().into_diagnostic()?;
    crate::interrupt::check()?;
    Ok(status.success())
}
