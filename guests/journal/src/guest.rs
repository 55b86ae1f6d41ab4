//! The service: TCP port 7000, a line a request. Records of all connections are committed together.

extern crate alloc;

use alloc::{boxed::Box, format, string::ToString, vec, vec::Vec};
use core::{
    cell::RefCell,
    future::poll_fn,
    task::{Poll, Waker},
};
use ilwaco::{
    Spawner,
    disk::{self, BLOCK, Disk},
    embassy_net::{
        Stack,
        tcp::{Error, TcpSocket},
    },
    embassy_time::Duration,
    println,
};
use journal::{
    line::{self, LINE_MAX, Line},
    log::{BATCH_MAX, Log, Planned, Reader, Record, recover},
};

ilwaco::entry!(main, memory = 2 * 1024 * 1024, nic = 16, disk = 64, console);

const PORT: u16 = 7000;
/// Connections at a time.
const CONNECTIONS: usize = 8;
/// A client that says nothing for this long is disconnected.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Blocks read at a time when the log is recovered.
const AT_ONCE: usize = 16;

/// What the connections share.
struct Shared {
    log: Log,
    /// Records of the batch that is gathered, and its number.
    pending: Vec<Record>,
    gathering: u64,
    /// Batches that ended, with the number of the last record of each before them, and whether they are safe. The last few.
    ended: Vec<(u64, Result<u64, disk::Error>)>,
    waiting: Vec<Waker>,
    /// The task that commits.
    committer: Option<Waker>,
}

/// Batches whose end is remembered: there is one for each connection at most that has not looked yet.
const ENDED: usize = 2 * CONNECTIONS;

type Journal = RefCell<Shared>;

async fn main(spawner: Spawner) {
    let Some(disk) = disk::open(0) else {
        println!("this VM has no disk");
        return;
    };
    let log = match open(&disk).await {
        Ok(log) => log,
        Err(reason) => {
            println!("no journal: {reason}");
            return;
        }
    };
    let stack = ilwaco::net::start::<CONNECTIONS>(spawner);
    println!("{} keys, last record {}", log.len(), log.last());
    let journal: &'static Journal = Box::leak(Box::new(RefCell::new(Shared {
        log,
        pending: Vec::new(),
        gathering: 1,
        ended: Vec::new(),
        waiting: Vec::new(),
        committer: None,
    })));
    for _ in 0..CONNECTIONS {
        spawner.spawn(ilwaco::task(serve(stack, journal)));
    }
    commit(&disk, journal).await;
}

/// Recovers the log, or begins one on an empty disk.
async fn open(disk: &Disk) -> Result<Log, alloc::string::String> {
    let mut readers = [0, 1].map(|area| Reader::new(area, disk.blocks()));
    let mut bytes = vec![0; AT_ONCE * BLOCK];
    for reader in &mut readers {
        let start = Log::areas(disk.blocks())[reader.area()];
        let end = start + disk.blocks() / 2;
        let mut at = start;
        'area: while at < end {
            let count = (end - at).min(AT_ONCE as u64);
            let bytes = &mut bytes[..count as usize * BLOCK];
            disk.read(at, bytes).await.map_err(|error| error.to_string())?;
            for block in bytes.chunks(BLOCK) {
                if !reader.push(block) {
                    break 'area;
                }
            }
            at += count;
        }
    }
    if let Some(log) = recover(disk.blocks(), readers).map_err(|reason| reason.to_string())? {
        return Ok(log);
    }
    let mut log = Log::new(disk.blocks()).map_err(|reason| reason.to_string())?;
    let first = log.snapshot();
    write(disk, &first).await.map_err(|error| error.to_string())?;
    log.commit(&first, &[]);
    Ok(log)
}

/// Writes and flushes.
async fn write(disk: &Disk, planned: &Planned) -> Result<(), disk::Error> {
    disk.write(planned.block, &planned.bytes).await?;
    disk.flush().await
}

/// Commits what was gathered, batch after batch.
async fn commit(disk: &Disk, journal: &Journal) {
    loop {
        let (number, records) = poll_fn(|context| {
            let mut shared = journal.borrow_mut();
            if shared.pending.is_empty() {
                shared.committer = Some(context.waker().clone());
                return Poll::Pending;
            }
            let number = shared.gathering;
            shared.gathering += 1;
            Poll::Ready((number, core::mem::take(&mut shared.pending)))
        })
        .await;
        let (planned, first) = {
            let shared = journal.borrow();
            (shared.log.plan(&records), shared.log.last() + 1)
        };
        let result = write(disk, &planned).await;
        let mut shared = journal.borrow_mut();
        if result.is_ok() {
            shared.log.commit(&planned, &records);
        }
        shared.ended.push((number, result.map(|()| first)));
        if shared.ended.len() > ENDED {
            drop(shared.ended.drain(..1));
        }
        shared.waiting.drain(..).for_each(Waker::wake);
    }
}

/// Adds a record to the batch that is gathered; the answer is its number once it is safe.
async fn put(journal: &Journal, key: &str, value: &str) -> Result<u64, disk::Error> {
    let mut ticket = None;
    poll_fn(|context| {
        let mut shared = journal.borrow_mut();
        let shared = &mut *shared;
        match ticket {
            None if shared.pending.len() < BATCH_MAX => {
                ticket = Some((shared.gathering, shared.pending.len() as u64));
                shared.pending.push((key.to_string(), value.to_string()));
                shared.committer.take().into_iter().for_each(Waker::wake);
            }
            // The batch is full: the next one.
            None => {}
            Some((number, place)) => {
                if let Some((_, result)) = shared.ended.iter().find(|(ended, _)| *ended == number) {
                    return Poll::Ready(result.map(|first| first + place));
                }
            }
        }
        shared.waiting.push(context.waker().clone());
        Poll::Pending
    })
    .await
}

/// Serves one connection after the other.
async fn serve(stack: Stack<'static>, journal: &'static Journal) {
    let (mut receive, mut send) = (vec![0; 2048], vec![0; 2048]);
    loop {
        let mut socket = TcpSocket::new(stack, &mut receive, &mut send);
        socket.set_timeout(Some(TIMEOUT));
        socket.set_nagle_enabled(false);
        if socket.accept(PORT).await.is_err() {
            continue;
        }
        // An error ends this connection only.
        let _ = connection(&mut socket, journal).await;
        socket.close();
        let _ = socket.flush().await;
    }
}

/// Answers the lines of a connection, in order.
async fn connection(socket: &mut TcpSocket<'_>, journal: &Journal) -> Result<(), Error> {
    let mut buffer = vec![0; LINE_MAX + 2];
    let mut filled = 0;
    loop {
        let Some(end) = buffer[..filled].iter().position(|byte| *byte == b'\n') else {
            if filled == buffer.len() {
                return ilwaco::net::write_all(socket, b"ERR the line is too long\n").await;
            }
            match socket.read(&mut buffer[filled..]).await? {
                0 => return Ok(()),
                count => filled += count,
            }
            continue;
        };
        let line = &buffer[..end];
        let answer = match line::read(line.strip_suffix(b"\r").unwrap_or(line)) {
            Ok(Line::Put(key, value)) => {
                let has_room = {
                    let shared = journal.borrow();
                    shared.log.has_room(key, value, &shared.pending)
                };
                match has_room {
                    false => "ERR no room\n".to_string(),
                    true => match put(journal, key, value).await {
                        Ok(number) => format!("OK {number}\n"),
                        Err(error) => format!("ERR {error}\n"),
                    },
                }
            }
            Ok(Line::Get(key)) => match journal.borrow().log.get(key) {
                Some(value) => format!("VALUE {value}\n"),
                None => "NONE\n".to_string(),
            },
            Ok(Line::Last) => format!("LAST {}\n", journal.borrow().log.last()),
            Err(reason) => format!("ERR {reason}\n"),
        };
        ilwaco::net::write_all(socket, answer.as_bytes()).await?;
        buffer.copy_within(end + 1..filled, 0);
        filled -= end + 1;
    }
}
