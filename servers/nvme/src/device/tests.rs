use super::*;
use crate::{
    fake::{Controller as Device, Fake, Fetched},
    registers,
};
use alloc::rc::Rc;
use core::cell::RefCell;
use proptest::prelude::*;
use server_runtime::mmio::Region;
use std::panic::{AssertUnwindSafe, catch_unwind};

const BUFFERS: u64 = 0x1_0000_0000;
const DMA: u64 = 0x2_0000_0000;
const DMA_BYTES: usize = 60 << 10;
const BLOCKS: usize = 300;
/// Registers of a controller with doorbells 8 bytes apart.
const REGISTERS: usize = registers::DOORBELLS + 32;

struct Bench {
    disk: Nvme<Fake>,
    device: Rc<RefCell<Device>>,
    buffers: Dma,
}

fn device(tags: usize) -> Rc<RefCell<Device>> {
    let memory = |bytes: usize, physical| Dma { memory: Region::of(vec![!0; bytes / 8].leak()), physical };
    let device = Device::new(memory(DMA_BYTES, DMA), memory(tags * BUFFER, BUFFERS), BLOCKS);
    Rc::new(RefCell::new(device))
}

fn open(device: &Rc<RefCell<Device>>) -> Result<Nvme<Fake>, Error> {
    let memory = device.borrow().dma;
    Nvme::new(Fake(device.clone()), REGISTERS, memory)
}

impl Bench {
    fn new() -> Bench {
        let device = device(127);
        let mut disk = open(&device).unwrap();
        disk.reset().unwrap();
        let buffers = device.borrow().buffers;
        Bench { disk, device, buffers }
    }

    fn buffer(&self, tag: usize, blocks: usize) -> Dma {
        self.buffers.part(tag * BUFFER, blocks * BLOCK)
    }

    fn fetch(&mut self) -> Vec<Fetched> {
        self.disk.notify();
        self.device.borrow_mut().fetch(1)
    }

    /// Lets the device do all it was given, last first; returns what came back.
    fn carry_out(&mut self) -> Vec<(usize, Result<(), Failure>)> {
        for command in self.fetch().iter().rev() {
            self.device.borrow_mut().carry_out(command);
        }
        core::iter::from_fn(|| self.disk.finished()).collect()
    }
}

#[test]
fn all_tags_at_once_round_after_round() {
    let mut bench = Bench::new();
    assert_eq!(bench.disk.tags(), 127);
    for round in 1..=5u8 {
        let told = bench.device.borrow().told;
        for tag in 0..127 {
            let (block, blocks) = (tag % 37 * 8, 1 + tag % 8);
            let buffer = bench.buffer(tag, blocks);
            buffer.memory.copy_in(0, &vec![tag as u8 ^ round; blocks * BLOCK]);
            bench.disk.submit(tag, Request::Write { block: block as u64, buffer });
        }
        let finished = bench.carry_out();
        assert!(finished.into_iter().eq((0..127).rev().map(|tag| (tag, Ok(())))));
        assert_eq!(bench.device.borrow().told, told + 1, "one doorbell for a batch");
        // The last to be carried out were tags 0 to 36.
        let device = bench.device.borrow();
        for tag in 0..37 {
            let blocks = 1 + tag % 8;
            let written = &device.disk[tag * 8 * BLOCK..][..blocks * BLOCK];
            assert!(written.iter().all(|byte| *byte == tag as u8 ^ round), "tag {tag}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]
    /// Whatever lengths come one after the other with a tag: the list of pages is that of the buffer.
    #[test]
    fn every_page_of_a_buffer_is_named(transfers in prop::collection::vec((0usize..3, 1usize..=16, 0usize..3), 1..20)) {
        let mut bench = Bench::new();
        for (round, (tag, blocks, slot)) in transfers.into_iter().enumerate() {
            let buffer = bench.buffer(slot, blocks);
            let bytes: Vec<u8> = (0..blocks * BLOCK).map(|at| (at / BLOCK * 7 + round) as u8).collect();
            buffer.memory.copy_in(0, &bytes);
            bench.disk.submit(tag, Request::Write { block: 20, buffer });
            prop_assert_eq!(bench.carry_out(), [(tag, Ok(()))]);
            prop_assert_eq!(&bench.device.borrow().disk[20 * BLOCK..][..bytes.len()], &bytes[..]);
            buffer.memory.zero(0, bytes.len());
            bench.disk.submit(tag, Request::Read { block: 20, buffer });
            prop_assert_eq!(bench.carry_out(), [(tag, Ok(()))]);
            let mut read = vec![0; bytes.len()];
            buffer.memory.copy_out(0, &mut read);
            prop_assert_eq!(read, bytes);
        }
    }

    /// What stands in a completion queue that the device has filled with nonsense: the driver does not go on with it, or with nothing at all.
    #[test]
    fn nonsense_in_the_completion_queue_harms_nobody(entries in prop::collection::vec(any::<[u32; 4]>(), 1..128)) {
        let mut bench = Bench::new();
        bench.disk.submit(5, Request::Flush);
        let entry = |bench: &Bench, index: usize| {
            let completions = bench.disk.queue.as_ref().unwrap().completion();
            bench.device.borrow().at(completions + index as u64 * 16, 16)
        };
        for (index, words) in entries.iter().enumerate() {
            (0..4).for_each(|word| entry(&bench, index).write_u32(word * 4, words[word]));
        }
        let finished = catch_unwind(AssertUnwindSafe(|| core::iter::from_fn(|| bench.disk.finished()).take(200).count()));
        // Nothing, the one command that it has, or the end of the driver.
        prop_assert!(finished.is_err() || finished.is_ok_and(|count| count <= 1));
    }
}

#[test]
fn zero_flush_and_failures() {
    let mut bench = Bench::new();
    let geometry = Geometry { blocks: BLOCKS as u64, sector: 512, read_only: false, zero_most: ZERO_MOST };
    assert_eq!(bench.disk.geometry(), geometry, "a block that is not whole does not count");
    bench.disk.submit(1, Request::Flush);
    bench.disk.submit(2, Request::Zero { block: 290, count: 10 });
    assert_eq!(bench.carry_out(), [(2, Ok(())), (1, Ok(()))]);
    let disk = bench.device.borrow().disk.clone();
    assert!(disk[290 * BLOCK..].iter().all(|byte| *byte == 0) && disk[290 * BLOCK - 1] == 0xee);
    assert_eq!(bench.device.borrow().flushes, 1);

    let buffer = bench.buffer(3, 1);
    let cases = [
        // Media: unrecovered read error; write fault; internal error.
        (Request::Read { block: 0, buffer }, 2, 0x281, Failure::Failed),
        (Request::Write { block: 0, buffer }, 1, 0x280, Failure::Failed),
        (Request::Write { block: 0, buffer }, 1, 0x001, Failure::Failed),
        (Request::Flush, 0, 0x006, Failure::Failed),
        (Request::Zero { block: 0, count: 1 }, 8, 0x001, Failure::Unsupported),
        (Request::Zero { block: 0, count: 1 }, 8, 0x002, Failure::Unsupported),
        (Request::Zero { block: 0, count: 1 }, 8, 0x280, Failure::Failed),
    ];
    for (request, opcode, status, failure) in cases {
        bench.device.borrow_mut().fails = Some((opcode, status));
        bench.disk.submit(3, request);
        assert_eq!(bench.carry_out(), [(3, Err(failure))]);
    }
}

#[test]
fn a_disk_without_a_cache_and_with_large_sectors() {
    let device = device(1);
    {
        let mut device = device.borrow_mut();
        (device.controller[520], device.controller[525]) = (0, 0);
        (device.namespace[130], device.namespace[99]) = (12, 1);
        device.namespace[..8].copy_from_slice(&77u64.to_le_bytes());
        // Three entries.
        device.capabilities = device.capabilities & !0xffff | 2;
    }
    let mut disk = open(&device).unwrap();
    disk.reset().unwrap();
    assert_eq!(disk.geometry(), Geometry { blocks: 77, sector: 4096, read_only: true, zero_most: 0 });
    assert_eq!(disk.tags(), 2);
    disk.submit(1, Request::Flush);
    disk.notify();
    assert_eq!((disk.finished(), disk.finished()), (Some((1, Ok(()))), None));
    let buffer = device.borrow().buffers.part(0, 3 * BLOCK);
    disk.submit(0, Request::Read { block: 70, buffer });
    disk.notify();
    let fetched = device.borrow_mut().fetch(1);
    assert_eq!((fetched.len(), fetched[0].words), (1, [70, 0, 2]));
}

#[test]
fn a_reset_forgets_what_is_under_way() {
    let mut bench = Bench::new();
    for round in 2..5 {
        for tag in 0..100 {
            bench.disk.submit(tag, Request::Read { block: 0, buffer: bench.buffer(tag, 16) });
        }
        // Some are answered, and nobody has looked.
        for command in &bench.fetch()[..40] {
            bench.device.borrow_mut().carry_out(command);
        }
        bench.disk.reset().unwrap();
        assert_eq!((bench.disk.finished(), bench.device.borrow().starts), (None, round));
        bench.disk.submit(99, Request::Flush);
        assert_eq!(bench.carry_out(), [(99, Ok(()))]);
    }
}

/// What `reset` says of a controller that was changed so.
fn problem(change: impl FnOnce(&mut Device)) -> Error {
    let device = device(1);
    change(&mut device.borrow_mut());
    match open(&device) {
        Ok(mut disk) => disk.restart().unwrap_err(),
        Err(error) => error,
    }
}

#[test]
fn controllers_that_cannot_be_used() {
    assert_eq!(problem(|device| device.gone = true), Error::Gone);
    assert_eq!(problem(|device| device.capabilities &= !(1 << 37)), Error::NoNvm);
    assert_eq!(problem(|device| device.capabilities |= 1 << 48), Error::PageSize(8192));
    assert_eq!(problem(|device| device.capabilities &= !0xffff), Error::QueueEntries(1));
    assert_eq!(problem(|device| device.capabilities |= 0xf << 32), Error::Doorbells);
    assert_eq!(problem(|device| device.dma = device.dma.part(0, 16 << 10)), Error::Memory(16 << 10, REST));
    assert_eq!(problem(|device| device.dma = device.dma.part(0, 32 << 10)), Error::Memory(32 << 10, REST + 127 * LIST));
    assert_eq!(problem(|device| device.fatal = true), Error::Fatal);
    assert_eq!(problem(|device| device.controller[77] = 3), Error::Transfer(32768));
    assert_eq!(problem(|device| device.namespace[128] = 8), Error::Metadata(8));
    assert_eq!(problem(|device| device.namespace[130] = 13), Error::Sector(8192));
    assert_eq!(problem(|device| device.namespace[..8].fill(0)), Error::NoNamespace);
    for opcode in [Opcode::Identify, Opcode::SetFeatures, Opcode::CreateCompletionQueue, Opcode::CreateSubmissionQueue]
    {
        assert_eq!(problem(|device| device.silent = Some(opcode)), Error::NoAnswer(opcode));
        assert_eq!(problem(|device| device.refuses = Some((opcode, 0x106))), Error::Refused(opcode, Status(0x106)));
    }
}

#[test]
fn a_controller_takes_its_time_but_not_for_ever() {
    let slow = device(1);
    slow.borrow_mut().delay = 900_000_000;
    let mut disk = open(&slow).unwrap();
    disk.reset().unwrap();
    // The time that it gives itself is 1 s.
    slow.borrow_mut().delay = 1_100_000_000;
    assert_eq!(disk.restart(), Err(Error::NeverStops(1000)));
    let before = slow.borrow().now;
    assert!(disk.reset().is_err() && slow.borrow().now - before < 5_000_000_000);

    let never = device(1);
    let mut disk = open(&never).unwrap();
    never.borrow_mut().delay = u64::MAX;
    // It was stopped before, and stays so.
    never.borrow_mut().now = 1;
    assert!(matches!(disk.restart(), Err(Error::NeverStops(1000) | Error::NeverReady(1000))));
}

#[test]
fn another_disk_does_not_take_its_place() {
    let mut bench = Bench::new();
    bench.device.borrow_mut().controller[9] = b'!';
    assert_eq!(bench.disk.restart(), Err(Error::Changed));
    bench.device.borrow_mut().controller[9] = b'l';
    bench.disk.reset().unwrap();
    bench.device.borrow_mut().gone = true;
    assert_eq!(bench.disk.restart(), Err(Error::Gone));
    assert_eq!(bench.disk.finished(), None);
}

#[test]
fn what_was_not_given_cannot_come_back() {
    type Wrong = fn(&mut Device);
    let cases: [Wrong; 3] = [
        // No such tag; one that is not under way; one of another queue.
        |device| device.complete(1, 500, 0, 0),
        |device| device.complete(1, 8, 0, 0),
        |device| {
            device.complete(1, 7, 0, 0);
            let completions = device.dma.memory.part(5 * 4096, 16);
            completions.write_u16(10, 3);
        },
    ];
    for wrong in cases {
        let mut bench = Bench::new();
        bench.disk.submit(7, Request::Flush);
        bench.fetch();
        wrong(&mut bench.device.borrow_mut());
        assert!(catch_unwind(AssertUnwindSafe(|| bench.disk.finished())).is_err());
    }
    // A completion with the wrong phase is none yet.
    let mut bench = Bench::new();
    bench.disk.submit(7, Request::Flush);
    let command = bench.fetch()[0];
    bench.device.borrow_mut().pairs[1] = {
        let mut pair = bench.device.borrow().pairs[1];
        pair.turn();
        pair
    };
    bench.device.borrow_mut().complete(1, command.id, 0, 0);
    assert_eq!(bench.disk.finished(), None);
}
