//! The side that answers.

use bench::{
    HANDLED, SHARED, label,
    service::{Echo, Request, Response},
};
use hypercall::{Incoming, Outgoing, Woken};
use protocol::abi::{NEVER, Target};
use server_runtime::{Answer, Caller, Handler, Startup, clock::rdtsc, memory, mmio::Region};

/// Answers for ever. What it cannot make sense of it answers with nothing or 0.
pub fn run(startup: &Startup) -> ! {
    let Some(shared) = memory::shared(SHARED) else { panic!("there is no shared memory {SHARED:?}") };
    let Some(client) = startup.clients.first().map(|client| Target::slot(client.slot)) else {
        panic!("there is no client");
    };
    let mut woken = hypercall::wait(None, NEVER);
    loop {
        woken = match woken {
            // The loop of a server: this answer goes with the wait for the next request.
            Ok(Woken::Message { token: Some(token), message, .. }) if message.label == label::ECHO => {
                let word = word(&message).to_le_bytes();
                hypercall::reply_wait(Some((token, Outgoing::new(label::ECHO, &word))), None, NEVER)
            }
            Ok(other) => {
                handle(&other, client, &shared);
                hypercall::wait(None, NEVER)
            }
            Err(error) => panic!("cannot wait for messages: {error}"),
        }
    }
}

/// A message of 8 bytes as a number; any other as 0.
#[inline]
fn word(message: &Incoming) -> u64 {
    message.short().and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Does what is not an echo. Answers that the kernel refuses are the client's loss alone.
#[inline]
fn handle(woken: &Woken, client: Target, shared: &Region) {
    match woken {
        Woken::Interrupts(_) => {
            shared.write_u64(HANDLED, rdtsc());
            let _ = hypercall::raise(client);
        }
        Woken::Message { token: Some(token), message, .. } => {
            let _ = hypercall::reply(*token, Outgoing::new(message.label, &[]));
            match message.label {
                label::ROUNDS => {
                    for _ in 0..word(message) {
                        hypercall::idle(NEVER);
                        let _ = hypercall::raise(client);
                    }
                }
                label::SERVE => server_runtime::run::<Echo, _>(Server),
                _ => {}
            }
        }
        Woken::Message { token: None, .. } | Woken::Deadline => {}
    }
}

/// The server of the typed call.
struct Server;

impl Handler<Echo> for Server {
    fn request(&mut self, _from: Caller, Request(number): Request) -> Answer<Response> {
        Answer::Now(Response(number))
    }
}
