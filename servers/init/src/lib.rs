//! The first program: starts the servers of the manifest, each with what the manifest gives it and nothing else, and
//! restarts those that die.
//!
//! * [`check`]: what of the manifest `init` relies on.
//! * [`extents`]: which frames go to whom.
//! * [`space`]: what a server's address space and memory look like.
//! * [`grants`]: what is in a server's slots, and the startup page that says so.
//! * [`policy`]: when a server that died is started again.
//! * [`death`]: why it died, for people.
//! * [`system`]: all of this together, over [`machine::Machine`], which is the kernel on the machine itself and a model
//!   in the tests.
//!
//! `init` never waits for a server: it logs on the kernel's debug line, and all it does with servers are
//! operations of the kernel on them.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod check;
pub mod death;
pub mod extents;
pub mod grants;
pub mod machine;
#[cfg(test)]
mod model;
pub mod policy;
pub mod space;
pub mod system;
#[cfg(test)]
mod tests;
