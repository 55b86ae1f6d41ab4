//! `ilwaco`, the library OS: what a guest of the isolation kernel is linked with.
//!
//! A guest is one program alone in its virtual machine. `ilwaco` makes of the virtual architecture
//! (`docs/virtual-architecture.md`) a platform of the embassy ecosystem, so that its crates just work:
//!
//! | facility | module |
//! |---|---|
//! | entry, ELF note, stack, panics | [`entry!`], [`exit`] |
//! | heap: everything of `alloc` | (global allocator over the free memory) |
//! | async tasks; the idle loop is the hypercall `idle` with the next timer's deadline | [`task`], `embassy-executor` |
//! | timers and time without a trap | [`clock`], `embassy-time` |
//! | console | [`print!`], [`println!`], [`console`] |
//! | TCP, UDP, ping, DNS, DHCP | [`net`], `embassy-net` |
//! | packets without a network stack | [`nic`] |
//! | disks | [`disk`] |
//! | random numbers | [`random`] |
//! | templates: `ready`, after which the VM may be a clone | [`ready`] |
//! | what the VM is: name, addresses, memory, arguments, figures | [`vm`] |
//! | virtual interrupts: polled, or delivered to a handler | [`lines`], [`interrupt`] |
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! ilwaco::entry!(main, memory = 256 * 1024, console);
//!
//! async fn main(_: ilwaco::Spawner) {
//!     ilwaco::println!("Hello from {}", ilwaco::vm::name());
//! }
//! ```
//!
//! The bookkeeping ([`packets`], [`sequence`], [`requests`], [`listeners`], [`blocks`], [`text`], [`wakes`]) is plain code that is tested on the host; everything else
//! exists on the machine's target only.
#![cfg_attr(not(test), no_std)]

pub mod blocks;
mod disk_window;
pub mod listeners;
pub mod packets;
pub mod requests;
pub mod sequence;
pub mod text;
pub mod wakes;
mod window;

pub use disk_window::DiskWindow;
pub use window::Window;

extern crate alloc;

#[cfg(target_os = "none")]
mod machine {
    pub mod clock;
    pub mod console;
    pub mod disk;
    pub mod doorbell;
    pub mod entry;
    pub mod executor;
    pub mod heap;
    pub mod interrupt;
    pub mod lines;
    #[cfg(feature = "net")]
    pub mod net;
    pub mod nic;
    pub mod panic;
    pub mod random;
    pub mod ready;
    pub mod registers;
    pub mod stack;
    pub mod start;
    pub mod timers;
    pub mod vm;
}

#[cfg(target_os = "none")]
pub use machine::{
    clock, console, disk,
    entry::{Image, StaticNote, start},
    executor::task,
    interrupt, lines, nic,
    panic::exit,
    random,
    ready::{ready, ready_for_good},
    registers,
    stack::Stack,
    vm,
};

#[cfg(all(target_os = "none", feature = "net"))]
pub use machine::net;

#[cfg(target_os = "none")]
pub use {embassy_executor::Spawner, hypercall, protocol};

#[cfg(all(target_os = "none", feature = "net"))]
pub use embassy_net;
#[cfg(target_os = "none")]
pub use embassy_time;
