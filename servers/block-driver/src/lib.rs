//! The kit for block drivers: everything that all of them have in common.
//!
//! A driver implements [`BlockDriver`] for its device and hands a function that opens the device to [`serve`]. The kit
//! reads the disk's partition table ([`gpt`]), keeps the rings shared with the clients and holds each to its own partition
//! ([`rings`]), serves [`protocol::service::block_driver`], and resets a device that does not answer.
//!
//! The crate's README is the guide.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod gpt;
pub mod rings;
mod serve;

pub use pci_device::{self as pci, Dma, Problem};
pub use serve::{Setup, serve};

/// What a disk is like. Blocks are those of [`protocol::service::block_driver::BLOCK`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Blocks, the last one whole.
    pub blocks: u64,
    /// Bytes of its own sectors, in which its partition table counts: a power of two, 512 to 4,096.
    pub sector: u32,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// Most blocks that it zeroes at once by itself; 0: it cannot.
    pub zero_most: u32,
}

/// What a device is to do. Everything lies within the disk.
#[derive(Clone, Copy, Debug)]
pub enum Request {
    /// Reads from `block` on, as many blocks as the buffer has.
    Read {
        /// First block.
        block: u64,
        /// The buffer: neighbouring physical memory, 4,096-aligned.
        buffer: Dma,
    },
    /// Writes the buffer to `block` on.
    Write {
        /// First block.
        block: u64,
        /// The buffer.
        buffer: Dma,
    },
    /// Makes all writes that were finished so far safe against power loss.
    Flush,
    /// Zeroes at most [`Geometry::zero_most`] blocks.
    Zero {
        /// First block.
        block: u64,
        /// Blocks.
        count: u32,
    },
}

/// Why a device did not do it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// It could not.
    Failed,
    /// It cannot do such a thing at all: the kit never asks for [`Request::Zero`] again.
    Unsupported,
}

/// A disk.
///
/// Tags are numbers below [`BlockDriver::tags`]; the kit never gives a tag again that is under way. A device may finish
/// requests in any order. All calls return at once.
pub trait BlockDriver {
    /// Most requests that can be under way, at least 1. It stays the same.
    fn tags(&self) -> usize;

    /// Resets the device and sets it up anew: it touches no memory that it was given before, and all requests are
    /// forgotten. Called before everything else, and when the device does not answer.
    fn reset(&mut self) -> Result<(), Problem>;

    /// What the disk is like; called after a reset.
    fn geometry(&self) -> Geometry;

    /// Gives the device a request. There is always room.
    fn submit(&mut self, tag: usize, request: Request);

    /// Tells the device of all that it was given since the last time.
    fn notify(&mut self);

    /// Takes back a request that is finished.
    fn finished(&mut self) -> Option<(usize, Result<(), Failure>)>;

    /// The device's interrupt came, on the lines whose bits are set: acknowledges it.
    fn interrupt(&mut self, lines: u64);
}
