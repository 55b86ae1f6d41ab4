//! The loop of a server.

use crate::{
    buffer, client, clock, heap, journal,
    message::{self, Inbound},
};
use alloc::boxed::Box;
use hypercall::{Outgoing, Token, Woken};
use protocol::{
    abi::{Error, LONG_MESSAGE, NEVER},
    service::{Service, label},
};

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Badge of its capability: for servers, its index in the manifest.
    pub badge: u64,
    /// What answers it later; `None` if it expects no answer.
    pub token: Option<Token>,
}

/// How a request is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer<R> {
    /// Now.
    Now(R),
    /// Now, with a copy of the capability in this slot.
    With(R, u8),
    /// Later, by [`respond`] with the caller's token.
    Later,
}

/// What a server does.
pub trait Handler<S: Service> {
    /// Carries out one request. It must not wait for anything slow: answer [`Answer::Later`] instead.
    fn request(&mut self, from: Caller, request: S::Request<'_>) -> Answer<S::Response>;

    /// A client has opened a session, for the first time or after its own restart: what was kept for it is void.
    fn connected(&mut self, badge: u64) {
        let _ = badge;
    }

    /// Virtual interrupts came, a bit for each line.
    fn interrupts(&mut self, lines: u64) {
        let _ = lines;
    }

    /// The time named by [`Handler::next_deadline`] has come.
    fn deadline(&mut self) {}

    /// When to call [`Handler::deadline`], in nanoseconds since kernel entry. Asked before each wait.
    fn next_deadline(&self) -> u64 {
        NEVER
    }
}

/// Serves for ever. Malformed requests are answered so and change nothing; a client of another version is refused when it
/// opens its session.
pub fn run<S: Service, H: Handler<S>>(mut handler: H) -> ! {
    let key = S::key();
    // On the heap, to leave the stack to the handler.
    let mut request = Box::new([0; LONG_MESSAGE]);
    let mut response = Box::new([0; LONG_MESSAGE]);
    // What to answer with the next wait: token, label, bytes in `response`, slot to give.
    let mut answer: Option<(Token, u8, usize, Option<u8>)> = None;
    loop {
        let deadline = handler.next_deadline();
        let reply = answer
            .take()
            .map(|(token, label, length, give)| (token, Outgoing { label, bytes: &response[..length], give }));
        let woken = hypercall::reply_wait(reply, None, deadline).or_else(|error| match reply {
            // The answer cannot be sent (its capability is not there to give): the caller must not wait for ever.
            Some((token, _)) => {
                crate::log!("an answer was refused: {error}");
                hypercall::reply_wait(Some((token, Outgoing::new(label::MALFORMED, &[]))), None, deadline)
            }
            None => Err(error),
        });
        match woken {
            Ok(Woken::Message { token, badge, message }) => {
                let bytes = buffer::copy(&message, &mut request);
                let (label, length, give) = match message::decode_inbound::<S>(key, message.label, bytes) {
                    Inbound::Connect { same_version: true } => {
                        handler.connected(badge);
                        response[..8].copy_from_slice(&key.to_le_bytes());
                        (label::CONNECT, 8, None)
                    }
                    Inbound::Connect { same_version: false } => (label::WRONG_VERSION, 0, None),
                    Inbound::Heap => {
                        response[..8].copy_from_slice(&heap::used().to_le_bytes());
                        (label::RESPONSE, 8, None)
                    }
                    Inbound::Journal(from) => (label::RESPONSE, journal::answer(from, &mut response), None),
                    Inbound::Malformed => (label::MALFORMED, 0, None),
                    Inbound::Request(request) => match handler.request(Caller { badge, token }, request) {
                        Answer::Now(value) => encode::<S>(&value, &mut response, None),
                        Answer::With(value, slot) => encode::<S>(&value, &mut response, Some(slot)),
                        Answer::Later => continue,
                    },
                };
                answer = token.map(|token| (token, label, length, give));
            }
            Ok(Woken::Interrupts(lines)) => handler.interrupts(lines),
            Ok(Woken::Deadline) => {}
            Err(error) => panic!("cannot wait for messages: {error}"),
        }
        // Not only when the wait ended by it: a stream of messages must not keep a deadline waiting.
        if deadline != NEVER && clock::now() >= deadline {
            handler.deadline();
        }
    }
}

/// Answers a request whose handler said [`Answer::Later`], with a copy of the capability in the slot `give` if there is one.
///
/// Errors: `Gone` if the caller no longer waits; `TooLong`; `NoCapability` if the slot is empty (the caller still waits).
pub fn respond<S: Service>(token: Token, response: &S::Response, give: Option<u8>) -> Result<(), Error> {
    let sent = client::with_scratch(|scratch| {
        let (label, length, give) = encode::<S>(response, scratch, give);
        hypercall::reply(token, Outgoing { label, bytes: &scratch[..length], give })
    });
    sent.unwrap_or(Err(Error::Busy))
}

/// Encodes a response: label, length, slot to give.
fn encode<S: Service>(
    response: &S::Response,
    buffer: &mut [u8; LONG_MESSAGE],
    give: Option<u8>,
) -> (u8, usize, Option<u8>) {
    match message::encode(response, buffer) {
        Ok(bytes) => (label::RESPONSE, bytes.len(), give),
        // Too long for a message: the server's own mistake, which its client learns of.
        Err(_) => (label::MALFORMED, 0, None),
    }
}
