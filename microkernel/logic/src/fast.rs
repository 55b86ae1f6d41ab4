//! The short way of a message: a call to a server that waits, and its reply while nobody else calls.
//!
//! Both do exactly what [`Kernel::call`] and [`Kernel::reply_wait`] do in the commonest case: at most 64 bytes, no
//! capability given, the peer ready, nothing else to look after. Everything is checked before
//! anything is changed; in any other case they change nothing and say `false`. The tests run the same scenarios
//! both ways and compare. One difference shows: registers that a message does not fill keep their own values here.

use crate::{Frame, Kernel, Machine, NO_FRAME, block::State, lists::Link, timers::WAIT};
use protocol::{
    abi::{MESSAGE_WORDS, NEVER, Reply, Request, SHORT_MESSAGE, Target},
    capability::{Kind, Rights, SLOTS},
};

/// Whether a request is for the short way as far as its word tells: short, and no capability given along.
#[inline(always)]
fn is_plain(request: Request) -> bool {
    request.0 & 0xff << 32 == 0 && usize::from(request.length()) <= SHORT_MESSAGE
}

/// What the receiver of a short message finds in `rax`: label and length lie at the same bits of request and reply, and
/// everything else of [`Reply::message`] for a call is 0.
#[inline(always)]
fn plain_answer(request: Request) -> u64 {
    const LABEL_AND_LENGTH: u64 = 0xffff_ff00;
    request.0 & LABEL_AND_LENGTH
}

const _: () = {
    let request = Request::message(protocol::abi::Number::Call, 0xab, 0xcdef);
    assert!(request.0 & 0xffff_ff00 == Reply::message(0xab, 0xcdef, protocol::abi::Wake::Call).0);
};

impl<M: Machine> Kernel<M> {
    /// Copies the words of a short message. Those that the message does not fill keep what the receiver had in them.
    #[inline(always)]
    fn copy_short(&mut self, from: Frame, to: Frame, request: Request) {
        if request.length() <= 16 {
            self.machine.copy_words(from, to, 2);
        } else {
            self.machine.copy_words(from, to, MESSAGE_WORDS);
        }
    }

    /// `Number::Call` by the short way; whether it was done.
    #[inline(always)]
    pub(crate) fn fast_call(&mut self, me: Frame, request: Request) -> bool {
        let block = self.machine.block(me);
        let slot = block.registers.rdi as usize;
        if !is_plain(request) || self.cpu.reschedule || slot >= SLOTS {
            return false;
        }
        let capability = &block.slots[slot];
        if capability.require(Kind::Domain, Rights::CALL).is_err() {
            return false;
        }
        let (server, badge, incarnation) = (capability.first, capability.badge, capability.incarnation);
        if server == me || !self.frames.is_block(server, capability.generation) {
            return false;
        }
        let (lend, band) = (block.registers.r15, block.band);
        let sequence = block.sequence.wrapping_add(1);

        let peer = self.machine.block_mut(server);
        if peer.state() != State::Receiving
            || peer.band > band
            || peer.incarnation != incarnation
            || peer.timers[WAIT].deadline != 0
        {
            return false;
        }
        peer.set_state(State::Runnable);
        peer.registers.rax = plain_answer(request);
        peer.registers.rdi = Target::caller(me, sequence).0;
        peer.registers.r15 = badge;
        let last = peer.clients.last;
        peer.clients.last = me;
        if last == NO_FRAME {
            peer.clients.first = me;
        } else {
            self.machine.block_mut(last).link.next = me;
        }
        self.copy_short(me, server, request);
        let block = self.machine.block_mut(me);
        block.link = Link { next: NO_FRAME, previous: last };
        (block.sequence, block.partner) = (sequence, server);
        (block.request, block.badge, block.lend) = (request.0, badge, lend);
        block.set_state(State::Awaiting);
        self.cpu.current = server;
        true
    }

    /// `Number::ReplyWait` by the short way; whether it was done.
    #[inline(always)]
    pub(crate) fn fast_reply_wait(&mut self, me: Frame, request: Request) -> bool {
        let block = self.machine.block(me);
        let token = block.registers.rdi;
        let client = token as Frame;
        let plain = is_plain(request) && block.pending == 0 && block.callers.first == NO_FRAME;
        if !plain || self.cpu.reschedule || block.registers.r15 != NEVER || !self.frames.has_block(client) {
            return false;
        }
        let peer = self.machine.block(client);
        let expected = Target::caller(client, peer.sequence).0;
        if token != expected || peer.state() != State::Awaiting || peer.partner != me {
            return false;
        }
        // Others of its band need the timer.
        if self.cpu.scheduler.any_as_good(peer.band)
            && (self.cpu.scheduler.better_than(peer.band) || !self.cpu.ends_slice())
        {
            return false;
        }
        let peer = self.machine.block_mut(client);
        peer.set_state(State::Runnable);
        peer.registers.rax = plain_answer(request);
        peer.lend = 0;
        let Link { next, previous } = core::mem::take(&mut peer.link);
        if next != NO_FRAME {
            self.machine.block_mut(next).link.previous = previous;
        }
        if previous != NO_FRAME {
            self.machine.block_mut(previous).link.next = next;
        }
        let block = self.machine.block_mut(me);
        if next == NO_FRAME {
            block.clients.last = previous;
        }
        if previous == NO_FRAME {
            block.clients.first = next;
        }
        block.request = request.0;
        block.set_state(State::Receiving);
        self.copy_short(me, client, request);
        self.cpu.current = client;
        true
    }
}
