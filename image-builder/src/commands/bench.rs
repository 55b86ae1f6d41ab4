//! `cargo denali bench`

use std::process::ExitCode;

use miette::{Result, miette};

use crate::bench;
use crate::cli::Bench;
use crate::session::Session;

pub(super) fn run(options: &Bench) -> Result<ExitCode> {
    let all = bench::all();
    let Some(name) = &options.name else {
        for benchmark in all {
            println!("{}: {}", benchmark.name, benchmark.about);
        }
        return Ok(ExitCode::SUCCESS);
    };
    let names: Vec<_> = all.iter().map(|benchmark| benchmark.name).collect();
    let benchmark = all.iter().find(|benchmark| benchmark.name == name);
    let benchmark = benchmark
        .ok_or_else(|| miette!(help = format!("there are: {}", names.join(", ")), "there is no benchmark `{name}`"))?;
    let mut session = Session::start(options.tools)?;
    session.long = options.long;
    bench::run(&mut session, benchmark, options.output.as_deref())?;
    Ok(ExitCode::SUCCESS)
}
