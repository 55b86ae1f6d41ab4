//! Measures from within: the microkernel, as two servers, a client and a peer; and a disk, as a client of its driver.
//!
//! Where virtual time counts instructions (QEMU's `-icount shift=0`), the time stamp counter does too, so a
//! difference of two readings is a number of instructions, the same on every host. Elsewhere it is a number of ticks.
//!
//! * [`role`]: what a program is; an option of the system file.
//! * [`result`], [`throughput`]: the figures and the lines that the builder reads.
//! * [`pattern`]: what is written to disks, so that it can be checked.
//! * [`service`]: the service by which the path of real servers is measured.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod pattern;
pub mod result;
pub mod role;
pub mod service;
pub mod throughput;

/// Labels of the raw messages between client and peer. Those of services are below.
pub mod label {
    /// The peer sends the message back.
    pub const ECHO: u8 = 16;
    /// The message is a number of rounds, 8 bytes: the peer answers, and then in each round waits for an interrupt and
    /// raises one on the client.
    pub const ROUNDS: u8 = 17;
    /// The peer answers and from then on is a server of [`crate::service::Echo`].
    pub const SERVE: u8 = 18;
}

/// Name of the memory that client and peer share.
pub const SHARED: &str = "bench";
/// Offset in it of the time at which the peer handled an interrupt.
pub const HANDLED: usize = 0;
