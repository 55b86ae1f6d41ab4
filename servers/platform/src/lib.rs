//! The platform server, off the metal: everything but the calls of the kernel.
//!
//! * [`config`]: PCI configuration space behind a trait.
//! * [`device`]: what a PCI function says of itself; which of its configuration a driver may write.
//! * [`enumerate`]: finding all functions.
//! * [`registers`]: which pages of a device's registers a driver gets.
//! * [`routing`]: I/O APICs and the lines of legacy interrupts, from the MADT.
//! * [`rtc`]: the wall clock.
//! * [`processors`]: which processors there are, and starting them.
//! * [`platform`]: claims, interrupts, requests.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod config;
pub mod device;
pub mod enumerate;
#[cfg(test)]
mod mock;
pub mod platform;
pub mod processors;
pub mod registers;
pub mod routing;
pub mod rtc;
