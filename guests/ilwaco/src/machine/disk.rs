//! The VM's disks: `disk::open(0)`, then read, write, flush. Any number of tasks may have requests under way.
//!
//! A write is safe against power loss only after a flush that was begun after it ended. Requests that are under way at the same time are in no order.

use super::{doorbell, entry, lines, registers::loaded};
use crate::{
    blocks::{Blocks, Ticket},
    disk_window::Pages,
};
use alloc::collections::VecDeque;
use core::{
    cell::RefCell,
    fmt,
    future::poll_fn,
    task::{Context, Poll},
};
use embassy_sync::blocking_mutex::CriticalSectionMutex;
pub use protocol::disk::BLOCK;
use protocol::{
    disk::{DISKS, Status},
    registers::DISK_READ_ONLY,
};

/// Requests that one long read or write keeps under way.
const AT_ONCE: usize = 4;

/// The books, once the first disk was opened.
static BLOCKS: CriticalSectionMutex<RefCell<Option<Blocks>>> = CriticalSectionMutex::new(RefCell::new(None));

/// Why a request was not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The disk could not do it; what it holds there after a write is undefined.
    Failed,
    /// Beyond the end of the disk.
    OutOfRange,
    /// The disk cannot be written.
    ReadOnly,
    /// The length is no multiple of a block, or the server took the request for nonsense.
    BadRequest,
    /// The VM has no such disk any more.
    NoDisk,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::Failed => "input/output error",
            Error::OutOfRange => "beyond the end of the disk",
            Error::ReadOnly => "the disk cannot be written",
            Error::BadRequest => "bad request",
            Error::NoDisk => "no such disk",
        })
    }
}

impl core::error::Error for Error {}

fn result(status: Status) -> Result<(), Error> {
    Err(match status {
        Status::Ok => return Ok(()),
        Status::Failed => Error::Failed,
        Status::OutOfRange => Error::OutOfRange,
        Status::ReadOnly => Error::ReadOnly,
        Status::BadRequest => Error::BadRequest,
        Status::NoDisk => Error::NoDisk,
    })
}

/// A disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disk {
    number: u32,
    blocks: u64,
    read_only: bool,
}

/// The disk with this number, from 0. `None`: the VM has no such disk, or the image has no disk window
/// (`entry!(..., disk = BUFFERS)`).
pub fn open(number: usize) -> Option<Disk> {
    let image = entry::image();
    let register = *loaded!(disks).get(number)?;
    if image.disk.is_null() || register.blocks == 0 || number >= DISKS {
        return None;
    }
    BLOCKS.lock(|blocks| {
        blocks.borrow_mut().get_or_insert_with(|| {
            lines::enable(lines::DISK);
            // SAFETY: `entry!` put the address and size of a `DiskWindow` static there; this is the only place where `Pages` of it are
            // made, and the books keep them for ever.
            Blocks::new(unsafe { Pages::new(image.disk, image.disk_length) })
        });
    });
    Some(Disk { number: number as u32, blocks: register.blocks, read_only: register.flags & DISK_READ_ONLY != 0 })
}

/// The disk window of the image: address and bytes. For tests of what the server makes of nonsense.
pub fn window() -> Option<(*const u8, usize)> {
    let image = entry::image();
    (!image.disk.is_null()).then_some((image.disk, image.disk_length))
}

/// Called when the disk line was taken.
pub(super) fn interrupted() {
    with(Blocks::collect);
}

/// Does something with the books, if there are any.
fn with<R>(work: impl FnOnce(&mut Blocks) -> R) -> Option<R> {
    BLOCKS.lock(|blocks| blocks.borrow_mut().as_mut().map(work))
}

/// A request that is given up when it is dropped.
struct Flight {
    ticket: Option<Ticket>,
    /// Blocks, and those before them in the whole.
    count: usize,
    done: usize,
}

impl Flight {
    /// Waits for the answer; what was read is put into its part of `bytes`.
    async fn end(mut self, bytes: &mut [u8]) -> Result<(), Error> {
        let status = poll_fn(|context| match &self.ticket {
            Some(ticket) => {
                with(|blocks| blocks.poll(ticket, context.waker())).flatten().map_or(Poll::Pending, Poll::Ready)
            }
            None => Poll::Ready(Status::Failed),
        })
        .await;
        if let Some(ticket) = self.ticket.take() {
            let whole = bytes.len() / BLOCK >= self.done + self.count;
            let part = if whole && status == Status::Ok {
                &mut bytes[self.done * BLOCK..][..self.count * BLOCK]
            } else {
                &mut []
            };
            with(|blocks| blocks.end(ticket, part));
        }
        result(status)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            with(|blocks| blocks.abandon(ticket));
        }
    }
}

/// Puts a request up, waiting for room if there is none.
async fn put_up<R>(mut put: impl FnMut(&mut Blocks) -> Option<R>) -> R {
    let answer = poll_fn(|context: &mut Context| match try_put_up(&mut put) {
        Some(answer) => Poll::Ready(answer),
        None => {
            with(|blocks| blocks.wait_for_room(context.waker()));
            Poll::Pending
        }
    });
    answer.await
}

fn try_put_up<R>(put: impl FnOnce(&mut Blocks) -> Option<R>) -> Option<R> {
    let answer = with(put).flatten();
    if answer.is_some() {
        doorbell::disk_later();
    }
    answer
}

impl Disk {
    /// Blocks of [`BLOCK`] bytes.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Whether it cannot be written.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Reads from `block` on; `bytes` are whole blocks. After an error their contents are undefined.
    pub async fn read(&self, block: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.check(bytes.len())?;
        let count = bytes.len() / BLOCK;
        let put = |done: usize| move |blocks: &mut Blocks| blocks.read(self.number, block + done as u64, count - done);
        self.run(count, put, bytes).await
    }

    /// Writes from `block` on; `bytes` are whole blocks. After an error what the disk holds there is undefined.
    pub async fn write(&self, block: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check(bytes.len())?;
        let put = |done: usize| {
            move |blocks: &mut Blocks| blocks.write(self.number, block + done as u64, &bytes[done * BLOCK..])
        };
        self.run(bytes.len() / BLOCK, put, &mut []).await
    }

    /// Makes all writes that have ended safe against power loss.
    pub async fn flush(&self) -> Result<(), Error> {
        let ticket = put_up(|blocks| blocks.flush(self.number)).await;
        Flight { ticket: Some(ticket), count: 0, done: 0 }.end(&mut []).await
    }

    fn check(&self, length: usize) -> Result<(), Error> {
        if length.is_multiple_of(BLOCK) { Ok(()) } else { Err(Error::BadRequest) }
    }

    /// Puts up requests until `count` blocks are done, a few of them at a time.
    async fn run<P>(&self, count: usize, put: impl Fn(usize) -> P, bytes: &mut [u8]) -> Result<(), Error>
    where
        P: FnMut(&mut Blocks) -> Option<(Ticket, usize)>,
    {
        let mut flights: VecDeque<Flight> = VecDeque::new();
        let mut done = 0;
        while done < count || !flights.is_empty() {
            let next = match flights.len() {
                _ if done == count => None,
                0 => Some(put_up(put(done)).await),
                1..AT_ONCE => try_put_up(put(done)),
                _ => None,
            };
            if let Some((ticket, blocks)) = next {
                flights.push_back(Flight { ticket: Some(ticket), count: blocks, done });
                done += blocks;
            } else if let Some(flight) = flights.pop_front() {
                flight.end(bytes).await?;
            }
        }
        Ok(())
    }
}
