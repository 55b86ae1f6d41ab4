//! Driver of SATA disks behind AHCI controllers (Serial ATA AHCI 1.3.1; section numbers are of it, those with ACS of ATA8-ACS).
//!
//! [`device`] is the disk as the kit for block drivers wants it; below it are the controller ([`hba`]), its ports ([`port`]), what is
//! said to a disk ([`fis`]) and what a disk says of itself ([`identify`]). All of it reaches the machine through
//! [`block_driver::pci::hardware`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod device;
pub mod error;
pub mod fis;
pub mod hba;
pub mod identify;
pub mod port;
pub mod registers;

#[cfg(test)]
mod fake;
