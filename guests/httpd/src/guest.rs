//! The server: a few tasks, each serving one connection after the other.

extern crate alloc;

use alloc::{
    boxed::Box,
    format,
    string::{String, ToString},
    vec,
};
use core::cell::Cell;
use httpd::{
    answer::{self, Answer, Body},
    page::Facts,
    request::{self, HEAD_MAX, Outcome, Refusal},
    site::{LOOK, Scanner, Site},
};
use ilwaco::{
    Spawner, clock,
    disk::{self, BLOCK, Disk},
    embassy_net::{
        Stack,
        tcp::{Error, TcpSocket},
    },
    embassy_time::{Duration, Instant, with_deadline, with_timeout},
    net::Listener,
    println, vm,
};
use static_cell::ConstStaticCell;

ilwaco::entry!(main, memory = 1024 * 1024, nic = 47, disk = 24, console, ready);

const PORT: u16 = 80;
/// Connections at a time; more are refused.
const CONNECTIONS: usize = 24;
/// A request must be there this long after the connection was made or the last answer was sent.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// An answer must be taken in this time: 100,000 bytes at 20 kbit/s. For files on a disk it begins anew with each piece.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// Bytes of a file on a disk that are read at a time.
const PIECE: usize = 4 * BLOCK;
/// The argument that makes the server serve the site on its first disk.
const FROM_DISK: &str = "disk";
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
    listener: Listener,
    /// The files on the disk; none if it serves none.
    site: Site,
    disk: Option<Disk>,
    requests: Cell<u64>,
    connections: Cell<u64>,
}

async fn main(spawner: Spawner) {
    let stack = ilwaco::net::start::<CONNECTIONS>(spawner);
    let disk = disk::open(0).filter(|_| vm::arguments().split_whitespace().any(|word| word == FROM_DISK));
    let site = match disk {
        Some(disk) => match read_site(&disk).await {
            Ok(site) => {
                println!("{} files on disk 0", site.len());
                site
            }
            Err(reason) => {
                println!("disk 0 is not served: {reason}");
                Site::default()
            }
        },
        None => Site::default(),
    };
    let (requests, connections) = (Cell::new(0), Cell::new(0));
    let server: &'static Server =
        Box::leak(Box::new(Server { stack, listener: Listener::new(PORT), site, disk, requests, connections }));
    for memory in MEMORY.take() {
        spawner.spawn(ilwaco::task(server.serve(memory)));
    }
    match vm::network() {
        Some(network) => println!("serving http://{}:{PORT}/", network.address),
        None => println!("this VM has no address: nobody can reach it"),
    }
    // From here on this may be a clone, of which nobody hears until it is asked for something.
    match ilwaco::ready_for_good().await {}
}

impl Server {
    /// Serves one connection after the other.
    async fn serve(&self, memory: &mut Memory) {
        loop {
            let turn = self.listener.turn().await;
            let mut socket = TcpSocket::new(self.stack, &mut memory.receive, &mut memory.send);
            socket.set_timeout(Some(SILENCE_TIMEOUT));
            // Small answers are written in one go: waiting for more would only delay them.
            socket.set_nagle_enabled(false);
            if turn.accept(&mut socket).await.is_err() {
                continue;
            }
            self.connections.set(self.connections.get() + 1);
            // In memory of its own, which there is for as long as the connection: the state of all that can be would be five pages of an
            // idle VM.
            Box::pin(async {
                // An error ends this connection only.
                let _ = self.connection(&mut socket, &mut memory.request).await;
                end(&mut socket, &mut memory.request).await;
            })
            .await;
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
                Outcome::Request(request, used) => (answer::answer(&request, &self.facts(), &self.site), used),
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
            ilwaco::net::write_all(socket, answer.head.as_bytes()).await?;
            match &answer.body {
                Body::Memory(bytes) => ilwaco::net::write_all(socket, bytes).await,
                Body::Disk { .. } => Ok(()),
            }
        };
        with_timeout(ANSWER_TIMEOUT, write).await.unwrap_or(Err(Error::ConnectionReset))?;
        if let Body::Disk { offset, length } = answer.body {
            self.send_file(socket, offset, length).await?;
        }
        let requests = self.requests.get() + 1;
        self.requests.set(requests);
        // Clones say nothing: there may be very many, and each line would take more than the answer.
        if requests == 1 && vm::clone_generation() == 0 {
            println!("first HTTP reply {} us after kernel entry", clock::now() / 1000);
        }
        Ok(())
    }

    /// Sends a file from the disk, piece by piece. If the disk fails in the middle the connection is all that can be ended.
    async fn send_file(&self, socket: &mut TcpSocket<'_>, offset: u64, length: u64) -> Result<(), Error> {
        let Some(disk) = self.disk else { return Err(Error::ConnectionReset) };
        let mut piece = vec![0; PIECE];
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let block = at / BLOCK as u64;
            let start = (at % BLOCK as u64) as usize;
            let blocks = (disk.blocks() - block).min((PIECE / BLOCK) as u64) as usize;
            let piece = &mut piece[..blocks * BLOCK];
            if let Err(reason) = disk.read(block, piece).await {
                println!("disk 0: block {block}: {reason}");
                return Err(Error::ConnectionReset);
            }
            let stop = piece.len().min(start + (end - at) as usize);
            let write = ilwaco::net::write_all(socket, &piece[start..stop]);
            with_timeout(ANSWER_TIMEOUT, write).await.unwrap_or(Err(Error::ConnectionReset))?;
            at += (stop - start) as u64;
        }
        Ok(())
    }

    fn facts(&self) -> Facts {
        let (figures, start) = (vm::figures(), vm::start());
        Facts {
            id: vm::id(),
            name: vm::name(),
            address: match vm::network() {
                Some(network) => format!("{}/{}", network.address, network.prefix),
                None => "none".to_string(),
            },
            mac: vm::mac().to_string(),
            arguments: vm::arguments(),
            clone_generation: vm::clone_generation(),
            created_ns: vm::created(),
            first_instruction_ns: start.first_instruction,
            first_wait_ns: start.first_wait,
            uptime_ns: vm::uptime(),
            memory_bytes: vm::memory(),
            heap_bytes: vm::heap_used(),
            interrupts: figures.interrupts,
            waits: figures.waits,
            packets_sent: figures.packets_sent,
            packets_received: figures.packets_received,
            packets_dropped: figures.packets_dropped,
            connections: self.connections.get(),
            requests: self.requests.get() + 1,
            random: ilwaco::random::next_u64(),
        }
    }
}

/// Reads the index of the archive on a disk.
async fn read_site(disk: &Disk) -> Result<Site, String> {
    let mut scanner = Scanner::new(disk.blocks() * BLOCK as u64);
    // A page more, because a header begins anywhere in a block.
    let mut look = vec![0; LOOK + BLOCK];
    loop {
        let block = scanner.position() / BLOCK as u64;
        let start = (scanner.position() % BLOCK as u64) as usize;
        let blocks = (disk.blocks() - block).min((look.len() / BLOCK) as u64) as usize;
        let bytes = &mut look[..blocks * BLOCK];
        disk.read(block, bytes).await.map_err(|error| error.to_string())?;
        if !scanner.step(&bytes[start..]).map_err(|reason| reason.to_string())? {
            return Ok(scanner.finish());
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
