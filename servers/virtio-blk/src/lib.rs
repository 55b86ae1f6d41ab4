//! Driver of virtio block devices (virtio 1.2, chapter 5.2) on PCI.
//!
//! [`device`] is the device as the kit for block drivers wants it; the way to it is the crate `virtio`.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod device;
