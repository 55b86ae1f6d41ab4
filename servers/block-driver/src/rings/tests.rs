use super::*;
use crate::Geometry;
use alloc::collections::{BTreeMap, VecDeque};
use proptest::prelude::*;
use protocol::{
    layout::PAGE,
    service::block_driver::{BUFFER, Partition},
};
use server_runtime::mmio::Region;

const DISK: u64 = 1000;
const TAGS: usize = 8;
const TIMEOUT: u64 = 100;

/// A device that finishes what it is told to.
#[derive(Default)]
struct Mock {
    under_way: BTreeMap<usize, Request>,
    /// In the order in which they were given.
    given: Vec<(usize, u64, u32)>,
    finished: VecDeque<(usize, Result<(), Failure>)>,
    notified: usize,
    resets: usize,
    zero_most: u32,
    read_only: bool,
    broken: bool,
    /// It has no cache: a flush is over when it is given.
    no_cache: bool,
}

impl Mock {
    fn finish(&mut self, at: usize, result: Result<(), Failure>) -> bool {
        let tag = self.under_way.keys().copied().nth(at);
        if let Some(tag) = tag {
            self.under_way.remove(&tag);
            self.finished.push_back((tag, result));
        }
        tag.is_some()
    }
}

impl BlockDriver for Mock {
    fn tags(&self) -> usize {
        TAGS
    }
    fn reset(&mut self) -> Result<(), Problem> {
        self.resets += 1;
        self.under_way.clear();
        self.finished.clear();
        if self.broken { Err("it is broken".into()) } else { Ok(()) }
    }
    fn geometry(&self) -> Geometry {
        Geometry { blocks: DISK, sector: 512, read_only: self.read_only, zero_most: self.zero_most }
    }
    fn submit(&mut self, tag: usize, request: Request) {
        assert!(tag < TAGS);
        let (block, count) = match request {
            Request::Read { block, buffer } | Request::Write { block, buffer } => {
                assert!(buffer.memory.length() > 0 && buffer.memory.length().is_multiple_of(BLOCK));
                (block, (buffer.memory.length() / BLOCK) as u32)
            }
            Request::Flush => (0, 0),
            Request::Zero { block, count } => {
                assert!((1..=self.zero_most).contains(&count));
                (block, count)
            }
        };
        assert!(block + u64::from(count) <= DISK);
        if self.no_cache && matches!(request, Request::Flush) {
            self.finished.push_back((tag, Ok(())));
            return;
        }
        assert!(self.under_way.insert(tag, request).is_none(), "a tag given twice");
        self.given.push((tag, block, count));
    }
    fn notify(&mut self) {
        self.notified += 1;
    }
    fn finished(&mut self) -> Option<(usize, Result<(), Failure>)> {
        self.finished.pop_front()
    }
    fn interrupt(&mut self, _: u64) {}
}

/// A client's side of the ring, as plain as can be.
struct Peer {
    shared: Region,
    submitted: u32,
    completed: u32,
}

impl Peer {
    fn put(&mut self, slot: usize, operation: u32, block: u64, count: u32) {
        let at = offset_of!(RingPage, requests) + slot % SLOTS * 16;
        self.shared.write_u32(at, operation);
        self.shared.write_u32(at + 4, count);
        self.shared.write_u64(at + 8, block);
        self.shared.write_u32(offset_of!(RingPage, submission) + self.submitted as usize % SLOTS * 4, slot as u32);
        self.submitted = self.submitted.wrapping_add(1);
        self.shared.write_u32(offset_of!(RingPage, submitted), self.submitted);
    }
    fn answers(&mut self) -> Vec<(u16, Status)> {
        let mut answers = Vec::new();
        while self.completed != self.shared.read_u32(offset_of!(RingPage, completed)) {
            let at = offset_of!(RingPage, completion) + self.completed as usize % SLOTS * 4;
            answers.push((self.shared.read_u16(at), Status::from_u32(self.shared.read_u16(at + 2).into())));
            self.completed = self.completed.wrapping_add(1);
        }
        answers
    }
}

const READ: u32 = Operation::Read as u32;
const WRITE: u32 = Operation::Write as u32;
const FLUSH: u32 = Operation::Flush as u32;
const ZERO: u32 = Operation::Zero as u32;

/// Rings with two clients: blocks 100 to 299 and 300 to 399.
fn bench(device: Mock, slots: usize) -> (Rings<Mock>, [Peer; 2]) {
    let mut rings = Rings::new(device, TIMEOUT);
    let mut peer = |kind, first, blocks| {
        let shared = Region::of(vec![!0; (PAGE as usize + slots * BUFFER) / 8].leak());
        let number = rings.add(Dma { memory: shared, physical: 0x1000_0000 }).unwrap();
        assert_eq!(rings.open(number), Opening::Denied);
        rings.set_extent(number, Extent { kind, guid: [1; 16], first, blocks });
        assert_eq!(rings.open(number), Opening::Begun);
        Peer { shared, submitted: 0, completed: 0 }
    };
    let peers = [peer(Partition::Swap, 100, 200), peer(Partition::Vdisk, 300, 100)];
    (rings, peers)
}

fn finish_all(rings: &mut Rings<Mock>, now: u64) {
    loop {
        rings.work(now);
        if !rings.device.finish(0, Ok(())) && rings.device.finished.is_empty() {
            break;
        }
    }
    rings.publish();
}

#[test]
fn requests_go_out_in_one_batch_within_the_partition() {
    let (mut rings, [mut swap, _]) = bench(Mock::default(), 8);
    swap.put(3, WRITE, 0, 16);
    swap.put(1, READ, 199, 1);
    swap.put(2, FLUSH, 0, 0);
    rings.work(0);
    assert_eq!(rings.publish(), 0);
    assert_eq!(
        rings.device.given.iter().map(|given| (given.1, given.2)).collect::<Vec<_>>(),
        [(100, 16), (299, 1), (0, 0)]
    );
    assert_eq!(rings.device.notified, 1);
    rings.device.finish(1, Ok(()));
    rings.device.finish(1, Err(Failure::Failed));
    rings.work(0);
    assert_eq!(rings.publish(), 1);
    assert_eq!(swap.answers().len(), 2);
    assert_eq!(rings.publish(), 0, "nothing moved, nobody is told");
    assert_eq!(rings.counters().failed, 1);
}

#[test]
fn what_makes_no_sense_is_answered_so() {
    let (mut rings, [mut swap, _]) = bench(Mock { read_only: true, ..Mock::default() }, 16);
    let cases = [
        (READ, 0, 0, Status::BadRequest),
        (READ, 0, 17, Status::BadRequest),
        (FLUSH, 1, 0, Status::BadRequest),
        (ZERO, 0, 0, Status::BadRequest),
        (4, 0, 1, Status::BadRequest),
        (READ, 199, 2, Status::OutOfRange),
        (READ, u64::MAX, 1, Status::OutOfRange),
        (ZERO, 1, 200, Status::OutOfRange),
        (WRITE, 0, 1, Status::ReadOnly),
        (ZERO, 0, 1, Status::ReadOnly),
    ];
    for (slot, (operation, block, count, _)) in cases.iter().enumerate() {
        swap.put(slot, *operation, *block, *count);
    }
    rings.work(0);
    rings.publish();
    let expected: Vec<_> = cases.iter().enumerate().map(|(slot, case)| (slot as u16, case.3)).collect();
    assert_eq!(swap.answers(), expected);
    assert!(rings.device.given.is_empty());
}

#[test]
fn a_slot_under_way_and_one_that_is_not_there_are_passed_over() {
    let (mut rings, [mut swap, _]) = bench(Mock::default(), 4);
    swap.put(0, READ, 0, 1);
    swap.put(0, READ, 0, 1);
    swap.put(4, READ, 0, 1);
    rings.work(0);
    assert_eq!((rings.device.given.len(), rings.counters().nonsense), (1, 2));
}

#[test]
fn clients_take_turns() {
    let (mut rings, [mut swap, mut vdisk]) = bench(Mock::default(), 16);
    (0..16).for_each(|slot| swap.put(slot, READ, 0, 1));
    rings.work(0);
    assert_eq!(rings.device.given.len(), TAGS);
    (0..4).for_each(|slot| vdisk.put(slot, READ, 0, 1));
    (0..4).for_each(|_| assert!(rings.device.finish(0, Ok(()))));
    rings.work(0);
    let blocks: Vec<_> = rings.device.given[TAGS..].iter().map(|given| given.1).collect();
    assert_eq!(blocks.iter().filter(|block| **block == 300).count(), 2, "{blocks:?}");
}

#[test]
fn what_is_over_at_once_is_answered_at_once() {
    let (mut rings, [mut swap, _]) = bench(Mock { no_cache: true, ..Mock::default() }, 3 * TAGS);
    // More than the device has tags, and one that waits for it behind them.
    (0..2 * TAGS).for_each(|slot| swap.put(slot, FLUSH, 0, 0));
    swap.put(2 * TAGS, READ, 0, 1);
    rings.work(0);
    rings.publish();
    assert_eq!(swap.answers().len(), 2 * TAGS);
    assert_eq!((rings.device.given.len(), rings.device.under_way.len()), (1, 1));
}

#[test]
fn zeros_go_in_steps() {
    let (mut rings, [mut swap, _]) = bench(Mock { zero_most: 64, ..Mock::default() }, 4);
    swap.put(0, ZERO, 10, 150);
    finish_all(&mut rings, 0);
    let steps = |rings: &Rings<Mock>| rings.device.given.iter().map(|given| (given.1, given.2)).collect::<Vec<_>>();
    assert_eq!(steps(&rings), [(110, 64), (174, 64), (238, 22)]);
    assert_eq!(swap.answers(), [(0, Status::Ok)]);

    // The device turns out not to be able to: zeros are written.
    rings.device.given.clear();
    swap.put(1, ZERO, 0, 20);
    rings.work(0);
    rings.device.finish(0, Err(Failure::Unsupported));
    finish_all(&mut rings, 0);
    assert_eq!(steps(&rings), [(100, 20), (100, 16), (116, 4)]);
    let mut bytes = vec![1; BUFFER];
    swap.shared.copy_out(buffer(1), &mut bytes);
    assert!(bytes.iter().all(|byte| *byte == 0));
    assert_eq!((swap.answers(), rings.counters().written), (Vec::from([(1, Status::Ok)]), 170));
}

#[test]
fn a_device_that_does_not_answer_is_reset() {
    let (mut rings, [mut swap, mut vdisk]) = bench(Mock::default(), 8);
    swap.put(0, READ, 0, 1);
    rings.work(0);
    vdisk.put(1, WRITE, 5, 2);
    rings.work(60);
    assert_eq!((rings.deadline(), rings.expired(99), rings.expired(100)), (Some(TIMEOUT), false, true));
    assert_eq!(rings.reset(100), Ok(1));
    assert_eq!(rings.publish(), 1);
    assert_eq!(swap.answers(), [(0, Status::TimedOut)]);
    assert_eq!((rings.device.given.last().map(|given| given.1), rings.deadline()), (Some(305), Some(200)));
    finish_all(&mut rings, 100);
    assert_eq!(vdisk.answers(), [(1, Status::Ok)]);
    assert_eq!(rings.counters().resets, 1);
}

#[test]
fn a_device_that_does_not_reset_fails_everything() {
    let (mut rings, [mut swap, mut vdisk]) = bench(Mock::default(), 8);
    rings.device.broken = true;
    (0..8).for_each(|slot| swap.put(slot, READ, 0, 1));
    rings.work(0);
    vdisk.put(0, READ, 0, 1);
    rings.work(50);
    rings.reset(100).unwrap_err();
    rings.publish();
    assert!(swap.answers().iter().all(|answer| answer.1 == Status::TimedOut));
    assert_eq!(vdisk.answers(), [(0, Status::Failed)]);
    swap.put(0, READ, 0, 1);
    rings.work(100);
    rings.publish();
    assert_eq!((swap.answers(), rings.deadline()), (Vec::from([(0, Status::Failed)]), None));
}

#[test]
fn a_new_session_begins_when_the_old_one_is_over() {
    let (mut rings, [mut swap, mut vdisk]) = bench(Mock::default(), 16);
    (0..16).for_each(|slot| swap.put(slot, WRITE, 0, 1));
    rings.work(0);
    assert_eq!(rings.open(0), Opening::Later);
    swap.put(0, READ, 0, 1);
    vdisk.put(0, READ, 0, 1);
    for round in 0..TAGS {
        assert_eq!(rings.take_opened(), None);
        // The other client's request goes out with the tag that becomes free first, the last one.
        rings.device.finish(if round == 0 { TAGS - 1 } else { 0 }, Ok(()));
        rings.work(0);
    }
    assert_eq!((rings.take_opened(), rings.take_opened()), (Some(0), None));
    assert_eq!((rings.device.under_way.len(), rings.publish()), (1, 0));
    assert_eq!(swap.shared.read_u32(offset_of!(RingPage, submitted)), 0);
    (swap.submitted, swap.completed) = (0, 0);
    swap.put(5, READ, 7, 1);
    finish_all(&mut rings, 0);
    assert_eq!((swap.answers(), vdisk.answers()), (Vec::from([(5, Status::Ok)]), Vec::from([(0, Status::Ok)])));
}

#[test]
fn memory_must_have_room() {
    let mut rings = Rings::new(Mock::default(), TIMEOUT);
    assert_eq!(rings.add(Dma { memory: Region::of(vec![0; 512].leak()), physical: 0 }), None);
}

proptest! {
    /// The mock panics if a tag is given twice or a request leaves the disk.
    #[test]
    fn a_client_gone_mad_harms_nobody(
        steps in prop::collection::vec((0usize..7, any::<u64>(), 0u32..300), 1..200)
    ) {
        let (mut rings, [mut mad, mut good]) = bench(Mock { zero_most: 5, ..Mock::default() }, 8);
        let (mut now, mut asked, mut answered) = (0, 0, 0);
        for (step, value, small) in steps {
            now += 7;
            match step {
                0 => mad.shared.write_u32(offset_of!(RingPage, submitted), if small % 2 == 0 { value as u32 } else { small }),
                1 => {
                    let at = small as usize * 8 + value as usize % 8 * 200;
                    mad.shared.write_u64(at % 4096, value);
                }
                2 => mad.put(small as usize % 9, value as u32 % 5, value >> 40, small % 20),
                3 if asked < 8 => {
                    good.put(asked, WRITE, 50, 3);
                    asked += 1;
                }
                4 => drop(rings.device.finish(small as usize % TAGS, Ok(()))),
                5 if small % 8 == 0 => drop(rings.open(0)),
                _ => {
                    rings.work(now);
                    if rings.expired(now) {
                        rings.reset(now).unwrap();
                    }
                }
            }
            for (_, block, count) in rings.device.given.drain(..) {
                prop_assert!(count == 0 || block >= 100 && block + u64::from(count) <= 300 || (block, count) == (350, 3));
            }
            while rings.take_opened().is_some() {}
            rings.publish();
            answered += good.answers().len();
            // What the mad client writes into its page is its own affair; its account here stays right.
            let busy = rings.clients[0].busy.iter().filter(|busy| **busy).count();
            prop_assert!(rings.clients[0].waiting.len() <= busy && busy <= 8);
        }
        finish_all(&mut rings, now);
        answered += good.answers().len();
        prop_assert_eq!(answered, asked);
    }
}
