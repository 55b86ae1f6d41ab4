//! The switch: binds [`vswitch`] to the machine.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]

extern crate alloc;

mod machine;

use machine::Machine;
use protocol::{
    abi::{NEVER, Target},
    domain::{Device, Event, EventKind, line},
    manifest::{Resource, StartupResource},
    service::{
        VmRef,
        net_driver::{self, NetDriver},
        switch::{Attached, Attachment, Request, Response, Switch as SwitchService},
    },
};
use server_runtime::{Answer, Caller, Client, Handler, Startup, clock, hypercall, memory, pool::Pool};
use vswitch::{
    budget::{Budget, SHARE},
    ports::Refusal,
    queue::Window,
    switch::Switch,
    uplink::{State, Uplink},
};

server_runtime::entry!(main);

/// Rounds before other work gets its turn.
const ROUNDS: usize = 8;
/// Events taken at a time, and how many times before packets are moved. All VMs that the kernel knows could have rung; those
/// beyond are taken in the next round.
const EVENTS: usize = 32;
const COLLECTS: usize = 32;
/// Nanoseconds until a driver that did not answer is asked again.
const RETRY: u64 = 100_000_000;
/// Answers of the pager taken at a time.
const ANSWERS: usize = 64;
/// Bytes of heap for other things than ports: scratch memory, lists of a round, records of VMs that wait.
const HEAP_KEPT: u64 = 1280 << 10;
/// Bytes of heap for each VM that may be attached: its port, and its places in queues while those grow.
const HEAP_PER_VM: u64 = 64;

fn main(startup: Startup) -> ! {
    let server = Server::new(&startup);
    server_runtime::run::<SwitchService, _>(server)
}

/// The network driver, as its client sees it.
struct Driver {
    client: Client<NetDriver>,
    slot: u8,
    line: u8,
}

struct Server {
    switch: Switch,
    machine: Machine,
    driver: Option<Driver>,
    /// The line that the pager raises.
    pager: Option<u8>,
    /// Whether it may have more to tell than was taken.
    more_brought: bool,
    budget: Budget,
    events: [Event; EVENTS],
    /// When to go on with what is left to do.
    again: u64,
    /// When to try the driver again.
    retry: u64,
}

impl Server {
    fn new(startup: &Startup) -> Server {
        let is_shared = |held: &StartupResource| matches!(held.resource, Resource::Shared { .. });
        let packets = startup.resources.iter().position(is_shared).and_then(memory::resource);
        let vms = Pool::of(startup, &Resource::Devices { device: Device::Nic as u8 });
        if vms.is_empty() {
            panic!("the system file does not let the switch serve NICs (`doorbells = [\"nic\"]`)");
        }
        // The driver may have any name: it is the server called that is neither the pager nor the console.
        let known = ["swap", "console", "platform", "init"];
        let driver = startup.channels.iter().find(|channel| !known.contains(&channel.name.as_str()));
        let driver =
            driver.map(|channel| Driver { client: Client::new(channel.slot), slot: channel.slot, line: channel.line });
        let uplink = Uplink::new(packets.filter(|_| driver.is_some()));
        if driver.is_none() || !uplink.exists() {
            server_runtime::log!("no network driver, or no packet memory shared with it: VMs reach each other only");
        }
        let pager = startup.channel("swap");
        let share = startup.option("share").and_then(|percent| percent.parse().ok()).unwrap_or(SHARE);
        let mut server = Server {
            switch: Switch::new((startup.heap.saturating_sub(HEAP_KEPT) / HEAP_PER_VM) as usize, uplink),
            machine: Machine::new(vms, pager.map(|channel| channel.slot), packets),
            driver,
            pager: pager.map(|channel| channel.line),
            more_brought: false,
            budget: Budget::new(share, clock::now()),
            events: [Event::default(); EVENTS],
            again: NEVER,
            retry: NEVER,
        };
        server.start_driver();
        server
    }

    /// Starts the driver's rings, both sides from zero.
    fn start_driver(&mut self) {
        self.retry = NEVER;
        let Some(driver) = &mut self.driver else {
            return;
        };
        if !self.switch.uplink.exists() {
            return;
        }
        self.switch.uplink.set_state(State::Starting);
        match driver.client.call(&net_driver::Request::Start) {
            Ok(net_driver::Response::Started { .. }) => self.switch.uplink.set_state(State::Up),
            Ok(other) => {
                server_runtime::log!("no way to the network: the driver answers {other:?}");
                self.switch.uplink.set_state(State::Absent);
            }
            Err(_) => self.retry = clock::now() + RETRY,
        }
        // The session is new, and so are the rings.
        driver.client.take_restarted();
    }

    /// Some peer was restarted: if it was the driver, its rings begin anew.
    fn check_driver(&mut self) {
        let Some(driver) = &mut self.driver else {
            return;
        };
        let answer = driver.client.call(&net_driver::Request::Statistics);
        if answer.is_err() || driver.client.take_restarted() {
            self.start_driver();
        }
    }

    /// Takes the doorbells that VMs rang. Returns whether there may be more: while some are not taken, those that come raise no interrupts.
    fn collect(&mut self) -> bool {
        for _ in 0..COLLECTS {
            let count = hypercall::collect(Device::Nic as u8, &mut self.events).unwrap_or(0);
            for event in &self.events[..count] {
                if event.kind == EventKind::Doorbell as u32 {
                    let at = VmRef { frame: event.frame, generation: event.generation };
                    self.switch.rung(event.tag, at);
                }
            }
            if count < EVENTS {
                return false;
            }
        }
        true
    }

    /// Takes what the pager has brought.
    fn take_brought(&mut self) {
        self.more_brought = true;
        for _ in 0..ANSWERS {
            let vms = self.machine.brought();
            if vms.is_empty() {
                self.more_brought = false;
                break;
            }
            vms.into_iter().for_each(|vm| self.switch.brought(vm));
        }
    }

    fn attach(&mut self, port: Attachment) -> Attached {
        let Attachment { vm, at, mac, address, queue, length } = port;
        match Window::new(queue, length).map(|window| self.switch.attach(vm, at, mac, address, window)) {
            Some(Ok(())) => {
                // It may have filled its queue before. A VM that is nowhere has not.
                if at != VmRef::NOWHERE {
                    self.again = 0;
                }
                Attached::Done
            }
            Some(Err(Refusal::Clash)) => Attached::Clash,
            Some(Err(Refusal::Full)) => Attached::Full,
            None => Attached::BadWindow,
        }
    }

    /// Serves the VMs, if there is time for them. Returns whether there may be more to do.
    fn serve(&mut self) -> bool {
        let begin = clock::now();
        if !self.budget.is_open(begin) {
            return false;
        }
        let more = self.collect();
        let served = self.switch.serve(&mut self.machine);
        self.budget.spend(clock::now().saturating_sub(begin));
        served || more
    }

    fn work(&mut self) {
        let mut busy = true;
        for _ in 0..ROUNDS {
            if self.more_brought {
                self.take_brought();
            }
            let received = self.switch.receive(&mut self.machine);
            busy = self.serve() || received || self.more_brought;
            if self.switch.uplink.show()
                && let Some(driver) = &self.driver
            {
                // A driver that is being restarted is started anew when it is back.
                let _ = hypercall::raise(Target::slot(driver.slot));
            }
            if !busy {
                break;
            }
        }
        let now = clock::now();
        self.again = match () {
            () if busy => now,
            () if !self.budget.is_open(now) => self.budget.opens_at(),
            () => self.switch.next_look(),
        };
    }
}

impl Handler<SwitchService> for Server {
    fn request(&mut self, _: Caller, request: Request) -> Answer<Response> {
        let response = match request {
            Request::Attach(ports) => Response::Attached(ports.into_iter().map(|port| self.attach(port)).collect()),
            Request::Detach(vm) if self.switch.detach(vm) => Response::Done,
            Request::Detach(_) => Response::NotFound,
            Request::IsAttached(vm) if self.switch.is_attached(vm) => Response::Done,
            Request::IsAttached(_) => Response::NotFound,
        };
        Answer::Now(response)
    }

    fn interrupts(&mut self, lines: u64) {
        if lines & 1 << line::PEER_RESTARTED != 0 {
            self.check_driver();
            // If it was the pager, it has forgotten what it was asked for.
            self.switch.pager_restarted();
        }
        let pager = self.pager.map_or(0, |line| 1 << line);
        self.more_brought |= lines & pager != 0;
        let driver = self.driver.as_ref().map_or(0, |driver| 1 << driver.line);
        if lines & (1 << line::NIC | 1 << line::PEER_RESTARTED | driver | pager) != 0 {
            self.work();
        }
    }

    fn deadline(&mut self) {
        if clock::now() >= self.retry {
            self.start_driver();
        }
        self.work();
    }

    fn next_deadline(&self) -> u64 {
        self.again.min(self.retry)
    }
}
