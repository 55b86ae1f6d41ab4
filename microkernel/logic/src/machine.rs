//! The seam between the kernel's logic and the hardware.

use crate::{Frame, block::ControlBlock, paging::Table};
use protocol::{
    abi::Error,
    domain::{EventKind, ProcessorStep},
};

/// The hardware, as far as the kernel's logic needs it: physical memory, the address space in use, the
/// clock, interrupt controllers, ports.
///
/// [`crate::Kernel`] calls these only for frames whose kind it has checked in the frame table.
pub trait Machine {
    /// The control block in a frame.
    fn block(&self, frame: Frame) -> &ControlBlock;
    /// The control block in a frame, to change.
    fn block_mut(&mut self, frame: Frame) -> &mut ControlBlock;
    /// Copies the first `count` message words in the registers of one domain to those of another.
    fn copy_words(&mut self, from: Frame, to: Frame, count: usize);
    /// The page table in a frame.
    fn table(&self, frame: Frame) -> &Table;
    /// The page table in a frame, to change.
    fn table_mut(&mut self, frame: Frame) -> &mut Table;
    /// Sets bits of an entry of a page table that other processors may be using.
    fn set_bits(&mut self, table: Frame, index: usize, bits: u64);
    /// Fills a frame with zero bytes.
    fn zero(&mut self, frame: Frame);
    /// Reads bytes within one frame of memory.
    fn read(&self, physical: u64, bytes: &mut [u8]);
    /// Writes bytes within one frame of memory.
    fn write(&mut self, physical: u64, bytes: &[u8]);
    /// Sets bits of a word of memory that a domain on another processor may be changing.
    fn or_word(&mut self, physical: u64, bits: u64);
    /// Copies bytes from one place within a frame to one within another (or the same, not overlapping); `None`: zero bytes.
    fn copy(&mut self, from: Option<u64>, to: u64, length: usize);

    /// Loads the processor with the address space and floating-point state of `next`, at the latest when it leaves the kernel, after saving
    /// that of `previous` (either may be [`crate::NO_FRAME`]).
    fn switch(&mut self, previous: Frame, next: Frame);
    /// Interrupts another processor, at the latest when this one leaves the kernel, so that it enters it.
    fn interrupt(&mut self, processor: usize);
    /// Makes another processor stop in the kernel, before it takes the lock, with everything of its domain saved and nothing loaded. A
    /// system call that it has not begun is undone: it will be executed again. Returns whether it stops there with an exception of its domain
    /// that would not come again.
    fn recall(&mut self, processor: usize) -> bool;
    /// Waits until no other processor uses the page tables of a domain that it has switched away from.
    fn wait_for_switches(&mut self);
    /// Forgets the translation of one page of the loaded address space, which is that below `root`.
    fn flush_page(&mut self, root: Frame, address: u64);

    /// Nanoseconds since kernel entry.
    fn now(&self) -> u64;
    /// Time stamp counter, for accounting.
    fn ticks(&self) -> u64;
    /// Nanoseconds for a difference of [`Machine::ticks`].
    fn ticks_to_nanoseconds(&self, ticks: u64) -> u64;
    /// The components of floating-point state that the processor switches, as bits of XCR0.
    fn fpu_components(&self) -> u64;
    /// Asks for a timer interrupt at `deadline`, in place of any asked for before.
    fn arm_timer(&mut self, deadline: u64);

    /// Reads a port, `width` 1, 2 or 4 bytes.
    fn port_read(&mut self, port: u16, width: u8) -> u32;
    /// Writes a port.
    fn port_write(&mut self, port: u16, width: u8, value: u32);
    /// Writes to the debug line.
    fn debug_write(&mut self, bytes: &[u8]);

    /// Says that a server has trapped or ended and nobody handles it; whether it never had a handler, as only `init` has none.
    fn report_unhandled(&mut self, init: bool, kind: EventKind, code: u32, address: u64, instruction: u64);

    /// Adds an I/O APIC; `false` if there is no room or no such device.
    fn io_apic_add(&mut self, address: u64, first_interrupt: u32) -> bool;
    /// Sends a global interrupt to `vector`, masked or not; `false` if no I/O APIC has it.
    fn line_route(&mut self, number: u32, vector: u8, level: bool, low: bool, masked: bool) -> bool;
    /// The address and data with which a device sends `vector` as a message.
    fn message_for(&self, vector: u8) -> (u64, u32);
    /// Does a step of starting a processor, which is to be `number`. `apic`: number of its local APIC.
    fn start_processor(&mut self, number: usize, apic: u32, step: ProcessorStep) -> Result<(), Error>;
    /// Ends the hardware interrupt being handled.
    fn end_of_interrupt(&mut self);
}
