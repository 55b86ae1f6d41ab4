//! The swap disks: every block driver that this server calls, with the partition for swap space that the driver gives it.

use alloc::{string::String, vec::Vec};
use block_client::{Channel, Disk, Operation, Status};
use server_runtime::{
    Startup, clock, hypercall, log, memory,
    protocol::{
        abi::NEVER,
        service::block_driver::{BLOCK, shared_name},
    },
};
use swap::{
    machine::Disks,
    pager::DISKS_MAX,
    region::{Stripes, UNIT_BLOCKS},
};

/// Servers that are called and are not drivers of disks.
const OTHERS: [&str; 3] = ["console", "platform", "init"];
/// Nanoseconds until a driver that is being restarted is asked again.
const RETRY: u64 = 100_000_000;
/// Times that it is asked, before what waits for it fails.
const RETRIES: u32 = 100;

struct SwapDisk {
    name: String,
    disk: Disk<Channel>,
    /// When to ask its driver again, and how often that was done.
    retry: u64,
    retries: u32,
}

/// The disks.
pub struct SwapDisks {
    disks: Vec<SwapDisk>,
    /// The disk that is asked first for answers.
    next: usize,
}

impl SwapDisks {
    /// Opens the disks of all drivers that the system file lets this server call. Those that cannot be used are named in the log.
    pub fn open(startup: &Startup) -> SwapDisks {
        let mut disks = Vec::new();
        for channel in startup.channels.iter().filter(|channel| !OTHERS.contains(&channel.name.as_str())) {
            let name = shared_name(&startup.name, &channel.name);
            let Some(shared) = memory::shared(&name) else {
                log!("disk of {}: the system file gives this server no shared memory \"{name}\"", channel.name);
                continue;
            };
            if disks.len() == DISKS_MAX {
                log!("disk of {}: at most {DISKS_MAX} disks can be used", channel.name);
                continue;
            }
            match open(Channel::new(channel.slot), shared) {
                Ok(disk) => disks.push(SwapDisk { name: channel.name.clone(), disk, retry: NEVER, retries: 0 }),
                Err(error) => log!("disk of {}: {error}", channel.name),
            }
        }
        SwapDisks { disks, next: 0 }
    }

    /// How swap space lies on them.
    pub fn stripes(&self) -> Stripes {
        let blocks: Vec<u64> = self.disks.iter().map(|disk| disk.disk.info().map_or(0, |info| info.blocks)).collect();
        Stripes::new(&blocks)
    }

    /// MiB of swap space.
    pub fn mib(&self) -> u64 {
        (u64::from(self.stripes().units) * u64::from(UNIT_BLOCKS) * BLOCK as u64) >> 20
    }

    /// The partitions, in order.
    pub fn partitions(&self) -> [[u8; 16]; DISKS_MAX] {
        let mut partitions = [[0; 16]; DISKS_MAX];
        for (partition, disk) in partitions.iter_mut().zip(&self.disks) {
            *partition = disk.disk.info().map_or([0; 16], |info| info.partition);
        }
        partitions
    }

    /// The next answer of any disk: disk, slot, status.
    pub fn poll(&mut self) -> Option<(u32, u16, Status)> {
        for _ in 0..self.disks.len() {
            let index = self.next % self.disks.len();
            self.next = index + 1;
            if let Some((slot, status)) = self.disks.get_mut(index)?.disk.poll() {
                return Some((index as u32, slot as u16, status));
            }
        }
        None
    }

    /// Whether there are answers that no interrupt will tell of any more: those of requests that failed at once.
    pub fn has_answers(&self) -> bool {
        self.disks.iter().any(|disk| disk.disk.has_answers())
    }

    /// Tells the drivers what was put up.
    pub fn notify(&mut self) {
        self.disks.iter_mut().for_each(|disk| disk.disk.notify());
    }

    /// A peer was restarted: if it was a driver, what it has not answered is put up again.
    pub fn restarted(&mut self) {
        self.disks.iter_mut().for_each(SwapDisk::restarted);
    }

    /// Asks drivers again that were being restarted.
    pub fn retry(&mut self) {
        let now = clock::now();
        for disk in self.disks.iter_mut().filter(|disk| disk.retry <= now) {
            disk.retry = NEVER;
            disk.restarted();
        }
    }

    /// When to call [`SwapDisks::retry`].
    pub fn next_retry(&self) -> u64 {
        self.disks.iter().map(|disk| disk.retry).min().unwrap_or(NEVER)
    }

    fn disk(&mut self, disk: u32) -> Option<&mut Disk<Channel>> {
        self.disks.get_mut(disk as usize).map(|disk| &mut disk.disk)
    }
}

/// Opens a disk; a driver that is just being restarted is waited for.
fn open(channel: Channel, shared: server_runtime::mmio::Region) -> Result<Disk<Channel>, block_client::OpenError> {
    let mut disk = Disk::new(channel, shared)?;
    let mut tries = 0;
    loop {
        match disk.open() {
            Ok(info) if info.read_only => return Err(block_client::OpenError::NoPartition),
            Ok(_) => return Ok(disk),
            Err(error) if error.is_passing() && tries < RETRIES => {
                tries += 1;
                hypercall::idle(clock::now() + RETRY);
            }
            Err(error) => return Err(error),
        }
    }
}

impl SwapDisk {
    fn restarted(&mut self) {
        match self.disk.restarted() {
            None => {}
            Some(Ok(_)) => (self.retry, self.retries) = (NEVER, 0),
            Some(Err(error)) if error.is_passing() && self.retries < RETRIES => {
                (self.retry, self.retries) = (clock::now() + RETRY, self.retries + 1);
            }
            Some(Err(error)) => {
                log!("disk of {}: {error}: what is swapped out there is lost", self.name);
                self.disk.give_up();
            }
        }
    }
}

impl Disks for SwapDisks {
    fn take_slot(&mut self, disk: u32) -> Option<u16> {
        self.disk(disk)?.take().map(|slot| slot as u16)
    }

    fn give_slot(&mut self, disk: u32, slot: u16) {
        if let Some(disk) = self.disk(disk) {
            disk.give(usize::from(slot));
        }
    }

    fn fill_buffer(&mut self, disk: u32, slot: u16, offset: usize, from: &[u8]) {
        if let Some(disk) = self.disk(disk) {
            disk.buffer(usize::from(slot)).copy_in(offset, from);
        }
    }

    fn read_buffer(&mut self, disk: u32, slot: u16, offset: usize, into: &mut [u8]) {
        if let Some(disk) = self.disk(disk) {
            disk.buffer(usize::from(slot)).copy_out(offset, into);
        }
    }

    fn submit(&mut self, disk: u32, slot: u16, operation: Operation, block: u64, count: u32) {
        if let Some(disk) = self.disk(disk) {
            disk.submit(usize::from(slot), operation, block, count);
        }
    }
}
