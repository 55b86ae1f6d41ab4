//! The console server, off the metal: everything but the calls of the kernel.
//!
//! * [`uart`]: a 16550 serial port behind a trait for its registers.
//! * [`output`]: the bounded queue of bytes that wait for the serial line, and the bottom line with the prompt.
//! * [`editor`]: the line that the operator is typing.
//! * [`text`]: what untrusted text is turned into before it is printed.
//! * [`limit`]: how much a VM may print.
//! * [`vms`]: the VMs with a console, and the lines that they are in the middle of.
//! * [`console`]: all of it together.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod console;
pub mod editor;
pub mod limit;
pub mod output;
pub mod text;
pub mod uart;
pub mod vms;
