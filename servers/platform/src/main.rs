//! The platform server: binds [`platform`] to the machine.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]

extern crate alloc;

mod tables;

use alloc::vec::Vec;
use core::fmt::Arguments;
use platform::{
    config::{Config, PciAddress, location},
    device::Device,
    enumerate::enumerate,
    platform::{Client, Machine, Message, Platform},
    processors,
    registers::Block,
    routing::Routing,
    rtc,
};
use protocol::{
    abi::{Error, Target},
    capability::Narrow,
    domain::{InterruptSource, ProcessorStep},
    layout::PAGE,
    manifest::Resource,
    memory::Access,
    service::platform::{Platform as PlatformService, Request, Response},
};
use server_runtime::{Answer, Caller, Handler, Startup, clock, hypercall, memory, mmio::Region, slots};

server_runtime::entry!(main);

/// Ports of the access to configuration space.
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
/// Ports of the clock.
const CLOCK_INDEX: u16 = 0x70;
const CLOCK_DATA: u16 = 0x71;
/// Port of QEMU's `isa-debug-exit`: a value `v` written there ends the emulator with status `2 v + 1`.
const EXIT: u16 = 0xf4;
const EXIT_SUCCESS: u32 = 0x10;
const EXIT_FAILURE: u32 = 0x11;
/// Nanoseconds that a function may take to reset (PCI Express Base 6.0, 6.6.2).
const RESET_TIME: u64 = 100_000_000;
/// Bytes of an MSI-X table entry, in words of 4: address low and high, data, control (bit 0: masked).
const MSIX_CONTROL: usize = 12;
const MSIX_MASKED: u32 = 1;

/// The machine, by system calls.
struct Pc {
    /// Port capabilities: slot, first port, ports.
    ports: Vec<(u8, u16, u16)>,
    /// All device registers.
    devices: u8,
    /// The interrupt authority.
    authority: u8,
    /// A slot for what is given away.
    given: Option<u8>,
    /// Pages with MSI-X tables, by frame.
    tables: Vec<(u64, Region)>,
}

impl Pc {
    fn slot(&self, port: u16) -> Option<u8> {
        let holds =
            |(_, first, count): &&(u8, u16, u16)| port.checked_sub(*first).is_some_and(|offset| offset < *count);
        self.ports.iter().find(holds).map(|(slot, ..)| *slot)
    }
    fn read_port(&self, port: u16, width: u8) -> u32 {
        self.slot(port).and_then(|slot| hypercall::port_read(slot, port, width).ok()).unwrap_or(!0)
    }
    fn write_port(&self, port: u16, width: u8, value: u32) {
        if let Some(slot) = self.slot(port) {
            let _ = hypercall::port_write(slot, port, width, value);
        }
    }
    fn msix_page(&mut self, frame: u64) -> Option<Region> {
        if let Some((_, page)) = self.tables.iter().find(|(known, _)| *known == frame) {
            return Some(*page);
        }
        let page = memory::map_region(self.devices, frame, 1, Access::WRITE).ok()?;
        self.tables.push((frame, page));
        Some(page)
    }
}

impl Config for Pc {
    fn read(&self, address: PciAddress, offset: u16) -> u32 {
        self.write_port(CONFIG_ADDRESS, 4, config_address(address, offset));
        self.read_port(CONFIG_DATA, 4)
    }
    fn write(&self, address: PciAddress, offset: u16, value: u32) {
        self.write_port(CONFIG_ADDRESS, 4, config_address(address, offset));
        self.write_port(CONFIG_DATA, 4, value);
    }
}

fn config_address(address: PciAddress, offset: u16) -> u32 {
    1 << 31 | u32::from(location(address)) << 8 | u32::from(offset & 0xfc)
}

impl Machine for Pc {
    fn interrupt(&mut self, source: InterruptSource) -> Option<(u8, Message)> {
        let slot = slots::alloc()?;
        match hypercall::interrupt_create(self.authority, slot, source) {
            Ok((address, data)) => Some((slot, Message { address, data: data as u32 })),
            Err(error) => {
                self.log(format_args!("no interrupt for {source:?}: {error}"));
                slots::free(slot);
                None
            }
        }
    }

    fn registers(&mut self, block: Block) -> Option<u8> {
        let slot = self.given?;
        let rights = hypercall::capability_info(self.devices).ok()?.rights;
        let count = u32::try_from(block.frames()).ok()?;
        let narrow = Narrow { rights, count, first: block.first_frame(), ..Narrow::default() };
        match hypercall::capability_copy(Target::OWN, slot, self.devices, Some(&narrow)) {
            Ok(()) => Some(slot),
            Err(error) => {
                self.log(format_args!("no capability for {block:x?}: {error}"));
                None
            }
        }
    }

    fn write_msix(&mut self, entry: u64, message: Option<Message>) -> bool {
        let Some(page) = self.msix_page(entry / PAGE) else {
            return false;
        };
        let offset = (entry % PAGE) as usize;
        page.write_u32(offset + MSIX_CONTROL, MSIX_MASKED);
        if let Some(Message { address, data }) = message {
            page.write_u32(offset, address as u32);
            page.write_u32(offset + 4, (address >> 32) as u32);
            page.write_u32(offset + 8, data);
            page.write_u32(offset + MSIX_CONTROL, 0);
        }
        true
    }

    fn wait_for_reset(&self) {
        let end = clock::now() + RESET_TIME;
        while clock::now() < end {
            hypercall::idle(end);
        }
    }

    fn log(&self, text: Arguments<'_>) {
        server_runtime::log!("{text}");
    }
}

impl processors::Starter for Pc {
    fn step(&mut self, apic: u32, step: ProcessorStep) -> Result<usize, Error> {
        hypercall::processor_start(self.authority, apic, step)
    }
    fn now(&self) -> u64 {
        clock::now()
    }
    fn wait(&mut self, nanoseconds: u64) {
        let end = clock::now() + nanoseconds;
        while clock::now() < end {
            hypercall::idle(end);
        }
    }
    fn log(&self, text: Arguments<'_>) {
        server_runtime::log!("{text}");
    }
}

/// The clock's registers.
struct Clock<'a>(&'a Pc);

impl rtc::Registers for Clock<'_> {
    fn read(&mut self, register: u8) -> u8 {
        // The top bit of the index would mask non-maskable interrupts.
        self.0.write_port(CLOCK_INDEX, 1, u32::from(register & 0x7f));
        self.0.read_port(CLOCK_DATA, 1) as u8
    }
}

struct Server {
    platform: Platform<Pc>,
    /// Nanoseconds since 1970 at kernel entry; 0: unknown.
    wall_clock: u64,
}

fn main(startup: Startup) -> ! {
    let server = start(&startup);
    server_runtime::run::<PlatformService, _>(server)
}

fn start(startup: &Startup) -> Server {
    let mut ports = Vec::new();
    let mut devices = None;
    for held in &startup.resources {
        match held.resource {
            Resource::Ports { first, count } => ports.push((held.slot, first, count)),
            Resource::Platform => devices = Some(held.slot),
            _ => {}
        }
    }
    let Some(devices) = devices else {
        panic!("the system file does not give this server the machine (`platform = true`)");
    };
    let mut pc = Pc { ports, devices, authority: devices + 1, given: slots::alloc(), tables: Vec::new() };
    let (routing, century, processors) = read_tables(devices, startup.rsdp, startup.incarnation == 0);
    // They need some time after this, in which there is enough to do.
    let processors = processors::reset(&mut pc, &processors);
    for io_apic in &routing.io_apics {
        match hypercall::io_apic_add(pc.authority, io_apic.address, io_apic.first) {
            Ok(()) => {}
            // After a restart of this server the kernel knows it already.
            Err(_) if startup.incarnation > 0 => {}
            Err(error) => server_runtime::log!("I/O APIC at {:#x}: {error}", io_apic.address),
        }
    }
    let seconds = rtc::read(&mut Clock(&pc), century);
    if seconds.is_none() {
        server_runtime::log!("the real-time clock makes no sense; the date is unknown");
    }
    let wall_clock = seconds.map_or(0, |seconds| (seconds * 1_000_000_000).saturating_sub(clock::now()));
    let clients = startup.clients.iter();
    let clients =
        clients.map(|client| Client::new(client.badge, client.pci_devices.clone(), client.isa_interrupts.clone()));
    let found = enumerate(&pc);
    if let Some(online) = processors::start(&mut pc, processors) {
        server_runtime::log!("{online} processors run domains");
    }
    let platform = Platform::new(pc, routing, found, clients.collect(), startup.incarnation > 0);
    if startup.incarnation == 0 {
        for (device, driven) in platform.devices() {
            let Device { address, vendor, device, class, .. } = device;
            let note = if driven { "" } else { ", no driver in the system file" };
            server_runtime::log!("PCI {address}: {vendor:04x}:{device:04x} class {class:06x}{note}");
        }
    }
    Server { platform, wall_clock }
}

/// The wiring of interrupts, the clock's century register, and the processors; those of a PC of old if the tables do not say. `first`: not a
/// restart of this server, which the operator need not be told all again.
fn read_tables(devices: u8, rsdp: u64, first: bool) -> (Routing, u8, Vec<u32>) {
    match tables::read(devices, rsdp) {
        Ok(tables) => {
            let routing = tables.routing.unwrap_or_else(|why| {
                server_runtime::log!("ACPI: {why}; going on with one I/O APIC and ISA interrupts as on a PC of old");
                Routing::default()
            });
            if let Some(ecam) = tables.ecam.filter(|_| first) {
                server_runtime::log!("configuration space is also at {ecam:#x} (unused)");
            }
            (routing, tables.century, tables.processors)
        }
        Err(why) => {
            server_runtime::log!("no ACPI tables ({why}); going on with the defaults of a PC of old");
            (Routing::default(), 0, Vec::new())
        }
    }
}

impl Server {
    fn power_off(&mut self, success: bool) {
        server_runtime::log!("the machine ends ({})", if success { "success" } else { "failure" });
        let status = if success { EXIT_SUCCESS } else { EXIT_FAILURE };
        self.platform.machine().write_port(EXIT, 1, status);
        server_runtime::log!("nothing ends this machine; switch it off");
    }
}

impl Handler<PlatformService> for Server {
    fn request(&mut self, from: Caller, request: Request) -> Answer<Response> {
        match request {
            Request::WallClock if self.wall_clock == 0 => Answer::Now(Response::Failed),
            Request::WallClock => Answer::Now(Response::WallClock(self.wall_clock)),
            // A driver is code for one device, perhaps a stranger's: the machine is not its to end.
            Request::PowerOff { .. } if self.platform.is_driver(from.badge) => Answer::Now(Response::Denied),
            Request::PowerOff { success } => {
                self.power_off(success);
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
}
