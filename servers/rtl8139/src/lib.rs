//! Driver of Realtek's RTL8139C+ network cards, in C+ mode: with rings of descriptors.
//!
//! [`device`] is the card as the kit for network drivers wants it, [`ring`] a ring of descriptors, [`registers`] names. Numbers of
//! chapters are those of Realtek's *RTL8139C+ datasheet* (1.6).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod device;
pub mod registers;
pub mod ring;
