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
    bound: Vec<(u8, u8)>,
    acknowledged: Vec<u8>,
    raised: Vec<u8>,
    killed: Vec<std::string::String>,
    now: u64,
    /// Reads of the command register after which no device asks any more.
    looks: Cell<u32>,
}

impl Config for Machine {
    fn read(&self, address: PciAddress, offset: u16) -> u32 {
        let value = self.bus.read(address, offset);
        if offset != COMMAND {
            return value;
        }
        let left = self.looks.get();
        self.looks.set(left.saturating_sub(1));
        if left == 0 { value & !(1 << 19) } else { value }
    }
    fn read_extended(&self, _: PciAddress, offset: u16) -> Option<u32> {
        (offset == 0x100).then_some(0x1234)
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
    fn bind(&mut self, slot: u8, line: u8) -> bool {
        self.bound.push((slot, line));
        true
    }
    fn acknowledge(&mut self, slot: u8) {
        self.acknowledged.push(slot);
    }
    fn raise(&mut self, slot: u8) {
        self.raised.push(slot);
    }
    fn kill(&mut self, server: &str) -> bool {
        self.killed.push(server.into());
        true
    }
    fn now(&self) -> u64 {
        self.now
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
    let found = crate::enumerate::enumerate(&bus, &BTreeMap::new());
    let (made, msix, blocks) = (Vec::new(), BTreeMap::new(), Vec::new());
    let (bound, acknowledged, raised, killed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (waits, now, looks) = (Cell::new(0), 0, Cell::new(u32::MAX));
    let machine = Machine { bus, slots: 8, made, msix, blocks, waits, bound, acknowledged, raised, killed, now, looks };
    Platform::new(machine, Routing::default(), Vec::new(), found, &clients(), false)
}

fn clients() -> [StartupClient; 4] {
    let client = |badge: u64, devices: &[PciMatch], interrupts: &[u8]| StartupClient {
        name: std::format!("client {badge}"),
        badge,
        // Raised by the platform server, and raised on it.
        slot: 20 + badge as u8,
        line: 8 + badge as u8,
        pci_devices: Vec::from([devices.to_vec()]),
        isa_interrupts: interrupts.to_vec(),
        shared: Vec::new(),
    };
    [
        client(NET, &[VIRTIO], &[]),
        client(OTHER, &[VIRTIO, INTEL], &[]),
        client(CONSOLE, &[], &[4]),
        client(NVME, &[PciMatch::Class(0x01_0802)], &[]),
    ]
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
    platform.clients.truncate(1);
    platform.clients[0].startup.pci_devices =
        Vec::from([Vec::from([PciMatch::Id { vendor: 0x1af4, device: 0x1000 }]), Vec::from([INTEL])]);
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
fn one_driver_cannot_take_the_interrupts_of_all() {
    let mut card = Mock::virtio_net(3);
    // Sixteen entries.
    card.words[0x98 / 4] = 0x000f_8411;
    let mut platform = platform([card]);
    platform.machine.slots = 16;
    platform.request(NET, &CLAIM);
    let ask = |platform: &mut Platform<Machine>, index| platform.request(NET, &Request::Interrupt { device: 0, index });
    for index in 0..MESSAGES_MAX as u16 {
        assert_eq!(ask(&mut platform, index).0, Response::Done);
    }
    assert_eq!(ask(&mut platform, MESSAGES_MAX as u16), (Response::Failed, None));
    assert_eq!(ask(&mut platform, 0), (Response::Done, Some(0)), "those that it has it keeps");
}

/// A device of `OTHER` or `NVME` without messages, its INTA on ISA interrupt 11.
fn old(device: u8, nvme: bool) -> Mock {
    let mut function = Mock::empty(Mock::address(device), 0x8086, 0x10d3, 0x0200);
    if nvme {
        function = Mock::empty(Mock::address(device), 0x1b36, 0x0010, 0x0108);
        function.words[2] |= 0x0200;
    }
    function.words[0x3c / 4] = 0x010b;
    function
}

fn ask(platform: &mut Platform<Machine>, device: u8, asks: bool) {
    let status = if asks { 1 << 19 } else { 0 };
    platform.machine.bus.set(Mock::address(device), COMMAND, 1 << 19, status);
}

#[test]
fn a_device_without_messages_gets_its_line() {
    let mut platform = platform([old(1, false), Mock::virtio_net(2), Mock::empty(Mock::address(3), 1, 1, 0)]);
    assert_eq!(command(&platform, 1) & 0x404, 0x400, "quiet before it is claimed");
    platform.request(OTHER, &CLAIM);
    assert_eq!(platform.request(OTHER, &Request::Interrupt { device: 0, index: 0 }), (Response::Done, Some(0)));
    assert_eq!(platform.machine.made, [InterruptSource::Line { number: 11, level: true, low: true }]);
    assert_eq!(command(&platform, 1) & 0x404, 4);
    platform.connected(OTHER);
    assert_eq!(command(&platform, 1) & 0x404, 0x400);
}

/// Two drivers on a line, both claimed and asking for the interrupt.
fn sharing() -> Platform<Machine> {
    let mut platform = platform([old(1, false), old(2, true)]);
    for client in [OTHER, NVME] {
        platform.request(client, &CLAIM);
        let interrupt = Request::Interrupt { device: 0, index: 0 };
        assert_eq!(platform.request(client, &interrupt), (Response::Shared, None));
    }
    assert_eq!((platform.machine.made.len(), &platform.machine.bound[..]), (1, &[(0, 32)][..]));
    platform.machine.acknowledged.clear();
    platform
}

#[test]
fn a_shared_line_waits_for_those_whose_devices_ask() {
    let mut platform = sharing();
    ask(&mut platform, 2, true);
    platform.interrupts(1 << 32);
    assert_eq!((&platform.machine.raised[..], &platform.machine.acknowledged[..]), (&[25][..], &[][..]));
    // Another's acknowledgement does not count.
    platform.interrupts(1 << 12);
    assert!(platform.machine.acknowledged.is_empty());
    platform.interrupts(1 << 13);
    assert_eq!(platform.machine.acknowledged, [0]);
    // Both ask; one of them dies before it acknowledges.
    ask(&mut platform, 1, true);
    platform.interrupts(1 << 32);
    assert_eq!(platform.machine.raised, [25, 24, 25]);
    platform.interrupts(1 << 13);
    assert_eq!(platform.machine.acknowledged, [0]);
    platform.connected(OTHER);
    assert_eq!(platform.machine.acknowledged, [0, 0]);
    assert_eq!(platform.next_deadline(), protocol::abi::NEVER);
    // A device made before PCI 2.3 does not say that it asks.
    ask(&mut platform, 2, false);
    platform.interrupts(1 << 32);
    assert_eq!(platform.machine.raised, [25, 24, 25, 25]);
}

#[test]
fn a_device_that_is_served_while_it_is_looked_at_is_waited_for() {
    let mut platform = sharing();
    ask(&mut platform, 1, true);
    platform.machine.looks.set(1);
    platform.interrupts(1 << 32);
    assert_eq!(platform.machine.raised, [24]);
    platform.interrupts(1 << 12);
    assert_eq!((&platform.machine.acknowledged[..], platform.next_deadline()), (&[0][..], protocol::abi::NEVER));
}

#[test]
fn a_line_that_all_have_left_waits_for_nobody() {
    let mut platform = sharing();
    platform.connected(OTHER);
    platform.connected(NVME);
    platform.machine.acknowledged.clear();
    platform.interrupts(1 << 32);
    assert_eq!((&platform.machine.acknowledged[..], platform.next_deadline()), (&[][..], protocol::abi::NEVER));
    // The next driver lets it go on.
    platform.request(NVME, &CLAIM);
    let interrupt = Request::Interrupt { device: 0, index: 0 };
    assert_eq!(platform.request(NVME, &interrupt), (Response::Shared, None));
    assert_eq!(platform.machine.acknowledged, [0]);
}

#[test]
fn a_restart_goes_on_sharing() {
    let mut before = sharing();
    before.connected(OTHER);
    let devices = before.functions.iter().map(|function| &function.device);
    let known = devices.map(|device| (location(device.address), device.lengths)).collect();
    let Platform { mut machine, .. } = before;
    let writes = machine.bus.writes();
    let found = crate::enumerate::enumerate(&machine.bus, &known);
    // Drivers use these devices: nothing may be tried out on them.
    assert_eq!(machine.bus.writes(), writes);
    (machine.made, machine.bound, machine.acknowledged) = Default::default();
    let mut after = Platform::new(machine, Routing::default(), Vec::new(), found, &clients(), true);
    assert_eq!((&after.machine.bound[..], &after.machine.acknowledged[..]), (&[(0, 32)][..], &[0][..]));
    ask(&mut after, 1, true);
    ask(&mut after, 2, true);
    after.interrupts(1 << 32);
    // The one that had died before is not on the line.
    assert_eq!(after.machine.raised, [25]);
    after.interrupts(1 << 13);
    assert_eq!(after.machine.acknowledged, [0, 0]);
    after.interrupts(1 << 32);
    after.connected(NVME);
    assert_eq!(after.next_deadline(), protocol::abi::NEVER);
    assert_eq!(command(&after, 2) & 0x404, 0x400);
}

#[test]
fn who_does_not_acknowledge_loses_its_place() {
    let mut platform = sharing();
    ask(&mut platform, 1, true);
    platform.interrupts(1 << 32);
    let deadline = platform.next_deadline();
    platform.machine.now = deadline;
    platform.deadline();
    assert_eq!((&platform.machine.acknowledged[..], platform.next_deadline()), (&[0][..], protocol::abi::NEVER));
    assert_eq!(command(&platform, 1) & 0x400, 0x400);
    assert_eq!(command(&platform, 2) & 0x400, 0);
    // It comes back.
    platform.connected(OTHER);
    platform.request(OTHER, &CLAIM);
    assert_eq!(platform.request(OTHER, &Request::Interrupt { device: 0, index: 0 }), (Response::Shared, None));
    assert_eq!(command(&platform, 1) & 0x400, 0);
    platform.interrupts(1 << 32);
    assert_eq!(platform.machine.raised, [24, 24]);
}

#[test]
fn a_storm_that_nobody_explains_ends_masked() {
    let mut platform = sharing();
    let storm = |platform: &mut Platform<Machine>| {
        for round in 0..100_000 {
            let before = platform.machine.acknowledged.len();
            platform.interrupts(1 << 32);
            platform.interrupts(1 << 12 | 1 << 13);
            if platform.machine.acknowledged.len() == before {
                return round;
            }
        }
        panic!("it is never masked");
    };
    assert_eq!(storm(&mut platform), 5000);
    // A new driver is a new chance.
    platform.connected(NVME);
    platform.request(NVME, &CLAIM);
    assert_eq!(platform.request(NVME, &Request::Interrupt { device: 0, index: 0 }), (Response::Shared, None));
    assert_eq!(storm(&mut platform), 5000);
}

#[test]
fn who_reaches_for_more_is_switched_off_and_killed() {
    let mut platform = platform([Mock::virtio_net(3)]);
    platform.clients[0].startup.shared = Vec::from([(0x100, 3), (0x9000, 1)]);
    let memory = server_runtime::mmio::Region::of(std::vec![0; 8 * 512].leak());
    platform.confine(Iommu::new(Vec::new(), &[], (memory, 0x100_0000)).unwrap());
    // Top, two below it, and a context table.
    let used = |platform: &Platform<Machine>| platform.iommu.as_ref().unwrap().pages();
    assert_eq!(used(&platform), 1);
    let claim = |platform: &mut Platform<Machine>| {
        assert!(matches!(platform.request(NET, &CLAIM).0, Response::Device { .. }));
        platform.request(NET, &Request::Interrupt { device: 0, index: 0 });
        assert_eq!((command(platform, 3) & 4, used(platform)), (4, 6));
    };
    claim(&mut platform);
    let fault = Fault { function: 0x18, address: 0x5000, read: false, reason: 5 };
    platform.fault(&fault);
    assert_eq!((command(&platform, 3) & 4, used(&platform)), (0, 2));
    assert_eq!(platform.machine.killed, ["client 3"]);
    platform.connected(NET);
    claim(&mut platform);
    // A device of nobody kills nobody.
    platform.fault(&Fault { function: 0x28, ..fault });
    assert_eq!((platform.machine.killed.len(), used(&platform)), (1, 6));
    // It is silent from then on, even on a bus that nothing is known of: that takes a context table.
    platform.fault(&Fault { function: 0x728, ..fault });
    assert_eq!((platform.machine.killed.len(), used(&platform)), (1, 7));
    // Nor does one claim more than there are tables for.
    platform.connected(NET);
    platform.clients[0].startup.shared = Vec::from([(0x100, 5 * 512)]);
    assert_eq!(platform.request(NET, &CLAIM).0, Response::Failed);
}

#[test]
fn extended_configuration_space_is_read_where_it_is_there() {
    let mut platform = platform([Mock::virtio_net(3)]);
    platform.request(NET, &CLAIM);
    let mut read = |offset| platform.request(NET, &Request::ConfigRead { device: 0, offset }).0;
    assert_eq!((read(0x100), read(0x104)), (Response::Value(0x1234), Response::NotFound));
    assert_eq!((read(0x102), read(0x1000)), (Response::NotFound, Response::NotFound));
    let write = Request::ConfigWrite { device: 0, offset: 0x100, value: 0 };
    assert_eq!(platform.request(NET, &write).0, Response::Denied);
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
