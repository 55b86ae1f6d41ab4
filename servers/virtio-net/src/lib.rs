//! Driver of virtio network devices (virtio 1.2, chapter 5.1) on PCI.
//!
//! [`device`] is the device as the kit for network drivers wants it; the way to it is the crate `virtio`.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod device;
