//! The virtual switch, off the metal: everything but the calls of the kernel.
//!
//! * [`away`]: VMs that wait for the pager, and the packets held for them.
//! * [`budget`](server_runtime::budget): how much of a processor the switch may take.
//! * [`header`]: what a packet says of itself, and whether a VM may say that.
//! * [`ports`]: the VMs' ports, by place, MAC address and IPv4 address.
//! * [`queue`]: the queue page of a VM's NIC, read as what a stranger wrote.
//! * [`quiet`]: VMs that have received what can wait.
//! * [`uplink`]: the rings shared with the network driver.
//! * [`memory`]: copies between all of them, and the pager.
//! * [`switch`]: who is served when, and where packets go.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod away;
pub mod header;
pub mod memory;
pub mod ports;
pub mod queue;
pub mod quiet;
pub mod switch;
pub mod uplink;

pub use server_runtime::budget;
