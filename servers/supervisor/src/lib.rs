//! The operator's prompt on the console.
//!
//! * [`command`]: what a typed line means.
//! * [`table`]: lists as columns; [`show`]: what the answers of the servers look like.
//! * [`output`]: text in pieces that the console takes.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod command;
pub mod output;
pub mod show;
pub mod table;
