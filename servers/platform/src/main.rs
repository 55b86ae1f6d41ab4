//! The platform server: binds [`platform`] to the machine.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]

extern crate alloc;

#[cfg(target_os = "none")]
mod aml;
mod pc;

use alloc::{string::String, vec::Vec};
use pc::{Io, Pc};
use platform::{
    config::location,
    device::Device,
    ecam,
    enumerate::{Found, enumerate},
    fadt::Fadt,
    iommu::{self, Dmar, Iommu, Unit},
    memo::{self, Before, Memo},
    platform::Platform,
    power, processors,
    routing::Routing,
    rtc,
    tables::Tables,
    wiring::{self, Findings},
};
use protocol::{
    layout::PAGE,
    manifest::Resource,
    memory::Access,
    service::platform::{Platform as PlatformService, Request, Response},
};
use server_runtime::{Answer, Caller, Handler, Startup, clock, hypercall, memory};

server_runtime::entry!(main);

/// Bytes of a MADT before its entries.
const MADT_HEADER: usize = 44;

struct Server {
    platform: Platform<Pc>,
    fadt: Fadt,
    /// Sleep types that switch the machine off.
    sleep: Option<[u8; 2]>,
    /// Nanoseconds since 1970 at kernel entry; 0: unknown.
    wall_clock: u64,
}

fn main(startup: Startup) -> ! {
    let server = start(&startup);
    server_runtime::run::<PlatformService, _>(server)
}

fn start(startup: &Startup) -> Server {
    let platform = startup.resources.iter().find(|held| held.resource == Resource::Platform);
    let Some(devices) = platform.map(|held| held.slot) else {
        panic!("the system file does not give this server the machine (`platform = true`)");
    };
    let io = Io { devices, ports: devices + 2 };
    let authority = devices + 1;
    // What the operator need not be told all again, and which devices are in use. An earlier life may have ended before that.
    let memo = memory::shared(memo::NAME).map(Memo);
    let first = memo.map_or(startup.incarnation == 0, |memo| !memo.has_served());
    let tables = Tables::find(&io, startup.rsdp).unwrap_or_else(|why| {
        server_runtime::log!("no ACPI tables ({why}); going on with the defaults of a PC of old");
        Tables::default()
    });
    if first {
        tables.problems.iter().for_each(|problem| server_runtime::log!("ACPI: {problem}"));
    }
    let routing = routing(&tables);
    for io_apic in &routing.io_apics {
        match hypercall::io_apic_add(authority, io_apic.address, io_apic.first) {
            Ok(()) => {}
            // After a restart of this server the kernel knows it already.
            Err(_) if startup.incarnation > 0 => {}
            Err(error) => server_runtime::log!("I/O APIC at {:#x}: {error}", io_apic.address),
        }
    }
    let fadt = tables.get(b"FACP").map(Fadt::read).unwrap_or_default();
    let seconds = rtc::read(&mut { io }, fadt.century);
    if seconds.is_none() {
        server_runtime::log!("the real-time clock makes no sense; the date is unknown");
    }
    let wall_clock = seconds.map_or(0, |seconds| (seconds * 1_000_000_000).saturating_sub(clock::now()));
    let windows = tables.get(b"MCFG").map(ecam::windows).unwrap_or_default();
    if first && !windows.is_empty() {
        server_runtime::log!("memory-mapped configuration space: {}", pc::describe(&windows));
    }
    let init = startup.channel("init").map(|channel| channel.slot);
    let mut pc = Pc::new(io, authority, windows, init);
    let apics = tables.get(b"APIC").and_then(|madt| madt.get(MADT_HEADER..)).map(processors::from_madt);
    // They need some time after this, in which there is enough to do.
    let processors = processors::reset(&mut pc, &apics.unwrap_or_default());
    let known = memo.map(|memo| memo.known_lengths()).unwrap_or_default();
    let found = enumerate(&pc, &known);
    let lengths = found.devices.iter().map(|device| (location(device.address), device.lengths));
    if first && !memo.is_some_and(|memo| memo.keep_lengths(lengths)) {
        server_runtime::log!(
            "no shared memory \"platform\" that is large enough: a restart of this server disturbs devices"
        );
    }
    if let Some(online) = processors::start(&mut pc, processors) {
        server_runtime::log!("{online} processors run domains");
    }
    let findings = findings(io, &tables, &found, memo, startup.incarnation);
    let Findings { sleep, routes } = findings;
    let dmar = tables.get(b"DMAR").map(|table| Dmar::read(table, &found.bridges)).unwrap_or_default();
    let mut platform = Platform::new(pc, routing, routes, found, &startup.clients, !first);
    if first {
        platform.devices().for_each(|(device, driven)| tell(device, driven));
    }
    let units = dmar.units.len();
    match iommu(io, &dmar, startup) {
        Ok(iommu) => platform.confine(iommu),
        Err(why) if first => server_runtime::log!("{why}: drivers' devices reach all memory"),
        Err(_) => {}
    }
    if first && platform.is_confined() {
        server_runtime::log!("IOMMU: {units} units; drivers' devices reach their drivers' shared memories only");
    }
    if let Some(memo) = memo {
        memo.serve();
    }
    Server { platform, fadt, sleep, wall_clock }
}

/// The IOMMU, translating; `Err` with the reason if there is none that can be used.
fn iommu(io: Io, dmar: &Dmar, startup: &Startup) -> Result<Iommu, String> {
    if dmar.units.is_empty() {
        return Err("no IOMMU".into());
    }
    let named = |resource: &Resource| matches!(resource, Resource::Shared { name, .. } if name == iommu::NAME);
    let held = startup.resources.iter().find(|held| named(&held.resource));
    let memory = held.zip(memory::shared(iommu::NAME)).map(|(held, memory)| (memory, held.first * PAGE));
    let memory = memory.ok_or("IOMMU: this server has no shared memory \"iommu\" for its tables")?;
    let unit = |frame: &u64| {
        let map = |pages| memory::map_region(io.devices, *frame, pages, Access::WRITE);
        // The first page says how many there are.
        let pages = (iommu::length(&map(1)?) as u64).div_ceil(PAGE);
        map(pages).map(Unit::new)
    };
    let units = dmar.units.iter().map(unit).collect::<Result<_, _>>();
    let units = units.map_err(|error| alloc::format!("IOMMU: its registers cannot be mapped ({error})"))?;
    Iommu::new(units, &dmar.reserved, memory).map_err(|why| alloc::format!("IOMMU: {why}"))
}

/// A line about a device.
fn tell(device: &Device, driven: bool) {
    let Device { address, vendor, device: number, class, unplaced, .. } = device;
    let note = if driven { "" } else { ", no driver in the system file" };
    server_runtime::log!("PCI {address}: {vendor:04x}:{number:04x} class {class:06x}{note}");
    if driven && !unplaced.is_empty() {
        server_runtime::log!("PCI {address}: the firmware has given its registers {unplaced:?} no address");
    }
}

/// The wiring of the I/O APICs; that of a PC of old if the tables do not say.
fn routing(tables: &Tables) -> Routing {
    let madt = tables.get(b"APIC").and_then(|madt| madt.get(MADT_HEADER..)).map(Routing::from_madt);
    let why = match madt {
        Some(Ok(routing)) => return routing,
        Some(Err(wrong)) => alloc::format!("{wrong}"),
        None => "it is not there".into(),
    };
    server_runtime::log!("MADT: {why}; going on with one I/O APIC and ISA interrupts as on a PC of old");
    Routing::default()
}

/// What the firmware's program says, from the memory of this server's earlier lives if there were any.
fn findings(io: Io, tables: &Tables, found: &Found, memo: Option<Memo>, incarnation: u32) -> Findings {
    if tables.get(b"DSDT").is_none() {
        return Findings::default();
    }
    let before = match &memo {
        Some(memo) => memo.read(),
        // Without a memory, any earlier life may have ended by it.
        None if incarnation > 0 => Before::Tried(Findings::default()),
        None => Before::Nothing,
    };
    match before {
        Before::Done(findings) => return findings,
        Before::Tried(findings) => {
            server_runtime::log!("AML has not come to an end before; going on with what it had said until then");
            return findings;
        }
        Before::Nothing => {}
    }
    let so_far = |findings: &Findings| memo.iter().for_each(|memo| memo.so_far(findings));
    so_far(&Findings::default());
    let mut problems = Vec::new();
    let mut findings = interpret(io, tables, &found.bridges, &mut problems, so_far);
    problems.iter().for_each(|problem| server_runtime::log!("AML: {problem}"));
    // Of the wiring only what there are devices for is of use.
    let used = found
        .devices
        .iter()
        .filter_map(|device| wiring::route(&findings.routes, &found.bridges, device.address, device.pin));
    let mut used: Vec<_> = used.collect();
    used.dedup();
    findings.routes = used;
    if let Some(memo) = memo {
        memo.so_far(&findings);
        memo.end();
    }
    findings
}

#[cfg(target_os = "none")]
use aml::evaluate as interpret;

/// Off the metal this program only builds: the interpreter needs the compiler of the machine's programs.
#[cfg(not(target_os = "none"))]
fn interpret(
    _: Io,
    _: &Tables,
    _: &[wiring::Bridge],
    problems: &mut Vec<String>,
    so_far: impl Fn(&Findings),
) -> Findings {
    problems.push("there is no interpreter on this machine".into());
    so_far(&Findings::default());
    Findings::default()
}

impl Server {
    fn power_off(&mut self, success: bool) {
        server_runtime::log!("the machine ends ({})", if success { "success" } else { "failure" });
        power::off(&mut self.platform.machine().io, &self.fadt, self.sleep, success);
        server_runtime::log!("nothing ends this machine; switch it off");
    }

    fn reset(&mut self) {
        server_runtime::log!("the machine is reset");
        power::reset(&mut self.platform.machine().io, &self.fadt);
        server_runtime::log!("nothing resets this machine; switch it off and on");
    }
}

impl Handler<PlatformService> for Server {
    fn request(&mut self, from: Caller, request: Request) -> Answer<Response> {
        match request {
            Request::WallClock if self.wall_clock == 0 => Answer::Now(Response::Failed),
            Request::WallClock => Answer::Now(Response::WallClock(self.wall_clock)),
            // A driver is code for one device, perhaps a stranger's: the machine is not its to end.
            Request::PowerOff { .. } | Request::Reset if self.platform.is_driver(from.badge) => {
                Answer::Now(Response::Denied)
            }
            Request::PowerOff { success } => {
                self.power_off(success);
                Answer::Now(Response::Failed)
            }
            Request::Reset => {
                self.reset();
                Answer::Now(Response::Failed)
            }
            request => match self.platform.request(from.badge, &request) {
                (response, Some(slot)) => Answer::With(response, slot),
                (response, None) => Answer::Now(response),
            },
        }
    }

    fn connected(&mut self, badge: u64) {
        self.platform.connected(badge);
    }

    fn interrupts(&mut self, lines: u64) {
        self.platform.interrupts(lines);
    }

    fn deadline(&mut self) {
        self.platform.deadline();
    }

    fn next_deadline(&self) -> u64 {
        self.platform.next_deadline()
    }
}
