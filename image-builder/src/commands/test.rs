//! `cargo denali test`

use std::process::ExitCode;

use miette::{Result, miette};

use crate::boot_tests::{self, Count};
use crate::cli::Test;
use crate::host_tests;
use crate::session::Session;

pub(super) fn run(options: &Test) -> Result<ExitCode> {
    if options.list {
        for test in boot_tests::all() {
            println!("{}: {}{}", test.name, test.about, if test.long { " (with --long)" } else { "" });
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut session = Session::start(options.tools)?;
    let filter = options.filter.as_deref();
    let mut count = Count::default();
    if !options.boot {
        count += host_tests::run(&session.workspace, filter)?;
    }
    if !options.host {
        count += boot_tests::run(&mut session, filter, options.long)?;
    }
    if count == Count::default() {
        return Err(match filter {
            Some(filter) => {
                miette!(help = "`cargo denali test --list` lists those that boot", "no test's name contains `{filter}`")
            }
            None => miette!("there are no tests"),
        });
    }
    println!("\n{} passed, {} failed", count.passed, count.failed);
    Ok(if count.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
