//! The hardware behind the kernel's logic.

use crate::{
    apic::{self, IoApics},
    bring_up::BringUp,
    clock::{self, Clock},
    cpu, physical, processor, serial,
};
use core::sync::atomic::{AtomicU64, Ordering};
use microkernel_logic::{Frame, Machine, block::ControlBlock, paging::Table};
use protocol::{
    abi::Error,
    domain::{EventKind, ProcessorStep},
};
use x86_64::{
    VirtAddr,
    instructions::{port::Port, tlb},
};

/// This machine.
pub struct Metal {
    /// How its clocks run.
    pub clock: Clock,
    io_apics: IoApics,
    bring_up: BringUp,
}

impl Metal {
    /// The machine as the boot code has set it up.
    pub fn new(clock: Clock, bring_up: BringUp) -> Metal {
        Metal { clock, io_apics: IoApics::default(), bring_up }
    }
}

// The references that the following functions return are bound to `self`, of which there is one, inside the kernel's lock;
// so there is at most one mutable reference to a block or table at a time. The logic names only frames that the frame
// table holds as what they are asked for, and both types are plain integers, valid whatever the frame contains.
impl Machine for Metal {
    #[inline]
    fn block(&self, frame: Frame) -> &ControlBlock {
        // SAFETY: see above.
        unsafe { &*physical::block(frame) }
    }
    #[inline]
    fn block_mut(&mut self, frame: Frame) -> &mut ControlBlock {
        // SAFETY: see above.
        unsafe { &mut *physical::block(frame) }
    }
    #[inline(always)]
    fn copy_words(&mut self, from: Frame, to: Frame, count: usize) {
        // SAFETY: see above; two different blocks, and no reference to either is alive. Word by word, so that they pass
        // through one register instead of the stack.
        unsafe {
            let from = (&raw const (*physical::block(from)).registers.words).cast::<u64>();
            let to = (&raw mut (*physical::block(to)).registers.words).cast::<u64>();
            for index in 0..count.min(protocol::abi::MESSAGE_WORDS) {
                to.add(index).write_volatile(from.add(index).read_volatile());
            }
        }
    }
    fn set_bits(&mut self, table: Frame, index: usize, bits: u64) {
        // SAFETY: see above; the processor that uses the table sets bits of it, too, so it must be one operation.
        unsafe { AtomicU64::from_ptr((&raw mut (*physical::table(table))[index].0).cast()) }
            .fetch_or(bits, Ordering::AcqRel);
    }
    #[inline]
    fn table(&self, frame: Frame) -> &Table {
        // SAFETY: see above.
        unsafe { &*physical::table(frame) }
    }
    #[inline]
    fn table_mut(&mut self, frame: Frame) -> &mut Table {
        // SAFETY: see above.
        unsafe { &mut *physical::table(frame) }
    }
    fn zero(&mut self, frame: Frame) {
        // SAFETY: a frame that was free and is becoming a table or block.
        unsafe { physical::copy(None, u64::from(frame) << 12, 4096) }
    }
    #[inline]
    fn read(&self, physical: u64, bytes: &mut [u8]) {
        // SAFETY: the logic translated the address: it is in a frame mapped by a domain, and the range ends within it.
        unsafe { physical::read(physical, bytes) }
    }
    #[inline]
    fn write(&mut self, physical: u64, bytes: &[u8]) {
        // SAFETY: as above.
        unsafe { physical::write(physical, bytes) }
    }
    fn or_word(&mut self, physical: u64, bits: u64) {
        // SAFETY: as above; aligned to 8 bytes, for it is a word of a virtual register page.
        unsafe { AtomicU64::from_ptr(physical::address(physical) as *mut u64) }.fetch_or(bits, Ordering::AcqRel);
    }
    fn copy(&mut self, from: Option<u64>, to: u64, length: usize) {
        // SAFETY: as above; two ranges of one frame may overlap when a domain copies onto itself, which then gets
        // some mixture of its own bytes.
        unsafe { physical::copy(from, to, length) }
    }

    #[inline(always)]
    fn switch(&mut self, previous: Frame, next: Frame) {
        processor::switch(previous, next);
    }
    fn interrupt(&mut self, processor: usize) {
        processor::interrupt_later(processor);
    }
    fn recall(&mut self, processor: usize) -> bool {
        processor::recall(processor)
    }
    fn wait_for_switches(&mut self) {
        processor::wait_for_switches();
    }
    fn start_processor(&mut self, number: usize, apic: u32, step: ProcessorStep) -> Result<(), Error> {
        self.bring_up.step(number, apic, step)
    }
    fn flush_page(&mut self, _root: Frame, address: u64) {
        tlb::flush(VirtAddr::new_truncate(address));
    }

    #[inline]
    fn now(&self) -> u64 {
        self.clock.now()
    }
    #[inline]
    fn ticks(&self) -> u64 {
        clock::ticks()
    }
    fn ticks_to_nanoseconds(&self, ticks: u64) -> u64 {
        self.clock.nanoseconds(ticks)
    }
    fn fpu_components(&self) -> u64 {
        u64::from(cpu::states())
    }
    fn arm_timer(&mut self, deadline: u64) {
        self.clock.arm(deadline);
    }

    fn port_read(&mut self, port: u16, width: u8) -> u32 {
        // SAFETY: the logic has checked that the domain holds this port; its device can do what its driver wants.
        unsafe {
            match width {
                1 => u32::from(Port::<u8>::new(port).read()),
                2 => u32::from(Port::<u16>::new(port).read()),
                _ => Port::<u32>::new(port).read(),
            }
        }
    }
    fn port_write(&mut self, port: u16, width: u8, value: u32) {
        // SAFETY: as above.
        unsafe {
            match width {
                1 => Port::<u8>::new(port).write(value as u8),
                2 => Port::<u16>::new(port).write(value as u16),
                _ => Port::<u32>::new(port).write(value),
            }
        }
    }
    fn debug_write(&mut self, bytes: &[u8]) {
        serial::write(bytes);
    }

    fn report_unhandled(&mut self, init: bool, kind: EventKind, code: u32, address: u64, instruction: u64) {
        let (who, goes_on) = if init {
            ("init", "servers and VMs go on without it")
        } else {
            ("a server", "there is no init to start it again")
        };
        crate::say!(
            "{who} has ended, {goes_on}: {kind:?}, code {code:#x}, address {address:#x}, instruction {instruction:#x}"
        );
    }

    fn io_apic_add(&mut self, address: u64, first_interrupt: u32) -> bool {
        self.io_apics.add(address, first_interrupt)
    }
    fn line_route(&mut self, number: u32, vector: u8, level: bool, low: bool, masked: bool) -> bool {
        self.io_apics.route(number, first_apic(), vector, level, low, masked)
    }
    fn message_for(&self, vector: u8) -> (u64, u32) {
        // Intel SDM vol. 3, 11.11: fixed delivery, edge, to the first processor.
        (apic::LOCAL | u64::from(first_apic()) << 12, u32::from(vector))
    }
    fn end_of_interrupt(&mut self) {
        apic::end_of_interrupt();
    }
}

/// Number of the first processor's local APIC, to which all devices' interrupts go. That of a PC's first processor fits.
fn first_apic() -> u8 {
    processor::apic_of(0).unwrap_or(0) as u8
}
