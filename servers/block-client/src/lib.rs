//! The client's side of a block driver's ring.
//!
//! [`Disk`] hands out slots, puts requests up and gives back their answers, each exactly once. A restart of the driver is
//! no error: [`Disk::restarted`] opens anew and submits again what was not answered.
//!
//! ```ignore
//! let mut disk = Disk::new(Channel::new(slot), shared)?;
//! disk.open()?;
//! let slot = disk.take().ok_or(Busy)?;
//! disk.buffer(slot).copy_in(0, bytes);
//! disk.submit(slot, Operation::Write, block, 1);
//! disk.notify();                                    // once for a batch
//! // … when the driver's line comes:
//! while let Some((slot, status)) = disk.poll() {
//!     // … use the buffer, then submit the slot again or give it back.
//!     disk.give(slot);
//! }
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(test)]
extern crate std;

mod channel;
mod disk;

pub use channel::Channel;
pub use disk::{Disk, Info, Slot};
pub use protocol::service::block_driver::{Operation, Status};

use core::fmt;
use server_runtime::CallError;

/// The way to a driver.
pub trait Driver {
    /// Opens, and waits for the answer.
    fn open(&mut self) -> Result<Info, OpenError>;
    /// Whether the driver was restarted since it was opened.
    fn was_restarted(&mut self) -> bool;
    /// Raises the driver's line.
    fn raise(&mut self);
}

/// Why a disk cannot be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenError {
    /// The memory shared with the driver has no room for a slot.
    NoMemory,
    /// There is no device, or it does not work.
    NoDevice,
    /// The disk has no such partition, or no table of partitions.
    NoPartition,
    /// The system file gives this client no partition of this disk.
    Denied,
    /// It is not the partition that it was before, or it has become smaller: what was on it is not there.
    OtherPartition,
    /// The driver cannot be asked: it is being restarted (then ask again), or was given up.
    Driver(CallError),
}

impl OpenError {
    /// Whether it is worth asking again soon.
    pub fn is_passing(self) -> bool {
        matches!(self, OpenError::Driver(CallError::Restarted | CallError::Gone))
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::NoMemory => f.write_str("the memory shared with the driver is too small"),
            OpenError::NoDevice => f.write_str("there is no disk, or it does not work"),
            OpenError::NoPartition => f.write_str("the disk has no such partition"),
            OpenError::Denied => f.write_str("the system file gives this server no partition of the disk"),
            OpenError::OtherPartition => f.write_str("the partition is another one than before"),
            OpenError::Driver(error) => write!(f, "the driver does not answer: {error}"),
        }
    }
}

impl core::error::Error for OpenError {}

#[cfg(test)]
mod tests;
