//! The disk as the kit for block drivers wants it.
//!
//! A request is one command, whose number is the request's tag. Its data lies straight in the memory shared with the client: the
//! first page is named in the command, the second too, or a list of all others, which lies in the place of the tag.

use crate::{
    command::{Command, Completion, Opcode, Status},
    controller::{Controller, IO, NAMESPACE, REST},
    error::Error,
    identify,
    queue::Queue,
};
use alloc::{collections::VecDeque, vec, vec::Vec};
use block_driver::{
    BlockDriver, Dma, Failure, Geometry, Problem, Request,
    pci::{Interrupt, hardware::Hardware},
};
use protocol::{
    layout::PAGE,
    service::block_driver::{BLOCK, BUFFER},
};

/// Bytes of a list of pages: all of a buffer but the first, and no list crosses a page.
const LIST: usize = (BUFFER / PAGE as usize) * 8;
/// In dword 12 of Write Zeroes: the sectors need not keep room of their own.
const DEALLOCATE: u32 = 1 << 25;
/// Most sectors of a command, which counts them less one in 16 bits.
const SECTORS_MOST: u32 = 1 << 16;
/// Most blocks zeroed at once: other requests wait for a device that does one thing at a time.
const ZERO_MOST: u32 = (32 << 20) / BLOCK as u32;

/// What a request under way is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Zero,
    Other,
}

/// The disk that is namespace 1 of an NVMe controller.
pub struct Nvme<H> {
    controller: Controller<H>,
    /// Its line, if it interrupts by one; else it interrupts by messages.
    line: Option<Interrupt>,
    queue: Option<Queue>,
    /// The lists of pages, by tag.
    lists: Dma,
    /// What lies in the list of a tag: the buffer's second page, and how many pages. Clients' buffers stay where they are.
    listed: Vec<(u64, usize)>,
    /// By tag.
    under_way: Vec<Option<Kind>>,
    /// Taken from the device but not by the kit.
    done: VecDeque<(usize, Result<(), Failure>)>,
    /// What it was at the first reset: another disk must not take its place.
    identity: Option<(identify::Controller, identify::Namespace)>,
    /// Sectors of a block, as a power of two.
    shift: u32,
}

impl<H: Hardware> Nvme<H> {
    /// The disk behind the registers of a controller, `length` bytes of them. The controller is stopped: it touches no memory until
    /// [`BlockDriver::reset`].
    pub fn new(hardware: H, length: usize, memory: Dma) -> Result<Nvme<H>, Error> {
        let mut controller = Controller::new(hardware, length, memory)?;
        let tags = controller.commands();
        let (has, needs) = (memory.memory.length(), REST + tags * LIST);
        if has < needs {
            return Err(Error::Memory(has, needs));
        }
        controller.stop()?;
        Ok(Nvme {
            controller,
            line: None,
            queue: None,
            lists: memory.part(REST, tags * LIST),
            listed: vec![(0, 0); tags],
            under_way: vec![None; tags],
            done: VecDeque::with_capacity(tags),
            identity: None,
            shift: 0,
        })
    }

    /// Says that the device interrupts by this line, not by messages.
    pub fn interrupts_by(&mut self, line: Interrupt) {
        self.line = Some(line);
    }

    fn restart(&mut self) -> Result<(), Error> {
        self.controller.stop()?;
        self.controller.start()?;
        let controller = self.controller.identify_controller()?;
        if controller.transfer_most < BUFFER as u64 {
            return Err(Error::Transfer(controller.transfer_most));
        }
        let namespace = self.controller.identify_namespace()?;
        if self.identity.is_some_and(|known| known != (controller, namespace)) {
            return Err(Error::Changed);
        }
        self.identity = Some((controller, namespace));
        self.shift = (BLOCK as u32 / namespace.sector).trailing_zeros();
        self.queue = Some(self.controller.create_queues()?);
        Ok(())
    }

    /// The command for a read or a write.
    fn transfer(&mut self, tag: usize, opcode: Opcode, block: u64, buffer: Dma) -> Command {
        let pages = buffer.memory.length().div_ceil(PAGE as usize);
        let second = buffer.physical + PAGE;
        let second = match pages {
            0 | 1 => 0,
            2 => second,
            _ => {
                let list = self.lists.part(tag * LIST, LIST);
                let (start, listed) = self.listed[tag];
                if start != second || listed < pages {
                    for page in 0..pages - 1 {
                        list.memory.write_u64(page * 8, second + page as u64 * PAGE);
                    }
                    self.listed[tag] = (second, pages);
                }
                list.physical
            }
        };
        let sectors = ((buffer.memory.length() / BLOCK) as u32) << self.shift;
        self.command(opcode, [buffer.physical, second], block, sectors, 0)
    }

    fn command(&self, opcode: Opcode, pages: [u64; 2], block: u64, sectors: u32, flags: u32) -> Command {
        let sector = block << self.shift;
        let words = [sector as u32, (sector >> 32) as u32, sectors.wrapping_sub(1) & 0xffff | flags];
        Command { opcode, namespace: NAMESPACE, pages, words }
    }

    /// Takes the next completion from the device.
    fn take(&mut self) -> Option<(usize, Result<(), Failure>)> {
        let Completion { id, status, queue, .. } = self.queue.as_mut()?.pop()?;
        let tag = usize::from(id);
        let kind = self.under_way.get_mut(tag).and_then(Option::take).filter(|_| queue == IO);
        // A device that gives back what it was not given cannot be trusted with memory: the driver starts anew.
        let kind = kind.expect("the device gives back a command that it does not have");
        let result = match (status, kind) {
            (Status::OK, _) => Ok(()),
            (status, Kind::Zero) if status.is_unsupported() => Err(Failure::Unsupported),
            _ => Err(Failure::Failed),
        };
        Some((tag, result))
    }

    fn ring_head(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.ring_head(&mut self.controller.hardware);
        }
    }
}

impl<H: Hardware> BlockDriver for Nvme<H> {
    fn tags(&self) -> usize {
        self.under_way.len()
    }

    fn reset(&mut self) -> Result<(), Problem> {
        self.queue = None;
        self.under_way.fill(None);
        self.done.clear();
        let result = self.restart();
        if result.is_err() {
            // What was begun must not go on behind our back. That it cannot even be stopped is not worse than what is told anyway.
            let _ = self.controller.stop();
        }
        result.map_err(Problem::from)
    }

    fn geometry(&self) -> Geometry {
        let Some((controller, namespace)) = self.identity else {
            return Geometry { blocks: 0, sector: BLOCK as u32, read_only: true, zero_most: 0 };
        };
        Geometry {
            blocks: namespace.sectors >> self.shift,
            sector: namespace.sector,
            read_only: namespace.read_only,
            zero_most: if controller.can_zero { ZERO_MOST.min(SECTORS_MOST >> self.shift) } else { 0 },
        }
    }

    fn submit(&mut self, tag: usize, request: Request) {
        let has_cache = self.identity.is_some_and(|(controller, _)| controller.has_cache);
        let command = match request {
            Request::Read { block, buffer } => self.transfer(tag, Opcode::Read, block, buffer),
            Request::Write { block, buffer } => self.transfer(tag, Opcode::Write, block, buffer),
            // What has no cache has nothing to flush.
            Request::Flush if !has_cache => {
                self.done.push_back((tag, Ok(())));
                return;
            }
            Request::Flush => Command { opcode: Opcode::Flush, namespace: NAMESPACE, pages: [0; 2], words: [0; 3] },
            Request::Zero { block, count } => {
                let can_deallocate = self.identity.is_some_and(|(_, namespace)| namespace.can_deallocate);
                let flags = if can_deallocate { DEALLOCATE } else { 0 };
                self.command(Opcode::WriteZeroes, [0; 2], block, count << self.shift, flags)
            }
        };
        let kind = if matches!(request, Request::Zero { .. }) { Kind::Zero } else { Kind::Other };
        if let Some(queue) = &mut self.queue {
            self.under_way[tag] = Some(kind);
            queue.push(tag as u16, &command);
        }
    }

    fn notify(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.ring(&mut self.controller.hardware);
        }
    }

    fn finished(&mut self) -> Option<(usize, Result<(), Failure>)> {
        let next = self.done.pop_front().or_else(|| self.take());
        if next.is_none() {
            self.ring_head();
        }
        next
    }

    fn interrupt(&mut self, _: u64) {
        let Some(line) = self.line else {
            return;
        };
        // The line is released when all completions are taken.
        while let Some(finished) = self.take() {
            self.done.push_back(finished);
        }
        self.ring_head();
        line.acknowledge();
    }
}

#[cfg(test)]
mod tests;
