//! Virtual interrupts: raising, merging into the virtual register page, delivery, waiting.
//!
//! The kernel keeps its own pending word. What the domain sees, the virtual register page of a VM or the
//! result of `reply_wait`, is written when the domain runs or waits; all that is pending goes together.

use crate::{
    Frame, Kernel, Machine,
    block::{FLAG_FULL_RESTORE, State},
    kernel::{Outcome, Stop},
    timers::{CLOCK, WAIT},
};
use core::mem::offset_of;
use protocol::{
    abi::{Error, NEVER, Reply, Target, Wake},
    capability::Rights,
    layout::SPACE_END,
    registers::RegisterPage,
};

/// Flags that a domain may have when it goes on: arithmetic flags, direction, alignment check, trap, and the identification flag.
pub(crate) const USER_FLAGS: u64 = 0x24_0dd5 | 1 << 18;
/// Flags that it always has: bit 1 is fixed, interrupts are on.
pub(crate) const FIXED_FLAGS: u64 = 0x202;

/// Bytes below the stack pointer that a function may use (System V ABI, 3.2.2).
const RED_ZONE: u64 = 128;

/// The kernel's part of a virtual register page, by physical address.
#[derive(Clone, Copy)]
struct Page(u64);

macro_rules! register {
    ($get:ident, $set:ident, $field:ident) => {
        #[allow(dead_code)]
        fn $get<M: Machine>(self, machine: &M) -> u64 {
            let mut bytes = [0; 8];
            machine.read(self.0 + offset_of!(RegisterPage, $field) as u64, &mut bytes);
            u64::from_le_bytes(bytes)
        }
        #[allow(dead_code)]
        fn $set<M: Machine>(self, machine: &mut M, value: u64) {
            machine.write(self.0 + offset_of!(RegisterPage, $field) as u64, &value.to_le_bytes());
        }
    };
}

impl Page {
    register!(enabled, set_enabled, enabled);
    register!(pending, set_pending, pending);
    register!(mask, set_mask, mask);
    register!(handler, set_handler, handler);
    register!(handler_stack, set_handler_stack, handler_stack);
    register!(saved_instruction, set_saved_instruction, saved_instruction);
    register!(saved_stack, set_saved_stack, saved_stack);
    register!(saved_flags, set_saved_flags, saved_flags);
    register!(delivered, set_delivered, delivered);
    register!(saved_rax, set_saved_rax, saved_rax);
    register!(saved_rcx, set_saved_rcx, saved_rcx);
    register!(saved_r11, set_saved_r11, saved_r11);
}

impl<M: Machine> Kernel<M> {
    /// The virtual register page of a VM, if it is in memory and writable.
    #[inline]
    fn register_page(&self, vm: Frame) -> Option<Page> {
        let block = self.machine.block(vm);
        if !block.is_vm() {
            return None;
        }
        self.translate(block.root, block.register_page, true).ok().map(Page)
    }

    /// The same, about to be written.
    #[inline]
    fn register_page_to_write(&mut self, vm: Frame) -> Option<Page> {
        let block = self.machine.block(vm);
        if !block.is_vm() {
            return None;
        }
        self.reach(block.root, block.register_page, true).ok().map(Page)
    }

    /// Raises a line of a domain, and wakes the domain if it waits for that.
    pub(crate) fn raise(&mut self, frame: Frame, line: u8) {
        // A capability may name no line.
        let Some(bit) = 1u64.checked_shl(u32::from(line)) else { return };
        let block = self.machine.block_mut(frame);
        let new = block.pending & bit == 0;
        block.pending |= bit;
        let is_vm = block.is_vm();
        match block.state() {
            State::Runnable if new && is_vm && self.runs_elsewhere(frame) => self.tell_runner(frame),
            State::Receiving if !is_vm => {
                self.take_interrupts(frame);
                self.wake(frame);
            }
            State::Idle if self.ends_idle(frame) => {
                self.finish_idle(frame);
                self.wake(frame);
            }
            _ => {}
        }
    }

    /// Tells a VM that runs on another processor what is pending. For one without a handler it is written where it looks; one with a handler
    /// is interrupted, and told when it goes on.
    #[inline(never)]
    fn tell_runner(&mut self, vm: Frame) {
        match self.register_page_to_write(vm) {
            Some(page) if page.handler(&self.machine) == 0 => {
                let pending = core::mem::take(&mut self.machine.block_mut(vm).pending);
                self.machine.or_word(page.0 + offset_of!(RegisterPage, pending) as u64, pending);
                // It may have installed one just now and looked at `pending` before. It looks behind a barrier, and `or_word` is one: either it
                // has seen the lines, or its handler is seen here.
                if page.handler(&self.machine) != 0 {
                    self.machine.block_mut(vm).pending |= pending;
                    self.kick_runner(vm);
                }
            }
            _ => self.kick_runner(vm),
        }
    }

    /// Whether a pending line ends `idle`: without its page in memory a VM cannot say that it has masked it.
    #[inline]
    pub(crate) fn ends_idle(&self, frame: Frame) -> bool {
        let pending = self.machine.block(frame).pending;
        self.register_page(frame).map_or(pending, |page| pending & page.mask(&self.machine)) != 0
    }

    /// Ends the wait of a domain.
    fn wake(&mut self, frame: Frame) {
        self.cancel_timer(frame, WAIT);
        self.make_runnable(frame);
    }

    /// Hands the pending lines to a domain in `reply_wait`.
    pub(crate) fn take_interrupts(&mut self, me: Frame) {
        let block = self.machine.block_mut(me);
        block.registers.rax = Reply::message(0, 0, Wake::Interrupts).0;
        block.registers.rdi = 0;
        block.registers.r15 = core::mem::take(&mut block.pending);
    }

    /// Ends `idle`: a VM finds what is pending in its register page, others in `rdi`.
    pub(crate) fn finish_idle(&mut self, me: Frame) {
        let block = self.machine.block_mut(me);
        block.registers.rax = Reply::OK.0;
        if !block.is_vm() {
            block.registers.rdi = core::mem::take(&mut block.pending);
        }
    }

    /// The deadline of a wait has come.
    pub(crate) fn wait_over(&mut self, frame: Frame) {
        match self.machine.block(frame).state() {
            State::Receiving => {
                let registers = &mut self.machine.block_mut(frame).registers;
                registers.rax = Reply::message(0, 0, Wake::Deadline).0;
                (registers.rdi, registers.r15) = (0, 0);
                self.make_runnable(frame);
            }
            State::Idle => {
                self.finish_idle(frame);
                self.make_runnable(frame);
            }
            _ if self.is_lost(frame) => self.tell_clients_of_lost(frame),
            _ => {}
        }
    }

    /// Sets the deadline of a wait that begins.
    pub(crate) fn wait_until(&mut self, me: Frame, deadline: u64) {
        self.set_timer_node(me, WAIT, deadline);
    }

    /// Brings what is pending into the register page of a VM about to run, and enters its handler if it wants that.
    #[inline(never)]
    pub(crate) fn deliver(&mut self, vm: Frame) {
        // Without its page the VM cannot be told now; the kernel's own word keeps what is pending.
        let Some(page) = self.register_page_to_write(vm) else { return };
        let pending = page.pending(&self.machine) | core::mem::take(&mut self.machine.block_mut(vm).pending);
        page.set_pending(&mut self.machine, pending);
        self.enter_handler(vm, page, pending);
    }

    /// Enters the interrupt handler of a VM if an enabled line is pending.
    fn enter_handler(&mut self, vm: Frame, page: Page, pending: u64) {
        let handler = page.handler(&self.machine);
        let wanted = page.enabled(&self.machine) != 0 && pending & page.mask(&self.machine) != 0;
        if !wanted || handler == 0 || handler >= SPACE_END {
            return;
        }
        let (registers, stack) = (self.machine.block(vm).registers, page.handler_stack(&self.machine));
        page.set_saved_instruction(&mut self.machine, registers.rip);
        page.set_saved_stack(&mut self.machine, registers.rsp);
        page.set_saved_flags(&mut self.machine, registers.rflags);
        page.set_saved_rax(&mut self.machine, registers.rax);
        page.set_saved_rcx(&mut self.machine, registers.rcx);
        page.set_saved_r11(&mut self.machine, registers.r11);
        page.set_enabled(&mut self.machine, 0);
        let delivered = page.delivered(&self.machine).wrapping_add(1);
        page.set_delivered(&mut self.machine, delivered);
        let block = self.machine.block_mut(vm);
        block.registers.rip = handler;
        block.registers.rsp = if stack == 0 { registers.rsp.wrapping_sub(RED_ZONE) & !15 } else { stack };
        block.registers.rflags = FIXED_FLAGS;
        block.flags |= FLAG_FULL_RESTORE;
    }

    /// `Number::InterruptReturn`. Registers that are not saved in the page keep the values that the handler left.
    pub(crate) fn interrupt_return(&mut self, me: Frame) -> Outcome {
        let block = self.machine.block(me);
        if !block.is_vm() {
            return Err(Error::BadNumber.into());
        }
        let page = Page(self.reach(block.root, block.register_page, true)?);
        let instruction = page.saved_instruction(&self.machine);
        if instruction >= SPACE_END {
            return Err(Error::BadAddress.into());
        }
        let (stack, flags) = (page.saved_stack(&self.machine), page.saved_flags(&self.machine));
        let lost = (page.saved_rax(&self.machine), page.saved_rcx(&self.machine), page.saved_r11(&self.machine));
        let block = self.machine.block_mut(me);
        (block.registers.rax, block.registers.rcx, block.registers.r11) = lost;
        block.registers.rip = instruction;
        block.registers.rsp = stack;
        block.registers.rflags = flags & USER_FLAGS | FIXED_FLAGS;
        block.flags |= FLAG_FULL_RESTORE;
        page.set_enabled(&mut self.machine, 1);
        let pending = page.pending(&self.machine);
        self.enter_handler(me, page, pending);
        Err(Stop::Done)
    }

    /// `Number::Idle`.
    pub(crate) fn idle(&mut self, me: Frame) -> Outcome {
        let registers = &self.machine.block(me).registers;
        let (deadline, doorbells) = (registers.rdi, registers.words[0]);
        if doorbells != 0 {
            self.ring(me, doorbells)?;
        }
        if let Some(page) = self.register_page_to_write(me) {
            let pending = page.pending(&self.machine) | core::mem::take(&mut self.machine.block_mut(me).pending);
            page.set_pending(&mut self.machine, pending);
            if pending & page.mask(&self.machine) != 0 {
                return Ok(());
            }
        } else if self.machine.block(me).pending != 0 {
            self.finish_idle(me);
            return Err(Stop::Done);
        }
        self.machine.block_mut(me).registers.rax = Reply::OK.0;
        if deadline <= self.machine.now() {
            // Nothing to wait for: let others of the band go first.
            self.block_current(me, State::Runnable);
            self.enqueue(me, false);
            return Err(Stop::Done);
        }
        self.note_idle(me);
        self.block_current(me, State::Idle);
        if deadline != NEVER {
            self.wait_until(me, deadline);
        }
        Err(Stop::Done)
    }

    /// `Number::SetTimer`.
    pub(crate) fn set_timer(&mut self, me: Frame) -> Outcome {
        let deadline = self.machine.block(me).registers.rdi;
        if deadline == NEVER {
            self.cancel_timer(me, CLOCK);
        } else {
            self.set_timer_node(me, CLOCK, deadline);
        }
        Ok(())
    }

    /// `Number::Raise`.
    pub(crate) fn raise_call(&mut self, me: Frame) -> Outcome {
        let target = Target(self.machine.block(me).registers.rdi);
        let (frame, capability) = self.named_domain(me, target, Rights::RAISE)?;
        self.raise(frame, capability.line);
        Ok(())
    }
}
