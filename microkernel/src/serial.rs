//! The debug line: the first serial port, polled. The console server drives the same port by interrupts; the kernel writes
//! only at boot, in a panic, and for holders of a debug capability.

use core::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};
use x86_64::instructions::port::Port;

const PORT: u16 = 0x3f8;
/// Polls for a free transmitter before a byte is given up: nobody hangs on a port that is not there.
const PATIENCE: u32 = 100_000;

/// Whether the port answered at boot.
static PRESENT: AtomicBool = AtomicBool::new(false);

fn out(register: u16, value: u8) {
    // SAFETY: registers of the first serial port, a device of the legacy PC that the kernel may use.
    unsafe { Port::new(PORT + register).write(value) }
}

fn read(register: u16) -> u8 {
    // SAFETY: as above; reading line status and scratch register has no effect that matters.
    unsafe { Port::new(PORT + register).read() }
}

/// Sets 115,200 bits a second, 8 bits, no parity.
pub fn initialise() {
    out(7, 0xa5);
    PRESENT.store(read(7) == 0xa5, Ordering::Relaxed);
    for (register, value) in [(1, 0x00), (3, 0x80), (0, 0x01), (1, 0x00), (3, 0x03), (2, 0xc7), (4, 0x0b)] {
        out(register, value);
    }
}

/// Writes bytes; a newline becomes carriage return and newline.
pub fn write(bytes: &[u8]) {
    if !PRESENT.load(Ordering::Relaxed) {
        return;
    }
    for byte in bytes {
        if *byte == b'\n' {
            put(b'\r');
        }
        put(*byte);
    }
}

fn put(byte: u8) {
    for _ in 0..PATIENCE {
        if read(5) & 0x20 != 0 {
            break;
        }
    }
    out(0, byte);
}

/// The debug line for `write!`.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write(text.as_bytes());
        Ok(())
    }
}

/// Prints a line on the debug line, `microkernel: ` before it.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {{
        use core::fmt::Write;
        let _ = writeln!($crate::serial::Serial, "microkernel: {}", format_args!($($argument)*));
    }};
}
