//! The server: a few tasks, each serving one connection after the other.

extern crate alloc;

use alloc::{boxed::Box, format, string::ToString};
use core::cell::Cell;
use httpd::{
    answer::{self, Answer},
    page::Facts,
    request::{self, HEAD_MAX, Outcome, Refusal},
};
use ilwaco::{
    Spawner, clock,
    embassy_net::{
        Stack,
        tcp::{Error, TcpSocket},
    },
    embassy_time::{Duration, Instant, with_deadline, with_timeout},
    println, vm,
};
use static_cell::ConstStaticCell;

ilwaco::entry!(main, memory = 1024 * 1024, nic = 47, console);

const PORT: u16 = 80;
/// Connections at a time. Each has a socket waiting, because a connection request that meets none is refused.
const CONNECTIONS: usize = 24;
/// A request must be there this long after the connection was made or the last answer was sent.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// An answer must be taken in this time: 100,000 bytes at 20 kbit/s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// A client from which nothing comes for this long, not even an acknowledgement, is gone.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(20);
/// The end of a connection is waited for this long.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The memory of one connection. Untouched, and so without cost, until it is used.
struct Memory {
    receive: [u8; 2048],
    send: [u8; 8192],
    request: [u8; HEAD_MAX],
}

static MEMORY: ConstStaticCell<[Memory; CONNECTIONS]> = ConstStaticCell::new(
    [const { Memory { receive: [0; 2048], send: [0; 8192], request: [0; HEAD_MAX] } }; CONNECTIONS],
);

/// What the connections share.
struct Server {
    stack: Stack<'static>,
    requests: Cell<u64>,
    connections: Cell<u64>,
}

async fn main(spawner: Spawner) {
    let stack = ilwaco::net::start::<CONNECTIONS>(spawner);
    let server: &'static Server =
        Box::leak(Box::new(Server { stack, requests: Cell::new(0), connections: Cell::new(0) }));
    match vm::network() {
        Some(network) => println!("serving http://{}:{PORT}/", network.address),
        None => println!("this VM has no address: nobody can reach it"),
    }
    for memory in MEMORY.take() {
        spawner.spawn(ilwaco::task(server.serve(memory)));
    }
    core::future::pending().await
}

impl Server {
    /// Serves one connection after the other.
    async fn serve(&self, memory: &mut Memory) {
        loop {
            let mut socket = TcpSocket::new(self.stack, &mut memory.receive, &mut memory.send);
            socket.set_timeout(Some(SILENCE_TIMEOUT));
            // Small answers are written in one go: waiting for more would only delay them.
            socket.set_nagle_enabled(false);
            if socket.accept(PORT).await.is_err() {
                continue;
            }
            self.connections.set(self.connections.get() + 1);
            // An error ends this connection only.
            let _ = self.connection(&mut socket, &mut memory.request).await;
            end(&mut socket, &mut memory.request).await;
            self.connections.set(self.connections.get() - 1);
        }
    }

    /// Answers the requests of one connection, in order.
    async fn connection(&self, socket: &mut TcpSocket<'_>, buffer: &mut [u8; HEAD_MAX]) -> Result<(), Error> {
        let mut filled = 0;
        let mut deadline = Instant::now() + REQUEST_TIMEOUT;
        loop {
            let (answer, used) = match request::read(&buffer[..filled]) {
                Outcome::Partial => {
                    match with_deadline(deadline, socket.read(&mut buffer[filled..])).await {
                        Ok(Ok(0)) => return Ok(()),
                        Ok(Ok(count)) => filled += count,
                        Ok(Err(error)) => return Err(error),
                        // A connection that just stays open is closed without a word.
                        Err(_) if filled == 0 => return Ok(()),
                        Err(_) => return self.send(socket, answer::refuse(Refusal::RequestTimeout, false)).await,
                    }
                    continue;
                }
                Outcome::Request(request, used) => (answer::answer(&request, &self.facts()), used),
                Outcome::Refused(refusal, used, keep_alive) => (answer::refuse(refusal, keep_alive), used),
                Outcome::Broken(refusal) => (answer::refuse(refusal, false), filled),
            };
            let keep_alive = answer.keep_alive;
            self.send(socket, answer).await?;
            if !keep_alive {
                return Ok(());
            }
            // What came after the head is the beginning of the next request.
            buffer.copy_within(used..filled, 0);
            filled -= used;
            deadline = Instant::now() + REQUEST_TIMEOUT;
        }
    }

    async fn send(&self, socket: &mut TcpSocket<'_>, answer: Answer) -> Result<(), Error> {
        let write = async {
            write_all(socket, answer.head.as_bytes()).await?;
            write_all(socket, &answer.body).await
        };
        with_timeout(ANSWER_TIMEOUT, write).await.unwrap_or(Err(Error::ConnectionReset))?;
        let requests = self.requests.get() + 1;
        self.requests.set(requests);
        if requests == 1 {
            println!("first HTTP reply {} us after kernel entry", clock::now() / 1000);
        }
        Ok(())
    }

    fn facts(&self) -> Facts {
        let figures = vm::figures();
        Facts {
            id: vm::id(),
            name: vm::name(),
            address: match vm::network() {
                Some(network) => format!("{}/{}", network.address, network.prefix),
                None => "none".to_string(),
            },
            mac: vm::mac().to_string(),
            arguments: vm::arguments(),
            uptime_ns: vm::uptime(),
            memory_bytes: vm::memory(),
            heap_bytes: vm::heap_used(),
            interrupts: figures.interrupts,
            packets_sent: figures.packets_sent,
            packets_received: figures.packets_received,
            packets_dropped: figures.packets_dropped,
            connections: self.connections.get(),
            requests: self.requests.get() + 1,
        }
    }
}

/// Ends a connection: what was written is delivered, then the client's end is waited for. Ending at once instead (a reset)
/// could take from a slow client what it has not read yet.
async fn end(socket: &mut TcpSocket<'_>, scratch: &mut [u8]) {
    socket.close();
    let orderly = async {
        socket.flush().await?;
        while socket.read(scratch).await? > 0 {}
        Ok::<_, Error>(())
    };
    if !matches!(with_timeout(CLOSE_TIMEOUT, orderly).await, Ok(Ok(()))) {
        socket.abort();
        let _ = with_timeout(CLOSE_TIMEOUT, socket.flush()).await;
    }
}

async fn write_all(socket: &mut TcpSocket<'_>, mut bytes: &[u8]) -> Result<(), Error> {
    while !bytes.is_empty() {
        let count = socket.write(bytes).await?;
        bytes = &bytes[count..];
    }
    Ok(())
}
