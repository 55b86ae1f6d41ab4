//! What a panic says, and the end of the program.

use core::panic::PanicInfo;

/// Exit code after a panic.
const PANIC: u32 = 101;

/// Prints `panicked at FILE:LINE: message` as a log line, which the console or the debug line precedes with the server's
/// name, and ends the program; `init` does what its restart policy says.
#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    let message = info.message();
    match info.location() {
        Some(location) => crate::log!("panicked at {}:{}: {message}", location.file(), location.line()),
        None => crate::log!("panicked: {message}"),
    }
    hypercall::exit(PANIC)
}
