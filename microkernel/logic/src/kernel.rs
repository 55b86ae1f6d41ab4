//! The kernel: entry, dispatch, and the way back to a domain.

use crate::{
    Frame, Machine, NO_FRAME,
    block::{FLAG_REWARD, FLAG_WOKE, State},
    devices::Vectors,
    frames::FrameTable,
    paging::Missing,
    processors::{PROCESSORS, Processor},
    records::Unread,
    scheduler::{BATCH, SLICE, take_reward},
    timers,
};
use protocol::{
    abi::{Error, NEVER, Number, Reply, Request},
    domain::{EventKind, FAULT_PRESENT, FAULT_WRITE, line},
};

/// Timers that one timer interrupt handles; with more due, the next interrupt comes at once.
const TIMERS_AT_ONCE: usize = 64;

/// The kernel's whole state. What belongs to a domain lies in the domain's control block.
pub struct Kernel<M: Machine> {
    /// The hardware.
    pub machine: M,
    /// The frame table.
    pub frames: FrameTable,
    pub(crate) vectors: Vectors,
    /// The processor that is in the kernel.
    pub(crate) here: usize,
    /// Its record.
    pub(crate) cpu: Processor,
    /// Those of the others; that of `here` is out of date.
    pub(crate) parked: [Processor; PROCESSORS],
    /// Processors that run domains: the first so many.
    pub(crate) online: usize,
    /// The first frame that was not yet looked at for servers that are lost since the last one was.
    pub(crate) looked_at: Frame,
    /// Tests: the short ways are not taken.
    #[cfg(test)]
    pub(crate) long_way_only: bool,
}

/// Why a call did not end with its own results in the registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// It is refused.
    Refused(Error),
    /// It touched a page of the calling domain that is missing.
    Fault(Missing),
    /// The domain no longer runs, or its registers are set already.
    Done,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Refused(error)
    }
}

impl From<Missing> for Stop {
    fn from(missing: Missing) -> Stop {
        Stop::Fault(missing)
    }
}

impl From<Unread> for Stop {
    fn from(unread: Unread) -> Stop {
        match unread {
            Unread::Bad(error) => Stop::Refused(error),
            Unread::Missing(missing) => Stop::Fault(missing),
        }
    }
}

/// What a call returns: `Ok` sets `rax` to success.
pub(crate) type Outcome = Result<(), Stop>;

impl<M: Machine> Kernel<M> {
    /// A kernel without domains.
    pub fn new(machine: M, frames: FrameTable) -> Kernel<M> {
        Kernel {
            machine,
            frames,
            vectors: Vectors::new(),
            here: 0,
            cpu: Processor::NEW,
            parked: [Processor::NEW; PROCESSORS],
            online: 1,
            looked_at: 0,
            #[cfg(test)]
            long_way_only: false,
        }
    }

    /// The running domain has executed `syscall`; its registers are in its control block. Returns who runs next.
    #[inline(always)]
    pub fn system_call(&mut self) -> Frame {
        let me = self.cpu.current;
        let request = Request(self.machine.block(me).registers.rax);
        // The commonest calls by their short ways; the rest through the table.
        let number = request.0 & (Request::TOP | 0xff);
        #[cfg(test)]
        if self.long_way_only {
            return self.slow_call(me, request);
        }
        let short = (number == Request::new(Number::Call).0 && self.fast_call(me, request))
            || (number == Request::new(Number::ReplyWait).0 && self.fast_reply_wait(me, request));
        if short { self.go(self.cpu.current) } else { self.slow_call(me, request) }
    }

    #[inline(never)]
    fn slow_call(&mut self, me: Frame, request: Request) -> Frame {
        let outcome = self.dispatch(me, request);
        match outcome {
            Ok(()) => self.machine.block_mut(me).registers.rax = Reply::OK.0,
            Err(Stop::Done) => {}
            Err(stop) => self.refuse(me, stop),
        }
        self.leave()
    }

    fn dispatch(&mut self, me: Frame, request: Request) -> Outcome {
        if request.0 & Request::TOP == 0 {
            return Err(Error::BadNumber.into());
        }
        let Some(number) = Number::from_u8(request.number()) else { return Err(Error::BadNumber.into()) };
        match number {
            Number::Null => Ok(()),
            Number::Call => self.call(me, request),
            Number::ReplyWait => self.reply_wait(me, request),
            Number::Reply => self.reply(me, request),
            Number::Send => self.send(me, request),
            Number::Idle => self.idle(me),
            Number::Exit => self.exit(me),
            Number::Ready => self.ready(me),
            Number::Doorbell => self.doorbell(me),
            Number::InterruptReturn => self.interrupt_return(me),
            Number::Raise => self.raise_call(me),
            Number::Collect => self.collect(me),
            Number::Map => self.map(me),
            Number::Transfer => self.transfer(me),
            Number::DomainCreate => self.domain_create(me),
            Number::DomainControl => self.domain_control(me),
            Number::CapabilityCopy => self.capability_copy(me),
            Number::CapabilityDelete => self.capability_delete(me),
            Number::CapabilityInfo => self.capability_info(me),
            Number::InterruptCreate => self.interrupt_create(me),
            Number::InterruptBind => self.interrupt_bind(me),
            Number::InterruptAcknowledge => self.interrupt_acknowledge(me),
            Number::IoApicAdd => self.io_apic_add(me),
            Number::PortIo => self.port_io(me),
            Number::DebugWrite => self.debug_write(me),
            Number::SetBuffer => self.set_buffer(me),
            Number::SetTimer => self.set_timer(me),
            Number::DomainUsage => self.domain_usage(me),
            Number::DomainSave => self.domain_save(me),
            Number::DomainRestore => self.domain_restore(me),
            Number::Scan => self.scan(me),
            Number::ProcessorStart => self.processor_start(me),
        }
    }

    /// Ends a call that was refused. A missing page of a VM is a fault of the VM, which will execute the call again; of
    /// another domain, whose memory is always there, an error.
    #[inline(never)]
    pub(crate) fn refuse(&mut self, me: Frame, stop: Stop) {
        match stop {
            Stop::Refused(error) => self.machine.block_mut(me).registers.rax = Reply::error(error).0,
            Stop::Fault(missing) if self.machine.block(me).is_vm() => {
                let present = self.entry(self.machine.block(me).root, missing.address).is_present();
                let block = self.machine.block_mut(me);
                // `syscall` is two bytes long.
                block.registers.rip = block.registers.rip.wrapping_sub(2);
                let code = (FAULT_WRITE * u32::from(missing.write)) | (FAULT_PRESENT * u32::from(present));
                self.trap(me, EventKind::PageFault, code, missing.address, 0);
            }
            Stop::Fault(_) => self.machine.block_mut(me).registers.rax = Reply::error(Error::BadAddress).0,
            Stop::Done => {}
        }
    }

    /// The running domain has faulted; its registers are in its control block. Returns who runs next.
    pub fn exception(&mut self, vector: u8, error: u64, address: u64) -> Frame {
        let me = self.cpu.current;
        if me != NO_FRAME {
            if vector == 14 {
                if self.online > 1 && self.would_succeed(self.machine.block(me).root, address, error) {
                    return self.leave();
                }
                self.trap(me, EventKind::PageFault, error as u32, address, error);
            } else {
                self.trap(me, EventKind::Exception, u32::from(vector), 0, error);
            }
        }
        self.leave()
    }

    /// A hardware interrupt has come. Returns who runs next.
    pub fn hardware_interrupt(&mut self, vector: u8) -> Frame {
        self.hardware(vector);
        self.machine.end_of_interrupt();
        self.leave()
    }

    /// The timer has run out. Returns who runs next.
    pub fn timer_interrupt(&mut self) -> Frame {
        self.machine.end_of_interrupt();
        self.cpu.armed = NEVER;
        let now = self.machine.now();
        for _ in 0..TIMERS_AT_ONCE {
            let Some((frame, node)) = self.cpu.timers.expire(&mut self.machine, now) else { break };
            if node == timers::CLOCK {
                self.raise(frame, line::TIMER);
            } else {
                self.wait_over(frame);
            }
        }
        let batch_is_over = self.cpu.batch_end != 0 && now >= self.cpu.batch_end;
        if now >= self.cpu.slice_end || batch_is_over {
            self.cpu.reschedule = true;
        }
        if !self.cpu.reschedule {
            self.arm();
        }
        self.leave()
    }

    /// Chooses the first domain to run.
    pub fn run_first(&mut self) -> Frame {
        self.leave()
    }

    /// An interrupt that means nothing by itself has come: a spurious one, or another processor's. Returns who runs next.
    pub fn spurious_interrupt(&mut self) -> Frame {
        self.leave()
    }

    /// The domain that runs, or [`NO_FRAME`].
    pub fn running(&self) -> Frame {
        self.cpu.current
    }

    /// Takes the running domain off the processor; it is in no queue.
    #[inline]
    pub(crate) fn block_current(&mut self, me: Frame, state: State) {
        self.machine.block_mut(me).set_state(state);
        if self.cpu.current == me {
            self.cpu.current = NO_FRAME;
        }
    }

    /// Lets a domain run that is in no queue.
    pub(crate) fn make_runnable(&mut self, frame: Frame) {
        let now = if self.machine.block(frame).slice_left == 0 { 0 } else { self.machine.now() };
        let block = self.machine.block_mut(frame);
        block.set_state(State::Runnable);
        block.flags |= FLAG_WOKE;
        if now.saturating_sub(block.idle_since) >= SLICE {
            block.slice_left = 0;
        }
        let reward = take_reward(&mut self.machine, frame);
        self.enqueue(frame, reward);
    }

    /// Remembers that a domain goes idle of itself before its slice is over, for the reward: it will go first, with what is
    /// left. Only after a pause as long as a slice does it get a whole one; else short pauses would be a way to have the
    /// processor for ever.
    pub(crate) fn note_idle(&mut self, me: Frame) {
        let now = self.machine.now();
        let left = self.cpu.slice_end.saturating_sub(now).min(SLICE);
        let block = self.machine.block_mut(me);
        (block.slice_left, block.idle_since) = (left, now);
        if left > 0 {
            block.flags |= FLAG_REWARD;
        }
    }

    /// Chooses who runs next and loads it.
    #[inline(always)]
    pub(crate) fn leave(&mut self) -> Frame {
        if self.cpu.reschedule || self.cpu.current == NO_FRAME {
            self.choose();
            if self.cpu.current == NO_FRAME {
                self.rest();
                return NO_FRAME;
            }
        }
        self.go(self.cpu.current)
    }

    /// Loads a domain and brings it what is pending.
    #[inline(always)]
    fn go(&mut self, next: Frame) -> Frame {
        if next != self.cpu.loaded {
            self.switch(next);
        }
        if self.machine.block(next).pending != 0 {
            self.deliver(next);
        }
        next
    }

    #[inline(never)]
    fn choose(&mut self) {
        let now = self.machine.now();
        let current = self.cpu.current;
        if current != NO_FRAME {
            let band = self.machine.block(current).band;
            let over = now >= self.cpu.slice_end;
            let better = self.is_better_due(current, now);
            let giving_way = over && (self.online > 1 && self.fetch(Some(band)) || self.cpu.scheduler.any_in(band));
            if !better && !giving_way {
                if over || self.cpu.slice_end == NEVER {
                    self.cpu.slice_end = now.saturating_add(SLICE);
                }
                self.cpu.reschedule = false;
                self.arm();
                return;
            }
            // Who is only preempted goes on first, with what is left of its slice: it gains nothing by waking a server.
            let left = self.cpu.slice_end.saturating_sub(now).min(SLICE);
            let block = self.machine.block_mut(current);
            (block.slice_left, block.flags) = (left, block.flags & !FLAG_WOKE);
            self.enqueue(current, left > 0);
            if over && self.online > 1 {
                self.offer(band, now);
            }
        }
        self.cpu.current = NO_FRAME;
        if !self.cpu.scheduler.is_empty() || self.online > 1 && self.fetch(None) {
            self.cpu.current = self.take_next(now).unwrap_or(NO_FRAME);
        }
        self.cpu.reschedule = false;
        self.cpu.slice_end = NEVER;
        if self.cpu.current != NO_FRAME {
            let left = core::mem::take(&mut self.machine.block_mut(self.cpu.current).slice_left);
            self.cpu.slice_end = now.saturating_add(if left == 0 { SLICE } else { left });
        }
        self.arm();
    }

    /// Whether a domain of a better band waits for which the running one has to give way now. One that woke need not at once: that begins a batch.
    fn is_better_due(&mut self, current: Frame, now: u64) -> bool {
        let block = self.machine.block(current);
        if !self.cpu.scheduler.better_than(block.band) {
            self.cpu.batch_end = 0;
            return false;
        }
        if block.flags & FLAG_WOKE != 0 && self.cpu.batch_end == 0 {
            self.cpu.batch_end = now.saturating_add(BATCH);
        }
        now >= self.cpu.batch_end
    }

    /// Takes out who is to run next: while a batch lasts VMs that woke, then the first of the best band.
    fn take_next(&mut self, now: u64) -> Option<Frame> {
        let woken = if now < self.cpu.batch_end { self.cpu.scheduler.take_woken(&mut self.machine) } else { None };
        if woken.is_some() {
            return woken;
        }
        self.cpu.batch_end = 0;
        self.cpu.scheduler.take(&mut self.machine)
    }

    /// Sets the timer to whatever comes first: the earliest deadline, the end of a batch, or the end of the slice if somebody waits for it.
    pub(crate) fn arm(&mut self) {
        let waited_for =
            self.cpu.current != NO_FRAME && self.cpu.scheduler.any_in(self.machine.block(self.cpu.current).band);
        let slice = if waited_for { self.cpu.slice_end } else { NEVER };
        let slice = if self.cpu.batch_end == 0 { slice } else { slice.min(self.cpu.batch_end) };
        let deadline = self.cpu.timers.earliest(&self.machine).map_or(slice, |timer| timer.min(slice));
        if deadline != self.cpu.armed {
            self.cpu.armed = deadline;
            self.machine.arm_timer(deadline);
        }
    }

    #[inline(always)]
    fn switch(&mut self, next: Frame) {
        let ticks = self.machine.ticks();
        let previous = self.charge(ticks);
        let block = self.machine.block_mut(next);
        block.switches = block.switches.wrapping_add(1);
        block.processor = self.here as u8;
        self.machine.switch(previous, next);
        self.cpu.loaded = next;
    }

    /// Charges the loaded domain for the time since the last switch, and returns it.
    #[inline(always)]
    fn charge(&mut self, ticks: u64) -> Frame {
        let loaded = self.cpu.loaded;
        if loaded != NO_FRAME {
            let block = self.machine.block_mut(loaded);
            block.cpu_ticks = block.cpu_ticks.wrapping_add(ticks.wrapping_sub(self.cpu.since));
        }
        self.cpu.since = ticks;
        loaded
    }

    /// Before the processor sleeps: the time from here on is nobody's. Only a processor that is alone keeps what it has loaded.
    #[inline(never)]
    fn rest(&mut self) {
        let ticks = self.machine.ticks();
        let loaded = self.charge(ticks);
        if self.online > 1 && loaded != NO_FRAME {
            self.machine.switch(loaded, NO_FRAME);
            self.cpu.loaded = NO_FRAME;
        }
    }

    /// An interrupt has come: if the processor slept, the time asleep is nobody's.
    pub fn resume_from_idle(&mut self) {
        if self.cpu.current == NO_FRAME {
            self.cpu.since = self.machine.ticks();
        }
    }

    /// Forgets that a domain which is about to die or be reset is loaded.
    pub(crate) fn unload(&mut self, frame: Frame) {
        if self.cpu.loaded == frame {
            let ticks = self.machine.ticks();
            self.charge(ticks);
            self.machine.switch(frame, NO_FRAME);
            self.cpu.loaded = NO_FRAME;
        }
    }

    /// Whether a domain's address space is loaded.
    pub(crate) fn is_loaded(&self, frame: Frame) -> bool {
        self.cpu.loaded == frame
    }
}
