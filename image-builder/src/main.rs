//! `cargo denali`: see `cargo denali --help`.

use std::process::ExitCode;

use clap::Parser;
use image_builder::{cli::Cli, commands};

fn main() -> ExitCode {
    commands::run(Cli::parse())
}
