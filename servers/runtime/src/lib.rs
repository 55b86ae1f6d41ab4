//! What every server is built on.
//!
//! A server is a program with a `main` that takes its [`Startup`] page and never returns:
//!
//! ```ignore
//! #![cfg_attr(target_os = "none", no_std)]
//! #![cfg_attr(not(test), no_main)]
//! server_runtime::entry!(main);
//!
//! fn main(startup: Startup) -> ! {
//!     server_runtime::log!("{} started", startup.name);
//!     server_runtime::run::<Echo, _>(EchoHandler::default())
//! }
//! ```
//!
//! * [`entry!`]: where the program begins: heap, message buffer and panic message are ready when `main` runs.
//! * [`run`] and [`Handler`]: the loop of a server: one request at a time, decoded and typed.
//! * [`Client`]: calls of another server; opens the session, and opens it anew when the server was restarted.
//! * [`log!`]: a line for the operator.
//! * [`journal`]: what was said on the kernel's debug line, for the console's screen.
//! * [`memory`], [`mmio`], [`slots`], [`clock`]: what a driver needs of its machine, so that it needs no `unsafe`.
//! * [`budget`]: a share of the time for what VMs make a server do.
//! * [`places`]: what a server keeps of each VM. [`pool`]: where they are.
//!
//! The parts that decide something ([`message`], [`session`], [`mapping`], [`places`], [`pool`], [`ranges`], [`slots::SlotSet`]) call no
//! kernel and are tested on the host.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod budget;
mod buffer;
mod client;
pub mod clock;
mod heap;
pub mod journal;
mod log;
pub mod mapping;
pub mod memory;
pub mod message;
pub mod mmio;
#[cfg(target_os = "none")]
mod panic;
pub mod places;
pub mod pool;
pub mod ranges;
mod service;
pub mod session;
pub mod slots;
#[doc(hidden)]
pub mod start;
mod state;

pub use client::{Client, heap_in_use};
pub use hypercall;
#[doc(hidden)]
pub use log::log;
pub use protocol;
pub use protocol::manifest::Startup;
pub use service::{Answer, Caller, Handler, respond, run};
pub use session::CallError;
pub use state::name;

/// Makes `$main`, a `fn(Startup) -> !`, the program's entry.
///
/// Off the metal (`cargo check`, `cargo test`) the program builds too; run there, it says that it is none of that machine.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        $crate::__entry!($crate::start::server, $main, fn($crate::Startup) -> !);
    };
}

/// Makes `$main`, a `fn(&'static BootInfo) -> !`, the entry of `init`, which the kernel starts.
#[macro_export]
macro_rules! init_entry {
    ($main:path) => {
        $crate::__entry!($crate::start::init, $main, fn(&'static $crate::protocol::boot::BootInfo) -> !);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __entry {
    ($start:path, $main:path, $type:ty) => {
        #[cfg(target_os = "none")]
        #[allow(unsafe_code)]
        const _: () = {
            /// Called by `_start` of the runtime, with what is in `rdi` at entry.
            #[unsafe(no_mangle)]
            extern "C" fn __denali_start(argument: u64) -> ! {
                $start(argument, $main)
            }
        };
        #[cfg(not(any(target_os = "none", test)))]
        #[allow(unsafe_code)]
        const _: () = {
            const _: $type = $main;
            #[unsafe(export_name = "main")]
            extern "C" fn host_main() -> i32 {
                eprintln!("This is a program of the Denali isolation kernel; `cargo denali run` starts it there.");
                1
            }
        };
    };
}

/// Prints a line: on the console if the server has a channel to it, else on the kernel's debug line if it holds that,
/// else nowhere. Lines are cut at 1,024 bytes. It waits for the console, so not from within the console server.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => {
        $crate::log(::core::format_args!($($argument)*))
    };
}
