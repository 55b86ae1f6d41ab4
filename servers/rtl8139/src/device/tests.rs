use super::*;
use crate::ring::{DESCRIPTOR, END, OWN};
use alloc::{collections::BTreeMap, collections::VecDeque, rc::Rc, vec, vec::Vec};
use core::cell::{RefCell, RefMut};
use net_driver::{rings::Rings, testing::Switch};
use proptest::prelude::*;
use protocol::service::net_driver::ENTRIES;
use server_runtime::mmio::Region;

const PACKETS: u64 = 0x1_0000_0000;
const DMA: u64 = 0x2_0000_0000;
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// A card, by the letter of the datasheet.
struct Card {
    dma: Region,
    packets: Region,
    /// Registers of 16 and 32 bits, and the command.
    registers: BTreeMap<usize, u32>,
    command: u8,
    causes: u16,
    /// Next descriptors of the rings.
    receive: usize,
    transmit: usize,
    /// It was told to look into the transmit ring.
    polled: bool,
    resets: usize,
    stuck: bool,
    gone: bool,
    mac: [u8; 6],
    link: bool,
    acknowledged: usize,
    microseconds: u64,
}

impl Card {
    fn get(&self, register: usize) -> u32 {
        self.registers.get(&register).copied().unwrap_or(0)
    }

    /// Offset in the device memory of descriptor `next` of a ring.
    fn descriptor(&self, ring: usize, next: usize) -> usize {
        let physical = u64::from(self.get(ring + 4)) << 32 | u64::from(self.get(ring));
        (physical - DMA) as usize + next * DESCRIPTOR
    }

    fn is_on(&self, command: Command) -> bool {
        let plus = self.get(PLUS_COMMAND);
        Command::from_bits_retain(self.command).contains(command) && plus & 3 == 3 && plus & 1 << 4 != 0
    }

    fn write_u8(&mut self, register: usize, value: u8) {
        match register {
            COMMAND if value & Command::RESET.bits() != 0 => {
                self.registers.clear();
                (self.causes, self.receive, self.transmit, self.polled) = (0, 0, 0, false);
                self.command = if self.stuck { value } else { 0 };
                self.resets += 1;
            }
            COMMAND => self.command = value,
            TRANSMIT_POLL => self.polled |= value == NORMAL_PRIORITY,
            _ => {}
        }
    }

    fn transmit(&mut self) -> Option<Vec<u8>> {
        if !self.is_on(Command::SEND) || !self.polled {
            return None;
        }
        let at = self.descriptor(TRANSMIT_RING, self.transmit);
        let (word, address) = (self.dma.read_u32(at), self.dma.read_u64(at + 8));
        if word & OWN == 0 {
            // It stops looking.
            self.polled = false;
            return None;
        }
        assert_eq!(word & (FIRST | LAST), FIRST | LAST);
        let mut packet = vec![0; (word & 0xffff) as usize];
        assert!(packet.len() >= SHORTEST);
        self.packets.copy_out((address - PACKETS) as usize, &mut packet);
        self.dma.write_u32(at, word & !OWN);
        self.transmit = if word & END != 0 { 0 } else { self.transmit + 1 };
        self.causes |= Causes::SENT.bits();
        Some(packet)
    }

    fn receive(&mut self, packet: &[u8]) -> bool {
        self.receive_as(packet, FIRST | LAST | (packet.len() + CHECKSUM) as u32)
    }

    fn receive_as(&mut self, packet: &[u8], flags: u32) -> bool {
        if !self.is_on(Command::RECEIVE) {
            return false;
        }
        let at = self.descriptor(RECEIVE_RING, self.receive);
        let (word, address) = (self.dma.read_u32(at), self.dma.read_u64(at + 8));
        if word & OWN == 0 {
            self.causes |= Causes::NO_DESCRIPTOR.bits();
            return false;
        }
        assert!((word & LENGTH) as usize >= packet.len() + CHECKSUM && address % 8 == 0 && word % 8 == 0);
        self.packets.copy_in((address - PACKETS) as usize, packet);
        self.dma.write_u32(at, word & END | flags);
        self.receive = if word & END != 0 { 0 } else { self.receive + 1 };
        self.causes |= Causes::RECEIVED.bits();
        true
    }

    fn set_link(&mut self, link: bool) {
        self.link = link;
        self.causes |= Causes::LINK.bits();
    }
}

struct Fake(Rc<RefCell<Card>>);

impl Wire for Fake {
    fn read_u8(&self, register: usize) -> u8 {
        let card = self.0.borrow();
        match register {
            _ if card.gone => !0,
            COMMAND => card.command,
            MEDIA_STATUS => u8::from(!card.link) << 2,
            _ => card.mac[register],
        }
    }
    fn read_u16(&self, register: usize) -> u16 {
        assert_eq!(register, INTERRUPT_STATUS);
        let card = self.0.borrow();
        if card.gone { !0 } else { card.causes }
    }
    fn write_u8(&self, register: usize, value: u8) {
        self.0.borrow_mut().write_u8(register, value);
    }
    fn write_u16(&self, register: usize, value: u16) {
        let mut card = self.0.borrow_mut();
        match register {
            INTERRUPT_STATUS => card.causes &= !value,
            _ => drop(card.registers.insert(register, value.into())),
        }
    }
    fn write_u32(&self, register: usize, value: u32) {
        self.0.borrow_mut().registers.insert(register, value);
    }
    fn pause(&self, microseconds: u64) {
        self.0.borrow_mut().microseconds += microseconds;
    }
    fn acknowledge(&self) {
        self.0.borrow_mut().acknowledged += 1;
    }
}

/// A card, its driver, and the switch.
struct Bench {
    card: Rc<RefCell<Card>>,
    rings: Rings<Nic<Fake>>,
    switch: Switch,
}

impl Bench {
    fn new() -> Bench {
        let switch = Switch::new();
        let dma = Region::of(vec![!0; DMA_BYTES / 8].leak());
        let card = Rc::new(RefCell::new(Card {
            dma,
            packets: switch.shared,
            registers: BTreeMap::new(),
            command: 0,
            causes: !0,
            receive: 7,
            transmit: 7,
            polled: false,
            resets: 0,
            stuck: false,
            gone: false,
            mac: MAC,
            link: true,
            acknowledged: 0,
            microseconds: 0,
        }));
        let nic = Nic::new(Fake(card.clone()), Dma { memory: dma, physical: DMA }, PACKETS).unwrap();
        let rings = Rings::new(nic, switch.shared, PACKETS).unwrap();
        Bench { card, rings, switch }
    }

    fn started() -> Bench {
        let mut bench = Bench::new();
        bench.start().unwrap();
        bench
    }

    fn start(&mut self) -> Result<(), Problem> {
        self.switch.restart();
        self.rings.start()
    }

    fn card(&self) -> RefMut<'_, Card> {
        self.card.borrow_mut()
    }

    /// Whether the card asks for an interrupt.
    fn asks(&self) -> bool {
        let card = self.card();
        u32::from(card.causes) & card.get(INTERRUPT_MASK) != 0
    }

    /// Lets the driver do what it does at an interrupt, if there is one.
    fn interrupt(&mut self) -> bool {
        let asks = self.asks();
        if asks {
            self.rings.device().interrupt(1 << LINE);
            self.rings.work();
        }
        asks
    }
}

fn packet(number: usize) -> Vec<u8> {
    (0..60 + number % 1400).map(|byte| (byte + number) as u8).collect()
}

#[test]
fn packets_flow() {
    let mut bench = Bench::new();
    for round in 1..=3 {
        bench.start().unwrap();
        assert_eq!(bench.card().resets, round);
        assert_eq!((bench.rings.device().mac(), bench.rings.device().link()), (MAC, true));
        let mut expected = VecDeque::new();
        let (mut sent, mut wire) = (0, VecDeque::new());
        for step in 0..300 {
            for number in 0..step % 128 {
                bench.switch.put(&packet(step + number));
                wire.push_back(packet(step + number));
                sent += 1;
            }
            bench.rings.work();
            // What had no descriptor gets one when others are done.
            while let Some(packet) = bench.card().transmit() {
                assert_eq!(Some(packet), wire.pop_front());
            }
            while bench.interrupt() {
                while let Some(packet) = bench.card().transmit() {
                    assert_eq!(Some(packet), wire.pop_front());
                }
            }
            assert!(wire.is_empty());
            for number in 0..step % 7 {
                assert!(bench.card().receive(&packet(step * number)));
                expected.push_back(packet(step * number));
            }
            bench.interrupt();
            bench.rings.work();
            assert_eq!(bench.switch.sent_taken(), sent);
            while let Some(packet) = bench.switch.take() {
                assert_eq!(Some(packet), expected.pop_front());
            }
            assert!(expected.is_empty());
        }
    }
}

#[test]
fn short_packets_are_filled_up_with_zeros() {
    let mut bench = Bench::started();
    bench.switch.shared.zero(protocol::service::net_driver::send_buffer(1), 2048);
    bench.switch.put(&[1; 60]);
    bench.switch.put(&[2; 42]);
    bench.rings.work();
    assert_eq!(bench.card().transmit(), Some(vec![1; 60]));
    assert_eq!(bench.card().transmit(), Some([[2; 42].as_slice(), &[0; 18]].concat()));
}

#[test]
fn all_buffers_are_used_though_the_ring_is_shorter() {
    let mut bench = Bench::started();
    let mut number = 0;
    while number < ENTRIES {
        while bench.card().receive(&packet(number)) {
            number += 1;
        }
        assert!(bench.interrupt());
    }
    assert!(!bench.card().receive(&packet(0)), "the switch has all of them");
    for number in 0..ENTRIES {
        assert_eq!(bench.switch.take(), Some(packet(number)));
    }
    // It asks because it had no descriptor; from here on it has.
    assert!(bench.interrupt());
    assert!(bench.card().receive(&packet(3)));
}

#[test]
fn no_wake_up_is_lost() {
    let mut bench = Bench::started();
    for number in 0..10 {
        assert!(!bench.asks());
        assert!(bench.card().receive(&packet(number)));
        assert!(bench.asks());
        bench.rings.device().interrupt(1 << LINE);
        // One more arrives just after the driver has acknowledged.
        assert!(bench.card().receive(&packet(number)));
        bench.rings.work();
        assert!(bench.interrupt());
        assert_eq!((bench.switch.take(), bench.switch.take()), (Some(packet(number)), Some(packet(number))));
        bench.rings.work();
    }
    assert_eq!(bench.card().acknowledged, 20);
}

#[test]
fn the_link_is_noticed() {
    let mut bench = Bench::started();
    for link in [false, true, false] {
        bench.card().set_link(link);
        assert!(bench.interrupt());
        assert_eq!(bench.rings.device().link(), link);
        assert!(!bench.interrupt(), "it is told once");
    }
    bench.start().unwrap();
    assert!(!bench.rings.device().link(), "nor is it forgotten");
}

#[test]
fn a_restart_in_the_midst_takes_nothing_along() {
    let mut bench = Bench::started();
    (0..100).for_each(|number| bench.switch.put(&packet(number)));
    bench.rings.work();
    (0..30).for_each(|_| drop(bench.card().transmit()));
    (0..50).for_each(|number| assert!(bench.card().receive(&packet(number))));
    bench.start().unwrap();
    bench.card().polled = true;
    assert_eq!(bench.card().transmit(), None);
    assert_eq!((bench.switch.take(), bench.switch.sent_taken()), (None, 0));
    let mut offered = 0;
    while bench.card().receive(&packet(offered)) {
        offered += 1;
    }
    assert_eq!(offered, SLOTS);
    bench.rings.work();
    assert_eq!(bench.switch.take(), Some(packet(0)));
    bench.switch.put(&packet(5));
    bench.rings.work();
    assert_eq!(bench.card().transmit(), Some(packet(5)));
}

#[test]
fn packets_that_make_no_sense_are_counted_as_lost() {
    let mut bench = Bench::started();
    let good = packet(1);
    for flags in [FIRST | 100, LAST | 100, FIRST | LAST | ERROR | 100, FIRST | LAST | LENGTH, FIRST | LAST] {
        bench.card().receive_as(&good, flags);
    }
    bench.card().receive(&good);
    assert!(bench.interrupt());
    assert_eq!((bench.rings.counters().lost, bench.rings.counters().received), (5, 1));
    (0..5).for_each(|_| assert_eq!(bench.switch.take(), Some(Vec::new())));
    assert_eq!(bench.switch.take(), Some(good));
}

#[test]
fn a_card_that_does_not_work_is_refused() {
    let mut bench = Bench::new();
    bench.card().stuck = true;
    assert!(bench.start().unwrap_err().contains("does not reset"));
    assert!(bench.card().microseconds < 1_000_000, "nor is it waited for long");
    bench.card().stuck = false;
    for mac in [[0; 6], [0xff; 6]] {
        bench.card().mac = mac;
        assert!(bench.start().unwrap_err().contains("address"));
    }
    bench.card().mac = MAC;
    bench.start().unwrap();
    bench.card().gone = true;
    bench.rings.device().interrupt(1 << LINE);
    assert!(!bench.rings.device().link());
    assert!(bench.start().is_err());
    let small = Dma { memory: Region::of(vec![0; 16].leak()), physical: DMA };
    assert!(Nic::new(Fake(bench.card.clone()), small, PACKETS).is_err());
}

proptest! {
    #[test]
    fn a_card_gone_mad_harms_nobody(
        steps in prop::collection::vec((0usize..6, any::<u32>(), any::<u16>()), 1..200)
    ) {
        let mut bench = Bench::started();
        let dma = bench.card().dma;
        for (step, value, place) in steps {
            let place = usize::from(place);
            match step {
                // Anything anywhere in its rings; descriptors that it was not given, done.
                0 => dma.write_u32(place * 4 % DMA_BYTES, value),
                1 => dma.write_u32(place % (2 * SLOTS) * DESCRIPTOR, value & !OWN | FIRST | LAST),
                2 => bench.rings.device().interrupt(1 << LINE),
                3 if bench.switch.room() => bench.switch.put(&packet(place)),
                4 => while let Some(packet) = bench.switch.take() {
                    prop_assert!(packet.len() <= protocol::nic::FRAME_MAX);
                },
                _ => drop(bench.rings.work()),
            }
            let device = bench.rings.device();
            prop_assert!(device.receive.under_way() <= ENTRIES && device.transmit.under_way() <= ENTRIES);
        }
    }
}
