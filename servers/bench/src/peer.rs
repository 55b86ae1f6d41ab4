//! The side that answers.

use bench::{
    HANDLED, SHARED, label,
    service::{Echo, Request, Response},
};
use hypercall::{Incoming, Outgoing, Token, Woken};
use protocol::abi::{NEVER, Target};
use server_runtime::{Answer, Caller, Handler, Startup, clock::rdtsc, memory};

/// Answers for ever. What it cannot make sense of it answers with nothing or 0.
pub fn run(startup: &Startup) -> ! {
    let Some(shared) = memory::shared(SHARED) else { panic!("there is no shared memory {SHARED:?}") };
    let Some(client) = startup.clients.first().map(|client| Target::slot(client.slot)) else {
        panic!("there is no client");
    };
    loop {
        match echo() {
            Ok(Woken::Interrupts(_)) => {
                shared.write_u64(HANDLED, rdtsc());
                let _ = hypercall::raise(client);
            }
            Ok(Woken::Message { token: Some(token), message, .. }) => {
                take_part(token, message.label, word(&message), client);
            }
            Ok(Woken::Message { token: None, .. } | Woken::Deadline) => {}
            Err(error) => panic!("cannot wait for messages: {error}"),
        }
    }
}

/// The loop of a server, whose answer goes with the wait for the next request; ends at what is not an echo.
fn echo() -> hypercall::Result<Woken> {
    let mut woken = hypercall::wait(None, NEVER);
    loop {
        match woken {
            Ok(Woken::Message { token: Some(token), message, .. }) if message.label == label::ECHO => {
                let word = word(&message).to_le_bytes();
                woken = hypercall::reply_wait(Some((token, Outgoing::new(label::ECHO, &word))), None, NEVER);
            }
            other => return other,
        }
    }
}

/// A message of 8 bytes as a number; any other as 0.
#[inline]
fn word(message: &Incoming) -> u64 {
    message.short().and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Answers what is not an echo, and does it. An answer that the kernel refuses is the client's loss alone.
fn take_part(token: Token, label: u8, word: u64, client: Target) {
    let _ = hypercall::reply(token, Outgoing::new(label, &[]));
    match label {
        label::ROUNDS => {
            for _ in 0..word {
                hypercall::idle(NEVER);
                let _ = hypercall::raise(client);
            }
        }
        label::SERVE => server_runtime::run::<Echo, _>(Server),
        _ => {}
    }
}

/// The server of the typed call.
struct Server;

impl Handler<Echo> for Server {
    fn request(&mut self, _from: Caller, Request(number): Request) -> Answer<Response> {
        Answer::Now(Response(number))
    }
}
