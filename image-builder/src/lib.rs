//! The `cargo denali` command: builds, boots, tests and measures systems.
#![forbid(unsafe_code)]

pub mod accelerator;
pub mod build;
pub mod bundle;
pub mod cpio;
pub mod elf;
pub mod interrupt;
pub mod lines;
pub mod machine;
pub mod process;
pub mod system;
pub mod toolchain;
pub mod ui;
pub mod workspace;
