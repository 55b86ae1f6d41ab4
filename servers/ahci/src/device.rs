//! The disk as the kit for block drivers wants it.
//!
//! Reads and writes are queued commands (NCQ) whose tags are the requests' own, as many as there are, if controller and disk can do that.
//! Everything else goes **alone**: a flush, what is tried again after an error, all commands of a disk that cannot queue. A
//! command alone waits until nothing is under way, and others wait for it: so the order in which requests were given is kept
//! where it counts, and when a command alone fails it is known which.
//!
//! After an error among queued commands the disk has dropped all of them, and one is to blame. The link is reset, and each is tried once
//! more, alone: what fails then has failed.

use crate::{
    error::Error,
    fis::Command,
    hba::{Hba, numbers},
    identify::Identity,
    port::{MEMORY, Port},
    registers::*,
};
use alloc::{collections::VecDeque, vec, vec::Vec};
use block_driver::{
    BlockDriver, Dma, Failure, Geometry, Problem, Request,
    pci::{Interrupt, hardware::Hardware},
};
use protocol::service::block_driver::BLOCK;

/// A request that the driver has.
#[derive(Clone, Copy, Debug)]
struct Entry {
    request: Request,
    /// It failed among others and is tried once more.
    again: bool,
}

/// What is known of the disk.
#[derive(Clone, Copy, Debug)]
struct Found {
    port: Port,
    identity: Identity,
    /// Sectors of a block, as a power of two.
    shift: u32,
}

/// The disk at a port of an AHCI controller.
pub struct Ahci<H> {
    hba: Hba<H>,
    memory: Dma,
    interrupt: Option<Interrupt>,
    /// The only port that may be used.
    wanted: Option<usize>,
    /// The disk, once it was found: another one must not take its place.
    found: Option<Found>,
    /// Whether nothing was asked of it since it was reset.
    is_fresh: bool,
    /// Whether the port does not work: nothing goes on until it is reset.
    is_broken: bool,
    /// By tag.
    entries: Vec<Option<Entry>>,
    /// In the order in which they were given.
    waiting: VecDeque<usize>,
    /// Queued commands that the disk has, a bit for each tag.
    queued: u32,
    /// The command that it has alone.
    alone: Option<usize>,
    done: VecDeque<(usize, Result<(), Failure>)>,
}

impl<H: Hardware> Ahci<H> {
    /// The disk behind the registers of a controller, `length` bytes of them: at port `wanted`, else at the first that has one. The
    /// controller is reset: it touches no memory until [`BlockDriver::reset`]. `end` is behind all memory that it is to reach.
    pub fn new(hardware: H, length: usize, memory: Dma, end: u64, wanted: Option<usize>) -> Result<Ahci<H>, Error> {
        if memory.memory.length() < MEMORY {
            return Err(Error::Memory(memory.memory.length(), MEMORY));
        }
        let hba = Hba::new(hardware, length)?;
        if end.max(memory.physical + memory.memory.length() as u64) > hba.reach() {
            return Err(Error::Addresses);
        }
        if let Some(port) = wanted.filter(|port| hba.ports().all(|other| other != *port)) {
            return Err(Error::NoPort(port));
        }
        if hba.up() & wanted.map_or(!0, |port| 1 << port) == 0 {
            return Err(Error::NoDisk);
        }
        Ok(Ahci {
            hba,
            memory,
            interrupt: None,
            wanted,
            found: None,
            is_fresh: false,
            is_broken: false,
            entries: Vec::new(),
            waiting: VecDeque::new(),
            queued: 0,
            alone: None,
            done: VecDeque::new(),
        })
    }

    /// Says how the device interrupts.
    pub fn interrupts_by(&mut self, interrupt: Interrupt) {
        self.interrupt = Some(interrupt);
    }

    /// Resets everything, and finds the disk, or finds it again.
    fn restart(&mut self) -> Result<(), Error> {
        self.hba.reset()?;
        let only = self.found.map(|found| found.port.number).or(self.wanted);
        let candidates = self.hba.up() & only.map_or(!0, |port| 1 << port);
        let mut problem = Error::NoDisk;
        for number in numbers(candidates) {
            let port = Port { number, memory: self.memory };
            let hardware = &mut self.hba.hardware;
            let identity = port.start(hardware).and_then(|()| port.identify(hardware));
            match identity {
                Ok(identity) => return self.take(port, identity),
                Err(error) => problem = error,
            }
            // The next port gets the same memory.
            port.stop_all(hardware)?;
        }
        Err(problem)
    }

    fn take(&mut self, port: Port, identity: Identity) -> Result<(), Error> {
        match self.found {
            Some(found) if found.identity != identity => return Err(Error::Changed),
            Some(_) => {}
            None => {
                let tags = match identity.queued {
                    0 => 1,
                    _ if !self.hba.queues() => 1,
                    // A tag is also a place in the disk's queue.
                    queued => queued.min(self.hba.slots()),
                };
                self.entries = vec![None; tags];
                let shift = (BLOCK as u32 / identity.sector).trailing_zeros();
                self.found = Some(Found { port, identity, shift });
            }
        }
        port.enable_interrupts(&mut self.hba.hardware);
        self.hba.enable_interrupts();
        Ok(())
    }

    fn can_queue(&self, found: &Found) -> bool {
        self.hba.queues() && found.identity.queued > 0
    }

    /// Gives the disk what it can take.
    fn start(&mut self) {
        let Some(found) = self.found.filter(|_| !self.is_broken) else {
            return;
        };
        let mut issued = 0;
        while let Some(tag) = self.waiting.front().copied() {
            let Some(Entry { request, again }) = self.entries.get(tag).copied().flatten() else {
                self.waiting.pop_front();
                continue;
            };
            let is_queued = self.can_queue(&found) && !again && !matches!(request, Request::Flush);
            let is_free = self.alone.is_none() && (is_queued || self.queued == 0);
            if !is_free {
                break;
            }
            self.waiting.pop_front();
            let (command, data) = command(&found, request, is_queued);
            found.port.put(tag, command, data);
            issued |= 1 << tag;
            if is_queued {
                self.queued |= 1 << tag;
            } else {
                self.alone = Some(tag);
            }
        }
        if issued == 0 {
            return;
        }
        let hardware = &mut self.hba.hardware;
        if self.alone.is_none() {
            found.port.write(hardware, SACT, issued);
        }
        found.port.write(hardware, CI, issued);
    }

    /// Takes what the disk has finished. Returns whether there was an error, which is dealt with.
    fn look(&mut self) -> bool {
        let Some(found) = self.found.filter(|_| !self.is_broken) else {
            return false;
        };
        let (port, hardware) = (found.port, &self.hba.hardware);
        let under_way = self.queued | self.alone.map_or(0, |tag| 1 << tag);
        let finished = under_way & !(port.read(hardware, SACT) | port.read(hardware, CI));
        // A port that does not run has not finished commands but forgotten them: somebody has reset it, or it is not there any more.
        if finished == 0 || port.read(hardware, CMD) & CMD_START == 0 {
            return false;
        }
        if self.alone.is_some() && port.read(hardware, TFD) & TFD_FAILED != 0 {
            // Nothing may be issued before the error is dealt with, of which the interrupt will tell too.
            self.recover();
            return true;
        }
        self.queued &= !finished;
        self.alone = None;
        numbers(finished).for_each(|tag| self.finish(tag, Ok(())));
        false
    }

    fn finish(&mut self, tag: usize, result: Result<(), Failure>) {
        if let Some(entry) = self.entries.get_mut(tag) {
            *entry = None;
            self.done.push_back((tag, result));
        }
    }

    /// Gets the port to work again after an error (6.2.2).
    fn recover(&mut self) {
        let Some(Found { port, .. }) = self.found else {
            return;
        };
        let hardware = &mut self.hba.hardware;
        let task = port.read(hardware, TFD);
        // A command that the disk has not ended must not go on behind our back, and after an error among queued ones it takes nothing until
        // it is reset, or asked for its log.
        let reset = self.queued != 0
            || task & TFD_BUSY != 0
            || task & TFD_FAILED == 0
            || port.read(hardware, SSTS) & 0xf != DET_UP;
        if let Some(tag) = self.alone.take() {
            // It was there all the time: otherwise it would have been taken before.
            self.finish(tag, Err(Failure::Failed));
        }
        let again = core::mem::take(&mut self.queued);
        for tag in (0..self.entries.len()).rev().filter(|tag| again >> tag & 1 != 0) {
            if let Some(entry) = &mut self.entries[tag] {
                entry.again = true;
                self.waiting.push_front(tag);
            }
        }
        let hardware = &mut self.hba.hardware;
        let stopped = port.stop(hardware);
        if reset {
            port.reset_link(hardware);
        }
        // A port that does not come back answers nothing, and the kit resets everything.
        self.is_broken = stopped.and_then(|()| port.start(hardware)).is_err();
    }
}

/// What is said to the disk for a request.
fn command(found: &Found, request: Request, is_queued: bool) -> (Command, Option<Dma>) {
    let count = |buffer: &Dma| ((buffer.memory.length() / BLOCK) << found.shift) as u16;
    match request {
        Request::Read { block, buffer } => {
            let (sector, count) = (block << found.shift, count(&buffer));
            (if is_queued { Command::ReadQueued(sector, count) } else { Command::Read(sector, count) }, Some(buffer))
        }
        Request::Write { block, buffer } => {
            let (sector, count) = (block << found.shift, count(&buffer));
            (if is_queued { Command::WriteQueued(sector, count) } else { Command::Write(sector, count) }, Some(buffer))
        }
        // Zeros are written by the kit, as data: it is never asked for.
        Request::Flush | Request::Zero { .. } => (Command::Flush(found.identity.long_flush), None),
    }
}

impl<H: Hardware> BlockDriver for Ahci<H> {
    fn tags(&self) -> usize {
        self.entries.len()
    }

    fn reset(&mut self) -> Result<(), Problem> {
        if self.is_fresh {
            return Ok(());
        }
        self.entries.fill(None);
        self.waiting.clear();
        self.done.clear();
        (self.queued, self.alone) = (0, None);
        let result = self.restart();
        self.is_broken = result.is_err();
        self.is_fresh = result.is_ok();
        if result.is_err() {
            // What was begun must not go on behind our back. That it cannot even be reset is not worse than what is told anyway.
            let _ = self.hba.reset();
        }
        result.map_err(Problem::from)
    }

    fn geometry(&self) -> Geometry {
        match self.found {
            Some(Found { identity, shift, .. }) => {
                Geometry { blocks: identity.sectors >> shift, sector: identity.sector, read_only: false, zero_most: 0 }
            }
            None => Geometry { blocks: 0, sector: BLOCK as u32, read_only: true, zero_most: 0 },
        }
    }

    fn submit(&mut self, tag: usize, request: Request) {
        if matches!(request, Request::Zero { .. }) {
            self.done.push_back((tag, Err(Failure::Unsupported)));
            return;
        }
        self.is_fresh = false;
        self.entries[tag] = Some(Entry { request, again: false });
        self.waiting.push_back(tag);
    }

    fn notify(&mut self) {
        self.start();
    }

    fn finished(&mut self) -> Option<(usize, Result<(), Failure>)> {
        if self.done.is_empty() && (self.queued != 0 || self.alone.is_some()) {
            self.look();
            if !self.done.is_empty() {
                self.start();
            }
        }
        self.done.pop_front()
    }

    fn interrupt(&mut self, _: u64) {
        if let Some(Found { port, .. }) = self.found {
            let hardware = &mut self.hba.hardware;
            let status = port.read(hardware, PORT_IS);
            // First the port's, then the controller's: what comes in between asks again.
            port.write(hardware, PORT_IS, status);
            hardware.write(IS, 1 << port.number);
            if status != GONE {
                let recovered = self.look();
                if status & (IS_FAILED | IS_LINK) != 0 && !recovered && !self.is_broken {
                    self.recover();
                }
                self.start();
            }
        }
        if let Some(interrupt) = self.interrupt {
            interrupt.acknowledge();
        }
    }
}

#[cfg(test)]
mod tests;
