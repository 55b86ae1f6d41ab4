//! Figures of the pager, of the drivers of disks and of all servers that this one may call, at regular times: one line each, which the builder reads
//! (`FIGURES at=NANOSECONDS key=value…`).

use block_client::Channel;
use core::fmt::Write;
use protocol::{
    manifest::StartupChannel,
    service::{block_driver, init, loader, pager},
};
use server_runtime::{Client, Startup, clock, heap_in_use, hypercall, log};

/// What each line begins with.
const MARK: &str = "FIGURES";
/// Milliseconds between two lines if the option `milliseconds` does not say.
const PERIOD: u64 = 1000;

/// Tells them for ever. Options: `milliseconds` between two lines; `pager` and `driver`, names of servers; `heaps` and `times`, `"true"`: also the heap in
/// use of each server that may be called, and the processor time of each server, and of all VMs if the loader may be called.
pub fn run(startup: &Startup) -> ! {
    let period = crate::disk::number(startup, "milliseconds", PERIOD).max(1).saturating_mul(1_000_000);
    let channel = |option: &str, name: &str| startup.channel(startup.option(option).unwrap_or(name));
    let mut pager = channel("pager", "swap").map(|channel| Client::<pager::Pager>::new(channel.slot));
    let mut driver = channel("driver", "virtio-blk").map(|channel| Channel::new(channel.slot));
    let is = |option: &str| startup.option(option) == Some("true");
    let mut init = channel("init", "init").filter(|_| is("times")).map(|c| Client::<init::Init>::new(c.slot));
    let mut loader = channel("loader", "loader").filter(|_| is("times")).map(|c| Client::<loader::Loader>::new(c.slot));
    let heaps = if is("heaps") { startup.channels.as_slice() } else { &[] };
    let mut next = period;
    let mut line = alloc::string::String::new();
    loop {
        // At whole multiples, so that what others do at known times is not disturbed.
        hypercall::idle(next);
        next = (clock::now() / period + 1) * period;
        line.clear();
        let told = tell(&mut line, &mut pager, &mut driver, (&mut init, &mut loader), heaps);
        if told.is_some() {
            log!("{MARK} at={}{line}", clock::now());
        }
    }
}

/// All figures that can be had. `None`: some server did not answer (it is being restarted).
fn tell(
    line: &mut alloc::string::String,
    pager: &mut Option<Client<pager::Pager>>,
    driver: &mut Option<Channel>,
    (init, loader): (&mut Option<Client<init::Init>>, &mut Option<Client<loader::Loader>>),
    heaps: &[StartupChannel],
) -> Option<()> {
    if let Some(pager) = pager {
        let Ok(pager::Response::Pool {
            total,
            free,
            vms,
            suspended,
            waiting,
            page_ins,
            page_outs,
            own,
            most_reads,
            ..
        }) = pager.call(&pager::Request::Pool)
        else {
            return None;
        };
        write!(line, " frames={total} free={free} own={own} vms={vms} suspended={suspended} waiting={waiting}").ok()?;
        write!(line, " page-ins={page_ins} page-outs={page_outs} most-reads={most_reads}").ok()?;
    }
    if let Some(driver) = driver {
        let Ok(block_driver::Response::Statistics { requests, read, written, .. }) = driver.statistics() else {
            return None;
        };
        write!(line, " requests={requests} read={read} written={written}").ok()?;
    }
    if let Some(init) = init {
        let Ok(init::Response::Servers(servers)) = init.call(&init::Request::List) else { return None };
        servers.iter().try_for_each(|server| write!(line, " time-{}={}", server.name, server.cpu_time)).ok()?;
    }
    if let Some(loader) = loader {
        write!(line, " vms-time={}", vms_time(loader)?).ok()?;
    }
    for channel in heaps {
        write!(line, " heap-{}={}", channel.name, heap_in_use(channel.slot)?).ok()?;
    }
    Some(())
}

/// Nanoseconds of processor time of all VMs.
fn vms_time(loader: &mut Client<loader::Loader>) -> Option<u64> {
    let (mut time, mut from) = (0u64, 0);
    loop {
        let Ok(loader::Response::Vms(vms, next)) = loader.call(&loader::Request::List { from }) else { return None };
        time = vms.iter().fold(time, |time, vm| time.saturating_add(vm.cpu_time));
        match next.filter(|next| *next > from) {
            Some(next) => from = next,
            None => return Some(time),
        }
    }
}
