//! The swap server. Its logic is in the library part; here it is bound to the kernel and to its clients.
#![cfg_attr(target_os = "none", no_std)]
#![no_main]

extern crate alloc;

mod kernel;
mod memory;

use alloc::vec;
use kernel::Kernel;
use server_runtime::{
    Answer, Caller, Handler, Startup,
    hypercall::{self, Token},
    log,
    protocol::{
        abi::{NEVER, Target},
        domain::{Device, Event, TRAP_QUEUE, queue_line},
        layout::PAGE,
        manifest::Resource,
        service::pager::{self, Request, Response},
    },
};
use swap::pager::{BATCH, Outcome, Pager};

server_runtime::entry!(main);

/// Name of the client that manages VMs and is told of their ends.
const MANAGER: &str = "loader";
/// Names of the peers behind the doorbells of VMs.
const SERVICES: [(Device, &str); 2] = [(Device::Nic, "vswitch"), (Device::Console, "console")];
/// Batches of events taken before requests get their turn.
const BATCHES: usize = 4;

/// Frames of the pool whose records one page table of our own maps, at no more than 32 bytes each.
const FRAMES_PER_TABLE: u64 = 512 * PAGE / 32;
/// Page tables kept for other mappings.
const TABLES_KEPT: u64 = 4;

fn main(startup: Startup) -> ! {
    let Some(pool) = startup.resources.iter().find(|r| r.resource == Resource::Pool) else {
        panic!("holds no pool: the system file must give this server the resource \"pool\"");
    };
    let mut kernel = Kernel { slot: pool.slot };
    // A large pool needs a large table, and that page tables out of our own memory.
    let tables = startup.own_free_count.saturating_sub(TABLES_KEPT);
    let count = pool.count.min(tables.saturating_mul(FRAMES_PER_TABLE));
    let frames = match memory::frame_table(&mut kernel, pool.first, count) {
        Ok(frames) => frames,
        Err(error) => panic!("cannot set up the frame table of {count} frames: {error}"),
    };
    let Some(pager) = Pager::new(pool.slot, services(&startup), frames, &mut kernel) else {
        panic!("the pool of {} frames is too small", pool.count);
    };
    let unused = pool.count.saturating_sub(pager.frames().into());
    if unused > 0 {
        let mib = (unused * PAGE) >> 20;
        log!("{mib} MiB of the pool stay unused: to manage them, give this server more memory in the system file");
    }
    log!("{} MiB for VMs", (pager.available() * PAGE) >> 20);
    let manager = startup.clients.iter().find(|client| client.name == MANAGER);
    let server = Server {
        pager,
        kernel,
        manager: manager.map(|client| client.badge),
        manager_target: manager.map(|client| Target::slot(client.slot)),
        events: vec![Event::default(); BATCH].into_boxed_slice(),
        more_events: true,
    };
    server_runtime::run::<pager::Pager, _>(server)
}

/// The services behind the doorbells of NIC, disk and console: 0 where there is none.
fn services(startup: &Startup) -> [u64; 3] {
    let mut services = [0; 3];
    for (device, name) in SERVICES {
        let client = startup.clients.iter().find(|client| client.name == name).map(|client| client.slot);
        let slot = client.or_else(|| startup.channel(name).map(|channel| channel.slot));
        if let (Some(service), Some(slot)) = (services.get_mut(device as usize - 1), slot) {
            *service = Target::slot(slot).0;
        }
    }
    services
}

struct Server {
    pager: Pager<'static>,
    kernel: Kernel,
    /// Badge of the manager.
    manager: Option<u64>,
    /// How to raise its line.
    manager_target: Option<Target>,
    events: alloc::boxed::Box<[Event]>,
    /// Whether there may be events in the queue that no interrupt will tell of any more.
    more_events: bool,
}

impl Server {
    /// Serves events, a bounded number of them.
    fn serve_events(&mut self) {
        for _ in 0..BATCHES {
            let taken = hypercall::collect(TRAP_QUEUE, &mut self.events).unwrap_or(0);
            self.pager.events(&mut self.kernel, self.events.get(..taken).unwrap_or_default());
            // Less than there was room for: the queue is empty, and the next event will raise its line.
            self.more_events = taken == self.events.len();
            if !self.more_events {
                break;
            }
        }
        self.tell();
    }

    /// Tells the manager of VMs that stopped.
    fn tell(&mut self) {
        if self.pager.take_ring()
            && let Some(target) = self.manager_target
        {
            // If it is gone just now it asks by itself once it is back.
            let _ = hypercall::raise(target);
        }
    }

    /// One bounded piece of what takes long.
    fn work(&mut self) {
        if self.more_events {
            self.serve_events();
        }
        if self.pager.has_work() {
            self.pager.work(&mut self.kernel);
        }
        while let Some((caller, response)) = self.pager.take_answer() {
            // A caller that no longer waits was stopped or restarted. What it had created it finds by `List`.
            let _ = server_runtime::respond::<pager::Pager>(Token(caller.0), &response, None);
        }
    }
}

impl Handler<pager::Pager> for Server {
    fn request(&mut self, from: Caller, request: Request) -> Answer<Response> {
        let manager = Some(from.badge) == self.manager;
        let lent = from.token.map(Token::lent);
        let outcome = self.pager.request(&mut self.kernel, manager, lent, request);
        self.tell();
        match outcome {
            Outcome::Now(response) => Answer::Now(response),
            Outcome::Later => Answer::Later,
        }
    }

    fn connected(&mut self, badge: u64) {
        if Some(badge) == self.manager {
            self.pager.manager_connected();
            self.tell();
        }
    }

    fn interrupts(&mut self, lines: u64) {
        if lines & 1 << queue_line(TRAP_QUEUE) != 0 {
            self.serve_events();
        }
    }

    fn deadline(&mut self) {
        self.work();
    }

    fn next_deadline(&self) -> u64 {
        // Work that is left is done between messages: they are looked for, but not waited for.
        if self.more_events || self.pager.has_work() { 0 } else { NEVER }
    }
}
