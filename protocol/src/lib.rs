//! Every interface of the isolation kernel, written down once.
//!
//! * [`abi`]: system calls and hypercalls: numbers, registers, errors.
//! * [`layout`]: where things lie in the address space of a server and of a VM.
//! * [`memory`], [`domain`], [`capability`]: the records that batched calls read and write.
//! * [`registers`]: the virtual register page.
//! * [`nic`], [`disk`], [`text`]: queues between a guest and the servers behind its devices.
//! * [`note`]: what a guest image says of itself; [`image`]: the check of such an image.
//! * [`boot`], [`manifest`]: what the kernel tells `init`, and what the builder tells `init`.
//! * [`service`]: the typed postcard services that servers offer.
//!
//! Everything here is `no_std` and free of `unsafe`; the same types run in ring 0, in ring 3 and
//! on the host. Records that cross a protection boundary are `repr(C)`, use fixed-width integers
//! only, and have their sizes asserted.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "services")]
extern crate alloc;

pub mod abi;
pub mod boot;
pub mod bundle;
pub mod capability;
pub mod disk;
pub mod domain;
pub mod layout;
pub mod memory;
pub mod nic;
pub mod note;
pub mod numbered;
pub mod registers;
pub mod text;

#[cfg(feature = "services")]
pub mod image;
#[cfg(feature = "services")]
pub mod manifest;
#[cfg(feature = "services")]
pub mod service;

/// Version of the virtual architecture that this crate describes.
///
/// A guest image names the version it was built for in its note; the loader refuses any other.
/// Bump it when a guest built before the change would no longer run.
pub const ARCHITECTURE_VERSION: u32 = 1;
