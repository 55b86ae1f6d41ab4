//! Both sides of the ring together: this crate, and the kit for drivers with a disk that finishes in any order, fails, stalls, and
//! is restarted, as its clients are.

use crate::{Disk, Driver, Info, OpenError, Operation, Slot, Status};
use alloc::{collections::BTreeMap, rc::Rc, vec, vec::Vec};
use block_driver::{
    BlockDriver, Dma, Failure, Geometry, Problem, Request,
    gpt::Extent,
    rings::{Opening, Rings},
};
use core::cell::RefCell;
use proptest::prelude::*;
use protocol::{
    layout::PAGE,
    service::block_driver::{BLOCK, BUFFER, BUFFER_BLOCKS, Partition},
};
use server_runtime::{CallError, mmio::Region};

const DISK: usize = 64;
const FIRST: u64 = 20;
const BLOCKS: u64 = 24;
const SLOTS: usize = 6;
const TIMEOUT: u64 = 50;

/// What outlives a driver.
type Platter = Rc<RefCell<Vec<u8>>>;

/// A device with a few tags.
struct Mock {
    platter: Platter,
    under_way: BTreeMap<usize, Request>,
    finished: Vec<(usize, Result<(), Failure>)>,
    zero_most: u32,
}

impl Mock {
    fn new(platter: &Platter, zero_most: u32) -> Mock {
        Mock { platter: platter.clone(), under_way: BTreeMap::new(), finished: Vec::new(), zero_most }
    }

    /// Carries out one of the requests, or a part of it and fails.
    fn step(&mut self, which: usize, fails: bool) {
        let Some(tag) = self.under_way.keys().copied().nth(which % self.under_way.len().max(1)) else {
            return;
        };
        let request = self.under_way.remove(&tag);
        let mut disk = self.platter.borrow_mut();
        match request {
            Some(Request::Read { block, buffer }) if !fails => {
                buffer.memory.copy_in(0, &disk[block as usize * BLOCK..][..buffer.memory.length()]);
            }
            Some(Request::Write { block, buffer }) => {
                let length = if fails { BLOCK / 2 } else { buffer.memory.length() };
                buffer.memory.copy_out(0, &mut disk[block as usize * BLOCK..][..length]);
            }
            Some(Request::Zero { block, count }) if !fails => {
                disk[block as usize * BLOCK..][..count as usize * BLOCK].fill(0);
            }
            _ => {}
        }
        self.finished.push((tag, if fails { Err(Failure::Failed) } else { Ok(()) }));
    }
}

impl BlockDriver for Mock {
    fn tags(&self) -> usize {
        4
    }
    fn reset(&mut self) -> Result<(), Problem> {
        self.under_way.clear();
        self.finished.clear();
        Ok(())
    }
    fn geometry(&self) -> Geometry {
        Geometry { blocks: DISK as u64, sector: 512, read_only: false, zero_most: self.zero_most }
    }
    fn submit(&mut self, tag: usize, request: Request) {
        assert!(self.under_way.insert(tag, request).is_none());
    }
    fn notify(&mut self) {}
    fn finished(&mut self) -> Option<(usize, Result<(), Failure>)> {
        self.finished.pop()
    }
    fn interrupt(&mut self, _: u64) {}
}

/// The driver as it is now; a restart replaces the rings.
struct Server {
    rings: Rings<Mock>,
    shared: Dma,
    platter: Platter,
    now: u64,
    raised: bool,
    restarted: bool,
    guid: [u8; 16],
    blocks: u64,
    /// Calls that find it in the middle of its restart.
    away: usize,
}

impl Server {
    fn start(&mut self) {
        self.rings = Rings::new(Mock::new(&self.platter, 3), TIMEOUT);
        let number = self.rings.add(self.shared);
        assert_eq!(number, Some(0));
        let extent = Extent { kind: Partition::Vdisk, guid: self.guid, first: FIRST, blocks: self.blocks };
        self.rings.set_extent(0, extent);
        self.restarted = true;
    }

    fn work(&mut self) {
        self.raised = false;
        self.rings.work(self.now);
        if self.rings.expired(self.now) {
            self.rings.reset(self.now).unwrap();
        }
        self.rings.publish();
    }
}

#[derive(Clone)]
struct Line(Rc<RefCell<Server>>);

impl Driver for Line {
    fn open(&mut self) -> Result<Info, OpenError> {
        let mut server = self.0.borrow_mut();
        if server.away > 0 {
            server.away -= 1;
            return Err(OpenError::Driver(CallError::Restarted));
        }
        server.restarted = false;
        match server.rings.open(0) {
            Opening::Begun => {}
            // The call waits: the device goes on meanwhile.
            Opening::Later => {
                while server.rings.take_opened().is_none() {
                    server.rings.device().step(0, false);
                    server.work();
                }
            }
            Opening::Denied => return Err(OpenError::NoPartition),
        }
        let extent = server.rings.extent(0).ok_or(OpenError::NoPartition)?;
        Ok(Info { blocks: extent.blocks, partition: extent.guid, read_only: false })
    }
    fn was_restarted(&mut self) -> bool {
        self.0.borrow().restarted
    }
    fn raise(&mut self) {
        self.0.borrow_mut().raised = true;
    }
}

fn bench() -> (Disk<Line>, Line) {
    let memory = Region::of(vec![0; (PAGE as usize + SLOTS * BUFFER) / 8].leak());
    let shared = Dma { memory, physical: 0 };
    let platter: Platter = Rc::new(RefCell::new(vec![0xaa; DISK * BLOCK]));
    let rings = Rings::new(Mock::new(&platter, 0), TIMEOUT);
    let guid = [7; 16];
    let mut server =
        Server { rings, shared, platter, now: 0, raised: false, restarted: false, guid, blocks: BLOCKS, away: 0 };
    server.start();
    let line = Line(Rc::new(RefCell::new(server)));
    let mut disk = Disk::new(line.clone(), memory).unwrap();
    assert_eq!(disk.open(), Ok(Info { blocks: BLOCKS, partition: guid, read_only: false }));
    (disk, line)
}

/// Lets the device finish everything.
fn settle(line: &Line) {
    let mut server = line.0.borrow_mut();
    for _ in 0..200 {
        server.rings.device().step(0, false);
        server.work();
    }
}

fn fill(disk: &Disk<Line>, slot: Slot, byte: u8) {
    disk.buffer(slot).copy_in(0, &vec![byte; BUFFER]);
}

#[test]
fn what_is_written_is_read_back() {
    let (mut disk, line) = bench();
    let (write, read) = (disk.take().unwrap(), disk.take().unwrap());
    fill(&disk, write, 9);
    disk.submit(write, Operation::Write, 3, 2);
    assert!(!line.0.borrow().raised);
    disk.notify();
    assert!(line.0.borrow().raised);
    settle(&line);
    assert_eq!((disk.poll(), disk.poll()), (Some((write, Status::Ok)), None));
    disk.submit(read, Operation::Read, 2, 4);
    settle(&line);
    assert_eq!(disk.poll(), Some((read, Status::Ok)));
    let mut bytes = vec![0; 4 * BLOCK];
    disk.buffer(read).copy_out(0, &mut bytes);
    assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == if (1..3).contains(&(at / BLOCK)) { 9 } else { 0xaa }));
    assert_eq!(line.0.borrow().platter.borrow()[(FIRST as usize + 3) * BLOCK], 9);
    disk.give(write);
    disk.give(read);
    assert_eq!((disk.free_slots(), disk.under_way()), (SLOTS, 0));
}

#[test]
fn slots_have_an_end_and_errors_are_told() {
    let (mut disk, line) = bench();
    let slots: Vec<Slot> = core::iter::from_fn(|| disk.take()).collect();
    assert_eq!(slots.len(), SLOTS);
    disk.submit(slots[0], Operation::Read, BLOCKS, 1);
    disk.submit(slots[1], Operation::Write, 0, BUFFER_BLOCKS + 1);
    settle(&line);
    assert_eq!(disk.poll(), Some((slots[0], Status::OutOfRange)));
    assert_eq!(disk.poll(), Some((slots[1], Status::BadRequest)));
}

#[test]
fn a_restart_of_the_driver_is_no_error() {
    let (mut disk, line) = bench();
    let slots: Vec<Slot> = (0..3).filter_map(|_| disk.take()).collect();
    for (index, slot) in slots.iter().enumerate() {
        fill(&disk, *slot, index as u8);
        disk.submit(*slot, Operation::Write, index as u64, 1);
    }
    {
        let mut server = line.0.borrow_mut();
        server.work();
        server.rings.device().step(0, false);
        // One is answered, which the client has not seen; then the driver dies.
        server.work();
        server.start();
        server.away = 1;
    }
    assert!(disk.restarted().is_some_and(|result| result.is_err_and(OpenError::is_passing)));
    assert!(!disk.is_open());
    let late = disk.take().unwrap();
    fill(&disk, late, 3);
    disk.submit(late, Operation::Write, 3, 1);
    assert!(disk.restarted().is_some_and(|result| result.is_ok()));
    assert_eq!(disk.restarted(), None, "another peer's restart is none of this disk's business");
    settle(&line);
    let mut answered: Vec<_> = core::iter::from_fn(|| disk.poll()).collect();
    answered.sort_unstable_by_key(|(slot, _)| *slot);
    let mut expected: Vec<_> = slots.iter().chain([&late]).map(|slot| (*slot, Status::Ok)).collect();
    expected.sort_unstable_by_key(|(slot, _)| *slot);
    assert_eq!(answered, expected);
    let server = line.0.borrow();
    assert!((0..4).all(|block| server.platter.borrow()[(FIRST as usize + block) * BLOCK] == block as u8));
}

#[test]
fn another_partition_in_its_place_fails_everything() {
    for smaller in [false, true] {
        let (mut disk, line) = bench();
        let slot = disk.take().unwrap();
        disk.submit(slot, Operation::Read, 0, 1);
        {
            let mut server = line.0.borrow_mut();
            if smaller {
                server.blocks -= 1;
            } else {
                server.guid[0] += 1;
            }
            server.start();
        }
        assert_eq!(disk.restarted(), Some(Err(OpenError::OtherPartition)));
        assert_eq!(disk.poll(), Some((slot, Status::Failed)));
        disk.submit(slot, Operation::Read, 0, 1);
        assert_eq!((disk.poll(), disk.poll()), (Some((slot, Status::Failed)), None));
        // The right disk is back.
        line.0.borrow_mut().blocks = BLOCKS;
        line.0.borrow_mut().guid = [7; 16];
        line.0.borrow_mut().start();
        assert!(disk.restarted().is_some_and(|result| result.is_ok()));
        disk.submit(slot, Operation::Read, 0, 1);
        settle(&line);
        assert_eq!(disk.poll(), Some((slot, Status::Ok)));
    }
}

#[test]
fn a_driver_that_does_not_come_back_can_be_given_up() {
    let (mut disk, line) = bench();
    let slots: Vec<Slot> = (0..2).filter_map(|_| disk.take()).collect();
    disk.submit(slots[0], Operation::Read, 0, 1);
    settle(&line);
    disk.submit(slots[1], Operation::Read, 0, 1);
    line.0.borrow_mut().start();
    line.0.borrow_mut().away = 1;
    assert!(disk.restarted().is_some_and(|result| result.is_err_and(OpenError::is_passing)));
    disk.give_up();
    // What was answered before counts all the same.
    assert_eq!((disk.poll(), disk.poll()), (Some((slots[0], Status::Ok)), Some((slots[1], Status::Failed))));
    assert!(disk.restarted().is_some_and(|result| result.is_ok()));
    disk.submit(slots[1], Operation::Read, 0, 1);
    settle(&line);
    assert_eq!(disk.poll(), Some((slots[1], Status::Ok)));
}

#[test]
fn answers_that_make_no_sense_are_passed_over() {
    let (mut disk, line) = bench();
    let ring = line.0.borrow().shared.memory;
    ring.write_u32(64, 1000);
    assert_eq!((disk.poll(), disk.nonsense()), (None, 1));
    ring.write_u32(64, 2);
    assert_eq!((disk.poll(), disk.nonsense()), (None, 3), "nobody has asked for that");
}

#[test]
fn memory_must_have_room() {
    let (_, line) = bench();
    let page = Region::of(vec![0; 512].leak());
    assert_eq!(Disk::new(line, page).err(), Some(OpenError::NoMemory));
}

/// What a block may hold, as far as its user can know.
#[derive(Clone, PartialEq, Debug)]
struct Model {
    /// The bytes that it may hold now, one repeated.
    may: Vec<u8>,
}

/// A request that the test waits for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    operation: Operation,
    block: u64,
    count: u32,
    byte: u8,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Every request is answered exactly once, and what is read is what was written, whoever dies in between.
    #[test]
    fn nothing_is_lost_or_made_up(
        steps in prop::collection::vec((0u8..12, any::<u8>(), 0u64..BLOCKS, 1u32..5), 1..300)
    ) {
        let (mut disk, line) = bench();
        let mut model = vec![Model { may: vec![0xaa] }; BLOCKS as usize];
        let mut asked: BTreeMap<Slot, Asked> = BTreeMap::new();
        let (mut put, mut answered) = (0, 0);
        let free = |asked: &BTreeMap<Slot, Asked>, block: u64, count: u32| {
            let overlaps = |a: &Asked| a.block < block + u64::from(count) && block < a.block + u64::from(a.count);
            !asked.values().any(overlaps)
        };
        let settle_answers = |disk: &mut Disk<Line>, asked: &mut BTreeMap<Slot, Asked>, model: &mut Vec<Model>| {
            let mut count = 0;
            while let Some((slot, status)) = disk.poll() {
                let was = asked.remove(&slot);
                prop_assert!(was.is_some(), "an answer to what was not asked");
                let Some(was) = was else { break };
                count += 1;
                let range = was.block as usize..was.block as usize + was.count as usize;
                match (was.operation, status) {
                    (Operation::Read, Status::Ok) => {
                        let mut bytes = vec![0; was.count as usize * BLOCK];
                        disk.buffer(slot).copy_out(0, &mut bytes);
                        for (index, block) in bytes.chunks(BLOCK).enumerate() {
                            // After a failure a block may be half one and half the other.
                            let may = &model[was.block as usize + index].may;
                            prop_assert!(block.iter().all(|byte| may.contains(byte)), "{:?} holds {}", may, block[0]);
                        }
                    }
                    (Operation::Write | Operation::Zero, Status::Ok) => {
                        model[range].iter_mut().for_each(|block| block.may = vec![was.byte]);
                    }
                    (Operation::Write | Operation::Zero, Status::Failed | Status::TimedOut) => {
                        model[range].iter_mut().for_each(|block| block.may.push(was.byte));
                    }
                    (Operation::Read | Operation::Flush, Status::Failed | Status::TimedOut) => {}
                    (Operation::Flush, Status::Ok) => {}
                    other => prop_assert!(false, "{:?}", other),
                }
                disk.give(slot);
            }
            Ok(count)
        };
        for (step, byte, block, count) in steps {
            let count = count.min((BLOCKS - block) as u32);
            match step {
                0..=3 if free(&asked, block, count) => if let Some(slot) = disk.take() {
                    let operation = [Operation::Write, Operation::Read, Operation::Write, Operation::Zero][usize::from(step)];
                    let byte = if operation == Operation::Zero { 0 } else { byte };
                    fill(&disk, slot, byte);
                    disk.submit(slot, operation, block, count);
                    asked.insert(slot, Asked { operation, block, count, byte });
                    put += 1;
                },
                4 => if let Some(slot) = disk.take() {
                    disk.submit(slot, Operation::Flush, 0, 0);
                    asked.insert(slot, Asked { operation: Operation::Flush, block: 0, count: 0, byte: 0 });
                    put += 1;
                },
                5 => line.0.borrow_mut().rings.device().step(byte.into(), byte % 8 == 0),
                6 => line.0.borrow_mut().now += u64::from(byte) / 8,
                7 if byte % 4 == 0 => {
                    // The driver dies, and its client learns of it, perhaps late.
                    line.0.borrow_mut().away = usize::from(byte / 4 % 2);
                    line.0.borrow_mut().start();
                }
                8 => drop(disk.restarted()),
                9 if byte % 8 == 0 => {
                    // The client dies: what it asked may have been carried out or not.
                    for was in asked.values().filter(|was| matches!(was.operation, Operation::Write | Operation::Zero)) {
                        let range = was.block as usize..was.block as usize + was.count as usize;
                        model[range].iter_mut().for_each(|block| block.may.push(was.byte));
                    }
                    answered += asked.len();
                    asked.clear();
                    line.0.borrow_mut().away = 0;
                    let shared = line.0.borrow().shared.memory;
                    disk = Disk::new(line.clone(), shared).unwrap();
                    prop_assert!(disk.open().is_ok());
                }
                10 => line.0.borrow_mut().work(),
                _ => answered += settle_answers(&mut disk, &mut asked, &mut model)?,
            }
            disk.notify();
        }
        line.0.borrow_mut().away = 0;
        while disk.restarted().is_some_and(|result| result.is_err()) {}
        settle(&line);
        answered += settle_answers(&mut disk, &mut asked, &mut model)?;
        prop_assert_eq!(answered, put);
        prop_assert_eq!((disk.free_slots(), disk.nonsense()), (SLOTS, 0));
        // What the disk holds outside the partition is what it was.
        let server = line.0.borrow();
        let platter = server.platter.borrow();
        let (before, rest) = platter.split_at(FIRST as usize * BLOCK);
        prop_assert!(before.iter().chain(&rest[BLOCKS as usize * BLOCK..]).all(|byte| *byte == 0xaa));
        for (index, block) in rest[..BLOCKS as usize * BLOCK].chunks(BLOCK).enumerate() {
            prop_assert!(block.iter().all(|byte| model[index].may.contains(byte)));
        }
    }
}
