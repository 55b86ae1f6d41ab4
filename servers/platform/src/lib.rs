//! The platform server, off the metal: everything but the calls of the kernel.
//!
//! * [`bars`]: where a function's registers lie, and how long they are.
//! * [`config`]: PCI configuration space behind a trait.
//! * [`device`]: what a PCI function says of itself; which of its configuration a driver may write.
//! * [`ecam`]: memory-mapped configuration space.
//! * [`enumerate`]: finding all functions.
//! * [`fadt`], [`tables`]: the firmware's tables.
//! * [`iommu`]: what a driver's device may reach.
//! * [`memo`]: what a restart must not forget.
//! * [`registers`]: which pages of a device's registers a driver gets.
//! * [`power`]: switching off, resetting.
//! * [`processors`]: which processors there are, and starting them.
//! * [`routing`]: I/O APICs and the lines of legacy interrupts, from the MADT.
//! * [`rtc`]: the wall clock.
//! * [`platform`]: claims, interrupts, requests; [`sharing`]: lines that several devices share.
//! * [`wiring`]: from a device's interrupt pin to its line.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod bars;
pub mod config;
pub mod device;
pub mod ecam;
pub mod enumerate;
pub mod fadt;
pub mod iommu;
pub mod memo;
#[cfg(test)]
mod mock;
pub mod platform;
pub mod power;
pub mod processors;
pub mod registers;
pub mod routing;
pub mod rtc;
pub mod sharing;
pub mod tables;
pub mod wiring;
