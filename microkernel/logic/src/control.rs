//! Creation, control and end of domains.

use crate::{
    Frame, Kernel, Machine,
    block::{ControlBlock, DomainRef, FLAG_FPU, FLAG_FULL_RESTORE, Fpu, Registers, State},
    capability::Capability,
    frames::FrameKind,
    interrupts::FIXED_FLAGS,
    kernel::Outcome,
    paging::UserRange,
    timers::{CLOCK, WAIT},
};
use protocol::{
    abi::{Error, Target},
    capability::{Kind, Rights, SLOTS},
    domain::{BANDS, Control, DomainParameters, TRAP_QUEUE, Usage, Window},
    layout::{PAGE, SPACE_END},
};

/// Page tables that one step of a reset or destruction gives up.
const TABLES_AT_ONCE: u32 = 16;
/// Clients and events that one step deals with.
pub(crate) const CLIENTS_AT_ONCE: u32 = 64;

impl<M: Machine> Kernel<M> {
    /// Makes a stopped domain of two free frames. Also used at boot, for the first one.
    pub fn create_domain(&mut self, frame: Frame, root: Frame, band: u8) -> Result<(), Error> {
        if frame == root {
            return Err(Error::BadArgument);
        }
        self.frames.make(frame, FrameKind::Block)?;
        if let Err(error) = self.frames.make(root, FrameKind::Table) {
            self.frames.free(frame);
            return Err(error);
        }
        self.machine.zero(root);
        let generation = self.frames.generation(frame);
        let block = self.machine.block_mut(frame);
        *block = ControlBlock::EMPTY;
        (block.frame, block.generation, block.root, block.band) = (frame, generation, root, band);
        Ok(())
    }

    /// Lets a stopped domain run from `entry` on. Also used at boot, for the first one.
    pub fn start_domain(&mut self, frame: Frame, entry: u64, stack: u64, argument: u64) -> Result<(), Error> {
        if self.machine.block(frame).state() != State::Stopped || entry >= SPACE_END {
            return Err(Error::BadArgument);
        }
        self.cancel_timer(frame, WAIT);
        let block = self.machine.block_mut(frame);
        block.registers = Registers { rip: entry, rsp: stack, rdi: argument, rflags: FIXED_FLAGS, ..Registers::ZERO };
        block.flags |= FLAG_FULL_RESTORE;
        self.make_runnable(frame);
        Ok(())
    }

    /// `Number::DomainCreate`.
    pub(crate) fn domain_create(&mut self, me: Frame) -> Outcome {
        let block = self.machine.block(me);
        let (slot, [frame, address, ..]) = (block.registers.rdi, block.registers.words);
        let (my_root, my_band) = (block.root, block.band);
        let mut bytes = [0; size_of::<DomainParameters>()];
        self.read_user(my_root, UserRange::records::<DomainParameters>(address, 1)?, &mut bytes)?;
        let parameters = parameters_from(&bytes);
        let extent = *self.slot(me, slot)?;
        extent.require(Kind::Memory, Rights::CREATE)?;
        let root_extent = *self.slot(me, parameters.root_slot)?;
        root_extent.require(Kind::Memory, Rights::CREATE)?;
        let frame = u32::try_from(frame).map_err(|_| Error::BadArgument)?;
        let root = u32::try_from(parameters.root_frame).map_err(|_| Error::BadArgument)?;
        if !extent.holds(frame) || !root_extent.holds(root) {
            return Err(Error::Denied.into());
        }
        let page = parameters.register_page;
        let band = parameters.band;
        if band < u64::from(my_band) || band >= BANDS as u64 || !page.is_multiple_of(PAGE) || page >= SPACE_END {
            return Err(Error::BadArgument.into());
        }
        let mut services = [DomainRef::NOBODY; 4];
        services[usize::from(TRAP_QUEUE)] = self.named_service(me, parameters.handler)?;
        for (service, target) in services[1..].iter_mut().zip(parameters.services) {
            if target != 0 {
                *service = self.named_service(me, target)?;
            }
        }
        self.create_domain(frame, root, band as u8)?;
        let block = self.machine.block_mut(frame);
        (block.tag, block.register_page) = (parameters.tag, page);
        (block.services, block.windows) = (services, parameters.windows);
        let target = Target::pool(slot as u8, frame, block.generation);
        self.machine.block_mut(me).registers.rdi = target.0;
        Ok(())
    }

    /// `Number::DomainControl`.
    pub(crate) fn domain_control(&mut self, me: Frame) -> Outcome {
        let registers = &self.machine.block(me).registers;
        let target = Target(registers.rdi);
        let [control, a, b, c, ..] = registers.words;
        let control = Control::from_u64(control).ok_or(Error::BadNumber)?;
        let frame = self.named_domain(me, target, Rights::CONTROL)?.0;
        let state = self.machine.block(frame).state();
        let ending = matches!(state, State::Resetting | State::Dying);
        if frame == me || (ending && !matches!(control, Control::Reset | Control::Destroy)) {
            return Err(Error::BadArgument.into());
        }
        match control {
            Control::Start => self.start_domain(frame, a, b, c)?,
            Control::Resume if state == State::Trapped => {
                self.cancel_timer(frame, WAIT);
                self.make_runnable(frame);
            }
            Control::Resume => return Err(Error::BadArgument.into()),
            Control::Stop => {
                self.extract(frame);
                self.machine.block_mut(frame).set_state(State::Stopped);
            }
            Control::Reset if state != State::Dying => self.reset(frame)?,
            Control::Reset => return Err(Error::BadArgument.into()),
            Control::Destroy => self.destroy(frame)?,
            Control::SetWindow => {
                let index = device_index(a)?;
                self.machine.block_mut(frame).windows[index - 1] = Window { address: b, length: c };
            }
            Control::Hold => self.hold(frame)?,
            Control::Release => self.release(frame)?,
            Control::SetService => {
                let index = device_index(a)?;
                let service = if b == 0 { DomainRef::NOBODY } else { self.named_service(me, b)? };
                self.set_service(frame, index as u8, service);
            }
        }
        Ok(())
    }

    /// The first step of a reset or destruction: from here on the domain does nothing and holds nothing.
    fn disable(&mut self, frame: Frame, state: State) {
        self.extract(frame);
        self.unload(frame);
        if self.online > 1 {
            self.machine.wait_for_switches();
        }
        self.cancel_timer(frame, CLOCK);
        self.withdraw_all(frame);
        let block = self.machine.block_mut(frame);
        block.set_state(state);
        block.incarnation = block.incarnation.wrapping_add(1);
        block.slots = [Capability::EMPTY; SLOTS];
        (block.pending, block.buffer, block.lend) = (0, 0, 0);
        block.fpu = Fpu::INITIAL;
        block.flags &= !FLAG_FPU;
    }

    fn reset(&mut self, frame: Frame) -> Result<(), Error> {
        if self.machine.block(frame).state() != State::Resetting {
            self.disable(frame, State::Resetting);
        }
        let root = self.machine.block(frame).root;
        if !self.fail_clients(frame, &mut { CLIENTS_AT_ONCE }) || !self.tear_down(root, TABLES_AT_ONCE) {
            return Err(Error::Again);
        }
        let block = self.machine.block_mut(frame);
        block.registers = Registers::ZERO;
        block.set_state(State::Stopped);
        Ok(())
    }

    fn destroy(&mut self, frame: Frame) -> Result<(), Error> {
        if self.machine.block(frame).state() != State::Dying {
            self.disable(frame, State::Dying);
        }
        let root = self.machine.block(frame).root;
        if !self.fail_clients(frame, &mut { CLIENTS_AT_ONCE })
            || !self.drain_queues(frame, CLIENTS_AT_ONCE)
            || !self.tear_down(root, TABLES_AT_ONCE)
        {
            return Err(Error::Again);
        }
        self.frames.free(root);
        self.frames.free(frame);
        Ok(())
    }

    /// `Number::DomainUsage`.
    pub(crate) fn domain_usage(&mut self, me: Frame) -> Outcome {
        let block = self.machine.block(me);
        let (target, address, root) = (Target(block.registers.rdi), block.registers.words[0], block.root);
        let frame = if target == Target::OWN { me } else { self.named_domain(me, target, Rights::CONTROL)?.0 };
        let block = self.machine.block(frame);
        let state = match block.state() {
            State::Stopped => 0,
            State::Runnable => 1,
            State::Idle | State::Receiving => 2,
            State::Calling | State::Awaiting => 3,
            State::Trapped => 4,
            State::Held => 5,
            State::Resetting | State::Dying => 6,
        };
        let running = self.runs_on(frame).map_or(0, |processor| self.ticks_running(processor));
        let cpu_time = self.machine.ticks_to_nanoseconds(block.cpu_ticks.wrapping_add(running));
        let words = [cpu_time, block.switches, state, u64::from(block.incarnation)];
        let mut bytes = [0; size_of::<Usage>()];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        self.write_user(root, UserRange::records::<Usage>(address, 1)?, &bytes)?;
        Ok(())
    }
}

/// A device number as an index of services.
fn device_index(device: u64) -> Result<usize, Error> {
    if (1..=3).contains(&device) { Ok(device as usize) } else { Err(Error::BadArgument) }
}

fn parameters_from(bytes: &[u8; size_of::<DomainParameters>()]) -> DomainParameters {
    let word = |index: usize| bytes.as_chunks().0.get(index).map_or(0, |chunk| u64::from_le_bytes(*chunk));
    let window = |index: usize| Window { address: word(index), length: word(index + 1) };
    DomainParameters {
        root_frame: word(0),
        root_slot: word(1),
        tag: word(2),
        register_page: word(3),
        band: word(4),
        handler: word(5),
        services: [word(6), word(7), word(8)],
        windows: [window(9), window(11), window(13)],
    }
}
