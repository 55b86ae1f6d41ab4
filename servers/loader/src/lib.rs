//! The loader: checks guest images, creates VMs from them and tells the operator of their ends. This is its logic,
//! which runs on the host too.
//!
//! * [`guest`]: from a guest image in the bundle to what the pager is asked to create.
//! * [`registers`]: the virtual register page of a new VM.
//! * [`text`]: why a VM stopped, in words.
//! * [`table`]: the VMs of the manifest and where each stands.
//! * [`templates`]: which of them are clones of which template.
//! * [`disks`]: their virtual disks.
//! * [`loader`]: all of it together, on the calls of other servers that [`peers`] names.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod disks;
pub mod guest;
pub mod loader;
pub mod peers;
pub mod registers;
pub mod table;
pub mod templates;
#[cfg(test)]
mod tests;
pub mod text;
