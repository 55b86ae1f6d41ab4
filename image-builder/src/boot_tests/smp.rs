//! Machines with one processor, with two and with more.

use std::time::Duration;

use miette::Result;

use super::BootTest;
use super::harness::Context;
use super::{hostile, restart, web};

pub(super) const TESTS: &[BootTest] = &[
    BootTest {
        name: "smp",
        about: "with one, two and four processors all of them run domains, and the web servers answer",
        limit: Duration::from_secs(180),
        long: false,
        run: smp,
    },
    BootTest {
        name: "smp-hostile",
        about: "misbehaving VMs on four processors are stopped or slowed, each alone; the others go on serving",
        limit: Duration::from_secs(400),
        long: false,
        run: |context| {
            context.processors(4);
            hostile::hostile(context)?;
            all_run(context, 4)
        },
    },
    BootTest {
        name: "smp-driver-kill",
        about: "with four processors the network driver is killed while pages are served: service resumes",
        limit: Duration::from_secs(180),
        long: false,
        run: |context| {
            context.processors(4);
            restart::driver_kill(context)?;
            all_run(context, 4)
        },
    },
    BootTest {
        name: "smp-server-kill",
        about: "with four processors every server that is to be restarted is killed: the VMs live on",
        limit: Duration::from_secs(400),
        long: false,
        run: |context| {
            context.processors(4);
            restart::server_kill(context)?;
            all_run(context, 4)
        },
    },
];

fn smp(context: &mut Context<'_>) -> Result<()> {
    for processors in [1, 2, 4] {
        context.processors(processors);
        web::web(context)?;
        all_run(context, processors)?;
    }
    Ok(())
}

/// A lone processor is not told of.
fn all_run(context: &mut Context<'_>, processors: u16) -> Result<()> {
    if processors > 1 {
        context.line(0, &[&format!("{processors} processors run domains")])?;
    }
    Ok(())
}
