//! The server of virtual disks: binds [`vdisk`] to the machine.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]

extern crate alloc;

#[path = "main/kernel.rs"]
mod kernel;

use alloc::{format, string::String, vec::Vec};
use block_client::{Channel, Disk, Info, OpenError};
use hypercall::Token;
use kernel::Kernel;
use protocol::{
    abi::NEVER,
    domain::{Device, Event, EventKind, line},
    manifest::Resource,
    service::{
        VmRef,
        block_driver::shared_name,
        vdisk::{Request, Response, Vdisk},
    },
};
use server_runtime::{
    Answer, Caller, Handler, Startup,
    budget::{Budget, SHARE},
    clock, hypercall, log, memory,
    pool::Pool,
};
use vdisk::{requests::Rights, serve::Server as Core};

server_runtime::entry!(main);

/// Rounds before other work gets its turn.
const ROUNDS: usize = 8;
/// Events taken at a time, and how many times before VMs are served.
const EVENTS: usize = 32;
const COLLECTS: usize = 32;
/// Answers of the pager taken before VMs are served.
const BROUGHT: usize = 64;
/// Nanoseconds until what could not be done for now is tried again: a driver that does not answer, a pager that does not.
const RETRY: u64 = 100_000_000;
/// Times that a driver that does not answer is asked when the server starts; then there are no disks until it comes back.
const PATIENCE: u32 = 100;
/// Servers that are called and are no drivers.
const NO_DRIVERS: [&str; 4] = ["swap", "console", "platform", "init"];

fn main(startup: Startup) -> ! {
    let server = Server::new(&startup);
    server_runtime::run::<Vdisk, _>(server)
}

/// A driver that may have the partition.
struct Candidate {
    name: String,
    line: u8,
    disk: Disk<Channel>,
}

struct Server {
    core: Core<Token>,
    kernel: Kernel,
    /// Drivers that were not asked yet, in the order of the system file.
    candidates: Vec<Candidate>,
    /// Why the others are not it.
    refusals: Vec<String>,
    /// Times that the first candidate was asked in vain.
    asked: u32,
    /// Lines of the driver in use and of the pager, as bits.
    driver_line: u64,
    pager_line: u64,
    /// Clients' rights, by badge.
    rights: Vec<(u64, Rights)>,
    budget: Budget,
    /// When to go on with what is left to do.
    again: u64,
    /// When to ask a driver again; when to try parked VMs again.
    retry_driver: u64,
    retry_vms: u64,
}

impl Server {
    fn new(startup: &Startup) -> Server {
        let vms = Pool::of(startup, &Resource::Devices { device: Device::Disk as u8 });
        if vms.is_empty() {
            panic!("the system file does not let this server serve disks (`doorbells = [\"disk\"]`)");
        }
        let pager = startup.channel("swap");
        let mut candidates = Vec::new();
        let mut refusals = Vec::new();
        for channel in startup.channels.iter().filter(|channel| !NO_DRIVERS.contains(&channel.name.as_str())) {
            let wanted = shared_name(&startup.name, &channel.name);
            let is_shared = |resource: &Resource| matches!(resource, Resource::Shared { name, .. } if *name == wanted);
            let shared = startup.resources.iter().position(|held| is_shared(&held.resource)).and_then(memory::resource);
            let name = channel.name.clone();
            match shared.map(|shared| Disk::new(Channel::new(channel.slot), shared)) {
                Some(Ok(disk)) => candidates.push(Candidate { name, line: channel.line, disk }),
                Some(Err(error)) => refusals.push(format!("{name}: {error}")),
                None => refusals.push(format!("{name}: the system file names no memory `{wanted}`")),
            }
        }
        let share = startup.option("share").and_then(|percent| percent.parse().ok()).unwrap_or(SHARE);
        let mut server = Server {
            core: Core::new(),
            kernel: Kernel::new(vms, pager.map(|channel| channel.slot)),
            candidates,
            refusals,
            asked: 0,
            driver_line: 0,
            pager_line: pager.map_or(0, |channel| 1 << channel.line),
            rights: startup.clients.iter().map(|client| (client.badge, Rights::of(&client.name))).collect(),
            budget: Budget::new(share, clock::now()),
            again: NEVER,
            retry_driver: NEVER,
            retry_vms: NEVER,
        };
        server.core.wait_for_store();
        server.find_store();
        // The store is to be read, whether or not anybody asks for it.
        server.again = 0;
        server
    }

    /// Asks the drivers, one after the other, for a partition of virtual disks. The store is on the first that has one.
    fn find_store(&mut self) {
        self.retry_driver = NEVER;
        while let Some(candidate) = self.candidates.first_mut() {
            match candidate.disk.open() {
                Ok(info) => {
                    let Candidate { name, line, disk } = self.candidates.remove(0);
                    let rest: Vec<&str> = self.candidates.iter().map(|other| other.name.as_str()).collect();
                    let unused =
                        if rest.is_empty() { String::new() } else { format!("; not asked: {}", rest.join(", ")) };
                    log!("virtual disks are on {name}: {} MiB, {} slots{unused}", info.blocks / 256, disk.slots());
                    self.driver_line = 1 << line;
                    self.candidates.clear();
                    self.kernel.disk = Some(disk);
                    self.mount(info);
                    return;
                }
                Err(error) if error.is_passing() && self.asked < PATIENCE => {
                    self.asked += 1;
                    self.retry_driver = clock::now() + RETRY;
                    return;
                }
                Err(error) => {
                    self.asked = 0;
                    let Candidate { name, .. } = self.candidates.remove(0);
                    self.refusals.push(format!("{name}: {error}"));
                }
            }
        }
        let why = match self.refusals.is_empty() {
            true => String::from("the system has no disk driver"),
            false => format!("no drive has a partition for them ({})", self.refusals.join("; ")),
        };
        log!("no virtual disks: {why}");
        self.core.close(why);
    }

    fn mount(&mut self, info: Info) {
        if info.read_only {
            // Nothing could be made and nothing written: better said at once than by each write.
            let why = "the drive cannot be written";
            log!("no virtual disks: {why}");
            self.core.close(why.into());
        } else {
            self.core.mount(info.blocks);
        }
    }

    /// Some peer was restarted: if it was the driver, what it has not answered is submitted again.
    fn check_driver(&mut self) {
        self.retry_driver = NEVER;
        let Some(disk) = &mut self.kernel.disk else {
            if !self.candidates.is_empty() {
                self.find_store();
            }
            return;
        };
        match disk.restarted() {
            Some(Ok(_)) => log!("the disk driver is back"),
            Some(Err(error)) if error.is_passing() => self.retry_driver = clock::now() + RETRY,
            Some(Err(error)) => {
                log!("the disk is lost: {error}");
                if error == OpenError::OtherPartition {
                    self.core.close(format!("{error}"));
                }
            }
            None => {}
        }
    }

    /// Takes the doorbells that VMs rang. Returns whether there may be more: those that are not taken raise no interrupts.
    fn collect(&mut self) -> bool {
        let mut events = [Event::default(); EVENTS];
        for _ in 0..COLLECTS {
            let Ok(count @ 1..) = hypercall::collect(Device::Disk as u8, &mut events) else {
                return false;
            };
            for event in &events[..count] {
                if event.kind == EventKind::Doorbell as u32 {
                    let at = VmRef { frame: event.frame, generation: event.generation };
                    self.core.rung(event.tag, at);
                }
            }
        }
        true
    }

    /// VMs that the pager has brought go on.
    fn take_brought(&mut self) {
        for _ in 0..BROUGHT {
            let vms = self.kernel.brought();
            if vms.is_empty() {
                return;
            }
            vms.into_iter().for_each(|vm| self.core.brought(vm));
        }
        self.retry_vms = 0;
    }

    fn work(&mut self) {
        let mut busy = true;
        for _ in 0..ROUNDS {
            let begin = clock::now();
            if !self.budget.is_open(begin) {
                break;
            }
            let more = self.collect();
            busy = self.core.work(&mut self.kernel) || more;
            if let Some(disk) = &mut self.kernel.disk {
                disk.notify();
            }
            self.budget.spend(clock::now().saturating_sub(begin));
            if !busy {
                break;
            }
        }
        let now = clock::now();
        self.tell(now);
        self.again = match () {
            () if !self.budget.is_open(now) => self.budget.opens_at(),
            () if busy => now,
            () => NEVER,
        };
        if self.core.take_retry() {
            self.retry_vms = self.retry_vms.min(now + RETRY);
        }
    }

    /// Answers clients, and tells the operator.
    fn tell(&mut self, now: u64) {
        while let Some((token, response)) = self.core.response() {
            // A client that was restarted meanwhile waits no more.
            let _ = server_runtime::respond::<Vdisk>(token, &response, None);
        }
        for note in self.core.notes() {
            log!("{note}");
        }
        if let Some(report) = self.core.report(now) {
            log!("{report}");
        }
    }
}

impl Handler<Vdisk> for Server {
    fn request(&mut self, from: Caller, request: Request) -> Answer<Response> {
        let Some(token) = from.token else {
            return Answer::Now(Response::Denied);
        };
        let rights = self.rights.iter().find(|(badge, _)| *badge == from.badge).map_or(Rights::Nobody, |(_, r)| *r);
        // The store is not found yet: requests wait for it, unless there is none.
        let response = self.core.request(&mut self.kernel, rights, token, request);
        self.again = 0;
        match response {
            Some(response) => Answer::Now(response),
            None => Answer::Later,
        }
    }

    fn interrupts(&mut self, lines: u64) {
        if lines & 1 << line::PEER_RESTARTED != 0 {
            self.check_driver();
            // What the pager was asked before it was restarted it does not know.
            self.core.unpark_all();
        }
        if lines & self.pager_line != 0 {
            self.take_brought();
        }
        self.work();
    }

    fn deadline(&mut self) {
        let now = clock::now();
        if now >= self.retry_driver {
            self.check_driver();
        }
        if now >= self.retry_vms {
            self.retry_vms = NEVER;
            self.take_brought();
            self.core.unpark_all();
        }
        self.work();
    }

    fn next_deadline(&self) -> u64 {
        let report = self.core.report_due().unwrap_or(NEVER);
        self.again.min(self.retry_driver).min(self.retry_vms).min(report)
    }
}
