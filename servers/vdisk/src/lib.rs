//! Virtual disks, off the metal: everything but the calls of the kernel and of other servers.
//!
//! * [`store`]: what is on the partition: which disks there are and where their blocks lie.
//! * [`queue`]: the queue page of a VM's disks, read as what a stranger wrote.
//! * [`machine`]: what the server needs of the machine: a block device, and the memory of VMs.
//! * [`vms`]: the VMs that have disks, and who may use which.
//! * [`flight`]: requests under way.
//! * [`serve`]: who is served when, and the way of a request.
//! * [`change`]: making and deleting disks, one step at a time.
//! * [`requests`]: what clients ask.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod change;
pub mod flight;
pub mod machine;
#[cfg(test)]
mod model;
pub mod queue;
pub mod requests;
pub mod serve;
pub mod store;
#[cfg(test)]
mod tests;
pub mod vms;
