//! The virtual register page: the one module that touches it.
//!
//! The kernel's part consists of words that VM and kernel write at any time, hence atomics. The rest was
//! written before the VM ran (and again when the VM becomes a clone), hence volatile reads.

use alloc::{string::String, vec};
use core::{
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering},
};
use protocol::{layout, registers::RegisterPage};

/// The registers that VM and kernel share ([`RegisterPage`] says what each means).
#[repr(C)]
#[derive(Debug)]
pub struct Live {
    /// Not 0 if virtual interrupts may be delivered to the handler.
    pub enabled: AtomicU64,
    /// Lines that are pending.
    pub pending: AtomicU64,
    /// Lines that wake the VM and are delivered.
    pub mask: AtomicU64,
    /// Address of the interrupt handler; 0: the VM polls.
    pub handler: AtomicU64,
    /// Stack pointer for the handler; 0: the interrupted stack.
    pub handler_stack: AtomicU64,
    /// Where the VM was interrupted.
    pub saved_instruction: AtomicU64,
    /// Its stack pointer then.
    pub saved_stack: AtomicU64,
    /// Its flags then.
    pub saved_flags: AtomicU64,
    /// Virtual interrupts delivered so far.
    pub delivered: AtomicU64,
}

const _: () = {
    assert!(offset_of!(Live, enabled) == offset_of!(RegisterPage, enabled));
    assert!(offset_of!(Live, pending) == offset_of!(RegisterPage, pending));
    assert!(offset_of!(Live, mask) == offset_of!(RegisterPage, mask));
    assert!(offset_of!(Live, handler) == offset_of!(RegisterPage, handler));
    assert!(offset_of!(Live, handler_stack) == offset_of!(RegisterPage, handler_stack));
    assert!(offset_of!(Live, saved_instruction) == offset_of!(RegisterPage, saved_instruction));
    assert!(offset_of!(Live, saved_stack) == offset_of!(RegisterPage, saved_stack));
    assert!(offset_of!(Live, saved_flags) == offset_of!(RegisterPage, saved_flags));
    assert!(offset_of!(Live, delivered) == offset_of!(RegisterPage, delivered));
};

fn page() -> *const RegisterPage {
    core::ptr::with_exposed_provenance(layout::SPACE_BASE as usize)
}

/// The registers shared with the kernel.
#[inline(always)]
pub fn live() -> &'static Live {
    // SAFETY: every VM has the register page at this address for its whole life; these words of it are accessed as
    // atomics only.
    unsafe { &*page().cast::<Live>() }
}

/// Reads a register that the loader wrote: `loaded!(memory)`.
macro_rules! loaded {
    ($field:ident) => {{
        $crate::machine::registers::read(|page| {
            // SAFETY: the field lies in the register page, which is there for the whole life of the VM; any bytes are
            // a value of its type. Volatile: the loader writes it again when the VM becomes a clone.
            unsafe { (&raw const (*page).$field).read_volatile() }
        })
    }};
}

/// For [`loaded!`].
#[inline(always)]
pub(super) fn read<T>(read: impl FnOnce(*const RegisterPage) -> T) -> T {
    read(page())
}

pub(super) use loaded;

/// The text at `offset`, of `length` bytes but at most `limit`.
pub(super) fn text(offset: usize, length: u16, limit: usize) -> String {
    let mut bytes = vec![0; usize::from(length).min(limit)];
    // SAFETY: the two texts of the page lie inside it with their limits, and are written by nobody while the VM runs but the VM.
    unsafe { core::ptr::copy_nonoverlapping(page().cast::<u8>().add(offset), bytes.as_mut_ptr(), bytes.len()) };
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Takes the random seed: it is 32 zero bytes from then on.
pub(super) fn take_seed() -> [u8; 32] {
    let seed = loaded!(seed);
    let field = layout::SPACE_BASE as usize + offset_of!(RegisterPage, seed);
    // SAFETY: the field lies in the register page, which the VM may write, and nothing holds a reference to it.
    unsafe { core::ptr::with_exposed_provenance_mut::<[u8; 32]>(field).write_volatile([0; 32]) };
    seed
}

/// Puts a seed where [`take_seed`] finds it.
pub(super) fn put_seed(seed: &[u8; 32]) {
    let field = layout::SPACE_BASE as usize + offset_of!(RegisterPage, seed);
    // SAFETY: as in `take_seed`.
    unsafe { core::ptr::with_exposed_provenance_mut::<[u8; 32]>(field).write_volatile(*seed) };
}

/// Takes the pending lines among `lines`: they are no longer pending.
#[inline]
pub(super) fn take_pending(lines: u64) -> u64 {
    // Acquire: what the device wrote before it raised the line is visible afterwards.
    live().pending.fetch_and(!lines, Ordering::AcqRel) & lines
}
