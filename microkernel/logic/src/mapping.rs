//! `map`: changes of an address space, in batches.

use crate::{
    Frame, Kernel, Machine,
    frames::FrameKind,
    kernel::{Outcome, Stop},
    paging::Entry,
    records::Records,
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
            let mut records = Records::new(root);
            while operations < count {
                let at = address.wrapping_add(operations * size_of::<MapOperation>() as u64);
                let operation = operation_from(&self.record(&mut records, at)?.bytes);
                pages = 0;
                self.apply(me, domain, &operation, &mut pages, &mut budget)?;
                if domain == me {
                    records.forget();
                }
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
        let device = match kind {
            MapKind::Map => self.may_map(me, operation.slot, first, operation.count, access)?,
            _ => false,
        };
        let loaded = self.is_loaded(domain);
        while *pages < operation.count {
            *budget = budget.checked_sub(1).ok_or(Error::Again)?;
            let address = operation.address + u64::from(*pages) * PAGE;
            match kind {
                MapKind::Map => self.map_page(root, address, first + *pages, access, device)?,
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

    /// Whether `me` may map `count` frames from `first` with this access by the memory capability in `slot`, as far as the capability says; whether they are to
    /// be devices.
    fn may_map(&self, me: Frame, slot: u8, first: Frame, count: u32, access: Access) -> Result<bool, Error> {
        let mut rights = Rights::MAP | Rights::READ;
        rights.set(Rights::WRITE, access.contains(Access::WRITE));
        rights.set(Rights::EXECUTE, access.contains(Access::EXECUTE));
        let capability = self.slot(me, u64::from(slot))?;
        capability.require(Kind::Memory, rights)?;
        let device = capability.rights().contains(Rights::DEVICE);
        if access.contains(Access::COMBINE) && !device {
            return Err(Error::Denied);
        }
        // There are fewer frames than a frame number can say.
        let last = first.saturating_add(count.saturating_sub(1));
        if capability.holds(first) && capability.holds(last) { Ok(device) } else { Err(Error::Denied) }
    }

    /// Whether a frame is a device exactly if it is to be.
    fn is_as_said(&self, frame: Frame, device: bool) -> bool {
        device == (self.frames.kind(frame) == FrameKind::Device)
    }

    fn map_page(&mut self, root: Frame, address: u64, frame: Frame, access: Access, device: bool) -> Result<(), Error> {
        if !self.is_as_said(frame, device) {
            return Err(Error::Denied);
        }
        let table = self.leaf_table(root, address).ok_or(Error::NoTable)?;
        if self.entry_in(table, address).is_present() {
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
        let entry = self.entry_in(table, address);
        if entry.is_present() {
            self.set_entry(table, address, Entry::EMPTY);
            self.frames.unmap(entry.frame());
        }
    }

    fn protect_page(&mut self, me: Frame, root: Frame, address: u64, slot: u8, access: Access) -> Result<(), Error> {
        let table = self.leaf_table(root, address).ok_or(Error::NoTable)?;
        let entry = self.entry_in(table, address);
        if !entry.is_present() {
            return Err(Error::NotPresent);
        }
        let device = self.may_map(me, slot, entry.frame(), 1, access)?;
        if !self.is_as_said(entry.frame(), device) {
            return Err(Error::Denied);
        }
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
