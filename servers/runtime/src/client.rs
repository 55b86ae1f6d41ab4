//! Typed calls of another server.

use crate::{
    buffer,
    session::{CallError, Received, Session, Transport},
};
use core::marker::PhantomData;
use hypercall::Outgoing;
use protocol::{
    abi::{Error, LONG_MESSAGE, Lend},
    service::{Service, label},
};
use spin::Mutex;

/// Where messages are put together. A server is one thread and a call is never within a call, so it is free whenever
/// it is wanted, except by a panic in the middle of encoding.
static SCRATCH: Mutex<[u8; LONG_MESSAGE]> = Mutex::new([0; LONG_MESSAGE]);

/// Lets `work` use the scratch page.
pub fn with_scratch<T>(work: impl FnOnce(&mut [u8; LONG_MESSAGE]) -> T) -> Option<T> {
    SCRATCH.try_lock().map(|mut scratch| work(&mut scratch))
}

/// Bytes of heap that the server behind the domain capability in `slot` has in use, for whoever measures the system. `None` if it does not say.
pub fn heap_in_use(slot: u8) -> Option<u64> {
    let answer = hypercall::call(slot, Outgoing::new(label::HEAP, &[]), None, Lend::NONE).ok()?;
    let bytes = answer.short().filter(|_| answer.label == label::RESPONSE)?;
    bytes.try_into().map(u64::from_le_bytes).ok()
}

/// A client of a server of `S`.
#[derive(Debug)]
pub struct Client<S: Service> {
    slot: u8,
    session: Session,
    service: PhantomData<fn() -> S>,
}

impl<S: Service> Client<S> {
    /// A client of the server behind the domain capability in `slot`.
    pub const fn new(slot: u8) -> Client<S> {
        Client { slot, session: Session::NEW, service: PhantomData }
    }

    /// The slot.
    pub const fn slot(&self) -> u8 {
        self.slot
    }

    /// Asks and waits for the answer. The session is opened at the first call, and at the first after a restart.
    pub fn call(&mut self, request: &S::Request<'_>) -> Result<S::Response, CallError> {
        self.call_with(request, None, Lend::NONE).map(|(response, _)| response)
    }

    /// Asks, lending memory for the time of the call and accepting a capability into the empty slot `accept`; the second
    /// part of the answer says whether one came.
    pub fn call_with(
        &mut self,
        request: &S::Request<'_>,
        accept: Option<u8>,
        lend: Lend,
    ) -> Result<(S::Response, bool), CallError> {
        let mut channel = Channel { slot: self.slot, accept, lend };
        with_scratch(|scratch| self.session.call::<S>(&mut channel, request, scratch))
            .unwrap_or(Err(CallError::Kernel(Error::Busy)))
    }

    /// The next call opens a session anew. For a request that must not be made twice and is made long after the last one: that the server was restarted between them is no
    /// reason to fail.
    pub fn close(&mut self) {
        self.session.close();
    }

    /// True once after the session had to be opened anew: what the server knew of this client is lost.
    pub fn take_restarted(&mut self) -> bool {
        self.session.take_restarted()
    }
}

/// The kernel's way to a server.
struct Channel {
    slot: u8,
    accept: Option<u8>,
    lend: Lend,
}

impl Transport for Channel {
    fn call(
        &mut self,
        label: u8,
        length: usize,
        bytes: &mut [u8; LONG_MESSAGE],
        whole: bool,
    ) -> Result<Received, Error> {
        let message = Outgoing::new(label, bytes.get(..length).ok_or(Error::TooLong)?);
        let (accept, lend) = if whole { (self.accept, self.lend) } else { (None, Lend::NONE) };
        let answer = hypercall::call(self.slot, message, accept, lend)?;
        let length = buffer::copy(&answer, bytes).len();
        Ok(Received { label: answer.label, length, capability: answer.has_capability })
    }
}
