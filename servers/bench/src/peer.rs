//! The side that answers.

use bench::{
    HANDLED, SHARED, label,
    service::{Echo, Request, Response},
};
use hypercall::{Outgoing, Token, Woken};
use protocol::abi::{NEVER, Target};
use server_runtime::{Answer, Caller, Handler, Startup, clock::rdtsc, memory};

/// Answers for ever. What it cannot make sense of it sends back.
pub fn run(startup: &Startup) -> ! {
    let Some(shared) = memory::shared(SHARED) else { panic!("there is no shared memory {SHARED:?}") };
    let Some(client) = startup.clients.first().map(|client| Target::slot(client.slot)) else {
        panic!("there is no client");
    };
    // Answers that the kernel refuses are the client's loss alone.
    let mut answer: Option<(Token, u64)> = None;
    loop {
        let bytes = answer.map_or(0, |(_, word)| word).to_le_bytes();
        let reply = answer.take().map(|(token, _)| (token, Outgoing::new(label::ECHO, &bytes)));
        match hypercall::reply_wait(reply, None, NEVER) {
            Ok(Woken::Interrupts(_)) => {
                shared.write_u64(HANDLED, rdtsc());
                let _ = hypercall::raise(client);
            }
            Ok(Woken::Message { token: Some(token), message, .. }) => {
                let word = message.short().and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
                match message.label {
                    label::ROUNDS => {
                        let _ = hypercall::reply(token, Outgoing::new(label::ROUNDS, &[]));
                        for _ in 0..word {
                            hypercall::idle(NEVER);
                            let _ = hypercall::raise(client);
                        }
                    }
                    label::SERVE => {
                        let _ = hypercall::reply(token, Outgoing::new(label::SERVE, &[]));
                        server_runtime::run::<Echo, _>(Server)
                    }
                    _ => answer = Some((token, word)),
                }
            }
            Ok(Woken::Message { token: None, .. } | Woken::Deadline) => {}
            Err(error) => panic!("cannot wait for messages: {error}"),
        }
    }
}

/// The server of the typed call.
struct Server;

impl Handler<Echo> for Server {
    fn request(&mut self, _from: Caller, Request(number): Request) -> Answer<Response> {
        Answer::Now(Response(number))
    }
}
