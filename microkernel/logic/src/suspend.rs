//! Domains that leave memory: held, saved, and restored elsewhere.
//!
//! A pager takes a VM aside (`Hold`), reads its state (`DomainSave`), destroys it, and has all its frames back. Later it makes a
//! new domain, gives it the state (`DomainRestore`) and lets it go on (`Release`). Nothing is lost in between: who wants to raise a line
//! of a domain that is gone is told so, and the deadlines are in the saved state.
//!
//! `Hold` and `Release` alone also serve a pager that was restarted: the traps that it had taken and not yet answered come again.

use crate::{
    Frame, Kernel, Machine,
    block::{ControlBlock, FLAG_FPU, FLAG_FULL_RESTORE, FLAG_REWARD, Registers, State, Trap},
    interrupts::{FIXED_FLAGS, USER_FLAGS},
    kernel::Outcome,
    paging::UserRange,
    timers::{CLOCK, WAIT},
};
use protocol::{
    abi::{Error, NEVER, Target},
    capability::Rights,
    domain::{EventKind, SavedDomain, TRAP_QUEUE, Window},
    layout::SPACE_END,
};

/// Flags that are saved.
const SAVED_FLAGS: u8 = FLAG_FPU | FLAG_REWARD;

impl<M: Machine> Kernel<M> {
    /// `Control::Hold`.
    pub(crate) fn hold(&mut self, frame: Frame) -> Result<(), Error> {
        let block = self.machine.block(frame);
        let state = block.state();
        match state {
            State::Runnable | State::Idle | State::Trapped => {}
            State::Stopped | State::Resetting | State::Dying => return Err(Error::BadArgument),
            _ => return Err(Error::Busy),
        }
        // A doorbell that was not taken would be lost with the control block; a trap that was not taken comes first.
        if block.queued != 0 {
            return Err(Error::Busy);
        }
        let deadline = block.timers[WAIT].deadline;
        // So does one that its processor is only bringing.
        if self.recall(frame).is_some_and(|processor| self.processor(processor).brings_trap) {
            return Err(Error::Busy);
        }
        self.extract(frame);
        let block = self.machine.block_mut(frame);
        (block.held_from, block.held_deadline) = (state as u8, if deadline == 0 { NEVER } else { deadline });
        block.set_state(State::Held);
        Ok(())
    }

    /// `Control::Release`.
    pub(crate) fn release(&mut self, frame: Frame) -> Result<(), Error> {
        let block = self.machine.block_mut(frame);
        let (state, from, deadline) = (block.state(), block.held_from, block.held_deadline);
        let ended = state == State::Stopped && block.trap.kind == EventKind::Exit as u32;
        if ended {
            return self.post(frame, TRAP_QUEUE);
        }
        if state != State::Held {
            return Err(Error::BadArgument);
        }
        if from == State::Idle as u8 {
            block.set_state(State::Idle);
            if self.ends_idle(frame) {
                self.finish_idle(frame);
                self.make_runnable(frame);
            } else if deadline != NEVER {
                self.wait_until(frame, deadline);
            }
        } else if from == State::Trapped as u8 {
            block.set_state(State::Trapped);
            self.post(frame, TRAP_QUEUE)?;
        } else {
            self.make_runnable(frame);
        }
        Ok(())
    }

    /// `Number::DomainSave`.
    pub(crate) fn domain_save(&mut self, me: Frame) -> Outcome {
        let block = self.machine.block(me);
        let (target, address, root) = (Target(block.registers.rdi), block.registers.words[0], block.root);
        let frame = self.named_domain(me, target, Rights::CONTROL)?.0;
        let block = self.machine.block(frame);
        if block.state() != State::Held {
            return Err(Error::Busy.into());
        }
        let bytes = saved(block).to_bytes();
        self.write_user(root, UserRange::records::<SavedDomain>(address, 1)?, &bytes)?;
        Ok(())
    }

    /// `Number::DomainRestore`. What is written there may be anything.
    pub(crate) fn domain_restore(&mut self, me: Frame) -> Outcome {
        let block = self.machine.block(me);
        let (target, address, root) = (Target(block.registers.rdi), block.registers.words[0], block.root);
        let frame = self.named_domain(me, target, Rights::CONTROL)?.0;
        let mut bytes = [0; size_of::<SavedDomain>()];
        self.read_user(root, UserRange::records::<SavedDomain>(address, 1)?, &mut bytes)?;
        let saved = SavedDomain::from_bytes(&bytes);
        let state = match saved.state {
            1 => State::Runnable,
            2 => State::Idle,
            4 => State::Trapped,
            _ => return Err(Error::BadArgument.into()),
        };
        let [kind, fault_address, value] = saved.trap;
        let trap = Trap { kind: kind as u32, code: (kind >> 32) as u32, address: fault_address, value };
        let registers = registers_from(&saved.registers);
        if self.machine.block(frame).state() != State::Stopped || frame == me || registers.rip >= SPACE_END {
            return Err(Error::BadArgument.into());
        }
        let components = self.machine.fpu_components();
        let block = self.machine.block_mut(frame);
        block.registers = registers;
        block.flags = FLAG_FULL_RESTORE | saved.flags as u8 & SAVED_FLAGS;
        (block.held_from, block.held_deadline) = (state as u8, saved.deadline);
        (block.pending, block.trap) = (saved.pending, trap);
        (block.cpu_ticks, block.switches) = (saved.cpu_ticks, saved.switches);
        block.windows = saved.windows.map(|[address, length]| Window { address, length });
        // A domain that has not used it has the initial state, as a new one.
        if block.flags & FLAG_FPU != 0 {
            block.fpu.0 = saved.fpu;
            block.fpu.make_valid(components);
        }
        block.set_state(State::Held);
        if saved.clock != NEVER {
            self.set_timer_node(frame, CLOCK, saved.clock);
        }
        Ok(())
    }
}

fn saved(block: &ControlBlock) -> SavedDomain {
    let Registers { words: [a, b, c, d, e, f, g, h], rax, rdi, r15, rbx, rbp, rcx, r11, rsp, rip, rflags } =
        block.registers;
    let state = match block.held_from {
        from if from == State::Idle as u8 => 2,
        from if from == State::Trapped as u8 => 4,
        _ => 1,
    };
    let clock = block.timers[CLOCK].deadline;
    let Trap { kind, code, address, value } = block.trap;
    SavedDomain {
        registers: [a, b, c, d, e, f, g, h, rax, rdi, r15, rbx, rbp, rcx, r11, rsp, rip, rflags],
        state,
        flags: u32::from(block.flags & SAVED_FLAGS),
        deadline: block.held_deadline,
        clock: if clock == 0 { NEVER } else { clock },
        pending: block.pending,
        trap: [u64::from(kind) | u64::from(code) << 32, address, value],
        cpu_ticks: block.cpu_ticks,
        switches: block.switches,
        windows: block.windows.map(|window| [window.address, window.length]),
        fpu: block.fpu.0,
    }
}

fn registers_from(saved: &[u64; 18]) -> Registers {
    let [a, b, c, d, e, f, g, h, rax, rdi, r15, rbx, rbp, rcx, r11, rsp, rip, rflags] = *saved;
    let rflags = rflags & USER_FLAGS | FIXED_FLAGS;
    Registers { words: [a, b, c, d, e, f, g, h], rax, rdi, r15, rbx, rbp, rcx, r11, rsp, rip, rflags }
}
