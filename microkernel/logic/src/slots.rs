//! Calls on capability slots, and the resolution of targets.

use crate::{Frame, Kernel, Machine, block::DomainRef, capability::Capability, kernel::Outcome, paging::UserRange};
use protocol::{
    abi::{Error, Target, TargetKind},
    capability::{Description, Kind, Narrow, Rights, SLOTS},
};

/// Rights of a memory capability that reach the domains in its extent.
const OVER_DOMAINS: Rights = Rights::CONTROL.union(Rights::WINDOW).union(Rights::RAISE);

impl<M: Machine> Kernel<M> {
    /// The capability in a slot.
    #[inline]
    pub(crate) fn slot(&self, me: Frame, slot: u64) -> Result<&Capability, Error> {
        let index = usize::try_from(slot).map_err(|_| Error::NoCapability)?;
        self.machine.block(me).slots.get(index).ok_or(Error::NoCapability)
    }

    /// The domain that a target names, and the capability that gives `me` the rights over it.
    pub(crate) fn named_domain(&self, me: Frame, target: Target, rights: Rights) -> Result<(Frame, Capability), Error> {
        match target.kind() {
            Some(TargetKind::Slot(slot)) => {
                let capability = self.slot(me, u64::from(slot))?;
                capability.require(Kind::Domain, rights)?;
                if !self.frames.is_block(capability.first, capability.generation) {
                    return Err(Error::Gone);
                }
                Ok((capability.first, *capability))
            }
            Some(TargetKind::Pool { slot, frame, generation }) => {
                let capability = self.slot(me, u64::from(slot))?;
                capability.require(Kind::Memory, rights)?;
                if !capability.holds(frame) {
                    return Err(Error::Denied);
                }
                let whole = self.frames.generation(frame);
                if whole & Target::GENERATION_MASK != generation || !self.frames.is_block(frame, whole) {
                    return Err(Error::Gone);
                }
                Ok((frame, *capability))
            }
            _ => Err(Error::BadArgument),
        }
    }

    /// The domain that a target names as handler or service: any domain that `me` has a capability to, or itself.
    pub(crate) fn named_service(&self, me: Frame, target: u64) -> Result<DomainRef, Error> {
        let frame =
            if target == Target::OWN.0 { me } else { self.named_domain(me, Target(target), Rights::empty())?.0 };
        Ok(DomainRef { frame, generation: self.machine.block(frame).generation })
    }

    /// The capability that a copy begins with: that of a slot, or one made for a domain in an extent.
    fn original(&self, me: Frame, from: u64) -> Result<Capability, Error> {
        if from < SLOTS as u64 {
            return match self.slot(me, from)? {
                empty if empty.kind() == Kind::Empty => Err(Error::NoCapability),
                capability => Ok(*capability),
            };
        }
        let target = Target(from);
        if !matches!(target.kind(), Some(TargetKind::Pool { .. })) {
            return Err(Error::BadArgument);
        }
        let (frame, extent) = self.named_domain(me, target, Rights::empty())?;
        let mut rights = extent.rights() & OVER_DOMAINS;
        rights.set(Rights::CALL, rights.contains(Rights::CONTROL));
        let block = self.machine.block(frame);
        let mut capability = Capability::new(Kind::Domain, rights, frame, 0);
        (capability.generation, capability.incarnation) = (block.generation, block.incarnation);
        (capability.line, capability.window, capability.badge) = (extent.line, extent.window, extent.badge);
        Ok(capability)
    }

    /// `Number::CapabilityCopy`.
    pub(crate) fn capability_copy(&mut self, me: Frame) -> Outcome {
        let block = self.machine.block(me);
        let [to, from, narrow, ..] = block.registers.words;
        let (target, root) = (Target(block.registers.rdi), block.root);
        let receiver = if target == Target::OWN { me } else { self.named_domain(me, target, Rights::CONTROL)?.0 };
        let mut capability = self.original(me, from)?;
        if narrow != 0 {
            let mut bytes = [0; size_of::<Narrow>()];
            self.read_user(root, UserRange::records::<Narrow>(narrow, 1)?, &mut bytes)?;
            capability = capability.narrowed(&narrow_from(&bytes))?;
        }
        let slot = usize::try_from(to).ok().filter(|slot| *slot < SLOTS).ok_or(Error::BadArgument)?;
        self.machine.block_mut(receiver).slots[slot] = capability;
        Ok(())
    }

    /// `Number::CapabilityDelete`.
    pub(crate) fn capability_delete(&mut self, me: Frame) -> Outcome {
        let slot = self.machine.block(me).registers.rdi;
        self.slot(me, slot)?;
        self.machine.block_mut(me).slots[slot as usize] = Capability::EMPTY;
        Ok(())
    }

    /// `Number::CapabilityInfo`.
    pub(crate) fn capability_info(&mut self, me: Frame) -> Outcome {
        let block = self.machine.block(me);
        let (slot, address, root) = (block.registers.rdi, block.registers.words[0], block.root);
        let description = self.slot(me, slot)?.describe();
        let range = UserRange::records::<Description>(address, 1)?;
        self.write_user(root, range, &description_bytes(&description))?;
        Ok(())
    }
}

fn word(bytes: &[u8], index: usize) -> u64 {
    bytes.as_chunks().0.get(index).map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

fn narrow_from(bytes: &[u8; size_of::<Narrow>()]) -> Narrow {
    let first = word(bytes, 0);
    Narrow {
        rights: first as u16,
        line: (first >> 16) as u8,
        window: (first >> 24) as u8,
        count: (first >> 32) as u32,
        first: word(bytes, 1),
        badge: word(bytes, 2),
    }
}

fn description_bytes(description: &Description) -> [u8; size_of::<Description>()] {
    let first = u64::from(description.kind)
        | u64::from(description.line) << 8
        | u64::from(description.rights) << 16
        | u64::from(description.count) << 32;
    let mut bytes = [0; size_of::<Description>()];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip([first, description.first, description.badge]) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}
