//! Hardware interrupts as virtual interrupts, I/O ports, the debug line.

use crate::{
    Frame, Kernel, Machine, NO_FRAME, PROCESSORS, block::DomainRef, capability::Capability, kernel::Outcome,
    paging::UserRange,
};
use protocol::{
    abi::{Error, PORT_WRITE},
    capability::{Kind, Rights, SLOTS},
    domain::{InterruptSource, ProcessorStep, line},
};

/// First vector for hardware interrupts; those below belong to the processor and the legacy interrupt controller.
pub const FIRST_VECTOR: u8 = 48;
/// First vector above; it and those after it are the kernel's own (timer, spurious).
pub const LAST_VECTOR: u8 = 239;

/// Most bytes of one write to the debug line.
const DEBUG_BYTES: u64 = 256;

/// What a vector is used for.
#[derive(Clone, Copy)]
struct Vector {
    source: Option<InterruptSource>,
    owner: DomainRef,
    line: u8,
    /// How often it was given up; capabilities of before are dead.
    generation: u32,
}

/// All vectors for hardware interrupts.
pub(crate) struct Vectors([Vector; (LAST_VECTOR - FIRST_VECTOR + 1) as usize]);

impl Vectors {
    pub(crate) const fn new() -> Vectors {
        let free = Vector { source: None, owner: DomainRef::NOBODY, line: 0, generation: 0 };
        Vectors([free; (LAST_VECTOR - FIRST_VECTOR + 1) as usize])
    }

    fn get_mut(&mut self, vector: u8) -> Option<&mut Vector> {
        self.0.get_mut(usize::from(vector.checked_sub(FIRST_VECTOR)?))
    }
}

impl<M: Machine> Kernel<M> {
    /// A hardware interrupt: raises the line of whoever it is bound to. A level-triggered one stays masked until acknowledged.
    pub(crate) fn hardware(&mut self, number: u8) {
        let Some(vector) = self.vectors.get_mut(number).copied() else { return };
        let bound = vector.owner.frame != NO_FRAME && self.frames.is_block(vector.owner.frame, vector.owner.generation);
        if let Some(InterruptSource::Line { number: line, level, low }) = vector.source
            && (level || !bound)
        {
            self.machine.line_route(line, number, level, low, true);
        }
        if bound {
            self.raise(vector.owner.frame, vector.line);
        }
    }

    /// `Number::InterruptCreate`.
    pub(crate) fn interrupt_create(&mut self, me: Frame) -> Outcome {
        let registers = &self.machine.block(me).registers;
        let (authority, [slot, source, ..]) = (registers.rdi, registers.words);
        self.slot(me, authority)?.require(Kind::InterruptAuthority, Rights::empty())?;
        let slot = usize::try_from(slot).ok().filter(|slot| *slot < SLOTS).ok_or(Error::BadArgument)?;
        if self.machine.block(me).slots[slot].kind() != Kind::Empty {
            return Err(Error::Occupied.into());
        }
        let source = InterruptSource::from_word(source);
        // A line that was made before is the same again: a restarted holder of the authority has forgotten it.
        let number = |source: Option<InterruptSource>| match source {
            Some(InterruptSource::Line { number, .. }) => Some(number),
            _ => None,
        };
        let known = |vector: &Vector| number(vector.source).is_some() && number(vector.source) == number(Some(source));
        let free = |vector: &Vector| vector.source.is_none();
        let index = self.vectors.0.iter().position(known).or_else(|| self.vectors.0.iter().position(free));
        let index = index.ok_or(Error::Exhausted)?;
        let vector = FIRST_VECTOR + index as u8;
        let (mut address, mut data) = (0, 0);
        match source {
            InterruptSource::Message => (address, data) = self.machine.message_for(vector),
            InterruptSource::Line { number, level, low } => {
                if !self.machine.line_route(number, vector, level, low, true) {
                    return Err(Error::BadArgument.into());
                }
            }
        }
        self.vectors.0[index].source = Some(source);
        let generation = self.vectors.0[index].generation;
        let block = self.machine.block_mut(me);
        let mut capability = Capability::new(Kind::Interrupt, Rights::empty(), u32::from(vector), 1);
        capability.generation = generation;
        block.slots[slot] = capability;
        (block.registers.rdi, block.registers.words[0]) = (address, u64::from(data));
        Ok(())
    }

    /// The vector behind an interrupt capability.
    fn vector(&mut self, me: Frame, slot: u64) -> Result<(u8, &mut Vector), Error> {
        let capability = self.slot(me, slot)?;
        capability.require(Kind::Interrupt, Rights::empty())?;
        let (number, generation) = (capability.first as u8, capability.generation);
        let vector = self.vectors.get_mut(number).ok_or(Error::NoCapability)?;
        if vector.generation == generation { Ok((number, vector)) } else { Err(Error::Gone) }
    }

    /// `Number::InterruptBind`.
    pub(crate) fn interrupt_bind(&mut self, me: Frame) -> Outcome {
        let block = self.machine.block(me);
        let (slot, wanted) = (block.registers.rdi, block.registers.words[0]);
        let owner = DomainRef { frame: me, generation: block.generation };
        if wanted >= u64::from(line::COUNT) {
            return Err(Error::BadArgument.into());
        }
        let (number, vector) = self.vector(me, slot)?;
        (vector.owner, vector.line) = (owner, wanted as u8);
        // What the same driver had on this line before it was restarted is given up.
        for (index, old) in self.vectors.0.iter_mut().enumerate() {
            let replaced =
                index != usize::from(number - FIRST_VECTOR) && old.owner == owner && old.line == wanted as u8;
            if replaced && old.source == Some(InterruptSource::Message) {
                (old.source, old.owner) = (None, DomainRef::NOBODY);
                old.generation = old.generation.wrapping_add(1);
            }
        }
        self.unmask(number);
        Ok(())
    }

    /// `Number::InterruptAcknowledge`.
    pub(crate) fn interrupt_acknowledge(&mut self, me: Frame) -> Outcome {
        let slot = self.machine.block(me).registers.rdi;
        let (number, _) = self.vector(me, slot)?;
        self.unmask(number);
        Ok(())
    }

    fn unmask(&mut self, number: u8) {
        if let Some(Vector { source: Some(InterruptSource::Line { number: line, level, low }), .. }) =
            self.vectors.get_mut(number).copied()
        {
            self.machine.line_route(line, number, level, low, false);
        }
    }

    /// `Number::IoApicAdd`.
    pub(crate) fn io_apic_add(&mut self, me: Frame) -> Outcome {
        let registers = &self.machine.block(me).registers;
        let (authority, [address, first, ..]) = (registers.rdi, registers.words);
        self.slot(me, authority)?.require(Kind::InterruptAuthority, Rights::empty())?;
        let first = u32::try_from(first).map_err(|_| Error::BadArgument)?;
        if !self.machine.io_apic_add(address, first) {
            return Err(Error::BadArgument.into());
        }
        self.frames.hide((address >> 12) as Frame);
        Ok(())
    }

    /// `Number::ProcessorStart`.
    pub(crate) fn processor_start(&mut self, me: Frame) -> Outcome {
        let registers = &self.machine.block(me).registers;
        let (authority, [apic, step, ..]) = (registers.rdi, registers.words);
        self.slot(me, authority)?.require(Kind::InterruptAuthority, Rights::empty())?;
        let apic = u32::try_from(apic).map_err(|_| Error::BadArgument)?;
        let step = ProcessorStep::from_u64(step).ok_or(Error::BadArgument)?;
        if self.online == PROCESSORS && step != ProcessorStep::Join {
            return Err(Error::Exhausted.into());
        }
        self.machine.start_processor(self.online, apic, step)?;
        self.machine.block_mut(me).registers.rdi = self.online as u64;
        Ok(())
    }

    /// `Number::PortIo`.
    pub(crate) fn port_io(&mut self, me: Frame) -> Outcome {
        let registers = &self.machine.block(me).registers;
        let (slot, [port, how, value, ..]) = (registers.rdi, registers.words);
        let capability = self.slot(me, slot)?;
        capability.require(Kind::Ports, Rights::empty())?;
        let width = how & !PORT_WRITE;
        let first = u64::from(capability.first);
        let end = first + u64::from(capability.count);
        if !matches!(width, 1 | 2 | 4) {
            return Err(Error::BadArgument.into());
        }
        if port < first || port.checked_add(width).is_none_or(|last| last > end.min(1 << 16)) {
            return Err(Error::Denied.into());
        }
        if how & PORT_WRITE != 0 {
            self.machine.port_write(port as u16, width as u8, value as u32);
        } else {
            let value = self.machine.port_read(port as u16, width as u8);
            self.machine.block_mut(me).registers.rdi = u64::from(value);
        }
        Ok(())
    }

    /// `Number::DebugWrite`.
    pub(crate) fn debug_write(&mut self, me: Frame) -> Outcome {
        let block = self.machine.block(me);
        let (address, [length, slot, ..], root) = (block.registers.rdi, block.registers.words, block.root);
        self.slot(me, slot)?.require(Kind::Debug, Rights::empty())?;
        if length > DEBUG_BYTES {
            return Err(Error::TooLong.into());
        }
        let mut bytes = [0; DEBUG_BYTES as usize];
        let bytes = &mut bytes[..length as usize];
        self.read_user(root, UserRange::new(address, length)?, bytes)?;
        self.machine.debug_write(bytes);
        Ok(())
    }
}
