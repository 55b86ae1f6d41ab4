//! Throughput.

use super::{number, open, wait};
use bench::throughput::{Case, Throughput};
use block_client::{Channel, Disk, Operation, Status};
use server_runtime::{Startup, clock, hypercall, log};

/// Milliseconds of each measurement.
const TIME: u64 = 500;

/// Measures every case once, prints it, and sleeps.
pub fn run(startup: &Startup) -> ! {
    let (mut disk, info) = open(startup);
    let in_flight = disk.slots().min(number(startup, "in-flight", 32) as usize).max(1);
    let time = number(startup, "milliseconds", TIME).saturating_mul(1_000_000);
    // What was never written would be read from nowhere.
    let writes = Case { write: true, random: false, blocks: 16 };
    requests(&mut disk, writes, info.blocks, in_flight, |number| number * 16 < info.blocks);
    for case in Case::all() {
        let start = clock::now();
        let bytes = requests(&mut disk, case, info.blocks, in_flight, |_| clock::now() - start < time);
        log!("{}", Throughput { case, bytes, nanoseconds: clock::now() - start, in_flight });
    }
    log!("all is measured");
    hypercall::sleep_forever()
}

/// Keeps `in_flight` requests under way while `more` says so of the next one's number; then waits for all. Returns the bytes moved.
fn requests(disk: &mut Disk<Channel>, case: Case, area: u64, in_flight: usize, more: impl Fn(u64) -> bool) -> u64 {
    let operation = if case.write { Operation::Write } else { Operation::Read };
    let (mut submitted, mut under_way, mut bytes) = (0, 0, 0);
    loop {
        while under_way < in_flight && more(submitted) {
            let Some(slot) = disk.take() else { break };
            disk.submit(slot, operation, case.place(submitted, area), case.blocks);
            submitted += 1;
            under_way += 1;
        }
        if under_way == 0 {
            return bytes;
        }
        wait(disk);
        while let Some((slot, status)) = disk.poll() {
            assert!(status == Status::Ok, "a request of the measurement: {status}");
            bytes += u64::from(case.blocks) * 4096;
            under_way -= 1;
            disk.give(slot);
        }
    }
}
