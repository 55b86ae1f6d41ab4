//! The first answer of each of many web servers.
//!
//! On a machine whose time counts instructions nothing of it is waiting: each server is asked when all others have nothing to do, so that the time that passes is what
//! the request takes, here, in the switch, in the servers of the system and in the web server.

extern crate alloc;

use crate::guest::{ANSWER, body};
use alloc::{boxed::Box, vec::Vec};
use core::net::Ipv4Addr;
use ilwaco::{
    Spawner, clock,
    embassy_net::tcp::TcpSocket,
    embassy_time::{Duration, Timer},
    println,
};

const PORT: u16 = 80;
const REQUEST: &[u8] = b"GET /status.json HTTP/1.1\r\nHost: load\r\nConnection: close\r\n\r\n";
const TIMEOUT: Duration = Duration::from_secs(5);
/// Between two servers: who has asked for an address waits a second before it asks for another.
const PAUSE: Duration = Duration::from_millis(1100);

/// Who is asked.
pub struct Servers {
    first: Ipv4Addr,
    count: u32,
}

impl Servers {
    /// From an argument `first=ADDRESS+COUNT`.
    pub fn of(argument: &str) -> Option<Servers> {
        let (first, count) = argument.strip_prefix("first=")?.split_once('+')?;
        Some(Servers { first: first.parse().ok()?, count: count.parse().ok()? })
    }
}

/// What is known of a server.
struct Answer {
    /// When its creation began, in nanoseconds since kernel entry.
    created: u64,
    /// When it first waited.
    waited: u64,
    /// Nanoseconds from the first packet to it to the first byte of its answer.
    byte: u64,
}

/// Asks all of them, and tells what each takes: of its creation, up to where it first waits, the mean of all, which were made one after the other; of the
/// answer the median.
pub async fn ask(spawner: Spawner, servers: Servers) {
    let stack = ilwaco::net::start::<1>(spawner);
    let (mut receive, mut send) = (Box::new([0; ANSWER]), Box::new([0; 512]));
    let mut answers = Vec::new();
    for number in 0..servers.count {
        let address = Ipv4Addr::from_bits(servers.first.to_bits().wrapping_add(number));
        Timer::after(PAUSE).await;
        let mut socket = TcpSocket::new(stack, &mut *receive, &mut *send);
        socket.set_timeout(Some(TIMEOUT));
        let Some(answer) = first(&mut socket, address).await else { continue };
        answers.push(answer);
        socket.abort();
        let _ = socket.flush().await;
    }
    let count = answers.len();
    let begun = answers.iter().map(|answer| answer.created).min().unwrap_or(0);
    let ended = answers.iter().map(|answer| answer.waited).max().unwrap_or(0);
    let clone = (ended - begun) / (count as u64).max(1);
    let mut bytes: Vec<u64> = answers.iter().map(|answer| answer.byte).collect();
    bytes.sort_unstable();
    let byte = bytes.get(count / 2).copied().unwrap_or(0);
    for (name, value) in [
        ("clone-instructions", clone),
        ("first-answer-instructions", byte),
        ("clone-to-http-instructions", clone + byte),
    ] {
        println!("BENCH {name} {value} instructions lower clones={count}");
    }
}

/// Asks a server; `None`: it is no clone, or does not answer as it should.
async fn first(socket: &mut TcpSocket<'_>, address: Ipv4Addr) -> Option<Answer> {
    let begun = clock::now();
    socket.connect((address, PORT)).await.ok()?;
    ilwaco::net::write_all(socket, REQUEST).await.ok()?;
    let mut text = [0; ANSWER];
    let mut filled = socket.read(&mut text).await.ok()?;
    let byte = clock::now() - begun;
    let body = loop {
        let so_far = text.get(..filled)?;
        if let Some((head, length)) = body(so_far)
            && let Some(body) = so_far.get(head..head + length)
        {
            break core::str::from_utf8(body).ok()?;
        }
        match socket.read(text.get_mut(filled..)?).await.ok()? {
            0 => return None,
            count => filled += count,
        }
    };
    let number = |key: &str| {
        let (_, after) = body.split_once(key)?;
        let digits = after.trim_start_matches(['"', ':', ' ']);
        digits.get(..digits.find(|character: char| !character.is_ascii_digit())?)?.parse::<u64>().ok()
    };
    if number("clone_generation")? == 0 {
        return None;
    }
    let created = number("created_ns")?;
    Some(Answer { created, waited: created + number("first_wait_ns")?, byte })
}
