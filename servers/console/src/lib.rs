//! The console server, off the metal: everything but the calls of the kernel.
//!
//! * [`uart`]: a 16550 serial port behind a trait for its registers.
//! * [`keyboard`]: a PS/2 keyboard behind a trait for the ports of its controller.
//! * [`output`]: the bounded queue of bytes that wait for a terminal; [`head`]: that of the serial line or of the screen, with the bottom line.
//! * [`editor`]: the line that the operator is typing.
//! * [`text`]: what untrusted text is turned into before it is printed.
//! * [`limit`]: how much a VM may print.
//! * [`vms`]: the VMs with a console; [`kinds`]: what they are called; [`talk`]: those that print.
//! * [`console`]: all of it together.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod console;
pub mod editor;
pub mod head;
pub mod keyboard;
pub mod kinds;
pub mod limit;
pub mod output;
pub mod talk;
pub mod text;
pub mod uart;
pub mod vms;
