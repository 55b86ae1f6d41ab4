use super::*;
use alloc::rc::Rc;
use core::cell::RefCell;
use server_runtime::mmio::Region;
use virtio::hal::Map;
use virtio_drivers::{
    Error, PhysAddr,
    transport::{DeviceType, InterruptStatus, Transport},
};

const BUFFERS: u64 = 0x1_0000_0000;
const BUFFERS_BYTES: usize = 100 * BUFFER;
const DMA: u64 = 0x2_0000_0000;
/// Three for the queue, one for the headers: a page that leaked would make the next reset fail.
const DMA_PAGES: usize = 4;
const DISK_BLOCKS: u64 = 300;

/// A device, by the letter of the standard: a split queue in DMA memory.
struct Device {
    dma: Region,
    buffers: Region,
    disk: Vec<u8>,
    status: u8,
    features: u64,
    taken: u64,
    queue: [u64; 3],
    seen: u16,
    used: u16,
    notified: usize,
    resets: usize,
    flushes: usize,
    size_max: u32,
    /// Kind and status of the next request that fails.
    fails: Option<(u32, u8)>,
}

/// A descriptor: address, length, whether the device writes there.
type Piece = (u64, usize, bool);

impl Device {
    fn at(&self, physical: u64, length: usize) -> Region {
        match physical.checked_sub(DMA) {
            Some(offset) => self.dma.part(offset as usize, length),
            None => self.buffers.part((physical - BUFFERS) as usize, length),
        }
    }

    fn word(&self, physical: u64) -> u16 {
        self.at(physical, 2).read_u16(0)
    }

    /// The chains that the driver has made available.
    fn chains(&mut self) -> Vec<(u16, Vec<Piece>)> {
        let [descriptors, driver, _] = self.queue;
        let mut chains = Vec::new();
        while self.seen != self.word(driver + 2) {
            let head = self.word(driver + 4 + u64::from(self.seen) % DESCRIPTORS as u64 * 2);
            self.seen = self.seen.wrapping_add(1);
            let (mut next, mut pieces) = (head, Vec::new());
            loop {
                let descriptor = self.at(descriptors + u64::from(next) * 16, 16);
                let flags = descriptor.read_u16(12);
                pieces.push((descriptor.read_u64(0), descriptor.read_u32(8) as usize, flags & 2 != 0));
                if flags & 1 == 0 {
                    break;
                }
                next = descriptor.read_u16(14);
            }
            chains.push((head, pieces));
        }
        chains
    }

    /// Carries out a request and gives it back.
    fn carry_out(&mut self, head: u16, pieces: &[Piece]) {
        let (header, status) = (pieces[0], pieces[pieces.len() - 1]);
        assert_eq!(((header.1, header.2), (status.1, status.2)), ((16, false), (1, true)));
        let header = self.at(header.0, 16);
        let (kind, sector) = (header.read_u32(0), header.read_u64(8));
        let start = (sector * SECTOR) as usize;
        let mut answer = STATUS_OK;
        match (kind, &pieces[1..pieces.len() - 1]) {
            (failing, _) if self.fails.is_some_and(|(kind, _)| kind == failing) => {
                answer = self.fails.take().map_or(0, |(_, status)| status);
            }
            (IN, [(address, length, true)]) => {
                self.at(*address, *length).copy_in(0, &self.disk[start..][..*length]);
            }
            (OUT, [(address, length, false)]) => {
                self.at(*address, *length).copy_out(0, &mut self.disk[start..][..*length]);
            }
            (FLUSH, []) => self.flushes += 1,
            (WRITE_ZEROES, [(address, 16, false)]) => {
                let segment = self.at(*address, 16);
                let (sector, count) = (segment.read_u64(0), segment.read_u32(8));
                assert_eq!(segment.read_u32(12), UNMAP);
                self.disk[(sector * SECTOR) as usize..][..count as usize * SECTOR as usize].fill(0);
            }
            other => panic!("a request that the standard does not know: {other:?}"),
        }
        self.at(status.0, 1).write_u8(0, answer);
        let device = self.queue[2];
        let entry = self.at(device + 4 + u64::from(self.used) % DESCRIPTORS as u64 * 8, 8);
        entry.write_u32(0, head.into());
        entry.write_u32(4, 1);
        self.used = self.used.wrapping_add(1);
        self.at(device + 2, 2).write_u16(0, self.used);
    }
}

struct Fake(Rc<RefCell<Device>>);

impl Wire for Fake {
    fn reset(&mut self) -> Result<(), Problem> {
        let mut device = self.0.borrow_mut();
        (device.status, device.queue, device.seen, device.used) = (0, [0; 3], 0, 0);
        device.resets += 1;
        Ok(())
    }
    fn has_interrupts(&self) -> bool {
        true
    }
}

impl Transport for Fake {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }
    fn read_device_features(&mut self) -> u64 {
        self.0.borrow().features
    }
    fn write_driver_features(&mut self, features: u64) {
        self.0.borrow_mut().taken = features;
    }
    fn max_queue_size(&mut self, _: u16) -> u32 {
        DESCRIPTORS as u32
    }
    fn notify(&mut self, queue: u16) {
        assert_eq!((queue, self.0.borrow().status & 4), (QUEUE, 4), "told before it was ready");
        self.0.borrow_mut().notified += 1;
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
    fn queue_set(&mut self, _: u16, size: u32, descriptors: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        assert_eq!(size as usize, DESCRIPTORS);
        self.0.borrow_mut().queue = [descriptors, driver, device];
    }
    fn queue_unset(&mut self, _: u16) {}
    fn queue_used(&mut self, _: u16) -> bool {
        self.0.borrow().queue[0] != 0
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::default()
    }
    fn read_config_generation(&self) -> u32 {
        0
    }
    fn read_config_space<T: zerocopy::FromBytes + zerocopy::IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let mut config = [0; 60];
        config[..8].copy_from_slice(&(DISK_BLOCKS * SECTORS + 3).to_le_bytes());
        config[8..12].copy_from_slice(&self.0.borrow().size_max.to_le_bytes());
        config[20..24].copy_from_slice(&4096u32.to_le_bytes());
        config[48..52].copy_from_slice(&u32::MAX.to_le_bytes());
        config[52..56].copy_from_slice(&1u32.to_le_bytes());
        config[56] = 1;
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

struct Bench {
    disk: VirtioBlk<Fake>,
    device: Rc<RefCell<Device>>,
    buffers: Dma,
}

impl Bench {
    fn buffer(&self, tag: usize, blocks: usize) -> Dma {
        self.buffers.part(tag * BUFFER, blocks * BLOCK)
    }

    /// Lets the device do all it was given, last first; returns what came back.
    fn carry_out(&mut self) -> Vec<(usize, Result<(), Failure>)> {
        let chains = self.device.borrow_mut().chains();
        for (head, pieces) in chains.iter().rev() {
            self.device.borrow_mut().carry_out(*head, pieces);
        }
        core::iter::from_fn(|| self.disk.finished()).collect()
    }
}

/// One test, because the memory that the device sees is one for the process, as it is for the driver.
#[test]
fn requests_are_carried_out_and_a_reset_loses_none_of_the_memory() {
    let buffers = Dma { memory: Region::of(vec![0; BUFFERS_BYTES / 8].leak()), physical: BUFFERS };
    let dma = Region::of(vec![0; DMA_PAGES * 512].leak());
    hal::init(Map { dma: Dma { memory: dma, physical: DMA }, buffers: vec![buffers], registers: [None; 6] });
    let device = Rc::new(RefCell::new(Device {
        dma,
        buffers: buffers.memory,
        disk: vec![0xee; DISK_BLOCKS as usize * BLOCK],
        status: 0,
        features: Features::all().bits() | 1 << 28 | 1 << 29 | 1 << 12,
        taken: 0,
        queue: [0; 3],
        seen: 0,
        used: 0,
        notified: 0,
        resets: 0,
        flushes: 0,
        size_max: BUFFER as u32,
        fails: None,
    }));
    let disk = VirtioBlk::new(Fake(device.clone()), Interrupts::Messages { config: 33 }).unwrap();
    let mut bench = Bench { disk, device, buffers };
    for round in 1..=3 {
        bench.disk.reset().unwrap();
        assert_eq!((bench.device.borrow().resets, bench.device.borrow().taken), (round, Features::all().bits()));
        full_queue(&mut bench, round as u8);
        kinds(&mut bench);
        failures(&mut bench);
        // The next reset finds requests under way, and forgets them.
        bench.disk.submit(7, Request::Flush);
    }
    assert!(bench.disk.geometry().read_only);

    bench.device.borrow_mut().features &= !(Features::FLUSH | Features::RO | Features::WRITE_ZEROES).bits();
    bench.disk.reset().unwrap();
    assert_eq!(
        bench.disk.geometry(),
        Geometry { blocks: DISK_BLOCKS, sector: 4096, read_only: false, zero_most: 0 },
        "blocks that are not whole do not count"
    );
    bench.disk.submit(3, Request::Flush);
    assert_eq!(bench.carry_out(), [(3, Ok(()))], "a device without a cache has nothing to flush");

    bench.device.borrow_mut().size_max = 4096;
    assert!(bench.disk.reset().unwrap_err().contains("4096 bytes at once"));
    bench.device.borrow_mut().features = 0;
    assert!(bench.disk.reset().unwrap_err().contains("virtio 1.0"));
}

/// As many requests as there are tags, with one doorbell.
fn full_queue(bench: &mut Bench, round: u8) {
    let notified = bench.device.borrow().notified;
    for tag in 0..TAGS {
        let buffer = bench.buffer(tag, 2);
        buffer.memory.copy_in(0, &vec![tag as u8 ^ round; 2 * BLOCK]);
        bench.disk.submit(tag, Request::Write { block: tag as u64 * 3, buffer });
    }
    bench.disk.notify();
    bench.disk.notify();
    assert_eq!(bench.device.borrow().notified, notified + 1);
    let finished = bench.carry_out();
    assert!(finished.iter().map(|(tag, result)| (*tag, result.is_ok())).eq((0..TAGS).rev().map(|tag| (tag, true))));
    for tag in 0..TAGS {
        let device = bench.device.borrow();
        let written = &device.disk[tag * 3 * BLOCK..][..3 * BLOCK];
        assert!(written[..2 * BLOCK].iter().all(|byte| *byte == tag as u8 ^ round) && written[2 * BLOCK] == 0xee);
    }
}

fn kinds(bench: &mut Bench) {
    let flushes = bench.device.borrow().flushes;
    bench.buffer(0, 16).memory.zero(0, BUFFER);
    let geometry = bench.disk.geometry();
    assert_eq!((geometry.zero_most, geometry.blocks), (ZERO_MOST, DISK_BLOCKS));
    bench.disk.submit(0, Request::Read { block: 9, buffer: bench.buffer(0, 1) });
    bench.disk.submit(1, Request::Flush);
    bench.disk.submit(2, Request::Zero { block: 290, count: 10 });
    bench.disk.notify();
    assert_eq!(bench.carry_out(), [(2, Ok(())), (1, Ok(())), (0, Ok(()))]);
    let device = bench.device.borrow();
    assert_eq!(device.flushes, flushes + 1);
    assert!(device.disk[290 * BLOCK..].iter().all(|byte| *byte == 0) && device.disk[290 * BLOCK - 1] == 0xee);
    let mut read = vec![0; BLOCK];
    bench.buffers.memory.copy_out(0, &mut read);
    assert_eq!(read, device.disk[9 * BLOCK..][..BLOCK]);
    drop(device);
    bench.device.borrow_mut().disk[290 * BLOCK..].fill(0xee);
}

fn failures(bench: &mut Bench) {
    let buffer = bench.buffer(5, 1);
    let cases = [
        (Request::Read { block: 0, buffer }, IN, 1, Failure::Failed),
        (Request::Flush, FLUSH, 1, Failure::Failed),
        (Request::Zero { block: 0, count: 1 }, WRITE_ZEROES, STATUS_UNSUPPORTED, Failure::Unsupported),
        // A device that says nothing at all.
        (Request::Write { block: 0, buffer }, OUT, STATUS_NONE, Failure::Failed),
    ];
    for (request, kind, status, failure) in cases {
        bench.device.borrow_mut().fails = Some((kind, status));
        bench.disk.submit(5, request);
        assert_eq!(bench.carry_out(), [(5, Err(failure))]);
    }
}
