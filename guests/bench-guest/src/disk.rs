//! Throughput of a virtual disk, in the cases in which the builder has a driver measured without one.

extern crate alloc;

// The same file as in the server that measures the driver: what is compared is the same.
#[path = "../../../servers/bench/src/throughput.rs"]
mod throughput;

use alloc::{boxed::Box, vec};
use core::{
    cell::Cell,
    future::poll_fn,
    task::{Poll, Waker},
};
use ilwaco::{
    Spawner, clock,
    disk::{self, BLOCK, Disk},
    println,
};
use throughput::{Case, Throughput};

/// Nanoseconds of each measurement.
const TIME: u64 = 500_000_000;
/// Requests under way at a time: all that a VM's ring has room for.
const IN_FLIGHT: usize = 32;

/// What the workers share.
struct Shared {
    disk: Disk,
    case: Cell<Case>,
    /// When the measurement began; 0: not now.
    start: Cell<u64>,
    /// Requests begun; those after which it ends in any case.
    begun: Cell<u64>,
    most: Cell<u64>,
    bytes: Cell<u64>,
    working: Cell<usize>,
    failed: Cell<bool>,
    wakers: Cell<vec::Vec<Waker>>,
}

/// Measures every case once and prints it.
pub async fn run(spawner: Spawner) {
    let Some(disk) = disk::open(0) else { return println!("this VM has no disk") };
    let case = Case { write: true, random: false, blocks: 16 };
    let shared: &'static Shared = Box::leak(Box::new(Shared {
        disk,
        case: Cell::new(case),
        start: Cell::new(0),
        begun: Cell::new(0),
        most: Cell::new(0),
        bytes: Cell::new(0),
        working: Cell::new(0),
        failed: Cell::new(false),
        wakers: Cell::default(),
    }));
    for _ in 0..IN_FLIGHT {
        spawner.spawn(ilwaco::task(work(shared)));
    }
    // What was never written would be read from nowhere.
    shared.measure(case, disk.blocks() / u64::from(case.blocks)).await;
    for case in Case::all() {
        let start = clock::now();
        let bytes = shared.measure(case, u64::MAX).await;
        println!("{}", Throughput { case, bytes, nanoseconds: clock::now() - start, in_flight: IN_FLIGHT });
    }
    match shared.failed.get() {
        true => println!("requests failed"),
        false => println!("all is measured"),
    }
}

impl Shared {
    /// Keeps all workers busy for a while, or until so many requests were made. Returns the bytes moved.
    async fn measure(&self, case: Case, most: u64) -> u64 {
        self.case.set(case);
        self.most.set(most);
        self.begun.set(0);
        self.bytes.set(0);
        self.working.set(IN_FLIGHT);
        self.start.set(clock::now());
        self.wake();
        self.wait(|| self.working.get() == 0).await;
        self.start.set(0);
        self.bytes.get()
    }

    fn wake(&self) {
        self.wakers.take().into_iter().for_each(Waker::wake);
    }

    async fn wait(&self, condition: impl Fn() -> bool) {
        poll_fn(|context| {
            if condition() {
                return Poll::Ready(());
            }
            let mut wakers = self.wakers.take();
            wakers.push(context.waker().clone());
            self.wakers.set(wakers);
            Poll::Pending
        })
        .await;
    }

    /// The number of the next request, if the measurement goes on.
    fn next(&self) -> Option<u64> {
        let number = self.begun.get();
        let is_over = self.most.get() == u64::MAX && clock::now() - self.start.get() >= TIME;
        let goes_on = number < self.most.get() && !is_over;
        self.begun.set(number + 1);
        goes_on.then_some(number)
    }
}

/// One request after the other, measurement after measurement.
async fn work(shared: &'static Shared) {
    let mut buffer = vec![0x5a; 16 * BLOCK];
    let mut done = 0;
    loop {
        // The measurement after the one in which this worker was last.
        shared.wait(|| shared.start.get() > done).await;
        done = shared.start.get();
        let case = shared.case.get();
        let bytes = &mut buffer[..case.blocks as usize * BLOCK];
        while let Some(number) = shared.next() {
            let place = case.place(number, shared.disk.blocks());
            let result = match case.write {
                true => shared.disk.write(place, bytes).await,
                false => shared.disk.read(place, bytes).await,
            };
            shared.failed.set(shared.failed.get() | result.is_err());
            shared.bytes.set(shared.bytes.get() + bytes.len() as u64);
        }
        shared.working.set(shared.working.get() - 1);
        if shared.working.get() == 0 {
            shared.wake();
        }
    }
}
