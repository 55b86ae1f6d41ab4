//! A client's session with a server: opened at the first call, opened anew when the server was restarted.

use crate::message;
use core::fmt;
use protocol::{
    abi::{Error, LONG_MESSAGE},
    service::{Service, label},
};

/// Times that opening a session is tried again because the server was restarted in between.
const ATTEMPTS: u32 = 4;

/// Why a call brought no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallError {
    /// The server was restarted; the session is lost, and the request may have been carried out or not. The next call
    /// opens a new session: the caller decides whether to ask again.
    Restarted,
    /// The server is gone for good, or dies as fast as it is started.
    Gone,
    /// The server found the request malformed, or its answer is.
    Malformed,
    /// The server was built from another version of the service.
    WrongVersion,
    /// The kernel refused the call.
    Kernel(Error),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Restarted => f.write_str("the server was restarted"),
            CallError::Gone => f.write_str("the server is gone"),
            CallError::Malformed => f.write_str("malformed message"),
            CallError::WrongVersion => f.write_str("the server was built from another version of the service"),
            CallError::Kernel(error) => write!(f, "the kernel refused the call: {error}"),
        }
    }
}

impl core::error::Error for CallError {}

/// An answer as it came.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Label.
    pub label: u8,
    /// Bytes of it in the buffer.
    pub length: usize,
    /// Whether a capability came along.
    pub capability: bool,
}

/// The way to a server.
pub trait Transport {
    /// Sends the first `length` bytes of `buffer` under `label` and waits for the answer, which replaces them. Only with
    /// `whole` does the call lend memory and accept a capability.
    fn call(
        &mut self,
        label: u8,
        length: usize,
        buffer: &mut [u8; LONG_MESSAGE],
        whole: bool,
    ) -> Result<Received, Error>;
}

/// State of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Session {
    open: bool,
    opened_before: bool,
    restarted: bool,
}

impl Session {
    /// Not open yet.
    pub const NEW: Session = Session { open: false, opened_before: false, restarted: false };

    /// Asks; opens the session first if it is not open. `buffer` is scratch memory.
    pub fn call<S: Service>(
        &mut self,
        transport: &mut impl Transport,
        request: &S::Request<'_>,
        buffer: &mut [u8; LONG_MESSAGE],
    ) -> Result<(S::Response, bool), CallError> {
        if !self.open {
            self.connect(transport, S::key(), buffer)?;
        }
        let length = message::encode(request, buffer).map_err(|_| CallError::Kernel(Error::TooLong))?.len();
        let received = transport.call(label::REQUEST, length, buffer, true).map_err(|error| match error {
            Error::Gone => {
                self.open = false;
                CallError::Restarted
            }
            error => CallError::Kernel(error),
        })?;
        let bytes = buffer.get(..received.length).ok_or(CallError::Malformed)?;
        match received.label {
            label::RESPONSE => {
                let response = message::decode(bytes).map_err(|_| CallError::Malformed)?;
                Ok((response, received.capability))
            }
            label::WRONG_VERSION => {
                self.open = false;
                Err(CallError::WrongVersion)
            }
            _ => Err(CallError::Malformed),
        }
    }

    /// The next call opens the session anew.
    pub fn close(&mut self) {
        self.open = false;
    }

    /// True once after the session had to be opened anew.
    pub fn take_restarted(&mut self) -> bool {
        core::mem::take(&mut self.restarted)
    }

    fn connect(
        &mut self,
        transport: &mut impl Transport,
        key: u64,
        buffer: &mut [u8; LONG_MESSAGE],
    ) -> Result<(), CallError> {
        for _ in 0..ATTEMPTS {
            buffer[..8].copy_from_slice(&key.to_le_bytes());
            let received = match transport.call(label::CONNECT, 8, buffer, false) {
                Ok(received) => received,
                Err(Error::Gone) => continue,
                // A server that was given up before this one started: `init` fills the slot when it is started again.
                Err(Error::NoCapability) => return Err(CallError::Gone),
                Err(error) => return Err(CallError::Kernel(error)),
            };
            return match received.label {
                label::CONNECT if buffer.get(..received.length) == Some(&key.to_le_bytes()) => {
                    self.open = true;
                    self.restarted |= self.opened_before;
                    self.opened_before = true;
                    Ok(())
                }
                label::CONNECT | label::WRONG_VERSION => Err(CallError::WrongVersion),
                _ => Err(CallError::Malformed),
            };
        }
        Err(CallError::Gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::service::console::{Console, Request, Response};

    /// A console that answers `Done`; each of the calls numbered in `gone` is refused with `error`.
    struct Server {
        calls: Vec<u8>,
        gone: &'static [usize],
        error: Error,
        key: u64,
        answer: Option<(u8, Vec<u8>)>,
    }

    impl Server {
        fn new(gone: &'static [usize]) -> Server {
            Server { calls: Vec::new(), gone, error: Error::Gone, key: Console::key(), answer: None }
        }
    }

    impl Transport for Server {
        fn call(
            &mut self,
            label: u8,
            length: usize,
            buffer: &mut [u8; LONG_MESSAGE],
            _: bool,
        ) -> Result<Received, Error> {
            self.calls.push(label);
            if self.gone.contains(&(self.calls.len() - 1)) {
                return Err(self.error);
            }
            let (label, bytes) = match label {
                label::CONNECT if buffer[..length] != self.key.to_le_bytes() => (label::WRONG_VERSION, Vec::new()),
                label::CONNECT => (label::CONNECT, self.key.to_le_bytes().to_vec()),
                _ => match &self.answer {
                    Some(answer) => answer.clone(),
                    None => {
                        (label::RESPONSE, message::encode(&Response::Done, &mut [0; LONG_MESSAGE]).unwrap().to_vec())
                    }
                },
            };
            buffer[..bytes.len()].copy_from_slice(&bytes);
            Ok(Received { label, length: bytes.len(), capability: false })
        }
    }

    fn call(session: &mut Session, server: &mut Server) -> Result<Response, CallError> {
        session.call::<Console>(server, &Request::ReadLine, &mut [0; LONG_MESSAGE]).map(|(response, _)| response)
    }

    #[test]
    fn opens_once() {
        let (mut session, mut server) = (Session::NEW, Server::new(&[]));
        assert_eq!(call(&mut session, &mut server), Ok(Response::Done));
        assert_eq!(call(&mut session, &mut server), Ok(Response::Done));
        assert_eq!(server.calls, [label::CONNECT, label::REQUEST, label::REQUEST]);
        assert!(!session.take_restarted());
    }

    #[test]
    fn a_restart_is_told_once_and_the_session_opened_anew() {
        let (mut session, mut server) = (Session::NEW, Server::new(&[2]));
        assert_eq!(call(&mut session, &mut server), Ok(Response::Done));
        assert_eq!(call(&mut session, &mut server), Err(CallError::Restarted));
        assert_eq!(call(&mut session, &mut server), Ok(Response::Done));
        assert!(session.take_restarted());
        assert!(!session.take_restarted());
        assert_eq!(server.calls[2..], [label::REQUEST, label::CONNECT, label::REQUEST]);
    }

    #[test]
    fn one_that_was_closed_before_a_restart_does_not_hear_of_it() {
        let (mut session, mut server) = (Session::NEW, Server::new(&[2]));
        assert_eq!(call(&mut session, &mut server), Ok(Response::Done));
        session.close();
        assert_eq!(call(&mut session, &mut server), Ok(Response::Done));
        assert_eq!(server.calls[2..], [label::CONNECT, label::CONNECT, label::REQUEST]);
    }

    #[test]
    fn opening_is_tried_again_but_not_for_ever() {
        let (mut session, mut server) = (Session::NEW, Server::new(&[0, 1]));
        assert_eq!(call(&mut session, &mut server), Ok(Response::Done));
        assert!(!session.take_restarted());
        let (mut session, mut server) = (Session::NEW, Server::new(&[0, 1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(call(&mut session, &mut server), Err(CallError::Gone));
        assert_eq!(server.calls.len(), ATTEMPTS as usize);
    }

    #[test]
    fn an_empty_slot_is_a_server_that_is_not_there() {
        let (mut session, mut server) = (Session::NEW, Server::new(&[0]));
        server.error = Error::NoCapability;
        assert_eq!(call(&mut session, &mut server), Err(CallError::Gone));
        assert_eq!(call(&mut session, &mut server), Ok(Response::Done));
    }

    #[test]
    fn another_version_is_refused_at_connection() {
        let (mut session, mut server) = (Session::NEW, Server::new(&[]));
        server.key += 1;
        assert_eq!(call(&mut session, &mut server), Err(CallError::WrongVersion));
        assert_eq!(server.calls, [label::CONNECT]);
    }

    #[test]
    fn bad_answers_are_errors() {
        let answers =
            [(label::MALFORMED, vec![]), (label::RESPONSE, vec![0, 0]), (label::RESPONSE, vec![]), (77, vec![0])];
        for answer in answers {
            let (mut session, mut server) = (Session::NEW, Server::new(&[]));
            server.answer = Some(answer);
            assert_eq!(call(&mut session, &mut server), Err(CallError::Malformed));
        }
    }
}
