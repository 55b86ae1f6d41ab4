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
    domain::{EventKind, FPU_BYTES, SavedDomain, TRAP_QUEUE},
    layout::SPACE_END,
};

/// Words of a saved domain before the floating-point state.
const WORDS: usize = (size_of::<SavedDomain>() - FPU_BYTES) / 8;
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
        let mut bytes = [0; size_of::<SavedDomain>()];
        let (words, fpu) = bytes.split_at_mut(WORDS * 8);
        for (chunk, word) in words.chunks_exact_mut(8).zip(saved_words(block)) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        fpu.copy_from_slice(&block.fpu.0);
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
        let (words, fpu) = bytes.split_at(WORDS * 8);
        let word = |index: usize| words.as_chunks().0.get(index).map_or(0, |chunk| u64::from_le_bytes(*chunk));
        let state = match word(18) as u32 {
            1 => State::Runnable,
            2 => State::Idle,
            4 => State::Trapped,
            _ => return Err(Error::BadArgument.into()),
        };
        let trap = Trap { kind: word(22) as u32, code: (word(22) >> 32) as u32, address: word(23), value: word(24) };
        if self.machine.block(frame).state() != State::Stopped || frame == me || word(16) >= SPACE_END {
            return Err(Error::BadArgument.into());
        }
        let components = self.machine.fpu_components();
        let block = self.machine.block_mut(frame);
        block.registers = registers_from(word);
        block.flags = FLAG_FULL_RESTORE | (word(18) >> 32) as u8 & SAVED_FLAGS;
        (block.held_from, block.held_deadline) = (state as u8, word(19));
        (block.pending, block.trap) = (word(21), trap);
        (block.cpu_ticks, block.switches) = (word(25), word(26));
        if let Ok(fpu) = fpu.try_into() {
            block.fpu.0 = fpu;
        }
        block.fpu.make_valid(components);
        block.set_state(State::Held);
        if word(20) != NEVER {
            self.timers.set(&mut self.machine, frame, CLOCK, word(20));
            self.arm();
        }
        Ok(())
    }
}

fn saved_words(block: &ControlBlock) -> [u64; WORDS] {
    let Registers { words: [a, b, c, d, e, f, g, h], rax, rdi, r15, rbx, rbp, rcx, r11, rsp, rip, rflags } =
        block.registers;
    let state = match block.held_from {
        from if from == State::Idle as u8 => 2,
        from if from == State::Trapped as u8 => 4,
        _ => 1,
    };
    let clock = block.timers[CLOCK].deadline;
    let Trap { kind, code, address, value } = block.trap;
    [
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h,
        rax,
        rdi,
        r15,
        rbx,
        rbp,
        rcx,
        r11,
        rsp,
        rip,
        rflags,
        state | u64::from(block.flags & SAVED_FLAGS) << 32,
        block.held_deadline,
        if clock == 0 { NEVER } else { clock },
        block.pending,
        u64::from(kind) | u64::from(code) << 32,
        address,
        value,
        block.cpu_ticks,
        block.switches,
    ]
}

fn registers_from(word: impl Fn(usize) -> u64) -> Registers {
    Registers {
        words: core::array::from_fn(&word),
        rax: word(8),
        rdi: word(9),
        r15: word(10),
        rbx: word(11),
        rbp: word(12),
        rcx: word(13),
        r11: word(14),
        rsp: word(15),
        rip: word(16),
        rflags: word(17) & USER_FLAGS | FIXED_FLAGS,
    }
}
