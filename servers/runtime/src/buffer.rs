//! The page into which the kernel copies messages longer than 64 bytes.

use core::cell::UnsafeCell;
use protocol::abi::LONG_MESSAGE;

/// A page that only the kernel writes, during calls of this program, and only this module reads.
#[repr(C, align(4096))]
struct Buffer(UnsafeCell<[u8; LONG_MESSAGE]>);

// SAFETY: a server is one thread; the page is read in `copy` alone, which makes no call of the kernel meanwhile.
unsafe impl Sync for Buffer {}

static BUFFER: Buffer = Buffer(UnsafeCell::new([0; LONG_MESSAGE]));

/// Names the page to the kernel.
pub fn set() -> hypercall::Result<()> {
    // SAFETY: the page is writable and is used by nothing but this module.
    unsafe { hypercall::set_buffer(BUFFER.0.get().expose_provenance() as u64) }
}

/// Copies a message into `to`, wherever it came in; the bytes copied. A message is at most a page.
pub fn copy<'a>(message: &hypercall::Incoming, to: &'a mut [u8; LONG_MESSAGE]) -> &'a [u8] {
    let length = message.length.min(LONG_MESSAGE);
    let to = &mut to[..length];
    match message.short() {
        Some(short) => to.copy_from_slice(short),
        // SAFETY: the kernel writes the page only during a call; this is one thread and none is under way.
        None => to.copy_from_slice(unsafe { &(&*BUFFER.0.get())[..length] }),
    }
    to
}
