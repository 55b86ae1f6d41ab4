//! Claims, registers and interrupts of devices: the requests of drivers.

use crate::{
    config::{Access, Config, LENGTH},
    device::Device,
    registers::{Block, Refusal, block},
    routing::Routing,
};
use alloc::vec::Vec;
use pci_types::{CommandRegister, capability::MultipleMessageSupport};
use protocol::{
    domain::InterruptSource,
    manifest::PciMatch,
    service::platform::{DeviceNumber, Request, Response},
};

/// What the platform server needs of the kernel and of the machine beyond configuration space.
pub trait Machine: Config {
    /// Makes a hardware interrupt; returns the slot of its capability and the message to program.
    fn interrupt(&mut self, source: InterruptSource) -> Option<(u8, Message)>;
    /// Makes a capability for a block of registers; returns its slot, good until the next call.
    fn registers(&mut self, block: Block) -> Option<u8>;
    /// Writes the entry of an MSI-X table at a physical address: the message, or `None` to mask it.
    fn write_msix(&mut self, entry: u64, message: Option<Message>) -> bool;
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

/// A client and what the system file allows it.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// Badge of its messages.
    pub badge: u64,
    /// PCI devices that each of its programs may claim.
    pub pci_devices: Vec<Vec<PciMatch>>,
    /// ISA interrupts that it may take.
    pub isa_interrupts: Vec<u8>,
    /// Devices that it has claimed: their places in `Platform::functions`.
    claims: Vec<usize>,
}

impl Client {
    /// A client without claims.
    pub fn new(badge: u64, pci_devices: Vec<Vec<PciMatch>>, isa_interrupts: Vec<u8>) -> Client {
        Client { badge, pci_devices, isa_interrupts, claims: Vec::new() }
    }
}

/// A function and what was made for it. Interrupts stay with it when its driver dies: the next one gets the same.
struct Function {
    device: Device,
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

/// A line of an I/O APIC that was made.
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
    machine: M,
    routing: Routing,
    functions: Vec<Function>,
    clients: Vec<Client>,
    lines: Vec<Line>,
}

impl<M: Machine> Platform<M> {
    /// Starts with the functions that were found. `restarted`: drivers may be using them already.
    pub fn new(
        machine: M,
        routing: Routing,
        devices: Vec<Device>,
        clients: Vec<Client>,
        restarted: bool,
    ) -> Platform<M> {
        let function = |device| Function { device, claimed: false, used: restarted, interrupts: Vec::new() };
        let functions = devices.into_iter().map(function).collect();
        Platform { machine, routing, functions, clients, lines: Vec::new() }
    }

    /// A client begins anew: its claims are void. Its devices' DMA and messages are stopped at once.
    pub fn connected(&mut self, badge: u64) {
        let Some(client) = self.clients.iter_mut().find(|client| client.badge == badge) else {
            return;
        };
        for claim in core::mem::take(&mut client.claims) {
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
        }
    }

    /// Whether a client is a driver: it may claim devices.
    pub fn is_driver(&self, badge: u64) -> bool {
        self.clients.iter().any(|client| client.badge == badge && client.pci_devices.iter().any(|ids| !ids.is_empty()))
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
            Request::WallClock | Request::PowerOff { .. } => (Response::Failed, None),
        }
    }

    /// The place of a device that a client has claimed.
    fn claimed(&self, badge: u64, number: DeviceNumber) -> Option<usize> {
        let client = self.clients.iter().find(|client| client.badge == badge)?;
        client.claims.get(usize::from(number)).copied().filter(|place| *place < self.functions.len())
    }

    fn claim(&mut self, badge: u64, program: u8) -> Response {
        let Some(client) = self.clients.iter().position(|client| client.badge == badge) else {
            return Response::NotFound;
        };
        let Ok(number) = DeviceNumber::try_from(self.clients[client].claims.len()) else {
            return Response::NotFound;
        };
        let Some(wanted) = self.clients[client].pci_devices.get(usize::from(program)) else {
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
    fn candidates<'a>(&'a self, device: &Device) -> impl DoubleEndedIterator<Item = usize> + use<'a, M> {
        let (vendor, number, class) = (device.vendor, device.device, device.class);
        let fits = move |by_class: bool, client: &Client| {
            let fits = |devices: &PciMatch| {
                matches!(devices, PciMatch::Class(_)) == by_class && devices.fits(vendor, number, class)
            };
            client.pci_devices.iter().flatten().any(fits)
        };
        let by_class = !self.clients.iter().any(|client| fits(false, client));
        self.clients.iter().enumerate().filter(move |(_, client)| fits(by_class, client)).map(|(index, _)| index)
    }

    /// The client that may claim a device. Of those that the same clients may claim, the first belongs to the first client, and so
    /// on, and what is left to the last: whoever is restarted, each gets its own again.
    fn owner(&self, place: usize) -> Option<usize> {
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
        let slot = if device.msix_entries() > 0 || device.msi.is_some() {
            self.message_interrupt(place, index)
        } else {
            match device.interrupt_line.and_then(|line| self.routing.pci(line)) {
                Some(source) => self.line(source, Some(place)),
                None => return (Response::NotFound, None),
            }
        };
        match slot {
            Some(slot) => {
                // From here on the driver can be told of its device's DMA; until here it had none to be told of.
                let device = &self.functions[place].device;
                device.change_command(&self.machine, CommandRegister::BUS_MASTER_ENABLE, CommandRegister::empty());
                (Response::Done, Some(slot))
            }
            None => (Response::Failed, None),
        }
    }

    /// A message-signalled interrupt, programmed into the device.
    fn message_interrupt(&mut self, place: usize, index: u16) -> Option<u8> {
        let function = &mut self.functions[place];
        let known = function.interrupts.iter().find(|interrupt| interrupt.index == index);
        let (slot, message) = match known {
            Some(interrupt) => (interrupt.slot, interrupt.message),
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
        device.change_command(&self.machine, CommandRegister::INTERRUPT_DISABLE, CommandRegister::empty());
        Some(slot)
    }

    /// A line of an I/O APIC, made once. A line has one owner: a second device on it would have to share its interrupts.
    fn line(&mut self, source: InterruptSource, function: Option<usize>) -> Option<u8> {
        let InterruptSource::Line { number, .. } = source else {
            return None;
        };
        if let Some(line) = self.lines.iter().find(|line| line.number == number) {
            if line.function != function {
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
        let allowed = |client: &Client| client.badge == badge && client.isa_interrupts.contains(&number);
        if !self.clients.iter().any(allowed) {
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
mod tests {
    use super::*;
    use crate::{
        config::{COMMAND, PciAddress},
        mock::{Bus, Function as Mock},
    };
    use core::cell::Cell;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    struct Machine {
        bus: Bus,
        slots: u8,
        made: Vec<InterruptSource>,
        msix: BTreeMap<u64, Option<Message>>,
        blocks: Vec<Block>,
        waits: Cell<u32>,
    }

    impl Config for Machine {
        fn read(&self, address: PciAddress, offset: u16) -> u32 {
            self.bus.read(address, offset)
        }
        fn write(&self, address: PciAddress, offset: u16, value: u32) {
            self.bus.write(address, offset, value);
        }
    }

    impl super::Machine for Machine {
        fn interrupt(&mut self, source: InterruptSource) -> Option<(u8, Message)> {
            let slot = self.made.len() as u8;
            if slot == self.slots {
                return None;
            }
            self.made.push(source);
            Some((slot, Message { address: 0xfee0_0000, data: 0x40 + u32::from(slot) }))
        }
        fn registers(&mut self, block: Block) -> Option<u8> {
            self.blocks.push(block);
            Some(60)
        }
        fn write_msix(&mut self, entry: u64, message: Option<Message>) -> bool {
            self.msix.insert(entry, message);
            true
        }
        fn wait_for_reset(&self) {
            self.waits.set(self.waits.get() + 1);
        }
        fn log(&self, _: core::fmt::Arguments<'_>) {}
    }

    const VIRTIO: PciMatch = PciMatch::Id { vendor: 0x1af4, device: 0x1041 };
    const INTEL: PciMatch = PciMatch::Id { vendor: 0x8086, device: 0x10d3 };
    const NET: u64 = 3;
    const NVME: u64 = 5;
    const OTHER: u64 = 4;
    const CONSOLE: u64 = 1;
    const CLAIM: Request = Request::Claim { program: 0 };

    fn platform(functions: impl IntoIterator<Item = Mock>) -> Platform<Machine> {
        let bus = Bus::new(functions);
        let devices = crate::enumerate::enumerate(&bus);
        let (made, msix, blocks) = (Vec::new(), BTreeMap::new(), Vec::new());
        let machine = Machine { bus, slots: 8, made, msix, blocks, waits: Cell::new(0) };
        let clients = Vec::from([
            Client::new(NET, Vec::from([Vec::from([VIRTIO])]), Vec::new()),
            Client::new(OTHER, Vec::from([Vec::from([VIRTIO, INTEL])]), Vec::new()),
            Client::new(CONSOLE, Vec::new(), Vec::from([4])),
            Client::new(NVME, Vec::from([Vec::from([PciMatch::Class(0x01_0802)])]), Vec::new()),
        ]);
        Platform::new(machine, Routing::default(), devices, clients, false)
    }

    fn command(platform: &Platform<Machine>, device: u8) -> u32 {
        platform.machine.read(Mock::address(device), COMMAND) & 0xffff
    }

    #[test]
    fn a_driver_claims_what_it_may_once() {
        let mut platform = platform([Mock::virtio_net(3), Mock::virtio_net(5)]);
        let claim = |platform: &mut Platform<Machine>, badge| match platform.request(badge, &CLAIM).0 {
            Response::Device { device, info, msix, .. } => Some((device, info.location >> 3, msix)),
            _ => None,
        };
        assert_eq!(claim(&mut platform, NET), Some((0, 3, 4)));
        assert_eq!(claim(&mut platform, OTHER), Some((0, 5, 4)));
        assert_eq!(claim(&mut platform, NET), None);
        assert_eq!(claim(&mut platform, CONSOLE), None);
        assert_eq!(claim(&mut platform, 99), None);
    }

    #[test]
    fn each_of_several_drivers_has_its_device_for_ever() {
        let location = |platform: &mut Platform<Machine>, badge| match platform.request(badge, &CLAIM).0 {
            Response::Device { info, .. } => Some(info.location >> 3),
            _ => None,
        };
        let functions = || [Mock::virtio_net(3), Mock::virtio_net(5), Mock::virtio_net(7)];
        let mut platform = platform(functions());
        assert_eq!((location(&mut platform, OTHER), location(&mut platform, NET)), (Some(5), Some(3)));
        // They die and come back the other way round, and so does the platform server.
        platform.connected(NET);
        platform.connected(OTHER);
        assert_eq!((location(&mut platform, NET), location(&mut platform, OTHER)), (Some(3), Some(5)));
        let mut platform = self::platform(functions());
        assert_eq!((location(&mut platform, OTHER), location(&mut platform, OTHER)), (Some(5), Some(7)));
        assert_eq!((location(&mut platform, NET), location(&mut platform, NET)), (Some(3), None));
    }

    #[test]
    fn a_class_is_claimed_unless_somebody_names_the_device() {
        let nvme = |device, vendor, number| {
            let mut function = Mock::empty(Mock::address(device), vendor, number, 0x0108);
            function.words[2] |= 0x0200;
            function
        };
        let other = Mock::empty(Mock::address(7), 0x1b36, 0x0010, 0x0108);
        let mut platform = platform([nvme(3, 0x1b36, 0x0010), nvme(5, 0x8086, 0x10d3), other]);
        let place = |platform: &mut Platform<Machine>, badge| match platform.request(badge, &CLAIM).0 {
            Response::Device { info, .. } => Some(info.location >> 3),
            _ => None,
        };
        assert_eq!((place(&mut platform, NVME), place(&mut platform, NVME)), (Some(3), None));
        assert_eq!(place(&mut platform, OTHER), Some(5));
        let driven: Vec<_> = platform.devices().map(|(device, driven)| (device.address.device(), driven)).collect();
        assert_eq!(driven, [(3, true), (5, true), (7, false)]);
    }

    #[test]
    fn each_program_of_a_driver_claims_what_is_its_own() {
        let nic = || Mock::empty(Mock::address(5), 0x8086, 0x10d3, 0x0200);
        let mut platform = platform([Mock::virtio_net(3), nic()]);
        let ids = Vec::from([Vec::from([PciMatch::Id { vendor: 0x1af4, device: 0x1000 }]), Vec::from([INTEL])]);
        platform.clients = Vec::from([Client::new(NET, ids, Vec::new())]);
        let mut claim = |program| match platform.request(NET, &Request::Claim { program }).0 {
            Response::Device { info, .. } => Some(info.location >> 3),
            _ => None,
        };
        assert_eq!((claim(0), claim(2), claim(1), claim(1)), (None, None, Some(5), None));
    }

    #[test]
    fn bus_mastering_begins_with_the_interrupt_and_ends_with_the_driver() {
        let mut platform = platform([Mock::virtio_net(3)]);
        platform.request(NET, &CLAIM);
        let (response, slot) = platform.request(NET, &Request::Registers { device: 0, bar: 4 });
        assert_eq!(response, Response::Registers { address: 0x7_0000_0000, length: 0x4000 });
        assert_eq!((slot, platform.machine.blocks.len()), (Some(60), 1));
        assert_eq!(command(&platform, 3) & 4, 0);
        assert_eq!(platform.request(NET, &Request::Interrupt { device: 0, index: 1 }), (Response::Done, Some(0)));
        assert_eq!(command(&platform, 3), 0x0407);
        let written = Some(Message { address: 0xfee0_0000, data: 0x40 });
        assert_eq!(platform.machine.msix[&0xfeb9_1010], written);
        assert_eq!(platform.machine.msix.values().flatten().count(), 1);
        assert_eq!(platform.machine.read(Mock::address(3), 0x98) >> 30, 0b10);

        // The driver dies and comes back: the same interrupt again, and no new one made.
        platform.connected(NET);
        assert_eq!(command(&platform, 3) & 4, 0);
        assert_eq!(platform.machine.msix[&0xfeb9_1010], None);
        assert_eq!(platform.request(NET, &Request::ConfigRead { device: 0, offset: 0 }).0, Response::NotFound);
        assert!(matches!(platform.request(NET, &CLAIM).0, Response::Device { device: 0, .. }));
        assert_eq!((platform.machine.bus.resets(), platform.machine.waits.get()), (1, 1));
        assert_eq!(platform.request(NET, &Request::Interrupt { device: 0, index: 1 }), (Response::Done, Some(0)));
        assert_eq!(platform.machine.made.len(), 1);
    }

    #[test]
    fn a_driver_that_dies_for_ever_costs_nothing() {
        let mut platform = platform([Mock::virtio_net(3)]);
        for _ in 0..1000 {
            platform.connected(NET);
            assert!(matches!(platform.request(NET, &CLAIM).0, Response::Device { device: 0, .. }));
            assert!(platform.request(NET, &Request::Interrupt { device: 0, index: 0 }).1.is_some());
        }
        assert_eq!(platform.machine.made.len(), 1);
        assert!(platform.clients.iter().all(|client| client.claims.len() <= 1));
    }

    #[test]
    fn interrupts_have_an_end() {
        let mut platform = platform([Mock::virtio_net(3)]);
        platform.machine.slots = 2;
        platform.request(NET, &CLAIM);
        for index in 0..2 {
            assert!(platform.request(NET, &Request::Interrupt { device: 0, index }).1.is_some());
        }
        assert_eq!(platform.request(NET, &Request::Interrupt { device: 0, index: 2 }), (Response::Failed, None));
        assert_eq!(platform.request(NET, &Request::Interrupt { device: 0, index: 4 }), (Response::NotFound, None));
        assert_eq!(platform.request(NET, &Request::Interrupt { device: 1, index: 0 }), (Response::NotFound, None));
        assert_eq!(platform.request(OTHER, &Request::Interrupt { device: 0, index: 0 }), (Response::NotFound, None));
    }

    #[test]
    fn a_device_without_messages_gets_its_line_unless_it_is_shared() {
        let old = |device| {
            let mut function = Mock::empty(Mock::address(device), 0x8086, 0x10d3, 0x0200);
            function.words[0x3c / 4] = 0x010b;
            function
        };
        let mut platform = platform([old(1), old(2)]);
        platform.request(OTHER, &CLAIM);
        platform.request(OTHER, &CLAIM);
        assert_eq!(platform.request(OTHER, &Request::Interrupt { device: 0, index: 0 }), (Response::Done, Some(0)));
        assert_eq!(platform.machine.made, [InterruptSource::Line { number: 11, level: true, low: true }]);
        assert_eq!(platform.request(OTHER, &Request::Interrupt { device: 1, index: 0 }), (Response::Failed, None));
    }

    #[test]
    fn isa_interrupts_go_to_whom_the_system_file_names() {
        let mut platform = platform([]);
        assert_eq!(platform.request(CONSOLE, &Request::IsaInterrupt { number: 4 }), (Response::Done, Some(0)));
        assert_eq!(platform.request(CONSOLE, &Request::IsaInterrupt { number: 4 }), (Response::Done, Some(0)));
        assert_eq!(platform.request(CONSOLE, &Request::IsaInterrupt { number: 1 }).0, Response::Denied);
        assert_eq!(platform.request(NET, &Request::IsaInterrupt { number: 4 }).0, Response::Denied);
        assert_eq!(platform.machine.made.len(), 1);
    }

    proptest! {
        #[test]
        fn no_request_reaches_an_unclaimed_device(
            requests in prop::collection::vec((0u64..6, 0u8..8, 0u8..3, any::<u16>(), any::<u32>()), 1..80)
        ) {
            let mut platform = platform([Mock::virtio_net(3), Mock::virtio_net(5)]);
            let mut claimed = BTreeMap::<u64, u8>::new();
            for (badge, kind, device, offset, value) in requests {
                let request = match kind {
                    0 => Request::Claim { program: device % 3 },
                    1 => Request::ConfigRead { device, offset },
                    2 => Request::ConfigWrite { device, offset: offset & 0xfc, value },
                    3 => Request::Registers { device, bar: value as u8 % 8 },
                    4 => Request::Interrupt { device, index: offset % 5 },
                    5 => Request::IsaInterrupt { number: value as u8 % 20 },
                    6 => Request::List,
                    _ => {
                        platform.connected(badge);
                        claimed.remove(&badge);
                        continue;
                    }
                };
                let (response, slot) = platform.request(badge, &request);
                match (&request, &response) {
                    (Request::Claim { .. }, Response::Device { .. }) => *claimed.entry(badge).or_default() += 1,
                    (Request::ConfigRead { .. } | Request::ConfigWrite { .. }, Response::Value(_) | Response::Done)
                    | (Request::Registers { .. }, Response::Registers { .. })
                    | (Request::Interrupt { .. }, Response::Done) => {
                        prop_assert!(device < claimed.get(&badge).copied().unwrap_or(0));
                    }
                    _ => {}
                }
                prop_assert!(slot.is_none() || !matches!(response, Response::NotFound | Response::Denied));
                prop_assert!(platform.machine.made.len() <= 9);
            }
            // Who claimed nothing masters no bus.
            let owned: u8 = claimed.values().sum();
            let masters = [3, 5].iter().filter(|device| command(&platform, **device) & 4 != 0).count();
            prop_assert!(masters <= usize::from(owned));
        }
    }
}
