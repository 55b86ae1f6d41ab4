//! How a guest ends.

use super::{console, stack};
use core::{
    panic::PanicInfo,
    sync::atomic::{AtomicBool, Ordering},
};

/// Code with which a guest that panicked ends.
pub const PANIC_CODE: u32 = 101;

/// Ends the VM after its console has taken what was printed.
pub fn exit(code: u32) -> ! {
    console::flush();
    hypercall::exit(code)
}

static PANICKING: AtomicBool = AtomicBool::new(false);

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    // A panic while printing a panic: just end.
    if PANICKING.swap(true, Ordering::Relaxed) {
        hypercall::exit(PANIC_CODE)
    }
    match info.location() {
        Some(location) => {
            crate::println!("panic at {}:{}: {}", location.file(), location.line(), info.message());
        }
        None => crate::println!("panic: {}", info.message()),
    }
    if !stack::is_sound() {
        crate::println!("the stack had overflown before: give the guest a larger one (entry!(main, stack = ...))");
    }
    exit(PANIC_CODE)
}
