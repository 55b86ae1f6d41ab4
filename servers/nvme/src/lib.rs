//! Driver of NVMe disks (NVM Express base specification 1.4; section numbers are of it).
//!
//! [`device`] is the disk as the kit for block drivers wants it; below it are the [`controller`] and its admin commands, a
//! [`queue`] pair, and the [`identify`] data. All of it reaches the machine through [`block_driver::pci::hardware`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod command;
pub mod controller;
pub mod device;
pub mod error;
pub mod identify;
pub mod queue;
pub mod registers;

#[cfg(test)]
mod fake;
