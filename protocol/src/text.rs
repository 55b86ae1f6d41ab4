//! The console of a VM: one page in the VM's own memory, a ring each way.
//!
//! The page is the console window. The VM writes bytes at `output[written % OUTPUT]`, advances
//! `written` and rings the doorbell; the console server advances `read`. A VM that writes faster than
//! the console takes loses the oldest bytes, and only its own. Input works the same the other way
//! and raises line [`crate::domain::line::CONSOLE`].

/// Bytes of the output ring.
pub const OUTPUT: usize = 2048;
/// Bytes of the input ring.
pub const INPUT: usize = 1024;

/// The console page.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
pub struct ConsolePage {
    /// VM: bytes written.
    pub written: u32,
    /// VM: bytes of input taken.
    pub input_read: u32,
    /// Console: bytes of output taken.
    pub read: u32,
    /// Console: bytes of input written.
    pub input_written: u32,
    /// Output ring.
    pub output: [u8; OUTPUT],
    /// Input ring.
    pub input: [u8; INPUT],
}

impl ConsolePage {
    /// Empty rings.
    pub const EMPTY: ConsolePage =
        ConsolePage { written: 0, input_read: 0, read: 0, input_written: 0, output: [0; OUTPUT], input: [0; INPUT] };
}

/// Offset of the indices that the console writes.
pub const CONSOLE_INDICES: usize = core::mem::offset_of!(ConsolePage, read);
/// Offset of the output ring.
pub const OUTPUT_RING: usize = core::mem::offset_of!(ConsolePage, output);
/// Offset of the input ring.
pub const INPUT_RING: usize = core::mem::offset_of!(ConsolePage, input);

const _: () = assert!(size_of::<ConsolePage>() == 4096);
