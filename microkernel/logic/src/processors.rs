//! Several processors: what belongs to each, where a domain runs, how it is taken back.
//!
//! One lock, so one processor at a time is in the kernel. Two rules keep the rest of the kernel as simple as with one:
//!
//! * A processor that runs a domain has that domain loaded, and a processor that rests has none. So no domain is loaded in
//!   two places, and whoever holds the lock may change all of a domain that is not running elsewhere.
//! * A domain that *is* running elsewhere is first *recalled*: that processor comes into the kernel, saves everything in the
//!   control block, unloads, and stays until it gets the lock. It loads the domain anew then, so it has no old translations.

use crate::{
    Frame, Kernel, Machine, NO_FRAME,
    block::State,
    lists::{Through, remove},
    scheduler::Scheduler,
    timers::{self, Timers},
};
use protocol::abi::NEVER;

/// Most processors.
pub const PROCESSORS: usize = 64;

/// What the kernel keeps of a processor.
#[derive(Clone, Copy)]
pub(crate) struct Processor {
    /// The domain that runs; [`NO_FRAME`]: none.
    pub current: Frame,
    /// The domain whose address space and floating-point state are loaded.
    pub loaded: Frame,
    /// Ticks at which `loaded` was switched to.
    pub since: u64,
    /// When the slice of the running domain ends.
    pub slice_end: u64,
    /// Until when domains that woke go first though better ones wait ([`crate::scheduler::BATCH`]); 0: no better one waits.
    pub batch_end: u64,
    /// What the timer is set to.
    pub armed: u64,
    /// Somebody woke, or the slice is over: look for a better domain before going back.
    pub reschedule: bool,
    /// It was interrupted to look at its queue, and has not come yet.
    pub kicked: bool,
    /// It was recalled, and will enter with an exception of its domain that would not come again.
    pub brings_trap: bool,
    /// Who waits to run here.
    pub scheduler: Scheduler,
    /// The deadlines that its timer interrupt handles.
    pub timers: Timers,
}

impl Processor {
    pub const NEW: Processor = Processor {
        current: NO_FRAME,
        loaded: NO_FRAME,
        since: 0,
        slice_end: NEVER,
        batch_end: 0,
        armed: NEVER,
        reschedule: true,
        kicked: false,
        brings_trap: false,
        scheduler: Scheduler::EMPTY,
        timers: Timers::EMPTY,
    };

    /// Whether it has nothing to do.
    fn is_free(&self) -> bool {
        self.current == NO_FRAME && self.scheduler.is_empty()
    }

    /// Whether its timer comes by the end of the slice.
    pub(crate) fn ends_slice(&self) -> bool {
        self.armed <= self.slice_end
    }
}

impl<M: Machine> Kernel<M> {
    /// Says which processor has entered the kernel: to be called first, each time, by whoever has taken the lock.
    #[inline(always)]
    pub fn enter(&mut self, processor: usize) {
        if processor != self.here {
            self.change(processor);
        }
    }

    #[inline(never)]
    fn change(&mut self, processor: usize) {
        self.parked[self.here] = self.cpu;
        self.cpu = self.parked[processor];
        (self.cpu.kicked, self.cpu.brings_trap) = (false, false);
        self.here = processor;
    }

    /// One more processor enters, for the first time; its number is how many there were. Returns who runs on it.
    pub fn join(&mut self) -> Frame {
        if self.online == 1 && self.cpu.current == NO_FRAME && self.cpu.loaded != NO_FRAME {
            // While it was alone the first one kept what it had loaded when it rested.
            self.machine.recall(self.here);
            self.cpu.loaded = NO_FRAME;
        }
        let processor = self.online;
        self.online += 1;
        self.parked[processor] = Processor { since: self.machine.ticks(), ..Processor::NEW };
        self.enter(processor);
        self.leave()
    }

    /// Processors that run domains.
    pub fn online(&self) -> usize {
        self.online
    }

    /// The record of a processor.
    pub(crate) fn processor(&self, processor: usize) -> &Processor {
        if processor == self.here { &self.cpu } else { &self.parked[processor] }
    }

    /// The processors that have joined, but for this one.
    fn others(&self) -> impl Iterator<Item = usize> + use<M> {
        let here = self.here;
        (0..self.online).filter(move |processor| *processor != here)
    }

    /// Whether a domain runs at this moment, and where if not here.
    pub(crate) fn runs_on(&self, frame: Frame) -> Option<usize> {
        let processor = usize::from(self.machine.block(frame).processor);
        (self.processor(processor).current == frame).then_some(processor)
    }

    /// Ticks that the domain on a processor runs since it was last charged.
    pub(crate) fn ticks_running(&self, processor: usize) -> u64 {
        self.machine.ticks().saturating_sub(self.processor(processor).since)
    }

    /// Lets another processor come into the kernel and look who should run.
    #[inline(never)]
    fn kick(&mut self, processor: usize) {
        let other = &mut self.parked[processor];
        other.reschedule = true;
        if !other.kicked {
            other.kicked = true;
            self.machine.interrupt(processor);
        }
    }

    /// Whether another processor runs this domain.
    #[inline]
    pub(crate) fn runs_elsewhere(&self, frame: Frame) -> bool {
        self.online > 1 && self.runs_on(frame).is_some_and(|processor| processor != self.here)
    }

    /// Lets the other processor that runs this domain bring what is pending.
    pub(crate) fn kick_runner(&mut self, frame: Frame) {
        self.kick(usize::from(self.machine.block(frame).processor));
    }

    /// If another processor runs this domain, makes it stop in the kernel until this one leaves: everything of the domain is in
    /// its control block then, and nobody uses its page tables. Returns which processor.
    pub(crate) fn recall(&mut self, frame: Frame) -> Option<usize> {
        if self.online == 1 {
            return None;
        }
        let processor = self.runs_on(frame).filter(|processor| *processor != self.here)?;
        if self.parked[processor].loaded == frame {
            let trap = self.machine.recall(processor);
            let ticks = self.machine.ticks();
            let other = &mut self.parked[processor];
            let used = ticks.wrapping_sub(other.since);
            (other.loaded, other.since, other.brings_trap) = (NO_FRAME, ticks, trap);
            let block = self.machine.block_mut(frame);
            block.cpu_ticks = block.cpu_ticks.wrapping_add(used);
        }
        Some(processor)
    }

    /// Takes a domain out of whatever it is in: queue, list, timers, processor. Its state is the caller's to set.
    pub(crate) fn extract(&mut self, frame: Frame) {
        let block = self.machine.block(frame);
        let (partner, processor) = (block.partner, usize::from(block.processor));
        match block.state() {
            State::Runnable => {
                if self.recall(frame).is_some() || self.cpu.current == frame {
                    let cpu = self.processor_mut(processor);
                    (cpu.current, cpu.slice_end, cpu.reschedule) = (NO_FRAME, NEVER, true);
                } else if processor == self.here {
                    self.cpu.scheduler.remove(&mut self.machine, frame);
                } else {
                    self.parked[processor].scheduler.remove(&mut self.machine, frame);
                }
            }
            State::Calling => {
                let callers = self.machine.block(partner).callers;
                self.machine.block_mut(partner).callers = remove(&mut self.machine, callers, frame, Through::Main);
            }
            State::Awaiting => {
                let clients = self.machine.block(partner).clients;
                self.machine.block_mut(partner).clients = remove(&mut self.machine, clients, frame, Through::Main);
            }
            _ => {}
        }
        self.cancel_timer(frame, timers::WAIT);
    }

    /// Puts a domain that can run, and is in no queue, into that of the best processor for it.
    #[inline]
    pub(crate) fn enqueue(&mut self, frame: Frame, front: bool) {
        if self.online > 1 {
            return self.enqueue_best(frame, front);
        }
        self.cpu.scheduler.add(&mut self.machine, frame, front);
        self.cpu.reschedule = true;
    }

    #[inline(never)]
    fn enqueue_best(&mut self, frame: Frame, front: bool) {
        let processor = self.processor_for(frame);
        let block = self.machine.block_mut(frame);
        block.processor = processor as u8;
        let band = block.band;
        if processor == self.here {
            self.cpu.scheduler.add(&mut self.machine, frame, front);
            self.cpu.reschedule = true;
            return;
        }
        let comes = !self.parked[processor].is_free() && self.is_as_good(processor, band);
        let other = &mut self.parked[processor];
        other.scheduler.add(&mut self.machine, frame, front);
        if !comes || !other.ends_slice() {
            self.kick(processor);
        }
    }

    /// Where a domain should run: where it ran last, if nobody does; else where nobody runs; else where somebody of a worse band
    /// does; else it waits where it ran last.
    fn processor_for(&self, frame: Frame) -> usize {
        let block = self.machine.block(frame);
        let (last, band) = (usize::from(block.processor), block.band);
        let candidates = || [last, self.here].into_iter().chain(self.others());
        let free = |processor: &usize| self.processor(*processor).is_free();
        let worse = |processor: &usize| !self.is_as_good(*processor, band);
        candidates().find(free).or_else(|| candidates().find(worse)).unwrap_or(last)
    }

    /// Whether a processor runs, or has waiting, a domain at least as good as one of this band.
    fn is_as_good(&self, processor: usize, band: u8) -> bool {
        let cpu = self.processor(processor);
        cpu.scheduler.any_as_good(band) || cpu.current != NO_FRAME && self.machine.block(cpu.current).band <= band
    }

    /// Brings a domain from the longest queue elsewhere to the front of this processor's, to run next; whether there was one.
    /// `band`: only one of this band, and only from where more of that band wait than here.
    #[inline(never)]
    pub(crate) fn fetch(&mut self, band: Option<u8>) -> bool {
        let waiting = |processor: usize| {
            let cpu = self.processor(processor);
            // One that was kicked comes for the first by itself.
            let own = u32::from(cpu.current == NO_FRAME);
            band.map_or(cpu.scheduler.len(), |band| cpu.scheduler.len_of(band)).saturating_sub(own)
        };
        let here = band.map_or(0, |band| self.cpu.scheduler.len_of(band));
        let longest = self.others().map(|other| (waiting(other), other)).max_by_key(|(length, _)| *length);
        let Some((_, other)) = longest.filter(|(length, _)| *length > here) else { return false };
        let scheduler = &mut self.parked[other].scheduler;
        let taken = match band {
            Some(band) => scheduler.take_of(&mut self.machine, band),
            None => scheduler.take(&mut self.machine),
        };
        let Some(frame) = taken else { return false };
        self.machine.block_mut(frame).processor = self.here as u8;
        self.cpu.scheduler.add(&mut self.machine, frame, true);
        true
    }

    /// At the end of a slice, when more domains wait here than at another processor that runs one of the same band for longer than a slice
    /// already: that one shall fetch one of them.
    #[inline(never)]
    pub(crate) fn offer(&mut self, band: u8, now: u64) {
        let waiting = self.cpu.scheduler.len_of(band);
        let lonely = |processor: &usize| {
            let cpu = &self.parked[*processor];
            let same = cpu.current != NO_FRAME && self.machine.block(cpu.current).band == band;
            same && now >= cpu.slice_end && cpu.scheduler.len_of(band) < waiting
        };
        if let Some(processor) = self.others().find(lonely) {
            self.kick(processor);
        }
    }

    /// Sets a timer of a domain; this processor's timer interrupt will handle it.
    pub(crate) fn set_timer_node(&mut self, frame: Frame, node: usize, deadline: u64) {
        self.cancel_timer(frame, node);
        self.machine.block_mut(frame).timer_processors[node] = self.here as u8;
        self.cpu.timers.set(&mut self.machine, frame, node, deadline);
        self.arm();
    }

    /// Takes a timer of a domain out, if it is set.
    #[inline(always)]
    pub(crate) fn cancel_timer(&mut self, frame: Frame, node: usize) {
        if self.machine.block(frame).timers[node].deadline != 0 {
            self.take_timer(frame, node);
        }
    }

    #[inline(never)]
    fn take_timer(&mut self, frame: Frame, node: usize) {
        let processor = usize::from(self.machine.block(frame).timer_processors[node]);
        if processor == self.here {
            self.cpu.timers.cancel(&mut self.machine, frame, node);
        } else {
            self.parked[processor].timers.cancel(&mut self.machine, frame, node);
        }
    }

    fn processor_mut(&mut self, processor: usize) -> &mut Processor {
        if processor == self.here { &mut self.cpu } else { &mut self.parked[processor] }
    }
}
