//! The `cargo denali` command: builds, boots, tests and measures systems.
#![forbid(unsafe_code)]

pub mod accelerator;
pub mod bench;
pub mod boot_tests;
pub mod build;
pub mod bundle;
pub mod cli;
pub mod commands;
pub mod cpio;
pub mod elf;
pub mod host_tests;
pub mod image;
pub mod interrupt;
pub mod lines;
pub mod lint;
pub mod load;
pub mod machine;
pub mod process;
pub mod session;
pub mod system;
pub mod terminal;
pub mod toolchain;
pub mod ui;
pub mod workspace;
