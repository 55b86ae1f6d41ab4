//! `transfer`: bytes copied between memories, in batches, after both sides were checked.
//!
//! This takes the place of shared mappings on the data path: a packet goes once from the sender's window
//! to the receiver's, and swapping a VM out never has to hunt down other people's mappings.

use crate::{Frame, Kernel, Machine, frames::FrameKind, kernel::Outcome, paging::UserRange, records::Records};
use core::mem::offset_of;
use protocol::{
    abi::{Error, Lend, Target, TargetKind},
    capability::{Kind, Rights},
    memory::{BATCH, DESTINATION_MISSING, TRANSFER_BYTES, TransferOperation},
};

/// Most bytes that one call copies.
const CALL_BYTES: u64 = 256 * 1024;

/// One side of a copy, checked.
#[derive(Clone, Copy)]
enum Side {
    /// Memory of the domain below this root, addresses counted from `base`; `own`: the caller's.
    Space { root: Frame, base: u64, own: bool },
    /// An extent: address is physical, wholly inside.
    Extent,
    /// Zero bytes.
    Zero,
}

impl<M: Machine> Kernel<M> {
    /// `Number::Transfer`.
    pub(crate) fn transfer(&mut self, me: Frame) -> Outcome {
        let block = self.machine.block(me);
        let (address, root) = (block.registers.rdi, block.root);
        let count = block.registers.words[0];
        if block.is_vm() {
            return Err(Error::Denied.into());
        }
        if count > BATCH as u64 {
            return Err(Error::BadArgument.into());
        }
        self.probe_user(root, UserRange::records::<TransferOperation>(address, count)?, true)?;
        let mut records = Records::new(root);
        let mut left = CALL_BYTES;
        let mut looked_at = 0;
        while looked_at < count {
            let at = address + looked_at * size_of::<TransferOperation>() as u64;
            let record = self.record(&mut records, at)?;
            let operation = operation_from(&record.bytes);
            if looked_at > 0 && u64::from(operation.length) > left {
                break;
            }
            left = left.saturating_sub(u64::from(operation.length));
            let mut done = 0;
            let status = self.copy(me, &operation, &mut done).map_or_else(|error| error as u32, |()| 0);
            let result = u64::from(status) | u64::from(done) << 32;
            let field = offset_of!(TransferOperation, status) as u64;
            match record.physical {
                Some(physical) => self.machine.write(physical + field, &result.to_le_bytes()),
                None => self.write_user(root, UserRange::new(at + field, 8)?, &result.to_le_bytes())?,
            }
            looked_at += 1;
        }
        self.machine.block_mut(me).registers.rdi = looked_at;
        Ok(())
    }

    fn copy(&mut self, me: Frame, operation: &TransferOperation, done: &mut u32) -> Result<(), Error> {
        if operation.length > TRANSFER_BYTES || operation.reserved != 0 {
            return Err(Error::BadArgument);
        }
        let length = u64::from(operation.length);
        let from = self.side(me, operation.from, operation.from_address, length, false)?;
        let to = self.side(me, operation.to, operation.to_address, length, true)?;
        let mut at = 0;
        while at < length {
            let (source, destination) = (operation.from_address.wrapping_add(at), operation.to_address + at);
            let mut here = (length - at).min(4096 - destination % 4096);
            if !matches!(from, Side::Zero) {
                here = here.min(4096 - source % 4096);
            }
            *done = at as u32;
            let source = self.place(from, source, false)?;
            let target = match self.place(to, destination, true) {
                Ok(Some(target)) => target,
                Ok(None) => return Err(Error::BadArgument),
                Err(error) => {
                    *done |= DESTINATION_MISSING * u32::from(error == Error::NotPresent);
                    return Err(error);
                }
            };
            self.machine.copy(source, target, here as usize);
            at += here;
        }
        *done = operation.length;
        Ok(())
    }

    /// Checks that `me` may read or write this side.
    fn side(&self, me: Frame, target: u64, address: u64, length: u64, write: bool) -> Result<Side, Error> {
        let target = Target(target);
        match target.kind() {
            Some(TargetKind::Own) => {
                UserRange::new(address, length)?;
                Ok(Side::Space { root: self.machine.block(me).root, base: 0, own: true })
            }
            Some(TargetKind::Slot(slot)) if self.slot(me, u64::from(slot))?.kind() == Kind::Memory => {
                let capability = self.slot(me, u64::from(slot))?;
                capability.require(Kind::Memory, if write { Rights::WRITE } else { Rights::READ })?;
                let start = u64::from(capability.first) << 12;
                let end = start + (u64::from(capability.count) << 12);
                let inside = address >= start && address.checked_add(length).is_some_and(|last| last <= end);
                if !inside || capability.rights().contains(Rights::DEVICE) {
                    return Err(Error::Denied);
                }
                Ok(Side::Extent)
            }
            Some(TargetKind::Slot(_) | TargetKind::Pool { .. }) => {
                UserRange::new(address, length)?;
                let (frame, capability) = self.named_domain(me, target, Rights::empty())?;
                let block = self.machine.block(frame);
                if !capability.rights().contains(Rights::CONTROL) {
                    if !capability.rights().contains(Rights::WINDOW) {
                        return Err(Error::Denied);
                    }
                    let window =
                        usize::from(capability.window).checked_sub(1).and_then(|index| block.windows.get(index));
                    let window = window.ok_or(Error::Denied)?;
                    within(address, length, window.address, window.length)?;
                }
                Ok(Side::Space { root: block.root, base: 0, own: false })
            }
            Some(TargetKind::Caller { .. }) => {
                let client = self.client(me, target)?;
                let block = self.machine.block(client);
                let lend = Lend(block.lend);
                // The server does not know where in its client's memory the range lies, and need not.
                within(address, length, 0, lend.length())?;
                UserRange::new(lend.address(), lend.length())?;
                Ok(Side::Space { root: block.root, base: lend.address(), own: false })
            }
            Some(TargetKind::Zero) if !write => Ok(Side::Zero),
            _ => Err(Error::BadArgument),
        }
    }

    /// Physical address of a place; `None`: zero bytes.
    fn place(&mut self, side: Side, address: u64, write: bool) -> Result<Option<u64>, Error> {
        match side {
            Side::Space { root, base, own } => match self.reach(root, base + address, write) {
                Ok(physical) => Ok(Some(physical)),
                Err(_) => Err(if own { Error::BadAddress } else { Error::NotPresent }),
            },
            Side::Extent => match self.frames.kind((address >> 12) as Frame) {
                FrameKind::Free | FrameKind::User => Ok(Some(address)),
                _ => Err(Error::Occupied),
            },
            Side::Zero => Ok(None),
        }
    }
}

/// `Ok` if a range lies within another.
fn within(address: u64, length: u64, start: u64, size: u64) -> Result<(), Error> {
    match address.checked_sub(start) {
        Some(offset) if offset.checked_add(length).is_some_and(|end| end <= size) => Ok(()),
        _ => Err(Error::Denied),
    }
}

fn operation_from(bytes: &[u8; size_of::<TransferOperation>()]) -> TransferOperation {
    let word = |index: usize| bytes.as_chunks().0.get(index).map_or(0, |chunk| u64::from_le_bytes(*chunk));
    TransferOperation {
        from: word(0),
        from_address: word(1),
        to: word(2),
        to_address: word(3),
        length: word(4) as u32,
        status: 0,
        done: 0,
        reserved: (word(5) >> 32) as u32,
    }
}
