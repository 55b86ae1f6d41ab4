//! The loop of a driver.

use crate::{
    BlockDriver, Dma, Failure, Problem, Request as DeviceRequest, gpt,
    gpt::Table,
    rings::{Opening, Rings},
};
use alloc::{format, string::String, vec::Vec};

use protocol::{
    abi::{NEVER, Target},
    domain::line,
    layout::PAGE,
    manifest::{Resource, StartupClient},
    service::block_driver::{BLOCK, BlockDriver as Service, Partition, Request, Response, shared_name},
};
use server_runtime::{
    Answer, Caller, Handler, Startup, clock,
    hypercall::{self, Token},
    respond,
};

/// Seconds that a device may take for a request if the option `timeout` does not say.
const TIMEOUT_DEFAULT: u64 = 10;
/// Most seconds that the option may say.
const TIMEOUT_MAX: u64 = 3600;
const SECOND: u64 = 1_000_000_000;
/// Nanoseconds between two looks at a device while the partition table is read, should its interrupt not come.
const LOOK: u64 = 10_000_000;
/// Nanoseconds between two lines that tell of requests that have failed: a broken disk fails all of them.
const FAILURES: u64 = 10 * SECOND;
/// All lines of hardware interrupts.
const HARDWARE: u64 = !0 << line::HARDWARE_FIRST;

/// What a driver is given.
pub struct Setup<'a> {
    /// The startup page: options of the system file, channels.
    pub startup: &'a Startup,
    /// Memory for the device: descriptors and the like.
    pub dma: Dma,
    /// The memories shared with clients: all buffers lie in them or in [`Setup::table`].
    pub buffers: Vec<Dma>,
    /// The page into which the partition table is read.
    pub table: Dma,
}

/// A client of the system file.
struct Known {
    startup: StartupClient,
    /// Its memory.
    shared: Option<Dma>,
    /// Its kind of partition.
    kind: Option<Partition>,
    /// Its number in the rings.
    number: Option<usize>,
    /// Who waits until its session begins.
    opening: Option<Token>,
}

/// Opens the device with `open` and serves it for ever. Without a device the driver answers `NoDevice`.
pub fn serve<D: BlockDriver>(startup: Startup, open: impl FnOnce(&Setup<'_>) -> Result<D, Problem>) -> ! {
    let mut known = clients(&startup);
    let disk = Disk::open(&startup, &mut known, open);
    if let Err(problem) = &disk {
        server_runtime::log!("no device: {problem}");
    }
    let mut server = Server { disk: disk.ok(), known };
    server.read_table();
    server_runtime::run::<Service, _>(server)
}

/// What the system file says of each client; what is wrong with it is logged, and that client denied.
fn clients(startup: &Startup) -> Vec<Known> {
    let mut known: Vec<Known> = Vec::new();
    for client in &startup.clients {
        let wanted = shared_name(&client.name, &startup.name);
        let named = |resource: &Resource| matches!(resource, Resource::Shared { name, .. } if *name == wanted);
        let index = startup.resources.iter().position(|held| named(&held.resource));
        let shared = index.and_then(|index| Dma::resource(startup, index));
        let option = startup.option(&client.name);
        let mut kind = option.and_then(Partition::named);
        if option.is_some() && kind.is_none() {
            let kinds = Partition::ALL.map(Partition::name).join(", ");
            server_runtime::log!("option `{}`: there are partitions {kinds}", client.name);
        } else if option.is_some() && shared.is_none() {
            server_runtime::log!("`{}` has no shared memory `{wanted}`", client.name);
        }
        if let Some(other) = known.iter().find(|other| kind.is_some() && other.kind == kind) {
            server_runtime::log!("`{}` has the partition that `{}` is to have too", other.startup.name, client.name);
            kind = None;
        }
        known.push(Known { startup: client.clone(), shared, kind, number: None, opening: None });
    }
    known
}

/// Nanoseconds that the device may take.
fn timeout(startup: &Startup) -> u64 {
    let seconds = startup.option("timeout").map(|text| text.parse().ok().filter(|s| (1..=TIMEOUT_MAX).contains(s)));
    if seconds == Some(None) {
        server_runtime::log!("option `timeout`: whole seconds, 1 to {TIMEOUT_MAX}; going on with {TIMEOUT_DEFAULT}");
    }
    seconds.flatten().unwrap_or(TIMEOUT_DEFAULT) * SECOND
}

/// The device and what is known of the disk.
struct Disk<D> {
    rings: Rings<D>,
    /// The partitions; an error if they could not be read.
    table: Option<Table>,
    page: Dma,
    timeout: u64,
    /// Requests that have failed and were told of.
    told: u64,
    /// When the next ones may be told of.
    tell_from: u64,
}

impl<D: BlockDriver> Disk<D> {
    fn open(
        startup: &Startup,
        known: &mut [Known],
        open: impl FnOnce(&Setup<'_>) -> Result<D, Problem>,
    ) -> Result<Disk<D>, Problem> {
        let is_shared = |resource: &Resource| match resource {
            Resource::Shared { name, .. } => {
                startup.clients.iter().all(|client| *name != shared_name(&client.name, &startup.name))
            }
            _ => false,
        };
        let index = startup.resources.iter().position(|held| is_shared(&held.resource));
        let memory = index.and_then(|index| Dma::resource(startup, index));
        let memory = memory.ok_or("the system file gives the driver no shared memory of its own for its device")?;
        let rest = memory.memory.length().checked_sub(PAGE as usize).filter(|rest| *rest > 0);
        let rest = rest.ok_or("the memory for the device is too small")?;
        let setup = Setup {
            startup,
            dma: memory.part(0, rest),
            buffers: known.iter().filter_map(|known| known.shared).collect(),
            table: memory.part(rest, PAGE as usize),
        };
        let mut device = open(&setup)?;
        device.reset()?;
        let timeout = timeout(startup);
        let mut rings = Rings::new(device, timeout);
        for known in known.iter_mut().filter(|known| known.kind.is_some()) {
            known.number = known.shared.and_then(|shared| rings.add(shared));
            if known.number.is_none() && known.shared.is_some() {
                server_runtime::log!("the memory shared with `{}` is too small", known.startup.name);
            }
        }
        Ok(Disk { rings, table: None, page: setup.table, timeout, told: 0, tell_from: 0 })
    }

    /// Reads a block while no client is there, and waits for it: at start-up nobody else wants anything.
    fn read(&mut self, block: u64, to: &mut [u8; BLOCK]) -> Result<(), Problem> {
        let page = self.page;
        let device = self.rings.device();
        device.submit(0, DeviceRequest::Read { block, buffer: page });
        device.notify();
        let end = clock::now().saturating_add(self.timeout);
        loop {
            match device.finished() {
                Some((0, Ok(()))) => break,
                Some((0, Err(Failure::Failed | Failure::Unsupported))) => {
                    return Err(format!("block {block} cannot be read"));
                }
                _ => {}
            }
            let now = clock::now();
            if now >= end {
                device.reset()?;
                return Err("the disk does not answer".into());
            }
            hypercall::idle(now + LOOK);
            device.interrupt(HARDWARE);
        }
        page.memory.copy_out(0, to);
        Ok(())
    }

    /// Tells the operator of requests that have failed.
    fn tell_failures(&mut self) {
        let failed = self.rings.counters().failed;
        if failed == self.told || clock::now() < self.tell_from {
            return;
        }
        server_runtime::log!("{} requests have failed", failed - self.told);
        (self.told, self.tell_from) = (failed, clock::now().saturating_add(FAILURES));
    }

    fn read_table(&mut self) -> Result<(), Problem> {
        let geometry = self.rings.device().geometry();
        let table = gpt::read(&mut |block, to| self.read(block, to), geometry.blocks, geometry.sector)?;
        if let Some(damage) = &table.damage {
            server_runtime::log!("the first partition table is damaged ({damage}); going on with the backup");
        }
        let mut line = format!("disk of {}", Size(geometry.blocks));
        for extent in &table.partitions {
            line += &format!(", {} {}", extent.kind.name(), Size(extent.blocks));
        }
        if geometry.read_only {
            line += ", read-only";
        }
        server_runtime::log!("{line}");
        self.table = Some(table);
        Ok(())
    }
}

/// A number of blocks as people read it.
struct Size(u64);

impl core::fmt::Display for Size {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let per_mib = (1 << 20) / BLOCK as u64;
        match self.0 {
            blocks if blocks >= per_mib => write!(f, "{} MiB", blocks / per_mib),
            blocks => write!(f, "{} KiB", blocks * (BLOCK as u64 / 1024)),
        }
    }
}

struct Server<D> {
    disk: Option<Disk<D>>,
    known: Vec<Known>,
}

impl<D: BlockDriver> Server<D> {
    /// Reads the partition table, if there is a device and it was not read yet, and gives clients their partitions.
    fn read_table(&mut self) {
        let Some(disk) = self.disk.as_mut().filter(|disk| disk.table.is_none()) else {
            return;
        };
        if let Err(problem) = disk.read_table() {
            server_runtime::log!("{problem}");
        }
        let Some(table) = &disk.table else {
            return;
        };
        for known in &self.known {
            let (Some(number), Some(kind)) = (known.number, known.kind) else {
                continue;
            };
            match table.find(kind) {
                Some(extent) => disk.rings.set_extent(number, extent),
                None => server_runtime::log!("no {} partition, which `{}` is to have", kind.name(), known.startup.name),
            }
        }
    }

    fn open(&mut self, from: Caller) -> Answer<Response> {
        // A disk that could not be read before may be readable now.
        self.read_table();
        let Some(disk) = &mut self.disk else {
            return Answer::Now(Response::NoDevice);
        };
        let Some(known) = self.known.iter_mut().find(|known| known.startup.badge == from.badge) else {
            return Answer::Now(Response::Denied);
        };
        let Some(number) = known.number else {
            return Answer::Now(Response::Denied);
        };
        if disk.rings.is_lost() {
            return Answer::Now(Response::NoDevice);
        }
        match disk.rings.open(number) {
            Opening::Begun => Answer::Now(opened(&disk.rings, number)),
            Opening::Later => {
                // Who asked before was that client's former self.
                known.opening = from.token;
                Answer::Later
            }
            Opening::Denied => Answer::Now(Response::NoPartition),
        }
    }

    /// After every step: answers and tells clients.
    fn tell(&mut self) {
        let Some(disk) = &mut self.disk else {
            return;
        };
        while let Some(number) = disk.rings.take_opened() {
            let known = self.known.iter_mut().find(|known| known.number == Some(number));
            if let Some(token) = known.and_then(|known| known.opening.take()) {
                // It may have been restarted once more; then it asks again.
                let _ = respond::<Service>(token, &opened(&disk.rings, number), None);
            }
        }
        let told = disk.rings.publish();
        disk.tell_failures();
        for known in &self.known {
            if known.number.is_some_and(|number| told.checked_shr(number as u32).unwrap_or(0) & 1 != 0) {
                // A client that is being restarted begins anew anyway.
                let _ = hypercall::raise(Target::slot(known.startup.slot));
            }
        }
    }
}

fn opened<D: BlockDriver>(rings: &Rings<D>, number: usize) -> Response {
    match rings.extent(number) {
        Some(extent) => {
            Response::Opened { blocks: extent.blocks, partition: extent.guid, read_only: rings.is_read_only() }
        }
        None => Response::NoPartition,
    }
}

impl<D: BlockDriver> Handler<Service> for Server<D> {
    fn request(&mut self, from: Caller, request: Request) -> Answer<Response> {
        match request {
            Request::Open => self.open(from),
            Request::Statistics => Answer::Now(match &self.disk {
                Some(disk) => {
                    let counters = disk.rings.counters();
                    Response::Statistics {
                        requests: counters.requests,
                        read: counters.read,
                        written: counters.written,
                        failed: counters.failed,
                        resets: counters.resets,
                    }
                }
                None => Response::NoDevice,
            }),
        }
    }

    fn connected(&mut self, badge: u64) {
        let known = self.known.iter_mut().find(|known| known.startup.badge == badge);
        let Some(known) = known else {
            return;
        };
        known.opening = None;
        if let (Some(number), Some(disk)) = (known.number, &mut self.disk) {
            disk.rings.close(number);
        }
    }

    fn interrupts(&mut self, lines: u64) {
        let Some(disk) = &mut self.disk else {
            return;
        };
        if lines & HARDWARE != 0 {
            disk.rings.device().interrupt(lines & HARDWARE);
        }
        disk.rings.work(clock::now());
        self.tell();
    }

    fn deadline(&mut self) {
        let Some(disk) = &mut self.disk else {
            return;
        };
        let now = clock::now();
        if disk.rings.expired(now) {
            let result = disk.rings.reset(now);
            let seconds = disk.timeout / SECOND;
            let text: String = match result {
                Ok(late) => format!("{late} requests not answered within {seconds} s; the device was reset"),
                Err(problem) => format!("no answer within {seconds} s, and the device is lost: {problem}"),
            };
            server_runtime::log!("{text}");
            disk.told = disk.rings.counters().failed;
        }
        disk.rings.work(now);
        self.tell();
    }

    fn next_deadline(&self) -> u64 {
        self.disk.as_ref().and_then(|disk| disk.rings.deadline()).unwrap_or(NEVER)
    }
}
