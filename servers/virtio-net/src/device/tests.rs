use super::*;
use alloc::{collections::VecDeque, rc::Rc};
use core::cell::RefCell;
use net_driver::{Dma, rings::Rings, testing::Switch};
use server_runtime::mmio::Region;
use virtio::hal::{self, Map};
use virtio_drivers::{
    Error, PhysAddr,
    transport::{DeviceType, InterruptStatus, Transport},
};

const PACKETS: u64 = 0x1_0000_0000;
const DMA: u64 = 0x2_0000_0000;
const DMA_PAGES: usize = 4;
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// The device's side of a queue: addresses as the driver gave them, and where it is.
#[derive(Clone, Copy, Default)]
struct Side {
    descriptors: u64,
    driver: u64,
    device: u64,
    seen: u16,
    used: u16,
}

/// A device, by the letter of the standard: split queues in DMA memory, packets in packet memory.
struct Device {
    dma: Region,
    packets: Region,
    status: u8,
    features: u64,
    taken: u64,
    queues: [Side; 2],
    notified: [usize; 2],
    resets: usize,
    link: bool,
}

impl Device {
    fn dma(&self, physical: u64) -> usize {
        (physical - DMA) as usize
    }

    /// The next buffer that the driver has made available: its descriptor, physical address and length.
    fn next(&mut self, queue: usize, writable: bool) -> Option<(u16, u64, usize)> {
        let Side { descriptors, driver, seen, .. } = self.queues[queue];
        let available = self.dma.read_u16(self.dma(driver) + 2);
        if seen == available {
            return None;
        }
        self.queues[queue].seen = seen.wrapping_add(1);
        let head = self.dma.read_u16(self.dma(driver) + 4 + usize::from(seen) % ENTRIES * 2);
        let at = self.dma(descriptors) + usize::from(head) * 16;
        let flags = self.dma.read_u16(at + 12);
        assert_eq!(flags, if writable { 2 } else { 0 }, "one descriptor, in the right direction");
        Some((head, self.dma.read_u64(at), self.dma.read_u32(at + 8) as usize))
    }

    fn give_back(&mut self, queue: usize, head: u16, length: usize) {
        let Side { device, used, .. } = self.queues[queue];
        let at = self.dma(device) + 4 + usize::from(used) % ENTRIES * 8;
        self.dma.write_u32(at, u32::from(head));
        self.dma.write_u32(at + 4, length as u32);
        self.queues[queue].used = used.wrapping_add(1);
        self.dma.write_u16(self.dma(device) + 2, used.wrapping_add(1));
    }

    fn transmit(&mut self) -> Option<Vec<u8>> {
        let (head, address, length) = self.next(usize::from(SEND), false)?;
        let mut bytes = vec![0; length];
        self.packets.copy_out((address - PACKETS) as usize, &mut bytes);
        assert_eq!(bytes[..HEADER], [0; HEADER], "a header without offloads");
        self.give_back(usize::from(SEND), head, 0);
        Some(bytes.split_off(HEADER))
    }

    fn receive(&mut self, packet: &[u8]) -> bool {
        let Some((head, address, length)) = self.next(usize::from(RECEIVE), true) else {
            return false;
        };
        assert!(length >= HEADER + packet.len());
        let mut bytes = vec![0xaa; HEADER];
        bytes.extend(packet);
        self.packets.copy_in((address - PACKETS) as usize, &bytes);
        self.give_back(usize::from(RECEIVE), head, bytes.len());
        true
    }

    fn wants_send_interrupts(&self) -> bool {
        self.dma.read_u16(self.dma(self.queues[usize::from(SEND)].driver)) == 0
    }
}

struct Fake(Rc<RefCell<Device>>);

impl Wire for Fake {
    fn reset(&mut self) -> Result<(), Problem> {
        let mut device = self.0.borrow_mut();
        device.status = 0;
        device.queues = Default::default();
        device.resets += 1;
        Ok(())
    }
    fn has_interrupts(&self) -> bool {
        true
    }
}

impl Transport for Fake {
    fn device_type(&self) -> DeviceType {
        DeviceType::Network
    }
    fn read_device_features(&mut self) -> u64 {
        self.0.borrow().features
    }
    fn write_driver_features(&mut self, features: u64) {
        self.0.borrow_mut().taken = features;
    }
    fn max_queue_size(&mut self, _: u16) -> u32 {
        256
    }
    fn notify(&mut self, queue: u16) {
        let mut device = self.0.borrow_mut();
        assert_ne!(device.status & 4, 0, "told before it was ready");
        device.notified[usize::from(queue)] += 1;
    }
    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(u32::from(self.0.borrow().status))
    }
    fn set_status(&mut self, status: DeviceStatus) {
        self.0.borrow_mut().status = status.bits() as u8;
    }
    fn set_guest_page_size(&mut self, _: u32) {}
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(&mut self, queue: u16, size: u32, descriptors: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        assert_eq!(size as usize, ENTRIES);
        self.0.borrow_mut().queues[usize::from(queue)] = Side { descriptors, driver, device, seen: 0, used: 0 };
    }
    fn queue_unset(&mut self, _: u16) {}
    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.borrow().queues[usize::from(queue)].descriptors != 0
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::default()
    }
    fn read_config_generation(&self) -> u32 {
        0
    }
    fn read_config_space<T: zerocopy::FromBytes + zerocopy::IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let mut config = MAC.to_vec();
        config.extend([u8::from(self.0.borrow().link), 0]);
        T::read_from_bytes(&config[offset..][..size_of::<T>()]).map_err(|_| Error::ConfigSpaceTooSmall)
    }
    fn write_config_space<T: zerocopy::IntoBytes + zerocopy::Immutable>(
        &mut self,
        _: usize,
        _: T,
    ) -> Result<(), Error> {
        Ok(())
    }
}

fn packet(number: usize) -> Vec<u8> {
    (0..60 + number % 1400).map(|byte| (byte + number) as u8).collect()
}

/// One test, because the memory that the device sees is one for the process, as it is for the driver.
#[test]
fn packets_flow_and_a_restart_loses_none_of_the_memory() {
    let mut switch = Switch::new();
    let packets = switch.shared;
    let dma = Region::of(vec![0; DMA_PAGES * 512].leak());
    hal::init(Map {
        dma: Dma { memory: dma, physical: DMA },
        buffers: vec![Dma { memory: packets, physical: PACKETS }],
        registers: [None; 6],
    });
    let features = (Features::all().bits()) | 1 << 29 | 1;
    let device = Rc::new(RefCell::new(Device {
        dma,
        packets,
        status: 0,
        features,
        taken: 0,
        queues: Default::default(),
        notified: [0; 2],
        resets: 0,
        link: true,
    }));

    let nic = VirtioNet::new(Fake(device.clone()), Interrupts::Messages { config: 33 });
    let mut rings = Rings::new(nic, packets, PACKETS).unwrap();
    // Each start needs all of the DMA memory: a page that leaked would make the second one fail.
    for round in 1..=3 {
        rings.start().unwrap();
        assert_eq!((device.borrow().resets, device.borrow().taken), (round, Features::all().bits()));
        assert_eq!((rings.device().mac(), rings.device().link()), (MAC, true));
        switch.restart();
        flow(&mut rings, &device, &mut switch);
    }

    device.borrow_mut().link = false;
    rings.device().interrupt(1 << 32);
    assert!(rings.device().link());
    rings.device().interrupt(1 << 33);
    assert!(!rings.device().link());

    device.borrow_mut().features = 0;
    assert!(rings.start().unwrap_err().contains("virtio 1.0"));
}

fn flow(rings: &mut Rings<VirtioNet<Fake>>, device: &Rc<RefCell<Device>>, switch: &mut Switch) {
    let mut expected = VecDeque::new();
    let mut sent = 0;
    for step in 0..300 {
        // A batch out: one doorbell, and the device is asked for interrupts only while much is under way.
        let batch = step % 100;
        let notified = device.borrow().notified[usize::from(SEND)];
        (0..batch).for_each(|number| switch.put(&packet(step + number)));
        rings.work();
        assert_eq!(device.borrow().notified[usize::from(SEND)], notified + usize::from(batch > 0));
        if batch > 0 {
            assert_eq!(device.borrow().wants_send_interrupts(), batch >= SEND_INTERRUPTS_FROM);
        }
        for number in 0..batch {
            assert_eq!(device.borrow_mut().transmit(), Some(packet(step + number)));
            sent += 1;
        }
        // Packets in.
        for number in 0..step % 7 {
            assert!(device.borrow_mut().receive(&packet(step * number)));
            expected.push_back(packet(step * number));
        }
        rings.work();
        assert_eq!(switch.sent_taken(), sent);
        while let Some(packet) = switch.take() {
            assert_eq!(Some(packet), expected.pop_front());
        }
        assert!(expected.is_empty());
    }
}
