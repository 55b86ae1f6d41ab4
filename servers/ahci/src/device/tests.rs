use super::*;
use crate::{
    fake::{Controller, Fake, Given, Port as Device},
    identify::tests::{disk, with},
};
use alloc::rc::Rc;
use core::cell::RefCell;
use proptest::prelude::*;
use protocol::service::block_driver::BUFFER;
use server_runtime::mmio::Region;

const BUFFERS: u64 = 0x1_0000_0000;
const DMA: u64 = 0x2_0000_0000;
const BLOCKS: usize = 300;
const SECTORS: usize = BLOCKS * 8 + 3;
const LENGTH: usize = PORTS + 6 * PORT;
/// Where the disk is, between an empty port, a CD drive, and another disk.
const AT: usize = 2;
const SIG_CD: u32 = 0xeb14_0101;

struct Bench {
    disk: Ahci<Fake>,
    controller: Rc<RefCell<Controller>>,
    buffers: Dma,
}

fn controller(change: impl FnOnce(&mut Controller)) -> Rc<RefCell<Controller>> {
    let memory = |bytes: usize, physical| Dma { memory: Region::of(vec![!0; bytes / 8].leak()), physical };
    let usual = Device::new(SIG_DISK, disk(SECTORS as u64));
    let ports = vec![None, Some(Device::new(SIG_CD, [0; 512])), Some(usual.clone()), Some(usual)];
    let mut controller = Controller::new(memory(60 << 10, DMA), memory(32 * BUFFER, BUFFERS), SECTORS, ports);
    change(&mut controller);
    Rc::new(RefCell::new(controller))
}

fn open(controller: &Rc<RefCell<Controller>>, wanted: Option<usize>) -> Result<Ahci<Fake>, Error> {
    let memory = controller.borrow().dma;
    Ahci::new(Fake(controller.clone()), LENGTH, memory, BUFFERS + (32 * BUFFER) as u64, wanted)
}

impl Bench {
    fn new(change: impl FnOnce(&mut Controller)) -> Bench {
        let controller = controller(change);
        let mut disk = open(&controller, None).unwrap();
        disk.reset().unwrap();
        let buffers = controller.borrow().buffers;
        Bench { disk, controller, buffers }
    }

    /// One whose disk does not queue.
    fn plain() -> Bench {
        Bench::new(|controller| {
            if let Some(port) = &mut controller.ports[AT] {
                port.identity = with(port.identity, 76, 0);
            }
        })
    }

    fn buffer(&self, tag: usize, blocks: usize) -> Dma {
        self.buffers.part(tag * BUFFER, blocks * BLOCK)
    }

    fn given(&mut self) -> Vec<Given> {
        self.disk.notify();
        self.controller.borrow().given(AT)
    }

    /// Lets the disk do all it is given, last first, and what it is given then; commands fail of which `fails` says so. Returns what came
    /// back.
    fn carry_out_but(&mut self, mut fails: impl FnMut(&Given) -> bool) -> Vec<(usize, Result<(), Failure>)> {
        let mut finished = Vec::new();
        loop {
            let given = self.given();
            if given.is_empty() {
                return finished;
            }
            for given in given.iter().rev() {
                let fails = fails(given);
                self.controller.borrow_mut().carry_out(AT, given, fails);
                if fails {
                    break;
                }
            }
            let mut rounds = 0;
            while self.controller.borrow().interrupts() {
                self.disk.interrupt(0);
                rounds += 1;
                assert!(rounds < 10, "the interrupt is not acknowledged");
            }
            finished.extend(core::iter::from_fn(|| self.disk.finished()));
        }
    }

    fn carry_out(&mut self) -> Vec<(usize, Result<(), Failure>)> {
        self.carry_out_but(|_| false)
    }

    fn resets(&self) -> usize {
        self.controller.borrow().ports[AT].as_ref().map_or(0, |port| port.resets)
    }
}

#[test]
fn all_tags_at_once_round_after_round() {
    let mut bench = Bench::new(|_| ());
    assert_eq!(bench.disk.tags(), 32);
    let geometry = Geometry { blocks: BLOCKS as u64, sector: 512, read_only: false, zero_most: 0 };
    assert_eq!(bench.disk.geometry(), geometry, "a block that is not whole does not count");
    for round in 1..=3u8 {
        for tag in 0..32 {
            let (block, blocks) = (tag * 8, 1 + tag % 8);
            let buffer = bench.buffer(tag, blocks);
            buffer.memory.copy_in(0, &vec![tag as u8 ^ round; blocks * BLOCK]);
            bench.disk.submit(tag, Request::Write { block: block as u64, buffer });
        }
        assert!(bench.given().iter().all(Given::is_queued));
        let mut finished = bench.carry_out();
        finished.sort_unstable_by_key(|(tag, _)| *tag);
        assert!(finished.into_iter().eq((0..32).map(|tag| (tag, Ok(())))));
        for tag in 0..32 {
            let controller = bench.controller.borrow();
            let written = &controller.disk[tag * 8 * BLOCK..][..8 * BLOCK];
            let blocks = 1 + tag % 8;
            assert!(written[..blocks * BLOCK].iter().all(|byte| *byte == tag as u8 ^ round), "tag {tag}");
            assert!(written[blocks * BLOCK..].iter().all(|byte| *byte == 0xee), "tag {tag}");
        }
    }
}

#[test]
fn a_flush_goes_alone() {
    let mut bench = Bench::new(|_| ());
    let buffer = bench.buffer(0, 1);
    for tag in [3, 4] {
        bench.disk.submit(tag, Request::Write { block: 0, buffer });
    }
    bench.disk.submit(5, Request::Flush);
    bench.disk.submit(6, Request::Read { block: 0, buffer });
    let slots = |bench: &mut Bench| bench.given().iter().map(|given| given.slot).collect::<Vec<_>>();
    assert_eq!(slots(&mut bench), [3, 4]);
    for (slot, rest) in [(4, vec![3]), (3, vec![5]), (5, vec![6])] {
        let given = *bench.given().iter().find(|given| given.slot == slot).unwrap();
        bench.controller.borrow_mut().carry_out(AT, &given, false);
        assert_eq!(bench.disk.finished(), Some((slot, Ok(()))));
        assert_eq!(bench.disk.finished(), None);
        assert_eq!(slots(&mut bench), rest, "after {slot}");
    }
    assert_eq!(bench.controller.borrow().flushes, 1);
}

#[test]
fn a_disk_that_does_not_queue() {
    let mut bench = Bench::plain();
    assert_eq!(bench.disk.tags(), 1);
    for round in 0..3u8 {
        let buffer = bench.buffer(0, 16);
        buffer.memory.copy_in(0, &[round; BUFFER]);
        bench.disk.submit(0, Request::Write { block: 7, buffer });
        assert!(bench.given().iter().all(|given| given.code == 0x35 && given.count == 128));
        assert_eq!(bench.carry_out(), [(0, Ok(()))]);
        assert!(bench.controller.borrow().disk[7 * BLOCK..][..BUFFER].iter().all(|byte| *byte == round));
        bench.disk.submit(0, Request::Flush);
        assert_eq!(bench.carry_out(), [(0, Ok(()))]);
    }
    bench.disk.submit(0, Request::Read { block: 7, buffer: bench.buffer(0, 1) });
    let before = bench.resets();
    assert_eq!(bench.carry_out_but(|_| true), [(0, Err(Failure::Failed))]);
    assert_eq!(bench.resets(), before, "it was not queued: the link stays");
    bench.disk.submit(0, Request::Zero { block: 7, count: 1 });
    assert_eq!(bench.disk.finished(), Some((0, Err(Failure::Unsupported))));
}

#[test]
fn only_what_fails_twice_has_failed() {
    let mut bench = Bench::new(|_| ());
    for tag in 0..20 {
        bench.disk.submit(tag, Request::Read { block: tag as u64, buffer: bench.buffer(tag, 1) });
    }
    let before = bench.resets();
    // Sector 80 is bad; sector 120 only once.
    let mut first = true;
    let finished = bench.carry_out_but(|given| match given.sector {
        80 => true,
        120 => core::mem::replace(&mut first, false),
        _ => false,
    });
    assert_eq!(finished.len(), 20);
    for (tag, result) in finished {
        assert_eq!(result, if tag == 10 { Err(Failure::Failed) } else { Ok(()) }, "tag {tag}");
    }
    assert!(bench.resets() > before, "the link was reset after an error among queued commands");
    // And it queues again.
    bench.disk.submit(0, Request::Read { block: 0, buffer: bench.buffer(0, 1) });
    assert!(bench.given()[0].is_queued());
    assert_eq!(bench.carry_out(), [(0, Ok(()))]);
}

#[test]
fn a_disk_that_was_pulled_out_answers_nothing_until_the_reset() {
    let mut bench = Bench::new(|_| ());
    bench.disk.submit(0, Request::Read { block: 0, buffer: bench.buffer(0, 1) });
    bench.disk.notify();
    if let Some(port) = &mut bench.controller.borrow_mut().ports[AT] {
        port.link = u64::MAX;
    }
    bench.controller.borrow_mut().interrupt(AT, IS_LINK);
    bench.disk.interrupt(0);
    bench.disk.submit(1, Request::Flush);
    bench.disk.notify();
    bench.disk.interrupt(0);
    assert_eq!(bench.disk.finished(), None);
    assert_eq!(bench.disk.restart(), Err(Error::NoDisk));
    // It is back.
    if let Some(port) = &mut bench.controller.borrow_mut().ports[AT] {
        port.link = 0;
    }
    bench.disk.reset().unwrap();
    bench.disk.submit(1, Request::Flush);
    assert_eq!(bench.carry_out(), [(1, Ok(()))]);
    // The whole controller.
    bench.controller.borrow_mut().gone = true;
    bench.disk.submit(1, Request::Flush);
    bench.disk.notify();
    bench.disk.interrupt(0);
    assert_eq!((bench.disk.finished(), bench.disk.restart()), (None, Err(Error::Gone)));
}

#[test]
fn a_port_that_does_not_run_has_finished_nothing() {
    for request in [Request::Flush, Request::Read { block: 0, buffer: Bench::new(|_| ()).buffer(0, 1) }] {
        let mut bench = Bench::new(|_| ());
        bench.disk.submit(0, request);
        bench.disk.notify();
        // Somebody else has stopped it, and all registers of commands are zeros.
        let mut wire = Fake(bench.controller.clone());
        let command = wire.read(of_port(AT, CMD));
        wire.write(of_port(AT, CMD), command & !CMD_START);
        assert_eq!(wire.read(of_port(AT, SACT)) | wire.read(of_port(AT, CI)), 0);
        assert_eq!(bench.disk.finished(), None);
        bench.disk.reset().unwrap();
        bench.disk.submit(0, Request::Flush);
        assert_eq!(bench.carry_out(), [(0, Ok(()))]);
    }
}

#[test]
fn a_reset_forgets_what_is_under_way() {
    let mut bench = Bench::new(|_| ());
    for _ in 0..3 {
        for tag in 0..32 {
            bench.disk.submit(tag, Request::Read { block: 0, buffer: bench.buffer(tag, 16) });
        }
        for given in &bench.given()[..10] {
            bench.controller.borrow_mut().carry_out(AT, given, false);
        }
        let before = bench.controller.borrow().resets;
        bench.disk.reset().unwrap();
        assert_eq!((bench.disk.finished(), bench.controller.borrow().resets), (None, before + 1));
        bench.disk.submit(31, Request::Flush);
        assert_eq!(bench.carry_out(), [(31, Ok(()))]);
    }
    // Nothing was asked since the last one: there is nothing to reset.
    bench.disk.reset().unwrap();
    let before = bench.controller.borrow().resets;
    bench.disk.reset().unwrap();
    assert_eq!(bench.controller.borrow().resets, before);
}

/// What `reset` says of a controller that was changed so.
fn problem(wanted: Option<usize>, change: impl FnOnce(&mut Controller)) -> Error {
    match open(&controller(change), wanted) {
        Ok(mut disk) => disk.restart().unwrap_err(),
        Err(error) => error,
    }
}

/// The same with the first disk changed, and without the other.
fn problem_of_disk(change: impl FnOnce(&mut Device)) -> Error {
    problem(Some(AT), |controller| {
        if let Some(port) = &mut controller.ports[AT] {
            change(port);
        }
    })
}

#[test]
fn controllers_and_disks_that_cannot_be_used() {
    assert_eq!(problem(None, |controller| controller.gone = true), Error::Gone);
    assert_eq!(problem(None, |controller| controller.never_resets = true), Error::Reset);
    assert_eq!(problem(None, |controller| controller.capabilities &= !CAP_LONG_ADDRESSES), Error::Addresses);
    assert_eq!(problem(None, |controller| controller.ports.truncate(1)), Error::NoDisk);
    assert_eq!(problem(None, |controller| controller.ports.truncate(2)), Error::Signature(1, SIG_CD));
    assert_eq!(problem(Some(0), |_| ()), Error::NoDisk);
    assert_eq!(problem(Some(7), |_| ()), Error::NoPort(7));
    let dma = |controller: &mut Controller| controller.dma = controller.dma.part(0, 4096);
    assert_eq!(problem(None, dma), Error::Memory(4096, MEMORY));
    assert_eq!(problem_of_disk(|port| port.ready = u64::MAX), Error::Busy(AT));
    assert_eq!(problem_of_disk(|port| port.identity = [0; 512]), Error::Capacity);
    assert_eq!(problem_of_disk(|port| port.identity = with(port.identity, 128, 4)), Error::Locked);
    assert_eq!(problem_of_disk(|port| port.identity = with(port.identity, 255, 0xa5)), Error::Checksum);
}

#[test]
fn the_first_disk_or_the_one_that_is_wanted() {
    for (wanted, expected) in [(None, AT), (Some(3), 3)] {
        let mut disk = open(&controller(|_| ()), wanted).unwrap();
        disk.reset().unwrap();
        assert_eq!(disk.found.map(|found| found.port.number), Some(expected));
    }
    // The firmware does not let go, the first disk does not come up in time: the next one.
    let slow = controller(|controller| {
        controller.firmware = true;
        if let Some(port) = &mut controller.ports[AT] {
            port.link = 2_000_000_000;
        }
        controller.now = u64::MAX / 2;
    });
    let mut disk = open(&slow, None).unwrap();
    disk.reset().unwrap();
    assert_eq!(disk.found.map(|found| found.port.number), Some(3));
}

#[test]
fn another_disk_does_not_take_its_place() {
    let mut bench = Bench::new(|_| ());
    let change = |bench: &mut Bench, serial| {
        if let Some(port) = &mut bench.controller.borrow_mut().ports[AT] {
            port.identity = with(port.identity, 10, serial);
        }
    };
    change(&mut bench, 7);
    assert_eq!(bench.disk.restart(), Err(Error::Changed));
    change(&mut bench, 0x3132);
    assert_eq!(bench.disk.restart(), Ok(()));
    if let Some(port) = &mut bench.controller.borrow_mut().ports[AT] {
        port.stuck = true;
    }
    bench.disk.submit(0, Request::Flush);
    assert_eq!(bench.carry_out_but(|_| true), [(0, Err(Failure::Failed))]);
    assert!(bench.disk.is_broken);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever the registers say of commands: nothing is answered that was not asked, and nothing twice.
    #[test]
    fn nonsense_in_the_registers_harms_nobody(
        tags in prop::collection::btree_set(0usize..32, 1..32),
        said in prop::collection::vec(any::<(u32, u32, u32)>(), 1..20),
    ) {
        let mut bench = Bench::new(|_| ());
        for tag in &tags {
            bench.disk.submit(*tag, Request::Read { block: 0, buffer: bench.buffer(*tag, 1) });
        }
        bench.disk.submit(*tags.iter().next().unwrap(), Request::Flush);
        bench.disk.notify();
        let mut left = tags.clone();
        for (issued, active, status) in said {
            // The disk does not refuse in this test what it would not take.
            bench.controller.borrow_mut().set_pending(AT, issued, active);
            bench.controller.borrow_mut().interrupt(AT, status & !(IS_FAILED | IS_LINK));
            bench.disk.look();
            while let Some((tag, _)) = bench.disk.done.pop_front() {
                prop_assert!(left.remove(&tag), "tag {tag}");
            }
        }
    }
}
