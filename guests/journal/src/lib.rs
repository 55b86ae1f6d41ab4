//! What the journal knows without a machine: its log, and what its clients say.
//!
//! * [`log`]: the records on the disk, written so that a power cut at any time loses nothing that was answered.
//! * [`line`](mod@line): a line of a client.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod line;
pub mod log;
