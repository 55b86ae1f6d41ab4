//! Servers that are killed while the system works.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use miette::{Result, miette};
use protocol::manifest::Restart;

use super::BootTest;
use super::harness::Context;
use crate::machine::http;

pub(super) const TESTS: &[BootTest] = &[
    BootTest {
        name: "driver-kill",
        about: "the network driver is killed while pages are served: it is restarted and service resumes",
        limit: Duration::from_secs(90),
        long: false,
        run: driver_kill,
    },
    BootTest {
        name: "server-kill",
        about: "every server that is to be restarted is killed, one after the other: the VMs live on",
        limit: Duration::from_secs(240),
        long: false,
        run: server_kill,
    },
];

/// A VM that must live through all of it.
const VM: &str = "httpd-1";

pub(super) fn driver_kill(context: &mut Context<'_>) -> Result<()> {
    context.boot(None)?;
    kill_while_serving(context, "nic", VM)?;
    context.page("httpd-2", "/")?;
    context.healthy()
}

/// Kills the network driver twice while a VM is asked for pages: it must go on answering.
pub(super) fn kill_while_serving(context: &mut Context<'_>, driver: &str, vm: &str) -> Result<()> {
    context.page(vm, "/")?;
    let port = context.port_of(vm)?;
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                if http::get(port, "/", Duration::from_secs(2)).is_ok() {
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        let result = kill_under_load(context, driver, &answered);
        stop.store(true, Ordering::SeqCst);
        result
    })
}

fn kill_under_load(context: &mut Context<'_>, driver: &str, answered: &AtomicUsize) -> Result<()> {
    more_answers(context, answered, "before the driver was killed")?;
    for _ in 0..2 {
        kill(context, driver)?;
        more_answers(context, answered, "after the driver was restarted")?;
    }
    Ok(())
}

fn more_answers(context: &Context<'_>, answered: &AtomicUsize, when: &str) -> Result<()> {
    let wanted = answered.load(Ordering::SeqCst) + 5;
    while answered.load(Ordering::SeqCst) < wanted {
        crate::interrupt::check()?;
        if Instant::now() >= context.deadline() {
            return Err(miette!("pages were not served any more {when}"));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

pub(super) fn server_kill(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(None)?;
    context.boot_built(&system, &built)?;
    let number = vm_number(context)?;
    // A server that is never restarted by its policy takes the system with it.
    let restarted = system.manifest.servers.iter().filter(|server| server.restart != Restart::Never);
    for server in restarted.map(|server| &server.name) {
        kill(context, server)?;
        context.page(VM, "/").map_err(|error| miette!("after `{server}` was killed: {error}"))?;
        if vm_number(context)? != number {
            return Err(miette!("after `{server}` was killed, VM `{VM}` is another one"));
        }
    }
    for vm in system.vms.iter().filter(|plan| plan.services.iter().any(|service| service.http)) {
        context.page(&vm.vm.name, "/")?;
    }
    context.healthy()
}

/// Kills a server from the console and waits until `init` has started it again.
fn kill(context: &mut Context<'_>, server: &str) -> Result<()> {
    let position = context.command(&format!("kill {server}"))?;
    context.line(position, &[&format!("init: server {server} restarted (")])?;
    Ok(())
}

/// The number of a VM: it tells the VM from another one started later in its place.
fn vm_number(context: &Context<'_>) -> Result<u64> {
    Ok(super::web::status(context, VM)?.id)
}
