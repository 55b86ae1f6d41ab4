//! From the first instruction to `main`.

use crate::{Startup, buffer, heap, state};
use protocol::{boot::BootInfo, layout};

/// The first instruction of every program. `rsp` is the top of the stack and `rdi` the argument of whoever started it.
#[cfg(target_os = "none")]
#[unsafe(no_mangle)]
#[unsafe(naked)]
extern "C" fn _start() -> ! {
    unsafe extern "C" {
        /// Made by [`crate::entry!`].
        fn __denali_start(argument: u64) -> !;
    }
    // The call aligns the stack as the calling convention has it, and a zero `rbp` ends the chain of frames.
    core::arch::naked_asm!("xor ebp, ebp", "and rsp, -16", "call {start}", "ud2", start = sym __denali_start)
}

/// Sets up a server and enters its `main`. `heap_length` is the argument that `init` starts servers with: bytes of heap.
/// Called once, by the program's entry.
pub fn server(heap_length: u64, main: fn(Startup) -> !) -> ! {
    // SAFETY: `init` mapped the heap of that length for us alone; the entry calls this once.
    unsafe { heap::set(heap_length) };
    // SAFETY: `init` mapped this page read-only for the whole life of the program.
    let page = unsafe { page_at(layout::STARTUP) };
    match Startup::decode(page) {
        Ok(startup) => {
            state::set_server(&startup);
            set_buffer();
            main(startup)
        }
        Err(error) => panic!("startup page refused: {error}"),
    }
}

/// Sets up `init` and enters its `main`. Called once, by the program's entry.
pub fn init(_argument: u64, main: fn(&'static BootInfo) -> !) -> ! {
    // SAFETY: the kernel mapped the page read-only before it started us, and every bit pattern is a `BootInfo`.
    let boot = unsafe { &*core::ptr::with_exposed_provenance::<BootInfo>(layout::STARTUP as usize) };
    // SAFETY: the kernel mapped the heap of that length for us alone; the entry calls this once.
    unsafe { heap::set(boot.heap_length) };
    state::set_init(boot);
    set_buffer();
    main(boot)
}

fn set_buffer() {
    if let Err(error) = buffer::set() {
        panic!("no message buffer: {error}");
    }
}

/// The bytes of the page at `address`.
///
/// # Safety
/// It must be mapped and never change.
unsafe fn page_at(address: u64) -> &'static [u8] {
    // SAFETY: see above; any bytes will do.
    unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(address as usize), layout::PAGE as usize) }
}
