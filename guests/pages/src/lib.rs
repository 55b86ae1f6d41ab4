//! Memory that knows what must be in it: what the guest `pages` does without a machine.
//!
//! Each page begins with [`SECRET`], which a test can look for where it must not be, and goes on with words that follow from the VM's
//! number, a seed, the page and how often it was written ([`pattern`]). So whoever knows those knows each byte, the host included, and a
//! page of another VM, of another place or of an earlier time is told from the right one.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod arguments;
pub mod command;
pub mod memory;
pub mod pattern;

/// TCP port on which the guest answers.
pub const PORT: u16 = 7;

/// What every page begins with: 64 bytes that are found nowhere else.
pub const SECRET: &[u8; 64] = b"secret of a guest: kept in its memory, found on no disk at all.\n";
