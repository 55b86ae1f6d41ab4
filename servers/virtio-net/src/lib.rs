//! Driver of virtio network devices (virtio 1.2, chapter 5.1) on PCI.
//!
//! * [`device`]: the device as the kit for network drivers wants it.
//! * [`transport`]: the PCI transport of `virtio-drivers`, with interrupt vectors.
//! * [`config`]: configuration space as that transport wants it, through the platform server.
//! * [`hal`]: physical addresses of the memory that the device sees.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod config;
pub mod device;
pub mod hal;
pub mod transport;
