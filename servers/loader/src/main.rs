//! The loader. Its logic is in the library part; here it is bound to the servers that it calls and to its client.
#![cfg_attr(target_os = "none", no_std)]
#![no_main]

extern crate alloc;

mod bundle;
mod calls;

use calls::Calls;
use loader::{loader::Loader, registers::Machine};
use server_runtime::{
    Answer, Caller, Handler, Startup, log,
    protocol::{
        abi::NEVER,
        bundle::MANIFEST,
        domain::line::PEER_RESTARTED,
        manifest::{MANIFEST_VERSION, Resource, VmTable},
        service::loader::{Loader as Service, Request, Response},
    },
};

server_runtime::entry!(main);

fn main(startup: Startup) -> ! {
    let Some(resource) = startup.resources.iter().find(|r| r.resource == Resource::Bundle) else {
        panic!("holds no bundle: the system file must give this server the resource \"bundle\"");
    };
    let Some(bundle) = bundle::mapped(resource) else { panic!("the bundle is not mapped") };
    let manifest = match server_runtime::protocol::bundle::find(bundle, MANIFEST) {
        Ok(Some(file)) => VmTable::decode(file.data),
        Ok(None) => panic!("the bundle has no manifest"),
        Err(error) => panic!("{error}"),
    };
    let (manifest, vms) = match manifest {
        Ok((manifest, vms)) if manifest.version == MANIFEST_VERSION => (manifest, vms),
        Ok((manifest, _)) => panic!("the manifest has version {}, not {MANIFEST_VERSION}", manifest.version),
        Err(error) => panic!("the manifest is damaged: {error}"),
    };
    let Some(mut calls) = Calls::new(&startup, resource.address) else {
        panic!("has no channel to the pager: the system file must give this server a channel to \"swap\"");
    };
    let machine = Machine {
        tsc_base: startup.tsc_base,
        tsc_multiplier: startup.tsc_multiplier,
        wall_clock: calls.wall_clock(),
        network: manifest.network,
    };
    let random = entropy::random(machine.wall_clock);
    let mut loader = Loader::new(bundle, vms, machine, random, startup.incarnation);
    if startup.incarnation == 0 {
        loader.start_all(&mut calls);
    } else {
        loader.adopt_all(&mut calls);
    }
    let pager_line = calls.pager_line();
    server_runtime::run::<Service, _>(Server {
        loader,
        calls,
        pager_line,
        more_stops: true,
        more_lost: false,
        start: 0,
    })
}

struct Server {
    loader: Loader<'static>,
    calls: Calls,
    /// The line that the pager raises.
    pager_line: u8,
    /// Whether there may be stopped VMs of which no interrupt will tell any more.
    more_stops: bool,
    /// Whether there are VMs that have not got back what they lost by the restart of a server.
    more_lost: bool,
    /// When VMs are to be started that are not yet, in nanoseconds since kernel entry.
    start: u64,
}

impl Handler<Service> for Server {
    fn request(&mut self, _: Caller, request: Request<'_>) -> Answer<Response> {
        Answer::Now(self.loader.request(&mut self.calls, &request))
    }

    fn interrupts(&mut self, lines: u64) {
        if lines & 1 << PEER_RESTARTED != 0 {
            self.loader.peer_restarted();
            self.more_lost = true;
        }
        if lines & 1 << self.pager_line != 0 {
            self.more_stops = self.loader.take_stops(&mut self.calls);
            self.start = self.loader.starts_at();
        }
    }

    fn deadline(&mut self) {
        self.more_lost = self.loader.attach_some(&mut self.calls);
        self.more_stops = self.loader.take_stops(&mut self.calls);
        self.start = self.loader.start_some(&mut self.calls).unwrap_or(NEVER);
    }

    fn next_deadline(&self) -> u64 {
        // What is left is done between requests: those are looked for, but not waited for.
        if self.more_stops || self.more_lost { 0 } else { self.start }
    }
}

/// For a fault that leaves the system as it is, but that its operator should know of.
fn warn(text: &str) {
    log!("warning: {text}");
}
