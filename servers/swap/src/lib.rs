//! The swap server: owner of all memory of VMs, their pager. This is its logic, which runs on the host too.
//!
//! * [`frames`]: the frame table: who has which frame of the pool.
//! * [`space`]: the memory of a VM in numbers. [`image`]: guest images in pages. [`vm`]: a VM's record.
//! * [`decide`]: what to do when a VM touches a page: the policy.
//! * [`pager`]: all of it together: requests, faults in batches, destruction in steps.
//! * [`machine`]: the seam to the kernel; `model` is the kernel that tests put there.
//! * [`slab`]: numbers for VMs and images.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod decide;
pub mod frames;
pub mod image;
pub mod machine;
#[cfg(test)]
mod model;
pub mod pager;
pub mod slab;
pub mod space;
#[cfg(test)]
mod tests;
pub mod vm;
