//! `cargo denali build`

use std::process::ExitCode;

use miette::Result;

use crate::cli::Build;
use crate::session::Session;
use crate::ui;

pub(super) fn run(options: &Build) -> Result<ExitCode> {
    let mut session = Session::start(options.tools)?;
    let path = options.system.clone().unwrap_or_else(|| session.workspace.default_system());
    let system = session.load(&path)?;
    let built = session.build(&system)?;
    ui::note(&format!("Built {}", session.workspace.short(&built.kernel).display()));
    ui::note(&format!("      {}", session.workspace.short(&built.bundle).display()));
    Ok(ExitCode::SUCCESS)
}
