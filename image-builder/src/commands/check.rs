//! `cargo denali check`

use std::process::ExitCode;

use miette::Result;

use crate::cli::Check;
use crate::system::{System, report::report};
use crate::workspace::Workspace;

pub(super) fn run(options: &Check) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let path = options.system.clone().unwrap_or_else(|| workspace.default_system());
    let system = System::load(&path, &workspace.program_names())?;
    print!("{}", report(&system));
    Ok(ExitCode::SUCCESS)
}
