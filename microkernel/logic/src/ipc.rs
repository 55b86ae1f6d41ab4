//! Messages: call, reply, send.
//!
//! A channel is a capability with CALL to the domain at its other end; there is no object in between. A call to a waiting server
//! on the same processor switches to it directly, and the reply switches back, without the scheduler.

use crate::{
    Frame, Kernel, Machine, NO_FRAME,
    block::State,
    kernel::{Outcome, Stop},
    lists::{self, Through},
    paging::{Missing, UserRange},
    timers::WAIT,
};
use protocol::{
    abi::{Error, LONG_MESSAGE, NEVER, Reply, Request, SHORT_MESSAGE, Target, TargetKind, Wake},
    capability::{Kind, Rights, SLOTS},
};

/// Why a message could not be delivered.
enum Undelivered {
    /// The sender is at fault.
    Sender(Stop),
    /// The receiver has no buffer for it.
    Receiver,
}

impl<M: Machine> Kernel<M> {
    /// The domain that the slot `slot` of `me` lets it call. A peer that was restarted is `Gone` once.
    #[inline]
    fn callee(&mut self, me: Frame, slot: u64) -> Result<(Frame, u64), Error> {
        let slot = slot as usize;
        if slot >= SLOTS {
            return Err(Error::NoCapability);
        }
        let capability = &self.machine.block(me).slots[slot];
        capability.require(Kind::Domain, Rights::CALL)?;
        let (peer, generation, incarnation, badge) =
            (capability.first, capability.generation, capability.incarnation, capability.badge);
        if peer == me || !self.frames.is_block(peer, generation) {
            return Err(if peer == me { Error::BadArgument } else { Error::Gone });
        }
        let block = self.machine.block(peer);
        if block.incarnation != incarnation {
            let now = block.incarnation;
            self.machine.block_mut(me).slots[slot].incarnation = now;
            return Err(Error::Gone);
        }
        if matches!(block.state(), State::Resetting | State::Dying) || self.is_lost(peer) {
            return Err(Error::Gone);
        }
        Ok((peer, badge))
    }

    /// `Number::Call`.
    #[inline]
    pub(crate) fn call(&mut self, me: Frame, request: Request) -> Outcome {
        if usize::from(request.length()) > LONG_MESSAGE {
            return Err(Error::TooLong.into());
        }
        let slot = self.machine.block(me).registers.rdi;
        let (server, badge) = self.callee(me, slot)?;
        let block = self.machine.block_mut(me);
        block.sequence = block.sequence.wrapping_add(1);
        block.partner = server;
        block.badge = badge;
        block.request = request.0;
        block.lend = block.registers.r15;
        if self.machine.block(server).state() == State::Receiving {
            match self.deliver_message(me, server, Wake::Call) {
                Ok(()) => {
                    self.await_reply(me, server);
                    self.cancel_timer(server, WAIT);
                    self.machine.block_mut(server).set_state(State::Runnable);
                    self.continue_with(server);
                    return Err(Stop::Done);
                }
                Err(Undelivered::Sender(stop)) => return Err(stop),
                Err(Undelivered::Receiver) => return Err(Error::TooLong.into()),
            }
        }
        self.block_current(me, State::Calling);
        let callers = self.machine.block(server).callers;
        self.machine.block_mut(server).callers = lists::push_back(&mut self.machine, callers, me, Through::Main);
        Err(Stop::Done)
    }

    /// `me` was taken by `server`.
    #[inline]
    fn await_reply(&mut self, me: Frame, server: Frame) {
        self.block_current(me, State::Awaiting);
        let clients = self.machine.block(server).clients;
        self.machine.block_mut(server).clients = lists::push_back(&mut self.machine, clients, me, Through::Main);
    }

    /// Copies the message of `from`, whose request and badge are in its control block, into the registers and buffer of `to`.
    #[inline]
    fn deliver_message(&mut self, from: Frame, to: Frame, wake: Wake) -> Result<(), Undelivered> {
        let sender = self.machine.block(from);
        let request = Request(sender.request);
        let (words, badge, sequence) = (sender.registers.words, sender.badge, sender.sequence);
        if usize::from(request.length()) > SHORT_MESSAGE {
            self.copy_message(from, to, words[0], request.length())?;
        }
        let mut answer = Reply::message(request.label(), request.length(), wake);
        if let Some(slot) = request.given()
            && self.give(from, slot, to)
        {
            answer = answer.with_capability();
        }
        let token = if wake == Wake::Call { Target::caller(from, sequence).0 } else { 0 };
        let receiver = self.machine.block_mut(to);
        receiver.registers.words = words;
        receiver.registers.rax = answer.0;
        receiver.registers.rdi = token;
        receiver.registers.r15 = badge;
        Ok(())
    }

    /// Copies a long message into the receiver's buffer.
    #[inline(never)]
    fn copy_message(&mut self, from: Frame, to: Frame, address: u64, length: u16) -> Result<(), Undelivered> {
        let (source, destination) = (self.machine.block(from).root, self.machine.block(to).root);
        let buffer = self.machine.block(to).buffer;
        let length = u64::from(length);
        let range = UserRange::new(address, length).map_err(|error| Undelivered::Sender(error.into()))?;
        self.probe_user(source, range, false).map_err(|missing| Undelivered::Sender(missing.into()))?;
        if buffer == 0 {
            return Err(Undelivered::Receiver);
        }
        // The buffer is one page, so only the source is cut at page boundaries.
        let target = self.translate(destination, buffer, true).map_err(|_| Undelivered::Receiver)?;
        let mut done = 0;
        while done < length {
            let at = address + done;
            let here = (length - done).min(4096 - at % 4096);
            let physical = self.translate(source, at, false).map_err(|missing| Undelivered::Sender(missing.into()))?;
            self.machine.copy(Some(physical), target + done, here as usize);
            done += here;
        }
        Ok(())
    }

    /// Copies a capability along with a message, if the receiver takes one; whether it did.
    fn give(&mut self, from: Frame, slot: u8, to: Frame) -> bool {
        let Some(capability) = self.machine.block(from).slots.get(usize::from(slot)).copied() else { return false };
        let receiver = self.machine.block_mut(to);
        let Some(accepting) = Request(receiver.request).accepting() else { return false };
        match receiver.slots.get_mut(usize::from(accepting)) {
            Some(empty) if empty.kind() == Kind::Empty && capability.kind() != Kind::Empty => {
                *empty = capability;
                true
            }
            _ => false,
        }
    }

    /// The client that a reply token of `me` names.
    #[inline]
    pub(crate) fn client(&self, me: Frame, token: Target) -> Result<Frame, Error> {
        let Some(TargetKind::Caller { frame, sequence }) = token.kind() else { return Err(Error::BadArgument) };
        if !self.frames.is_block(frame, self.frames.generation(frame)) {
            return Err(Error::Gone);
        }
        let block = self.machine.block(frame);
        let same = block.sequence & Target::SEQUENCE_MASK == sequence;
        if block.state() == State::Awaiting && block.partner == me && same { Ok(frame) } else { Err(Error::Gone) }
    }

    /// Answers one client with the message in the registers of `me`. The client is then in no queue.
    #[inline]
    fn answer(&mut self, me: Frame, request: Request) -> Result<Frame, Stop> {
        if usize::from(request.length()) > LONG_MESSAGE {
            return Err(Error::TooLong.into());
        }
        let registers = &self.machine.block(me).registers;
        let (token, words) = (Target(registers.rdi), registers.words);
        let client = self.client(me, token)?;
        let mut answer = Reply::message(request.label(), request.length(), Wake::Call);
        if usize::from(request.length()) > SHORT_MESSAGE {
            match self.copy_message(me, client, words[0], request.length()) {
                Ok(()) => {}
                Err(Undelivered::Sender(stop)) => return Err(stop),
                Err(Undelivered::Receiver) => answer = Reply::error(Error::TooLong),
            }
        }
        if let Some(slot) = request.given()
            && self.give(me, slot, client)
        {
            answer = answer.with_capability();
        }
        let clients = self.machine.block(me).clients;
        self.machine.block_mut(me).clients = lists::remove(&mut self.machine, clients, client, Through::Main);
        let block = self.machine.block_mut(client);
        block.registers.words = words;
        block.registers.rax = answer.0;
        block.lend = 0;
        block.set_state(State::Runnable);
        Ok(client)
    }

    /// `Number::Reply`.
    pub(crate) fn reply(&mut self, me: Frame, request: Request) -> Outcome {
        let client = self.answer(me, request)?;
        self.enqueue(client, true);
        Ok(())
    }

    /// `Number::ReplyWait`.
    #[inline]
    pub(crate) fn reply_wait(&mut self, me: Frame, request: Request) -> Outcome {
        let mut answered = NO_FRAME;
        if self.machine.block(me).registers.rdi != 0 {
            match self.answer(me, request) {
                Ok(client) => answered = client,
                // The client is gone; the server must not be held up by that.
                Err(Stop::Refused(Error::Gone)) => {}
                Err(stop) => return Err(stop),
            }
        }
        let block = self.machine.block_mut(me);
        block.request = request.0;
        let deadline = block.registers.r15;
        if block.pending != 0 {
            self.take_interrupts(me);
        } else if block.callers.first != NO_FRAME && self.take_caller(me) {
        } else {
            return self.receive(me, answered, deadline);
        }
        if answered != NO_FRAME {
            self.enqueue(answered, true);
        }
        Err(Stop::Done)
    }

    /// Lets a domain go on in place of the one that has called, unless somebody better waits. If others of its band wait, for
    /// whom the timer was not set while one of a better band ran, it is set.
    fn continue_with(&mut self, frame: Frame) {
        self.cpu.current = frame;
        let band = self.machine.block(frame).band;
        let scheduler = &self.cpu.scheduler;
        if scheduler.better_than(band) || scheduler.any_in(band) && !self.cpu.ends_slice() {
            self.cpu.reschedule = true;
        }
    }

    /// Waits for a message. The client that was just answered goes on at once unless somebody better waits.
    #[inline]
    fn receive(&mut self, me: Frame, answered: Frame, deadline: u64) -> Outcome {
        self.block_current(me, State::Receiving);
        if deadline != NEVER {
            self.wait_until(me, deadline);
        }
        if answered != NO_FRAME {
            self.continue_with(answered);
        }
        Err(Stop::Done)
    }

    /// Takes the first caller whose message can be delivered; callers at fault are told and passed over.
    #[inline(never)]
    fn take_caller(&mut self, me: Frame) -> bool {
        loop {
            let callers = self.machine.block(me).callers;
            let caller = callers.first;
            if caller == NO_FRAME {
                return false;
            }
            let rest = lists::remove(&mut self.machine, callers, caller, Through::Main);
            self.machine.block_mut(me).callers = rest;
            match self.deliver_message(caller, me, Wake::Call) {
                Ok(()) => {
                    self.await_reply(caller, me);
                    return true;
                }
                Err(undelivered) => {
                    self.machine.block_mut(caller).set_state(State::Runnable);
                    self.enqueue(caller, true);
                    let stop = match undelivered {
                        Undelivered::Sender(stop) => stop,
                        Undelivered::Receiver => Error::TooLong.into(),
                    };
                    self.refuse(caller, stop);
                }
            }
        }
    }

    /// `Number::Send`.
    pub(crate) fn send(&mut self, me: Frame, request: Request) -> Outcome {
        if usize::from(request.length()) > LONG_MESSAGE {
            return Err(Error::TooLong.into());
        }
        let slot = self.machine.block(me).registers.rdi;
        let (peer, badge) = self.callee(me, slot)?;
        if self.machine.block(peer).state() != State::Receiving {
            return Err(Error::Busy.into());
        }
        let block = self.machine.block_mut(me);
        (block.request, block.badge) = (request.0, badge);
        match self.deliver_message(me, peer, Wake::Send) {
            Ok(()) => {}
            Err(Undelivered::Sender(stop)) => return Err(stop),
            Err(Undelivered::Receiver) => return Err(Error::TooLong.into()),
        }
        self.cancel_timer(peer, WAIT);
        self.make_runnable(peer);
        Ok(())
    }

    /// `Number::SetBuffer`.
    pub(crate) fn set_buffer(&mut self, me: Frame) -> Outcome {
        let address = self.machine.block(me).registers.rdi;
        if !address.is_multiple_of(LONG_MESSAGE as u64) {
            return Err(Error::BadArgument.into());
        }
        UserRange::new(address, LONG_MESSAGE as u64)?;
        self.machine.block_mut(me).buffer = address;
        Ok(())
    }

    /// Gives up the calls of up to `budget` domains that call `me` or wait for its reply: they get `Gone`. Whether all were.
    pub(crate) fn fail_clients(&mut self, me: Frame, budget: &mut u32) -> bool {
        loop {
            let block = self.machine.block(me);
            let caller = if block.callers.first != NO_FRAME { block.callers.first } else { block.clients.first };
            if caller == NO_FRAME {
                return true;
            }
            if *budget == 0 {
                return false;
            }
            *budget -= 1;
            self.extract(caller);
            self.machine.block_mut(caller).registers.rax = Reply::error(Error::Gone).0;
            self.make_runnable(caller);
            let slot = self.machine.block(caller).registers.rdi as usize;
            let incarnation = self.machine.block(me).incarnation;
            // The caller has been told; its next call reaches the new incarnation.
            if let Some(capability) = self.machine.block_mut(caller).slots.get_mut(slot)
                && capability.kind() == Kind::Domain
                && capability.first == me
            {
                capability.incarnation = incarnation;
            }
        }
    }
}

/// A message whose sender's page is missing is the sender's fault.
impl From<Missing> for Undelivered {
    fn from(missing: Missing) -> Undelivered {
        Undelivered::Sender(missing.into())
    }
}
