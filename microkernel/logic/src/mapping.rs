//! `map`: changes of an address space, in batches.

use crate::{
    Frame, Kernel, Machine,
    frames::FrameKind,
    kernel::{Outcome, Stop},
    paging::{Entry, UserRange},
};
use protocol::{
    abi::{Error, Target},
    capability::{Kind, Rights},
    layout::{PAGE, SPACE_END},
    memory::{Access, BATCH, MAP_PAGES, MapKind, MapOperation},
};

impl<M: Machine> Kernel<M> {
    /// `Number::Map`.
    pub(crate) fn map(&mut self, me: Frame) -> Outcome {
        let block = self.machine.block(me);
        let (target, root) = (Target(block.registers.rdi), block.root);
        let [address, count, ..] = block.registers.words;
        let is_vm = block.is_vm();
        let mut budget = MAP_PAGES;
        let (mut operations, mut pages) = (0, 0);
        let result = (|| -> Outcome {
            if count > BATCH as u64 || is_vm {
                return Err(if is_vm { Error::Denied } else { Error::BadArgument }.into());
            }
            let domain = if target == Target::OWN { me } else { self.named_domain(me, target, Rights::CONTROL)?.0 };
            while operations < count {
                let at = address.wrapping_add(operations * size_of::<MapOperation>() as u64);
                let mut bytes = [0; size_of::<MapOperation>()];
                self.read_user(root, UserRange::records::<MapOperation>(at, 1)?, &mut bytes)?;
                pages = 0;
                self.apply(me, domain, &operation_from(&bytes), &mut pages, &mut budget)?;
                operations += 1;
                pages = 0;
            }
            Ok(())
        })();
        let registers = &mut self.machine.block_mut(me).registers;
        (registers.rdi, registers.words[0]) = (operations, u64::from(pages));
        result
    }

    /// Applies one operation; `pages` counts what is done of it.
    fn apply(
        &mut self,
        me: Frame,
        domain: Frame,
        operation: &MapOperation,
        pages: &mut u32,
        budget: &mut u32,
    ) -> Result<(), Stop> {
        let kind = MapKind::from_u8(operation.kind).ok_or(Error::BadArgument)?;
        let access = Access::from_bits(operation.access).ok_or(Error::BadArgument)?;
        let end = u64::from(operation.count).checked_mul(PAGE).and_then(|bytes| operation.address.checked_add(bytes));
        let inside = end.is_some_and(|end| end <= SPACE_END) && operation.address >= PAGE;
        if !operation.address.is_multiple_of(PAGE) || !inside || operation.reserved != 0 {
            return Err(Error::BadArgument.into());
        }
        let root = self.machine.block(domain).root;
        let last = operation.frame.checked_add(u64::from(operation.count)).and_then(|end| u32::try_from(end).ok());
        let first = last.map(|_| operation.frame as Frame).ok_or(Error::BadArgument)?;
        if kind == MapKind::Table {
            let capability = self.slot(me, u64::from(operation.slot))?;
            capability.require(Kind::Memory, Rights::CREATE)?;
            if operation.count != 1 || !capability.holds(first) {
                return Err(Error::BadArgument.into());
            }
            return Ok(self.add_table(root, operation.address, first)?);
        }
        if kind != MapKind::Map {
            self.recall(domain);
        }
        let loaded = self.is_loaded(domain);
        while *pages < operation.count {
            *budget = budget.checked_sub(1).ok_or(Error::Again)?;
            let address = operation.address + u64::from(*pages) * PAGE;
            match kind {
                MapKind::Map => self.map_page(me, root, address, first + *pages, operation.slot, access)?,
                MapKind::Unmap => self.unmap_page(root, address),
                _ => self.protect_page(me, root, address, operation.slot, access)?,
            }
            if loaded && kind != MapKind::Map {
                self.machine.flush_page(root, address);
            }
            *pages += 1;
        }
        Ok(())
    }

    /// Whether `me` may map `frame` with this access by the memory capability in `slot`; whether it is a device.
    fn may_map(&self, me: Frame, slot: u8, frame: Frame, access: Access) -> Result<bool, Error> {
        let mut rights = Rights::MAP | Rights::READ;
        rights.set(Rights::WRITE, access.contains(Access::WRITE));
        rights.set(Rights::EXECUTE, access.contains(Access::EXECUTE));
        let capability = self.slot(me, u64::from(slot))?;
        capability.require(Kind::Memory, rights)?;
        let device = capability.rights().contains(Rights::DEVICE);
        if access.contains(Access::COMBINE) && !device {
            return Err(Error::Denied);
        }
        if !capability.holds(frame) || device != (self.frames.kind(frame) == FrameKind::Device) {
            return Err(Error::Denied);
        }
        Ok(device)
    }

    fn map_page(
        &mut self,
        me: Frame,
        root: Frame,
        address: u64,
        frame: Frame,
        slot: u8,
        access: Access,
    ) -> Result<(), Error> {
        let device = self.may_map(me, slot, frame, access)?;
        let table = self.leaf_table(root, address).ok_or(Error::NoTable)?;
        if self.entry(root, address).is_present() {
            return Err(Error::Occupied);
        }
        if !device {
            self.frames.map(frame)?;
        }
        self.set_entry(table, address, Entry::page(frame, access, device));
        Ok(())
    }

    fn unmap_page(&mut self, root: Frame, address: u64) {
        let Some(table) = self.leaf_table(root, address) else { return };
        let entry = self.entry(root, address);
        if entry.is_present() {
            self.set_entry(table, address, Entry::EMPTY);
            self.frames.unmap(entry.frame());
        }
    }

    fn protect_page(&mut self, me: Frame, root: Frame, address: u64, slot: u8, access: Access) -> Result<(), Error> {
        let table = self.leaf_table(root, address).ok_or(Error::NoTable)?;
        let entry = self.entry(root, address);
        if !entry.is_present() {
            return Err(Error::NotPresent);
        }
        let device = self.may_map(me, slot, entry.frame(), access)?;
        self.set_entry(table, address, Entry::page(entry.frame(), access, device));
        Ok(())
    }
}

fn operation_from(bytes: &[u8; size_of::<MapOperation>()]) -> MapOperation {
    let word = |index: usize| bytes.as_chunks().0.get(index).map_or(0, |chunk| u64::from_le_bytes(*chunk));
    let first = word(0);
    MapOperation {
        kind: first as u8,
        access: (first >> 8) as u8,
        slot: (first >> 16) as u8,
        reserved: (first >> 24) as u8,
        count: (first >> 32) as u32,
        address: word(1),
        frame: word(2),
    }
}
