//! The subcommands of `cargo denali`, one file each.

mod bench;
mod build;
mod check;
mod disk;
mod doctor;
mod image;
mod lint;
mod run;
mod test;

use std::process::ExitCode;

use miette::Result;

use crate::cli::{Cli, Command};
use crate::interrupt::{self, Interrupted};

/// Carries out a command. Exit codes: 0 success, 1 failure, 2 a wrong command line, 130 Ctrl-C.
pub fn run(cli: Cli) -> ExitCode {
    let outcome = interrupt::install().and_then(|()| dispatch(cli.command));
    match outcome {
        Ok(code) => code,
        Err(report) if report.is::<Interrupted>() => ExitCode::from(interrupt::EXIT_CODE),
        Err(report) => {
            eprintln!("{report:?}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(options) => run::run(&options),
        Command::Build(options) => build::run(&options),
        Command::Image(options) => image::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Disk(options) => disk::run(&options),
        Command::Doctor(tools) => doctor::run(tools),
        Command::Lint(tools) => lint::run(tools),
    }
}
