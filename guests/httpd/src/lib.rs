//! What the web server knows without a machine: requests, answers, files, pages.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod answer;
pub mod files;
pub mod page;
pub mod request;
pub mod site;
