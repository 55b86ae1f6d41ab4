//! Writes and reads under load, and checks everything.
//!
//! In each generation the area at the beginning of the partition is written anew, flushed, and read back in another order. A request that fails
//! or times out is counted and made again, as those who keep data would.

use super::{number, open, wait};
use alloc::{collections::VecDeque, vec};
use bench::pattern::{self, BLOCK, HOST};
use block_client::{Channel, Disk, Operation, Status};
use protocol::service::block_driver::{BUFFER, SLOTS};
use server_runtime::{Startup, hypercall, log};

/// Blocks of the area, if the option `area` does not say.
const AREA: u64 = 1024;
/// Blocks of a request: it varies, so that they never line up.
const LENGTHS: [u32; 5] = [16, 1, 7, 3, 12];

/// What became of requests.
#[derive(Default)]
struct Count {
    requests: u64,
    failed: u64,
    timed_out: u64,
}

/// A request: operation, first block, blocks.
type Job = (Operation, u64, u32);

struct Checker {
    disk: Disk<Channel>,
    count: Count,
    bytes: alloc::vec::Vec<u8>,
}

/// Checks for as many generations as the option `generations` says, 0: for ever; then sleeps.
pub fn run(startup: &Startup) -> ! {
    let (disk, info) = open(startup);
    let mut checker = Checker { disk, count: Count::default(), bytes: vec![0; BUFFER] };
    let host = number(startup, "host-blocks", 0).min(info.blocks);
    if host > 0 {
        // The host has written the last blocks before the machine was started.
        checker.carry_out(jobs(Operation::Read, info.blocks - host, info.blocks), HOST);
        log!("{host} blocks are as the host wrote them");
    }
    let area = number(startup, "area", AREA).min(info.blocks - host);
    let generations = number(startup, "generations", 0);
    let mut generation = 0;
    while generations == 0 || generation < generations {
        generation += 1;
        checker.carry_out(jobs(Operation::Write, 0, area), generation);
        checker.carry_out([(Operation::Flush, 0, 0)].into(), generation);
        checker.carry_out(jobs(Operation::Read, 0, area).into_iter().rev().collect(), generation);
        let Count { requests, failed, timed_out } = checker.count;
        log!("generation {generation} is right: {requests} requests so far, {failed} failed, {timed_out} timed out");
    }
    // What was zeroed reads as zeros; the last blocks stay as they are.
    checker.carry_out([(Operation::Zero, 0, (area / 2) as u32)].into(), generation);
    checker.carry_out([(Operation::Flush, 0, 0)].into(), generation);
    log!("all is checked, and the first {} blocks are zeroed", area / 2);
    hypercall::sleep_forever()
}

/// Requests for all blocks from `first` up to `end`.
fn jobs(operation: Operation, first: u64, end: u64) -> VecDeque<Job> {
    let mut jobs = VecDeque::new();
    let mut block = first;
    for length in LENGTHS.into_iter().cycle() {
        let length = u64::from(length).min(end - block);
        if length == 0 {
            break;
        }
        jobs.push_back((operation, block, length as u32));
        block += length;
    }
    jobs
}

impl Checker {
    /// Carries out requests, as many at a time as there are slots. Panics if something that is read is not of this generation.
    fn carry_out(&mut self, mut jobs: VecDeque<Job>, generation: u64) {
        let mut under_way: [Option<Job>; SLOTS] = [None; SLOTS];
        loop {
            while let Some(job) = jobs.front().copied() {
                let Some(slot) = self.disk.take() else { break };
                let (operation, block, count) = job;
                if operation == Operation::Write {
                    let bytes = &mut self.bytes[..count as usize * BLOCK];
                    pattern::fill(bytes, block, generation);
                    self.disk.buffer(slot).copy_in(0, bytes);
                }
                self.disk.submit(slot, operation, block, count);
                under_way[slot] = jobs.pop_front();
            }
            if self.disk.under_way() == 0 {
                return;
            }
            wait(&mut self.disk);
            while let Some((slot, status)) = self.disk.poll() {
                let job = under_way[slot].take();
                let (operation, block, count) = job.unwrap_or_else(|| panic!("slot {slot} is answered twice"));
                self.count.requests += 1;
                match status {
                    Status::Ok if operation == Operation::Read => {
                        let bytes = &mut self.bytes[..count as usize * BLOCK];
                        self.disk.buffer(slot).copy_out(0, bytes);
                        if let Some(wrong) = pattern::wrong(bytes, block, generation) {
                            panic!("block {wrong} is not of generation {generation}");
                        }
                    }
                    Status::Ok => {}
                    Status::Failed | Status::TimedOut => {
                        self.count.failed += u64::from(status == Status::Failed);
                        self.count.timed_out += u64::from(status == Status::TimedOut);
                        jobs.push_back((operation, block, count));
                    }
                    status => panic!("{operation:?} of block {block}: {status}"),
                }
                self.disk.give(slot);
            }
        }
    }
}
