//! Claims, registers and interrupts of devices: the requests of drivers.

use crate::{
    config::{Access, Config, LENGTH, LENGTH_EXPRESS, location},
    device::Device,
    enumerate::Found,
    iommu::{Fault, Iommu},
    registers::{Block, Refusal, block},
    routing::Routing,
    sharing::Shared,
    wiring::{self, Bridge, Route},
};
use alloc::vec::Vec;
use pci_types::{CommandRegister, capability::MultipleMessageSupport};
use protocol::{
    domain::InterruptSource,
    manifest::{PciMatch, StartupClient},
    service::platform::{DeviceNumber, Request, Response},
};

/// Most messages that one device may interrupt by.
const MESSAGES_MAX: usize = 8;
/// Most looks at the IOMMU's records in one go: more than there are devices that may be stopped.
const FAULT_ROUNDS: usize = 512;

/// What the platform server needs of the kernel and of the machine beyond configuration space.
pub trait Machine: Config {
    /// Makes a hardware interrupt; returns the slot of its capability and the message to program.
    fn interrupt(&mut self, source: InterruptSource) -> Option<(u8, Message)>;
    /// Makes a capability for a block of registers; returns its slot, good until the next call.
    fn registers(&mut self, block: Block) -> Option<u8>;
    /// Writes the entry of an MSI-X table at a physical address: the message, or `None` to mask it.
    fn write_msix(&mut self, entry: u64, message: Option<Message>) -> bool;
    /// Binds an interrupt to an own line, on which it comes from then on.
    fn bind(&mut self, slot: u8, line: u8) -> bool;
    /// Lets an interrupt of this server come again.
    fn acknowledge(&mut self, slot: u8);
    /// Raises the line of a client.
    fn raise(&mut self, slot: u8);
    /// Has a server killed, as if it had crashed. `false` if nobody does that.
    fn kill(&mut self, server: &str) -> bool;
    /// Nanoseconds since kernel entry.
    fn now(&self) -> u64;
    /// Waits for a device that was reset.
    fn wait_for_reset(&self);
    /// Tells the operator.
    fn log(&self, text: core::fmt::Arguments<'_>);
}

/// A message-signalled interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Address to write to.
    pub address: u64,
    /// What to write.
    pub data: u32,
}

/// A client.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// Who it is, and what the system file allows it.
    pub(crate) startup: StartupClient,
    /// Devices that it has claimed: their places in `Platform::functions`.
    pub(crate) claims: Vec<usize>,
}

impl Client {
    /// Whether it is a driver: it may claim devices.
    fn drives(&self) -> bool {
        self.startup.pci_devices.iter().any(|devices| !devices.is_empty())
    }
}

/// A function and what was made for it. Interrupts stay with it when its driver dies: the next one gets the same.
pub(crate) struct Function {
    pub(crate) device: Device,
    claimed: bool,
    /// Whether a driver may have left it in the middle of something.
    used: bool,
    interrupts: Vec<Interrupt>,
}

struct Interrupt {
    index: u16,
    slot: u8,
    message: Message,
}

/// A line of an I/O APIC that was made for one.
struct Line {
    number: u32,
    slot: u8,
    /// Who has it: the function's place, or none for an ISA interrupt.
    function: Option<usize>,
}

/// An answer, and the slot of the capability that goes with it.
pub type Answer = (Response, Option<u8>);

/// The platform server's state.
pub struct Platform<M> {
    pub(crate) machine: M,
    routing: Routing,
    routes: Vec<Route>,
    bridges: Vec<Bridge>,
    pub(crate) functions: Vec<Function>,
    pub(crate) clients: Vec<Client>,
    lines: Vec<Line>,
    pub(crate) shared: Vec<Shared>,
    pub(crate) iommu: Option<Iommu>,
}

impl<M: Machine> Platform<M> {
    /// Starts with the functions that were found, and what is known of the wiring of interrupts. `restarted`: drivers may be using them
    /// already; else they are made quiet, whatever the firmware did with them.
    pub fn new(
        machine: M,
        routing: Routing,
        routes: Vec<Route>,
        found: Found,
        clients: &[StartupClient],
        restarted: bool,
    ) -> Platform<M> {
        let function = |device| Function { device, claimed: false, used: restarted, interrupts: Vec::new() };
        let functions: Vec<Function> = found.devices.into_iter().map(function).collect();
        if !restarted {
            let idle = functions.iter().map(|function| &function.device).filter(|device| !device.is_firmwares());
            idle.for_each(|device| device.quiesce(&machine));
        }
        let client = |startup: &StartupClient| Client { startup: startup.clone(), claims: Vec::new() };
        let clients = clients.iter().map(client).collect();
        let (lines, shared) = (Vec::new(), Vec::new());
        let bridges = found.bridges;
        let mut platform =
            Platform { machine, routing, routes, bridges, functions, clients, lines, shared, iommu: None };
        if restarted {
            platform.recover_sharing();
        }
        platform
    }

    /// The driver of a function: who has claimed it, perhaps in an earlier life of this server.
    pub(crate) fn driver(&self, place: usize) -> Option<usize> {
        let claimer = self.clients.iter().position(|client| client.claims.contains(&place));
        claimer.or_else(|| self.owner(place))
    }

    /// From here on, drivers' devices reach only what their drivers share with them.
    pub fn confine(&mut self, iommu: Iommu) {
        self.iommu = Some(iommu);
        self.report_faults();
        // What was recorded while nobody took messages sends none any more.
        self.faults();
    }

    /// Whether they do.
    pub fn is_confined(&self) -> bool {
        self.iommu.is_some()
    }

    /// The IOMMU has stopped somebody: the device is switched off, and its driver killed, which its policy restarts.
    pub(crate) fn faults(&mut self) {
        // A unit sends no message while it has records: it has to be left without any. Each round makes a device silent.
        for _ in 0..FAULT_ROUNDS {
            let faults = self.iommu.as_ref().map(Iommu::faults).unwrap_or_default();
            if faults.is_empty() {
                return;
            }
            for (index, fault) in faults.iter().enumerate() {
                // One that goes on at once has several records.
                if !faults[..index].iter().any(|other| other.function == fault.function) {
                    self.fault(fault);
                }
            }
        }
        self.machine
            .log(format_args!("IOMMU: it does not cease to stop devices; what it stops from here on may not be told"));
    }

    fn fault(&mut self, fault: &Fault) {
        let Fault { function, address, read, reason } = *fault;
        let what = if read { "read" } else { "write to" };
        let (bus, device) = (function >> 8, function >> 3 & 31);
        let here = |place: &Function| location(place.device.address) == function;
        let place = self.functions.iter().position(here);
        let driver = place.and_then(|place| self.driver(place));
        let name = driver.map(|client| self.clients[client].startup.name.clone());
        self.machine.log(format_args!(
            "IOMMU: device {bus:02x}:{device:02x}.{} of {} wanted to {what} memory at {address:#x}, which is not its own ({reason:#x}): stopped",
            function & 7,
            name.as_deref().unwrap_or("no driver")
        ));
        if let Some(place) = place {
            self.functions[place].device.quiesce(&self.machine);
            self.unshare(place);
        }
        self.detach(function, true);
        if let Some(name) = name
            && !self.machine.kill(&name)
        {
            self.machine.log(format_args!("{name} goes on without its device: nobody kills it"));
        }
    }

    fn detach(&mut self, function: u16, silent: bool) {
        if let Some(Err(why)) = self.iommu.as_mut().map(|iommu| iommu.detach(function, silent)) {
            self.machine.log(format_args!("IOMMU: {why}"));
        }
    }

    /// A client begins anew: its claims are void. Its devices' DMA and messages are stopped at once.
    pub fn connected(&mut self, badge: u64) {
        let Some(client) = self.clients.iter().position(|client| client.startup.badge == badge) else {
            return;
        };
        // What it had claimed before this server was restarted it has on shared lines only; the rest waits for its next claim.
        let on_lines = self.members().filter(|place| self.driver(*place) == Some(client));
        let mut claims: Vec<usize> = on_lines.collect();
        claims.retain(|place| !self.clients[client].claims.contains(place));
        claims.append(&mut self.clients[client].claims);
        for claim in claims {
            let Some(function) = self.functions.get_mut(claim) else {
                continue;
            };
            function.claimed = false;
            function.device.quiesce(&self.machine);
            if let Some(table) = function.device.msix_table() {
                for interrupt in &function.interrupts {
                    self.machine.write_msix(table.start + u64::from(interrupt.index) * 16, None);
                }
            }
            let function = location(function.device.address);
            self.detach(function, false);
            self.unshare(claim);
        }
    }

    /// Whether a client is a driver: it may claim devices.
    pub fn is_driver(&self, badge: u64) -> bool {
        self.clients.iter().any(|client| client.startup.badge == badge && client.drives())
    }

    /// The interrupt of a device's pin: as the firmware's program says, else as it has left it in the device.
    pub(crate) fn pin_source(&self, device: &Device) -> Option<InterruptSource> {
        match wiring::route(&self.routes, &self.bridges, device.address, device.pin) {
            Some(route) => Some(route.line.source()),
            None => device.interrupt_line.and_then(|line| self.routing.pci(line)),
        }
    }

    /// Carries out a request about devices; the clock and the end of the machine are not among them.
    pub fn request(&mut self, badge: u64, request: &Request) -> Answer {
        match *request {
            Request::Claim { program } => (self.claim(badge, program), None),
            Request::ConfigRead { device, offset } => (self.config_read(badge, device, offset), None),
            Request::ConfigWrite { device, offset, value } => (self.config_write(badge, device, offset, value), None),
            Request::Registers { device, bar } => self.registers(badge, device, bar),
            Request::Interrupt { device, index } => self.interrupt(badge, device, index),
            Request::IsaInterrupt { number } => self.isa_interrupt(badge, number),
            Request::List => {
                let devices = self.functions.iter().map(|function| function.device.info(function.claimed));
                (Response::Devices(devices.collect()), None)
            }
            Request::WallClock | Request::PowerOff { .. } | Request::Reset => (Response::Failed, None),
        }
    }

    /// The place of a device that a client has claimed.
    fn claimed(&self, badge: u64, number: DeviceNumber) -> Option<usize> {
        let client = self.clients.iter().find(|client| client.startup.badge == badge)?;
        client.claims.get(usize::from(number)).copied().filter(|place| *place < self.functions.len())
    }

    fn claim(&mut self, badge: u64, program: u8) -> Response {
        let Some(client) = self.clients.iter().position(|client| client.startup.badge == badge) else {
            return Response::NotFound;
        };
        let Ok(number) = DeviceNumber::try_from(self.clients[client].claims.len()) else {
            return Response::NotFound;
        };
        let Some(wanted) = self.clients[client].startup.pci_devices.get(usize::from(program)) else {
            return Response::NotFound;
        };
        let is_free = |place: &usize| {
            let Function { device, claimed, .. } = &self.functions[*place];
            let fits = |devices: &PciMatch| devices.fits(device.vendor, device.device, device.class);
            !claimed && wanted.iter().any(fits) && self.owner(*place) == Some(client)
        };
        let Some(place) = (0..self.functions.len()).find(is_free) else {
            return Response::NotFound;
        };
        let client = &mut self.clients[client];
        let function = &mut self.functions[place];
        let device = &function.device;
        device.quiesce(&self.machine);
        if let Some(iommu) = &mut self.iommu {
            let frames: Vec<_> = client.startup.shared.iter().map(|(first, count)| *first..*first + *count).collect();
            if let Err(why) = iommu.attach(location(device.address), &frames) {
                self.machine.log(format_args!("IOMMU: {}, PCI {}: {why}", client.startup.name, device.address));
                return Response::Failed;
            }
        }
        if core::mem::replace(&mut function.used, true) {
            // Its last driver died, and the device may still know addresses of that driver's memory. If it cannot be reset
            // by itself, the new driver does that, and until then it does not master the bus.
            let machine = &self.machine;
            device.reset(machine, || machine.wait_for_reset());
        }
        function.claimed = true;
        client.claims.push(place);
        Response::Device {
            device: number,
            info: device.info(true),
            bars: device.bars.clone(),
            msix: device.msix_entries(),
        }
    }

    /// Clients that may claim a device: those that name its vendor and device number; if there are none, those that name its class.
    pub(crate) fn candidates<'a>(&'a self, device: &Device) -> impl DoubleEndedIterator<Item = usize> + use<'a, M> {
        let (vendor, number, class) = (device.vendor, device.device, device.class);
        let fits = move |by_class: bool, client: &Client| {
            let fits = |devices: &PciMatch| {
                matches!(devices, PciMatch::Class(_)) == by_class && devices.fits(vendor, number, class)
            };
            client.startup.pci_devices.iter().flatten().any(fits)
        };
        let by_class = !self.clients.iter().any(|client| fits(false, client));
        self.clients.iter().enumerate().filter(move |(_, client)| fits(by_class, client)).map(|(index, _)| index)
    }

    /// The client that may claim a device. Of those that the same clients may claim, the first belongs to the first client, and so
    /// on, and what is left to the last: whoever is restarted, each gets its own again.
    pub(crate) fn owner(&self, place: usize) -> Option<usize> {
        let clients = |function: &Function| self.candidates(&function.device);
        let (before, rest) = self.functions.split_at_checked(place)?;
        let function = rest.first()?;
        let rank = before.iter().filter(|other| clients(other).eq(clients(function))).count();
        clients(function).nth(rank).or_else(|| clients(function).next_back())
    }

    fn config_read(&self, badge: u64, device: DeviceNumber, offset: u16) -> Response {
        match self.claimed(badge, device) {
            Some(place) if offset < LENGTH && offset.is_multiple_of(4) => {
                Response::Value(self.machine.read(self.functions[place].device.address, offset))
            }
            Some(place) if offset < LENGTH_EXPRESS && offset.is_multiple_of(4) => {
                let value = self.machine.read_extended(self.functions[place].device.address, offset);
                value.map_or(Response::NotFound, Response::Value)
            }
            _ => Response::NotFound,
        }
    }

    fn config_write(&self, badge: u64, device: DeviceNumber, offset: u16, value: u32) -> Response {
        match self.claimed(badge, device) {
            Some(place) if self.functions[place].device.write(&self.machine, offset, value) => Response::Done,
            Some(_) => Response::Denied,
            None => Response::NotFound,
        }
    }

    fn registers(&mut self, badge: u64, device: DeviceNumber, bar: u8) -> Answer {
        let Some(place) = self.claimed(badge, device) else {
            return (Response::NotFound, None);
        };
        let device = &self.functions[place].device;
        let block = match block(device, bar, self.functions.iter().map(|function| &function.device)) {
            Ok(block) => block,
            Err(Refusal::Missing) => return (Response::NotFound, None),
            Err(Refusal::NotAlone) => return (Response::Denied, None),
        };
        device.change_command(&self.machine, CommandRegister::MEMORY_ENABLE, CommandRegister::empty());
        match self.machine.registers(block) {
            Some(slot) => (Response::Registers { address: block.address, length: block.length }, Some(slot)),
            None => (Response::Failed, None),
        }
    }

    fn interrupt(&mut self, badge: u64, device: DeviceNumber, index: u16) -> Answer {
        let Some(place) = self.claimed(badge, device) else {
            return (Response::NotFound, None);
        };
        let device = &self.functions[place].device;
        let entries = match (device.msix_entries(), &device.msi) {
            (0, _) => 1,
            (entries, _) => entries,
        };
        if index >= entries {
            return (Response::NotFound, None);
        }
        // From here on the driver can be told of its device's DMA; until here it had none to be told of.
        let on = CommandRegister::BUS_MASTER_ENABLE;
        if device.has_messages() {
            let Some(slot) = self.message_interrupt(place, index) else { return (Response::Failed, None) };
            let device = &self.functions[place].device;
            device.change_command(&self.machine, on | CommandRegister::INTERRUPT_DISABLE, CommandRegister::empty());
            return (Response::Done, Some(slot));
        }
        let Some(source) = self.pin_source(device) else { return (Response::NotFound, None) };
        let answer = match source {
            InterruptSource::Line { number, .. } if self.sharers(number) > 1 => match self.share(source, place) {
                true => (Response::Shared, None),
                false => return (Response::Failed, None),
            },
            _ => match self.line(source, Some(place)) {
                Some(slot) => (Response::Done, Some(slot)),
                None => return (Response::Failed, None),
            },
        };
        let device = &self.functions[place].device;
        device.change_command(&self.machine, on, CommandRegister::INTERRUPT_DISABLE);
        answer
    }

    /// A message-signalled interrupt, programmed into the device.
    fn message_interrupt(&mut self, place: usize, index: u16) -> Option<u8> {
        let function = &mut self.functions[place];
        let known = function.interrupts.iter().find(|interrupt| interrupt.index == index);
        let (slot, message) = match known {
            Some(interrupt) => (interrupt.slot, interrupt.message),
            // Each takes one of this server's slots, of which other drivers need some too.
            None if function.interrupts.len() >= MESSAGES_MAX => return None,
            None => {
                let (slot, message) = self.machine.interrupt(InterruptSource::Message)?;
                function.interrupts.push(Interrupt { index, slot, message });
                (slot, message)
            }
        };
        let device = &function.device;
        if let (Some(mut msix), Some(table)) = (device.msix, device.msix_table()) {
            device.change_command(&self.machine, CommandRegister::MEMORY_ENABLE, CommandRegister::empty());
            if !msix.enabled(Access(&self.machine)) {
                // Entries that nobody asked for stay masked, whatever was in the table.
                for entry in 0..msix.table_size() {
                    self.machine.write_msix(table.start + u64::from(entry) * 16, None);
                }
            }
            if !self.machine.write_msix(table.start + u64::from(index) * 16, Some(message)) {
                return None;
            }
            msix.set_function_mask(false, Access(&self.machine));
            msix.set_enabled(true, Access(&self.machine));
        } else if let Some(msi) = &device.msi {
            msi.set_multiple_message_enable(MultipleMessageSupport::Int1, Access(&self.machine));
            msi.set_message_info(message.address, message.data, Access(&self.machine));
            msi.set_enabled(true, Access(&self.machine));
        }
        Some(slot)
    }

    /// A line of an I/O APIC for one driver alone, made once.
    fn line(&mut self, source: InterruptSource, function: Option<usize>) -> Option<u8> {
        let InterruptSource::Line { number, .. } = source else {
            return None;
        };
        if let Some(line) = self.lines.iter().find(|line| line.number == number) {
            let driver = |function: Option<usize>| {
                let has = |client: &Client| function.is_some_and(|place| client.claims.contains(&place));
                self.clients.iter().position(has)
            };
            // A driver with several devices on it gets it for each.
            if line.function != function && (function.is_none() || driver(line.function) != driver(function)) {
                self.machine.log(format_args!("interrupt {number} is in use by another device and cannot be shared"));
                return None;
            }
            return Some(line.slot);
        }
        let (slot, _) = self.machine.interrupt(source)?;
        self.lines.push(Line { number, slot, function });
        Some(slot)
    }

    fn isa_interrupt(&mut self, badge: u64, number: u8) -> Answer {
        let allowed = |client: &StartupClient| client.badge == badge && client.isa_interrupts.contains(&number);
        if !self.clients.iter().any(|client| allowed(&client.startup)) {
            return (Response::Denied, None);
        }
        let Some(source) = self.routing.isa(number) else {
            return (Response::NotFound, None);
        };
        match self.line(source, None) {
            Some(slot) => (Response::Done, Some(slot)),
            None => (Response::Failed, None),
        }
    }

    /// All functions, each with whether the system file has a driver for it; for the log.
    pub fn devices(&self) -> impl Iterator<Item = (&Device, bool)> {
        self.functions.iter().map(|function| (&function.device, self.candidates(&function.device).next().is_some()))
    }

    /// What is below.
    pub fn machine(&mut self) -> &mut M {
        &mut self.machine
    }
}

#[cfg(test)]
mod tests;
