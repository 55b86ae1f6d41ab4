//! The swap server. Its logic is in the library part; here it is bound to the kernel, to the drivers of swap disks and to its clients.
#![cfg_attr(target_os = "none", no_std)]
#![no_main]

extern crate alloc;

mod disks;
mod kernel;
mod memory;

use alloc::vec;
use disks::SwapDisks;
use kernel::Kernel;
use server_runtime::{
    Answer, Caller, Handler, Startup,
    hypercall::{self, Token},
    log,
    protocol::{
        abi::Target,
        domain::{Device, Event, TRAP_QUEUE, line, queue_line},
        layout::{PAGE, POOL_FRAMES_PER_TABLE},
        manifest::Resource,
        service::pager::{self, Request, Response},
    },
};
use swap::{
    frames::Pool,
    machine::Completed,
    pager::{BATCH, CLIENTS, Client, Outcome, Pager, Parts},
};

server_runtime::entry!(main);

/// Name of the client that manages VMs and is told of their ends.
const MANAGER: &str = "loader";
/// Names of the peers behind the doorbells of VMs.
const SERVICES: [(Device, &str); 3] = [(Device::Nic, "vswitch"), (Device::Disk, "vdisk"), (Device::Console, "console")];
/// Batches of events taken before requests get their turn.
const BATCHES: usize = 4;
/// Answers of disks taken before requests get their turn.
const ANSWERS: usize = 256;
/// KiB that are read and written together, if the system file does not say.
const BLOCK: u32 = 16;

/// Page tables kept for other mappings.
const TABLES_KEPT: u64 = 8;

fn main(startup: Startup) -> ! {
    let pool = Pool::of(&startup, &Resource::Pool);
    if pool.is_empty() {
        panic!("holds no pool: the system file must give this server the resource \"pool\"");
    }
    let mut kernel = Kernel::new(pool, SwapDisks::open(&startup));
    let pager = match start(&startup, &mut kernel) {
        Ok(pager) => pager,
        Err(reason) => panic!("{reason}"),
    };
    let unused = pool.frames().saturating_sub(pager.frames());
    if unused > 1 {
        let mib = (u64::from(unused) * PAGE) >> 20;
        log!("{mib} MiB of the pool stay unused: to manage them, give this server more memory in the system file");
    }
    match kernel.disks.mib() {
        0 => log!("{} MiB for VMs, no swap space: all that VMs may use is promised when they are created", mib(&pager)),
        swap => log!("{} MiB for VMs, {swap} MiB of swap space", mib(&pager)),
    }
    if pager.vms() > 0 {
        log!("{} VMs found again", pager.vms());
    }
    let manager = startup.clients.iter().find(|client| client.name == MANAGER);
    let mut server = Server {
        pager,
        kernel,
        manager: manager.map(|client| client.badge),
        manager_target: manager.map(|client| Target::slot(client.slot)),
        clients: startup.clients.iter().take(CLIENTS).map(|client| (client.badge, Target::slot(client.slot))).collect(),
        events: vec![Event::default(); BATCH].into_boxed_slice(),
        more_events: true,
    };
    server.work();
    server_runtime::run::<pager::Pager, _>(server)
}

fn mib(pager: &Pager) -> u64 {
    (u64::from(pager.frames()) * PAGE) >> 20
}

/// Sets up the pager, or finds again what the one before has left.
fn start(startup: &Startup, kernel: &mut Kernel) -> Result<Pager<'static>, alloc::string::String> {
    use alloc::{format, string::String};
    let block = match startup.option("block").map(str::parse) {
        None => BLOCK,
        Some(Ok(kib @ (4 | 8 | 16 | 32 | 64))) => kib,
        Some(_) => return Err(String::from("option `block` must be 4, 8, 16, 32 or 64 (KiB)")),
    };
    // A large pool needs a large table, and that page tables out of our own memory.
    let tables = startup.own_free_count.saturating_sub(TABLES_KEPT);
    let pool = kernel.pool().cut(tables.saturating_mul(POOL_FRAMES_PER_TABLE));
    let count = pool.frames();
    let again = startup.incarnation > 0;
    let state = memory::map(kernel, pool, again)
        .map_err(|error| format!("cannot set up the frame table of {count} frames: {error}"))?;
    let memory::State { kept, frames, found } = state;
    if !found {
        kept.key = entropy::random(startup.tsc_base).seed();
        kept.partitions = kernel.disks.partitions();
    } else if kept.partitions != kernel.disks.partitions() {
        // The numbers say so too: what was on other disks is not there.
        log!("the swap disks are not those that were there before: VMs that were swapped out are lost");
        (kept.units, kept.disks) = (0, 0);
    }
    let stripes = kernel.disks.stripes();
    let parts = Parts { services: services(startup), frames, kept, stripes, block: block / 4 };
    let pager = if found { Pager::recover(parts, kernel) } else { Pager::new(parts, kernel) };
    pager.ok_or_else(|| match found {
        true => String::from("what the pager before this one has left makes no sense"),
        false => format!("the pool of {count} frames is too small"),
    })
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
    /// Badges of the clients that can wait for pages, and how to raise their lines.
    clients: alloc::vec::Vec<(u64, Target)>,
    events: alloc::boxed::Box<[Event]>,
    /// Whether there may be events in the queue that no interrupt will tell of any more.
    more_events: bool,
}

impl Server {
    fn client(&self, badge: u64) -> Client {
        let number = self.clients.iter().position(|(known, _)| *known == badge).map(|number| number as u8);
        Client { manager: Some(badge) == self.manager, number }
    }

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
    }

    /// Takes answers of disks, a bounded number of them.
    fn take_answers(&mut self) {
        for _ in 0..ANSWERS {
            let Some((disk, slot, status)) = self.kernel.disks.poll() else { break };
            self.pager.completed(&mut self.kernel, Completed { disk, slot, status });
        }
    }

    /// One bounded piece of all that there is to do, and then everybody is told what concerns them.
    fn work(&mut self) {
        if self.more_events {
            self.serve_events();
        }
        self.take_answers();
        self.pager.work(&mut self.kernel);
        self.kernel.disks.notify();
        while let Some((caller, response)) = self.pager.take_answer() {
            // A caller that no longer waits was stopped or restarted. What it had created it finds by `List`.
            let _ = server_runtime::respond::<pager::Pager>(Token(caller.0), &response, None);
        }
        // Who is gone just now asks by itself once it is back.
        if self.pager.take_ring()
            && let Some(target) = self.manager_target
        {
            let _ = hypercall::raise(target);
        }
        let tell = self.pager.take_tell();
        for (_, (_, target)) in self.clients.iter().enumerate().filter(|(number, _)| tell >> number & 1 != 0) {
            let _ = hypercall::raise(*target);
        }
    }
}

impl Handler<pager::Pager> for Server {
    fn request(&mut self, from: Caller, request: Request) -> Answer<Response> {
        let lent = from.token.map(Token::lent);
        let client = self.client(from.badge);
        let outcome = self.pager.request(&mut self.kernel, client, lent, request);
        self.work();
        match outcome {
            Outcome::Now(response) => Answer::Now(response),
            Outcome::Later => Answer::Later,
        }
    }

    fn connected(&mut self, badge: u64) {
        let client = self.client(badge);
        self.pager.connected(client);
        self.work();
    }

    fn interrupts(&mut self, lines: u64) {
        if lines & 1 << line::PEER_RESTARTED != 0 {
            self.kernel.disks.restarted();
        }
        if lines & 1 << queue_line(TRAP_QUEUE) != 0 {
            self.serve_events();
        }
        self.work();
    }

    fn deadline(&mut self) {
        self.kernel.disks.retry();
        self.work();
    }

    fn next_deadline(&self) -> u64 {
        // Work that is left is done between messages: they are looked for, but not waited for.
        let again = if self.more_events || self.kernel.disks.has_answers() { 0 } else { self.pager.next_deadline() };
        again.min(self.kernel.disks.next_retry())
    }
}
