use super::*;
use crate::ring::{DESCRIPTOR, DONE, SLOTS};
use alloc::{collections::BTreeMap, collections::VecDeque, rc::Rc, vec, vec::Vec};
use core::cell::RefCell;
use net_driver::{rings::Rings, testing::Switch};
use proptest::prelude::*;
use registers::{RING_HEAD, RING_HIGH, RING_LENGTH, RING_LOW, RING_TAIL};
use server_runtime::mmio::Region;

const PACKETS: u64 = 0x1_0000_0000;
const DMA: u64 = 0x2_0000_0000;
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// A card, by the letter of the manual.
struct Card {
    dma: Region,
    packets: Region,
    registers: BTreeMap<usize, u32>,
    causes: u32,
    enabled: u32,
    /// MSI-X: causes that their message clears and masks.
    automatic: u32,
    resets: usize,
    /// It does not come out of its reset.
    stuck: bool,
    /// It was pulled out.
    gone: bool,
    mac: [u8; 6],
    /// What its EEPROM holds, if that can be read.
    eeprom: Option<[u8; 6]>,
    link: bool,
    acknowledged: usize,
    microseconds: u64,
}

impl Card {
    fn get(&self, register: usize) -> u32 {
        self.registers.get(&register).copied().unwrap_or(0)
    }

    fn read(&mut self, register: usize) -> u32 {
        match register {
            _ if self.gone => !0,
            ICR => core::mem::take(&mut self.causes),
            STATUS => {
                let stopped = self.get(CTRL) & Control::MASTER_DISABLE.bits() != 0;
                u32::from(self.link) << 1 | u32::from(!stopped) << 19
            }
            EERD => match self.eeprom {
                Some(bytes) if self.get(EERD) & 1 != 0 => {
                    let word = (self.get(EERD) >> 8 & 0xff) as usize * 2;
                    u32::from_le_bytes([0x10, word as u8 / 2, bytes[word], bytes[word + 1]])
                }
                _ => 0,
            },
            RAL if self.registers.contains_key(&RAL) => self.get(RAL),
            RAH if self.registers.contains_key(&RAH) => self.get(RAH),
            RAL => u32::from_le_bytes([self.mac[0], self.mac[1], self.mac[2], self.mac[3]]),
            RAH => u32::from_le_bytes([self.mac[4], self.mac[5], 0, 0x80]),
            _ => self.get(register),
        }
    }

    fn write(&mut self, register: usize, value: u32) {
        match register {
            IMS => self.enabled |= value,
            IMC => self.enabled &= !value,
            ICR => self.causes &= !value,
            EIAC => self.automatic = value,
            CTRL if value & Control::RESET.bits() != 0 => {
                self.registers.clear();
                (self.causes, self.enabled, self.automatic) = (0, 0, 0);
                self.resets += 1;
                if self.stuck {
                    self.registers.insert(CTRL, value);
                }
            }
            _ => drop(self.registers.insert(register, value)),
        }
    }

    /// Whether a ring is in use; it must then be set up.
    fn has_ring(&self, ring: usize) -> bool {
        let enabled = if ring == RECEIVE { self.get(RCTL) & 2 } else { self.get(TCTL) & 2 };
        assert!(enabled == 0 || self.get(ring + RING_LENGTH) as usize == BYTES, "enabled before it was set up");
        enabled != 0
    }

    /// Offset of the ring's next descriptor in the device memory.
    fn next(&self, ring: usize) -> Option<usize> {
        let (head, tail) = (self.get(ring + RING_HEAD), self.get(ring + RING_TAIL));
        let physical = u64::from(self.get(ring + RING_HIGH)) << 32 | u64::from(self.get(ring + RING_LOW));
        let there = self.has_ring(ring) && head != tail;
        there.then(|| (physical - DMA) as usize + head as usize * DESCRIPTOR)
    }

    fn done(&mut self, ring: usize, cause: Causes) {
        let head = (self.get(ring + RING_HEAD) + 1) % SLOTS as u32;
        self.registers.insert(ring + RING_HEAD, head);
        self.causes |= cause.bits();
    }

    fn transmit(&mut self) -> Option<Vec<u8>> {
        let at = self.next(TRANSMIT)?;
        let (address, word) = (self.dma.read_u64(at), self.dma.read_u64(at + 8));
        assert_eq!(word >> 16, 0x0b00, "end of packet, checksum, report");
        let mut packet = vec![0; word as usize & 0xffff];
        self.packets.copy_out((address - PACKETS) as usize, &mut packet);
        self.dma.write_u32(at + 12, DONE);
        self.done(TRANSMIT, Causes::SENT | Causes::TRANSMIT_RING);
        Some(packet)
    }

    fn receive(&mut self, packet: &[u8]) -> bool {
        self.receive_as(packet, packet.len(), DONE | LAST)
    }

    fn receive_as(&mut self, packet: &[u8], length: usize, status: u32) -> bool {
        let Some(at) = self.next(RECEIVE) else {
            return false;
        };
        let address = self.dma.read_u64(at);
        self.packets.copy_in((address - PACKETS) as usize, packet);
        self.dma.write_u32(at + 8, 0xcccc_0000 | length as u32);
        self.dma.write_u32(at + 12, status);
        self.done(RECEIVE, Causes::RECEIVED | Causes::RECEIVE_RING);
        true
    }

    fn set_link(&mut self, link: bool) {
        self.link = link;
        self.causes |= (Causes::LINK | Causes::OTHER).bits();
    }

    /// The lines on which it interrupts. A message is sent once; a line asks until its cause is gone.
    fn interrupts(&mut self, how: Interrupts) -> u64 {
        let causes = self.causes & self.enabled;
        match how {
            Interrupts::One => u64::from(causes != 0) << LINE_RINGS,
            Interrupts::Messages => {
                let rings = causes & self.automatic;
                self.causes &= !rings;
                self.enabled &= !rings;
                u64::from(rings != 0) << LINE_RINGS | u64::from(causes & Causes::OTHER.bits() != 0) << LINE_OTHER
            }
        }
    }
}

struct Fake(Rc<RefCell<Card>>);

impl Wire for Fake {
    fn read(&self, register: usize) -> u32 {
        self.0.borrow_mut().read(register)
    }
    fn write(&self, register: usize, value: u32) {
        self.0.borrow_mut().write(register, value);
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
    how: Interrupts,
}

const KINDS: [(Kind, Interrupts); 3] =
    [(Kind::Pci, Interrupts::One), (Kind::Express, Interrupts::One), (Kind::Express, Interrupts::Messages)];

impl Bench {
    fn new((kind, how): (Kind, Interrupts)) -> Bench {
        let switch = Switch::new();
        let dma = Region::of(vec![!0; DMA_BYTES / 8].leak());
        let card = Rc::new(RefCell::new(Card {
            dma,
            packets: switch.shared,
            registers: BTreeMap::new(),
            causes: !0,
            enabled: !0,
            automatic: 0,
            resets: 0,
            stuck: false,
            gone: false,
            mac: MAC,
            eeprom: None,
            link: true,
            acknowledged: 0,
            microseconds: 0,
        }));
        let nic = Nic::new(Fake(card.clone()), kind, how, Dma { memory: dma, physical: DMA }).unwrap();
        let rings = Rings::new(nic, switch.shared, PACKETS).unwrap();
        Bench { card, rings, switch, how }
    }

    fn started(kind: (Kind, Interrupts)) -> Bench {
        let mut bench = Bench::new(kind);
        bench.start().unwrap();
        bench
    }

    fn start(&mut self) -> Result<(), Problem> {
        self.switch.restart();
        self.rings.start()
    }

    fn card(&self) -> core::cell::RefMut<'_, Card> {
        self.card.borrow_mut()
    }

    /// Lets the driver do what it does at an interrupt, if there is one.
    fn interrupt(&mut self) -> bool {
        let lines = self.card().interrupts(self.how);
        if lines != 0 {
            self.rings.device().interrupt(lines);
            self.rings.work();
        }
        lines != 0
    }
}

fn packet(number: usize) -> Vec<u8> {
    (0..60 + number % 1400).map(|byte| (byte + number) as u8).collect()
}

#[test]
fn packets_flow() {
    for kind in KINDS {
        let mut bench = Bench::new(kind);
        for round in 1..=3 {
            bench.start().unwrap();
            assert_eq!(bench.card().resets, round);
            assert_eq!((bench.rings.device().mac(), bench.rings.device().link()), (MAC, true));
            let mut expected = VecDeque::new();
            let mut sent = 0;
            for step in 0..300 {
                (0..step % 128).for_each(|number| bench.switch.put(&packet(step + number)));
                bench.rings.work();
                for number in 0..step % 128 {
                    assert_eq!(bench.card().transmit(), Some(packet(step + number)));
                    sent += 1;
                }
                for number in 0..step % 7 {
                    assert!(bench.card().receive(&packet(step * number)));
                    expected.push_back(packet(step * number));
                }
                assert_eq!(bench.interrupt(), step % 7 > 0 || step % 128 >= SEND_INTERRUPTS_FROM);
                bench.rings.work();
                assert_eq!(bench.switch.sent_taken(), sent);
                while let Some(packet) = bench.switch.take() {
                    assert_eq!(Some(packet), expected.pop_front());
                }
                assert!(expected.is_empty());
            }
        }
    }
}

#[test]
fn no_wake_up_is_lost() {
    for kind in KINDS {
        let mut bench = Bench::started(kind);
        for number in 0..10 {
            assert!(!bench.interrupt());
            assert!(bench.card().receive(&packet(number)));
            // One more arrives while the driver is being woken, and one just after it has acknowledged.
            let lines = bench.card().interrupts(bench.how);
            assert!(bench.card().receive(&packet(number)));
            bench.rings.device().interrupt(lines);
            assert!(bench.card().receive(&packet(number)));
            bench.rings.work();
            let mut taken = 0;
            while bench.switch.take().is_some() {
                taken += 1;
            }
            assert!(taken == 3 || bench.interrupt());
            bench.rings.work();
            while bench.interrupt() {}
        }
        assert!(bench.card().acknowledged >= 10);
    }
}

#[test]
fn sent_packets_interrupt_only_when_many_are_under_way() {
    for kind in KINDS {
        let mut bench = Bench::started(kind);
        (0..SEND_INTERRUPTS_FROM - 1).for_each(|number| bench.switch.put(&packet(number)));
        bench.rings.work();
        bench.card().transmit();
        assert!(!bench.interrupt());
        (0..2).for_each(|number| bench.switch.put(&packet(number)));
        bench.rings.work();
        bench.card().transmit();
        assert!(bench.interrupt());
        assert_eq!(bench.switch.sent_taken(), 2);
        // A switch whose ring is full waits for nothing but interrupts.
        while bench.switch.room() {
            bench.switch.put(&packet(1));
        }
        bench.rings.work();
        while bench.card().transmit().is_some() {
            bench.interrupt();
        }
        assert!(bench.switch.room());
    }
}

#[test]
fn the_link_is_noticed() {
    for kind in KINDS {
        let mut bench = Bench::started(kind);
        for link in [false, true, false] {
            bench.card().set_link(link);
            assert!(bench.interrupt());
            assert_eq!(bench.rings.device().link(), link);
            assert!(!bench.interrupt(), "it is told once");
        }
        bench.start().unwrap();
        assert!(!bench.rings.device().link(), "nor is it forgotten");
    }
}

#[test]
fn a_restart_in_the_midst_takes_nothing_along() {
    for kind in KINDS {
        let mut bench = Bench::started(kind);
        (0..100).for_each(|number| bench.switch.put(&packet(number)));
        bench.rings.work();
        (0..30).for_each(|_| drop(bench.card().transmit()));
        (0..50).for_each(|number| assert!(bench.card().receive(&packet(number))));
        bench.start().unwrap();
        assert_eq!(bench.card().transmit(), None);
        assert_eq!((bench.switch.take(), bench.switch.sent_taken()), (None, 0));
        let mut offered = 0;
        while bench.card().receive(&packet(offered)) {
            offered += 1;
        }
        assert_eq!(offered, ENTRIES, "each buffer once");
        bench.rings.work();
        assert_eq!(bench.switch.take(), Some(packet(0)));
        bench.switch.put(&packet(5));
        bench.rings.work();
        assert_eq!(bench.card().transmit(), Some(packet(5)));
    }
}

#[test]
fn packets_that_make_no_sense_are_counted_as_lost() {
    let mut bench = Bench::started(KINDS[0]);
    let good = packet(1);
    bench.card().receive_as(&good, good.len(), DONE);
    bench.card().receive_as(&good, good.len(), DONE | LAST | 1 << 8);
    bench.card().receive_as(&good, 0xffff, DONE | LAST);
    bench.card().receive_as(&good, 0, DONE | LAST);
    bench.card().receive(&good);
    assert!(bench.interrupt());
    assert_eq!((bench.rings.counters().lost, bench.rings.counters().received), (4, 1));
    (0..4).for_each(|_| assert_eq!(bench.switch.take(), Some(Vec::new())));
    assert_eq!(bench.switch.take(), Some(good));
}

#[test]
fn a_card_that_does_not_work_is_refused() {
    for kind in KINDS {
        let mut bench = Bench::new(kind);
        bench.card().stuck = true;
        assert!(bench.start().unwrap_err().contains("does not reset"));
        assert!(bench.card().microseconds < 1_000_000, "nor is it waited for long");
        bench.card().stuck = false;
        bench.card().mac = [0; 6];
        assert!(bench.start().unwrap_err().contains("address"));
        bench.card().mac = [0xff; 6];
        assert!(bench.start().unwrap_err().contains("address"));
        bench.card().mac = MAC;
        bench.start().unwrap();
        bench.card().gone = true;
        bench.rings.device().interrupt(1 << LINE_RINGS | 1 << LINE_OTHER);
        assert!(!bench.rings.device().link());
        assert!(bench.start().is_err());
    }
    let small = Dma { memory: Region::of(vec![0; 16].leak()), physical: DMA };
    let card = Bench::new(KINDS[0]).card;
    assert!(Nic::new(Fake(card), Kind::Pci, Interrupts::One, small).is_err());
}

#[test]
fn an_address_that_the_card_did_not_load_is_loaded() {
    let mut bench = Bench::new(KINDS[0]);
    (bench.card().mac, bench.card().eeprom) = ([0; 6], Some(MAC));
    bench.start().unwrap();
    assert_eq!(bench.rings.device().mac(), MAC);
    let loaded = [RAL, RAH].map(|register| bench.card().read(register));
    assert_eq!(loaded, [0x1200_5452, 0x8000_5634], "as the card would have done it");
    for nonsense in [[0; 6], [0xff; 6]] {
        bench.card().eeprom = Some(nonsense);
        assert!(bench.start().unwrap_err().contains("address"));
    }
    // Later cards have their EEPROM elsewhere.
    let mut bench = Bench::new(KINDS[1]);
    (bench.card().mac, bench.card().eeprom) = ([0; 6], Some(MAC));
    assert!(bench.start().unwrap_err().contains("address"));
}

proptest! {
    #[test]
    fn a_card_gone_mad_harms_nobody(
        steps in prop::collection::vec((0usize..6, any::<u32>(), any::<u16>()), 1..200)
    ) {
        let mut bench = Bench::started(KINDS[2]);
        let dma = bench.card().dma;
        for (step, value, place) in steps {
            let place = usize::from(place);
            match step {
                // Anything anywhere in its rings; descriptors that it was not given, done.
                0 => dma.write_u32(place * 4 % DMA_BYTES, value),
                1 => dma.write_u32(place % (2 * SLOTS) * DESCRIPTOR + 12, value | DONE | LAST),
                2 => bench.rings.device().interrupt(u64::from(value) << 32),
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
