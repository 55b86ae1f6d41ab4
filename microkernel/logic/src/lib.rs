//! The microkernel's logic: domains, capabilities, channels, virtual interrupts, mappings, time slices.
//!
//! Everything that is not an instruction of ring 0 is here, in safe Rust, with the hardware behind the
//! trait [`Machine`]. In ring 0 the trait reaches physical memory and the processor; in the tests a
//! model of both, so that unit and property tests run the very code of the kernel.
//!
//! A system call, fault or interrupt runs to its end; blocking is a state of a domain, never a blocked
//! stack. All of it happens under one lock with interrupts off. Every operation is bounded: long ones do
//! a part, say [`protocol::abi::Error::Again`] and are called again.
//!
//! | file | what |
//! |---|---|
//! | `frames` | the type and count of every physical frame |
//! | `block` | the control block: all that the kernel keeps of a domain, one frame |
//! | `capability` | what a slot names, narrowing |
//! | `lists`, `timers`, `scheduler` | intrusive queues through control blocks |
//! | `paging` | page tables of a domain, its memory as the kernel sees it |
//! | `kernel` | entry, dispatch, exit |
//! | `processors` | who runs where, with several processors |
//! | `ipc`, `fast`, `interrupts`, `events` | messages, their short way, virtual interrupts, event queues |
//! | `boot` | what the boot loader tells |
//! | `mapping`, `scan`, `transfer`, `control`, `suspend`, `slots`, `devices` | the calls that act on capabilities |
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod block;
pub mod boot;
pub mod capability;
mod control;
mod devices;
mod events;
mod fast;
pub mod frames;
mod interrupts;
mod ipc;
pub mod kernel;
mod lists;
mod machine;
mod mapping;
pub mod paging;
mod processors;
mod records;
mod scan;
mod scheduler;
mod slots;
mod suspend;
mod timers;
mod transfer;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use frames::{Frame, NO_FRAME};
pub use kernel::Kernel;
pub use machine::Machine;
pub use processors::PROCESSORS;
