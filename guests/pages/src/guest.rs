//! The guest.

extern crate alloc;

use alloc::{boxed::Box, string::String, vec};
use core::cell::RefCell;
use ilwaco::{
    Spawner,
    embassy_net::{Stack, tcp::TcpSocket},
    embassy_time::Duration,
    println,
};
use pages::{
    PORT,
    arguments::Arguments,
    command::{LINE_MAX, answer},
    memory::Memory,
    pattern::Pattern,
};

ilwaco::entry!(main, memory = 512 * 1024, nic = 8, console);

/// Connections at a time: the one before may still be closing.
const CONNECTIONS: usize = 2;
/// A peer that says nothing for this long is disconnected.
const TIMEOUT: Duration = Duration::from_secs(60);

async fn main(spawner: Spawner) {
    let text = ilwaco::vm::arguments();
    let arguments = match Arguments::parse(&text) {
        Ok(arguments) => arguments,
        Err(word) => {
            println!("pages: what is {word:?}?");
            ilwaco::exit(2);
        }
    };
    let pattern = Pattern { vm: ilwaco::vm::id(), seed: arguments.seed, entropy: arguments.entropy };
    let Some(memory) = Memory::new(pattern, arguments.pages) else {
        println!("pages: {} pages do not fit into the memory of this VM", arguments.pages);
        ilwaco::exit(2);
    };
    let memory = Box::leak(Box::new(RefCell::new(memory)));
    let stack = ilwaco::net::start::<CONNECTIONS>(spawner);
    for _ in 1..CONNECTIONS {
        spawner.spawn(ilwaco::task(serve(stack, memory)));
    }
    serve(stack, memory).await;
}

async fn serve(stack: Stack<'static>, memory: &'static RefCell<Memory>) {
    let (mut receive, mut send) = (vec![0; 256], vec![0; 256]);
    loop {
        let mut socket = TcpSocket::new(stack, &mut receive, &mut send);
        socket.set_timeout(Some(TIMEOUT));
        socket.set_nagle_enabled(false);
        if socket.accept(PORT).await.is_err() {
            continue;
        }
        while let Some(line) = line(&mut socket).await {
            let text = answer(&mut memory.borrow_mut(), &line);
            if ilwaco::net::write_all(&mut socket, text.as_bytes()).await.is_err() {
                break;
            }
        }
        socket.close();
        let _ = socket.flush().await;
    }
}

/// The next line, without its end; `None` at the end of the connection, or if the line is too long or no text.
async fn line(socket: &mut TcpSocket<'_>) -> Option<String> {
    let mut line = vec![];
    loop {
        let mut byte = [0];
        if !matches!(socket.read(&mut byte).await, Ok(1)) || line.len() >= LINE_MAX {
            return None;
        }
        if byte == *b"\n" {
            return String::from_utf8(line).ok();
        }
        line.push(byte[0]);
    }
}
