//! Connections that are kept, each with one request at a time under way.

use crate::first;
use core::{
    net::Ipv4Addr,
    sync::atomic::{AtomicU32, Ordering},
};
use ilwaco::{
    Spawner, clock,
    embassy_net::{Stack, tcp::TcpSocket},
    embassy_time::{Duration, Timer},
    println, vm,
};
use static_cell::ConstStaticCell;

ilwaco::entry!(main, memory = 512 * 1024, nic = 47, console);

/// Connections at a time.
const CONNECTIONS: usize = 4;
/// The web server's port.
const PORT: u16 = 80;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: load\r\n\r\n";
/// Between two lines about it.
const TELLING: Duration = Duration::from_millis(250);
/// A server that says nothing for this long is connected to anew; so is one that refuses.
const TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// The memory of one connection.
struct Memory {
    receive: [u8; 8192],
    send: [u8; 512],
    answer: [u8; ANSWER],
}

static MEMORY: ConstStaticCell<[Memory; CONNECTIONS]> =
    ConstStaticCell::new([const { Memory { receive: [0; 8192], send: [0; 512], answer: [0; 4096] } }; CONNECTIONS]);
static PAGES: AtomicU32 = AtomicU32::new(0);

async fn main(spawner: Spawner) {
    let arguments = vm::arguments();
    if let Some(servers) = arguments.split_whitespace().find_map(first::Servers::of) {
        return first::ask(spawner, servers).await;
    }
    let server = arguments.split_whitespace().find_map(|word| word.strip_prefix("server=")?.parse::<Ipv4Addr>().ok());
    let Some(server) = server else { return println!("LOAD needs the argument server=ADDRESS or first=ADDRESS+COUNT") };
    let stack = ilwaco::net::start::<CONNECTIONS>(spawner);
    for memory in MEMORY.take() {
        spawner.spawn(ilwaco::task(load(stack, server, memory)));
    }
    loop {
        Timer::after(TELLING).await;
        println!("LOAD pages={} at={}", PAGES.load(Ordering::Relaxed), clock::now());
    }
}

async fn load(stack: Stack<'static>, server: Ipv4Addr, memory: &mut Memory) {
    loop {
        let mut socket = TcpSocket::new(stack, &mut memory.receive, &mut memory.send);
        socket.set_timeout(Some(TIMEOUT));
        socket.set_nagle_enabled(false);
        if socket.connect((server, PORT)).await.is_ok() {
            while page(&mut socket, &mut memory.answer).await.is_some() {
                PAGES.fetch_add(1, Ordering::Relaxed);
            }
        }
        socket.abort();
        Timer::after(PAUSE).await;
    }
}

/// Bytes of an answer that can be looked at.
pub const ANSWER: usize = 4096;

/// Asks for a page and takes all of it; `None` if the connection ends, or what comes is no page.
async fn page(socket: &mut TcpSocket<'_>, answer: &mut [u8]) -> Option<()> {
    ilwaco::net::write_all(socket, REQUEST).await.ok()?;
    let mut filled = 0;
    let (head, length) = loop {
        match socket.read(answer.get_mut(filled..)?).await {
            Ok(count @ 1..) => filled += count,
            _ => return None,
        }
        if let Some(found) = body(answer.get(..filled)?) {
            break found;
        }
    };
    let mut rest = (head + length).checked_sub(filled)?;
    while rest > 0 {
        let room = rest.min(answer.len());
        match socket.read(answer.get_mut(..room)?).await {
            Ok(count @ 1..) => rest -= count,
            _ => return None,
        }
    }
    Some(())
}

/// Bytes of the head of an answer, once it is whole, and of its body.
pub fn body(answer: &[u8]) -> Option<(usize, usize)> {
    let text = core::str::from_utf8(answer.get(..head_length(answer)?)?).ok()?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") { value.trim().parse().ok() } else { None }
    })?;
    text.starts_with("HTTP/1.1 200").then_some((text.len(), length))
}

fn head_length(answer: &[u8]) -> Option<usize> {
    answer.windows(4).position(|four| four == b"\r\n\r\n").map(|end| end + 4)
}
