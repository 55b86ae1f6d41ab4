//! The `cargo denali` command: builds, boots, tests and measures systems.
#![forbid(unsafe_code)]

pub mod accelerator;
pub mod cpio;
pub mod interrupt;
pub mod lines;
pub mod system;
