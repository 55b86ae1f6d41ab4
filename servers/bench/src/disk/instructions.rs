//! What a driver takes for a request.
//!
//! The machine's time counts instructions, and `init` knows how much of it the driver has had.

use super::{open, wait};
use block_client::{Channel, Disk, Operation, Status};
use protocol::service::init::{self, Init};
use server_runtime::{Client, Startup, hypercall, log};

/// Requests put up at a time.
const BATCHES: [usize; 3] = [1, 8, 32];
/// Blocks of a request.
const LENGTHS: [u32; 2] = [1, 16];
/// Requests of a measurement.
const REQUESTS: usize = 512;
/// Batches before it.
const WARM_UP: usize = 4;

/// Measures all, prints it, and sleeps. The option `driver` names the driver.
pub fn run(startup: &Startup) -> ! {
    let (mut disk, info) = open(startup);
    let name = startup.option("driver").unwrap_or("virtio-blk");
    let Some(channel) = startup.channel("init") else { panic!("there is no channel to init") };
    let mut init = Client::<Init>::new(channel.slot);
    let mut instructions = || match init.call(&init::Request::List) {
        Ok(init::Response::Servers(servers)) => {
            servers.iter().find(|server| server.name == name).map_or(0, |server| server.cpu_time)
        }
        other => panic!("init answers {other:?}"),
    };
    for (operation, direction) in [(Operation::Write, "write"), (Operation::Read, "read")] {
        for blocks in LENGTHS {
            for batch in BATCHES {
                carry_out(&mut disk, operation, info.blocks, blocks, batch, WARM_UP);
                let before = instructions();
                carry_out(&mut disk, operation, info.blocks, blocks, batch, REQUESTS / batch);
                let each = (instructions() - before) / REQUESTS as u64;
                log!("BENCH request {each} instructions lower operation={direction} blocks={blocks} batch={batch}");
            }
        }
    }
    log!("all is measured");
    hypercall::sleep_forever()
}

/// Carries out batches of requests, one batch after the other.
fn carry_out(disk: &mut Disk<Channel>, operation: Operation, area: u64, blocks: u32, batch: usize, batches: usize) {
    let mut block = 0;
    for _ in 0..batches {
        for _ in 0..batch {
            let Some(slot) = disk.take() else { panic!("there are fewer slots than {batch}") };
            if block + u64::from(blocks) > area {
                block = 0;
            }
            disk.submit(slot, operation, block, blocks);
            block += u64::from(blocks);
        }
        while disk.under_way() > 0 {
            wait(disk);
            while let Some((slot, status)) = disk.poll() {
                assert!(status == Status::Ok, "a request of the measurement: {status}");
                disk.give(slot);
            }
        }
    }
}
