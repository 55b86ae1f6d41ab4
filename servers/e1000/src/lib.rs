//! Driver of Intel's gigabit network cards: e1000 (8254x) and e1000e (82574 and what is like it).
//!
//! Both kinds have the same registers and legacy descriptors; they differ in the bus and in how they interrupt. [`device`] is
//! the card as the kit for network drivers wants it, [`ring`] a ring of descriptors, [`registers`] names, [`models`] which
//! cards it is for. Numbers of chapters are those of Intel's *82574 GbE Controller Family Datasheet* (3.4) and of the
//! *PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual* (4.0), "8254x".
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod device;
pub mod models;
pub mod registers;
pub mod ring;
