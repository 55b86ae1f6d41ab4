//! The swap server: owner of all memory of VMs, their pager. This is its logic, which runs on the host too.
//!
//! * [`frames`]: the frame table: who has which frame of the pool. [`record`]: the record of a VM.
//! * [`space`]: the memory of a VM in numbers. [`image`]: guest images in pages. [`template`]: images made of VMs that have started.
//! * [`region`]: swap space, striped over disks. [`map`]: what a VM's region holds of each page. [`crypt`]: how to know it again.
//! * [`suspended`]: a VM that has left memory, in one piece.
//! * [`decide`]: what to do when a VM touches a page: the policy.
//! * [`pager`]: all of it together.
//! * [`machine`]: the seams to the kernel and to disks; `model` is what tests put there.
//! * [`slab`]: numbers for images.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod crypt;
pub mod decide;
pub mod frames;
pub mod image;
pub mod machine;
pub mod map;
#[cfg(test)]
mod model;
pub mod pager;
pub mod queue;
pub mod record;
pub mod region;
pub mod slab;
pub mod space;
pub mod suspended;
pub mod template;
#[cfg(test)]
mod tests;
