//! What the drivers of virtio devices (virtio 1.2) on PCI have in common.
//!
//! * [`open`](mod@open): from the platform server to a device that is quiet and may interrupt.
//! * [`transport`]: the PCI transport of `virtio-drivers`, with interrupt vectors.
//! * [`config`]: configuration space as that transport wants it, through the platform server.
//! * [`hal`]: physical addresses of the memory that the device sees.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod config;
pub mod hal;
pub mod open;
pub mod transport;

pub use open::{Opened, open};
pub use transport::{Interrupts, Msix, Wire};
