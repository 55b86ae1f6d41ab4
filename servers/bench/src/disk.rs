//! The roles that use a disk: the partition of a block driver that the system file gives them.

pub mod check;
pub mod instructions;
pub mod measure;

use block_client::{Channel, Disk, Info};
use protocol::{abi::NEVER, domain::line, service::block_driver::shared_name};
use server_runtime::{Startup, clock, hypercall, log, memory};

/// Nanoseconds between two attempts to open a disk whose driver is away.
const PAUSE: u64 = 20_000_000;

/// The disk of the driver that the option `driver` names, opened.
fn open(startup: &Startup) -> (Disk<Channel>, Info) {
    let driver = startup.option("driver").unwrap_or("virtio-blk");
    let Some(channel) = startup.channel(driver) else { panic!("there is no channel to {driver:?}") };
    let name = shared_name(&startup.name, driver);
    let Some(shared) = memory::shared(&name) else { panic!("there is no shared memory {name:?}") };
    let disk = Disk::new(Channel::new(channel.slot), shared);
    let mut disk = disk.unwrap_or_else(|error| panic!("{error}"));
    match disk.open() {
        Ok(info) => (disk, info),
        Err(error) => {
            log!("the disk cannot be opened: {error}");
            hypercall::sleep_forever()
        }
    }
}

/// Waits until something happens, and opens the disk anew if its driver was restarted.
fn wait(disk: &mut Disk<Channel>) {
    disk.notify();
    let deadline = if disk.is_open() { NEVER } else { clock::now() + PAUSE };
    let woken = hypercall::wait(None, deadline);
    let restarted = matches!(woken, Ok(hypercall::Woken::Interrupts(lines)) if lines & 1 << line::PEER_RESTARTED != 0);
    if restarted || !disk.is_open() {
        match disk.restarted() {
            Some(Ok(_)) => log!("the driver was restarted; {} requests submitted again", disk.under_way()),
            Some(Err(error)) if !error.is_passing() => log!("the disk is lost: {error}"),
            Some(Err(_)) | None => {}
        }
    }
}

/// A number of the system file.
pub fn number(startup: &Startup, option: &str, default: u64) -> u64 {
    match startup.option(option).map(str::parse) {
        None => default,
        Some(Ok(number)) => number,
        Some(Err(_)) => panic!("option {option:?} is not a whole number"),
    }
}
