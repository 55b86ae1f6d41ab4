//! Traps and doorbells: events of one domain, queued at another.
//!
//! A domain stands in at most four queues: that of its handler for traps, and those of the services behind
//! its three doorbells. The queues go through the control blocks, so no event is ever lost for want
//! of room and a doorbell rung twice is one event.

use crate::{
    Frame, Kernel, Machine, NO_FRAME,
    block::{DomainRef, State, Trap},
    control::CLIENTS_AT_ONCE,
    kernel::{Outcome, Stop},
    lists::{self, Through},
    paging::UserRange,
};
use protocol::{
    abi::{Error, Reply, Target},
    domain::{Device, Event, EventKind, QUEUES, TRAP_QUEUE, queue_line},
    memory::BATCH,
};

/// Frames that one step of a search for lost servers looks at.
const FRAMES_AT_ONCE: u32 = 1024;

impl<M: Machine> Kernel<M> {
    /// Stops a domain for its handler.
    pub(crate) fn trap(&mut self, me: Frame, kind: EventKind, code: u32, address: u64, value: u64) {
        self.extract(me);
        let block = self.machine.block_mut(me);
        block.trap = Trap { kind: kind as u32, code, address, value };
        block.set_state(if kind == EventKind::Exit { State::Stopped } else { State::Trapped });
        if !self.is_lost(me) {
            let _ = self.post(me, TRAP_QUEUE);
        } else if !self.machine.block(me).is_vm() {
            // It stays as it is; somebody must be told.
            let instruction = self.machine.block(me).registers.rip;
            self.machine.report_unhandled(self.handler(me).is_none(), kind, code, address, instruction);
            self.looked_at = 0;
            self.tell_clients_of_lost(me);
        }
    }

    /// The domain that takes the traps of another.
    fn handler(&self, frame: Frame) -> Option<Frame> {
        let DomainRef { frame, generation } = self.machine.block(frame).services[usize::from(TRAP_QUEUE)];
        self.frames.is_block(frame, generation).then_some(frame)
    }

    fn has_ended(&self, frame: Frame) -> bool {
        matches!(self.machine.block(frame).state(), State::Trapped | State::Stopped)
    }

    /// Whether a domain has trapped or ended for good: there is nobody to handle it, or only one who has ended and has nobody himself (`init`).
    pub(crate) fn is_lost(&self, frame: Frame) -> bool {
        let gone = |handler| self.has_ended(handler) && self.handler(handler).is_none();
        self.has_ended(frame) && self.handler(frame).is_none_or(gone)
    }

    /// Nobody will start `lost` again, nor those that have ended and that only it would have started: who waits for one of them must not wait for
    /// ever. Does a part of it; the rest when the timer of `lost` comes, which it needs for nothing else any more.
    pub(crate) fn tell_clients_of_lost(&mut self, lost: Frame) {
        let mut budget = CLIENTS_AT_ONCE;
        let mut all = self.fail_clients(lost, &mut budget);
        let length = self.frames.length() as Frame;
        for _ in 0..FRAMES_AT_ONCE {
            if !all || self.looked_at >= length {
                break;
            }
            let frame = self.looked_at;
            all = !self.frames.has_block(frame) || !self.is_lost(frame) || self.fail_clients(frame, &mut budget);
            self.looked_at += Frame::from(all);
        }
        if !all || self.looked_at < length {
            // Later than now: not in this turn of the timer.
            self.wait_until(lost, self.machine.now().saturating_add(1));
        }
    }

    /// Puts a domain into the queue of the service behind one of its four events.
    pub(crate) fn post(&mut self, me: Frame, queue: u8) -> Result<(), Error> {
        let block = self.machine.block_mut(me);
        let DomainRef { frame: service, generation } = block.services[usize::from(queue)];
        if service == NO_FRAME || !self.frames.is_block(service, generation) {
            return Err(Error::Gone);
        }
        let bit = 1u8 << queue;
        if block.queued & bit != 0 {
            return Ok(());
        }
        block.queued |= bit;
        let head = self.machine.block(service).queues[usize::from(queue)];
        let pushed = lists::push_back(&mut self.machine, head, me, Through::Event(queue));
        self.machine.block_mut(service).queues[usize::from(queue)] = pushed;
        if head.first == NO_FRAME {
            self.raise(service, queue_line(queue));
        }
        Ok(())
    }

    /// Takes a domain out of the queue of one of its events.
    fn withdraw(&mut self, me: Frame, queue: u8) {
        let block = self.machine.block_mut(me);
        let bit = 1u8 << queue;
        if block.queued & bit == 0 {
            return;
        }
        block.queued &= !bit;
        let service = block.services[usize::from(queue)].frame;
        let head = self.machine.block(service).queues[usize::from(queue)];
        let rest = lists::remove(&mut self.machine, head, me, Through::Event(queue));
        self.machine.block_mut(service).queues[usize::from(queue)] = rest;
    }

    /// Takes a domain out of all queues that it stands in.
    pub(crate) fn withdraw_all(&mut self, me: Frame) {
        for queue in 0..QUEUES as u8 {
            self.withdraw(me, queue);
        }
    }

    /// Sets the service behind a doorbell; an event at the former one is taken back.
    pub(crate) fn set_service(&mut self, me: Frame, queue: u8, service: DomainRef) {
        self.withdraw(me, queue);
        self.machine.block_mut(me).services[usize::from(queue)] = service;
    }

    /// Empties the event queues of a domain that dies, at most `budget` events of them; whether all is done.
    pub(crate) fn drain_queues(&mut self, me: Frame, mut budget: u32) -> bool {
        for queue in 0..QUEUES as u8 {
            while self.machine.block(me).queues[usize::from(queue)].first != NO_FRAME {
                if budget == 0 {
                    return false;
                }
                budget -= 1;
                let first = self.machine.block(me).queues[usize::from(queue)].first;
                self.withdraw(first, queue);
            }
        }
        true
    }

    /// `Number::Exit`.
    pub(crate) fn exit(&mut self, me: Frame) -> Outcome {
        let code = self.machine.block(me).registers.rdi as u32;
        self.trap(me, EventKind::Exit, code, 0, 0);
        Err(Stop::Done)
    }

    /// `Number::Ready`.
    pub(crate) fn ready(&mut self, me: Frame) -> Outcome {
        self.machine.block_mut(me).registers.rax = Reply::OK.0;
        self.trap(me, EventKind::Ready, 0, 0, 0);
        Err(Stop::Done)
    }

    /// `Number::Doorbell`.
    pub(crate) fn doorbell(&mut self, me: Frame) -> Outcome {
        match self.machine.block(me).registers.rdi {
            device @ 1..=3 => Ok(self.post(me, device as u8)?),
            _ => Err(Error::BadArgument.into()),
        }
    }

    /// Rings the doorbells of the devices whose bits are set; other bits are refused. A service that is not there looks at all queues when it is back.
    pub(crate) fn ring(&mut self, me: Frame, doorbells: u64) -> Result<(), Error> {
        let all = Device::Nic.bit() | Device::Disk.bit() | Device::Console.bit();
        if doorbells & !all != 0 {
            return Err(Error::BadArgument);
        }
        for device in 1..=3 {
            if doorbells >> device & 1 != 0 {
                let _ = self.post(me, device);
            }
        }
        Ok(())
    }

    /// `Number::Collect`.
    pub(crate) fn collect(&mut self, me: Frame) -> Outcome {
        let block = self.machine.block(me);
        let (queue, address, room) = (block.registers.rdi, block.registers.words[0], block.registers.words[1]);
        let root = block.root;
        if queue >= QUEUES as u64 || room > BATCH as u64 {
            return Err(Error::BadArgument.into());
        }
        let queue = queue as u8;
        self.probe_user(root, UserRange::records::<Event>(address, room)?, true)?;
        let mut taken = 0;
        while taken < room {
            let from = self.machine.block(me).queues[usize::from(queue)].first;
            if from == NO_FRAME {
                break;
            }
            self.withdraw(from, queue);
            let event = self.event(from, queue);
            let at = UserRange::records::<Event>(address + taken * size_of::<Event>() as u64, 1)?;
            self.write_user(root, at, &event_bytes(&event))?;
            taken += 1;
        }
        self.machine.block_mut(me).registers.rdi = taken;
        Ok(())
    }

    fn event(&self, from: Frame, queue: u8) -> Event {
        let block = self.machine.block(from);
        let event = Event {
            frame: from,
            generation: block.generation & Target::GENERATION_MASK,
            tag: block.tag,
            kind: EventKind::Doorbell as u32,
            code: u32::from(queue),
            ..Event::default()
        };
        if queue != TRAP_QUEUE {
            return event;
        }
        Event {
            kind: block.trap.kind,
            code: block.trap.code,
            address: block.trap.address,
            instruction: block.registers.rip,
            value: block.trap.value,
            ..event
        }
    }
}

/// An event as it lies in memory.
fn event_bytes(event: &Event) -> [u8; size_of::<Event>()] {
    let mut bytes = [0; size_of::<Event>()];
    let words = [
        u64::from(event.frame) | u64::from(event.generation) << 32,
        event.tag,
        u64::from(event.kind) | u64::from(event.code) << 32,
        event.address,
        event.instruction,
        event.value,
    ];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}
