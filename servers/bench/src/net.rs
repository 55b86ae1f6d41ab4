//! What a network driver takes for a packet.
//!
//! Two drivers have a network card each, and the cards are connected. This server is the switch of both: it sends packets through the one and
//! takes them from the other. What the driver has executed meanwhile `init` knows: the machine's time counts instructions.

use protocol::{
    abi::Target,
    service::{
        init::{self, Init},
        net_driver::{NetDriver, Request, Response},
    },
};
use server_runtime::{Client, Startup, clock, hypercall, log, memory, mmio::Region};
use vswitch::uplink::{State, Uplink};

/// Bytes of each packet: what the driver takes for one does not depend on it.
const LENGTH: usize = 1000;
/// Packets put up at a time.
const BATCHES: [usize; 3] = [1, 8, 32];
/// Batches of a measurement, and before it.
const ROUNDS: usize = 64;
const WARM_UP: usize = 8;
/// Nanoseconds after which a packet is lost, or a driver does not start.
const PATIENCE: u64 = 10_000_000_000;
/// Nanoseconds between two attempts to start a driver.
const PAUSE: u64 = 20_000_000;

/// A driver, as its switch sees it.
struct Driver {
    slot: u8,
    memory: Region,
    rings: Uplink,
}

impl Driver {
    /// The driver called `server`, started, with the packet memory called `shared`.
    fn start(startup: &Startup, server: &str, shared: &str) -> Driver {
        let Some(channel) = startup.channel(server) else { panic!("there is no channel to {server:?}") };
        let Some(memory) = memory::shared(shared) else { panic!("there is no shared memory {shared:?}") };
        let mut client = Client::<NetDriver>::new(channel.slot);
        let end = clock::now() + PATIENCE;
        loop {
            match client.call(&Request::Start) {
                Ok(Response::Started { link: true, .. }) => break,
                other if clock::now() > end => panic!("{server} does not start: {other:?}"),
                _ => hypercall::idle(clock::now() + PAUSE),
            }
        }
        let mut rings = Uplink::new(Some(memory));
        rings.set_state(State::Up);
        Driver { slot: channel.slot, memory, rings }
    }

    /// Tells the driver of what has moved.
    fn tell(&mut self) {
        if self.rings.show() {
            let _ = hypercall::raise(Target::slot(self.slot));
        }
    }

    fn send(&mut self, packets: usize) {
        while self.rings.room() < packets {
            wait();
        }
        for _ in 0..packets {
            // To everybody, so that no card looks at it twice.
            self.memory.copy_in(self.rings.send_place(0), &[0xff; LENGTH]);
            self.rings.put_up(LENGTH);
        }
        self.tell();
    }

    fn take(&mut self, packets: usize) {
        let mut taken = 0;
        while taken < packets {
            let arrived = self.rings.arrived();
            if arrived == 0 {
                wait();
                continue;
            }
            taken += arrived;
            self.rings.take(arrived);
            self.tell();
        }
    }
}

/// Waits until a driver has moved something.
fn wait() {
    let woken = hypercall::wait(None, clock::now() + PATIENCE);
    assert!(!matches!(woken, Ok(hypercall::Woken::Deadline)), "packets were lost");
}

/// Measures all, prints it, and sleeps. Options: `driver` is measured, `peer` has the other card; each has the packet memory of its name.
pub fn run(startup: &Startup) -> ! {
    let name = startup.option("driver").unwrap_or("nic");
    let peer = startup.option("peer").unwrap_or("peer");
    let Some(init) = startup.channel("init") else { panic!("there is no channel to init") };
    let mut init = Client::<Init>::new(init.slot);
    let mut instructions = || match init.call(&init::Request::List) {
        Ok(init::Response::Servers(servers)) => {
            servers.iter().find(|server| server.name == name).map_or(0, |server| server.cpu_time)
        }
        other => panic!("init answers {other:?}"),
    };
    let mut driver = Driver::start(startup, name, name);
    let mut peer = Driver::start(startup, peer, peer);
    for batch in BATCHES {
        for (direction, sends) in [("send", true), ("receive", false)] {
            let mut rounds = |rounds| {
                for _ in 0..rounds {
                    let (from, to) = if sends { (&mut driver, &mut peer) } else { (&mut peer, &mut driver) };
                    from.send(batch);
                    to.take(batch);
                }
            };
            rounds(WARM_UP);
            let before = instructions();
            rounds(ROUNDS);
            let each = (instructions() - before) / (ROUNDS * batch) as u64;
            log!("BENCH packet {each} instructions lower direction={direction} batch={batch}");
        }
    }
    log!("all is measured");
    hypercall::sleep_forever()
}
