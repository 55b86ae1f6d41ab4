//! The guest's stack: a static. Below its end lie other statics, so an overflow is not a fault; a few words at the end that
//! nobody writes tell of it.

use super::entry;
use core::cell::UnsafeCell;

/// Words at the low end of the stack that stay as they are. All zero: the pages stay untouched until the stack reaches them.
const GUARD: usize = 8;

/// A stack of `BYTES` bytes, in a static.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Stack<const BYTES: usize>(UnsafeCell<[u8; BYTES]>);

// SAFETY: only the processor uses it, as the stack of the one flow of control.
unsafe impl<const BYTES: usize> Sync for Stack<BYTES> {}

impl<const BYTES: usize> Default for Stack<BYTES> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const BYTES: usize> Stack<BYTES> {
    /// An empty stack.
    pub const fn new() -> Stack<BYTES> {
        const { assert!(BYTES >= 8192 && BYTES.is_multiple_of(4096), "a stack has a multiple of 4096 bytes, at least 8192") };
        Stack(UnsafeCell::new([0; BYTES]))
    }
}

/// Whether the end of the stack is untouched. The page there is touched by looking, so the idle loop looks seldom.
pub fn is_sound() -> bool {
    let low = entry::image().stack.cast::<u64>();
    // SAFETY: the stack is a static of at least this size; nothing but an overflow writes these words, and volatile reads of
    // plain integers are right even then.
    (0..GUARD).all(|word| unsafe { low.add(word).read_volatile() } == 0)
}
