//! The supervisor's program: reads a command, asks the server that can carry it out, prints the answer.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]

extern crate alloc;

mod peers;

use alloc::{format, string::String};
use peers::Peers;
use protocol::{
    abi::NEVER,
    service::console::{Request, Response},
};
use server_runtime::{CallError, Startup, clock, hypercall};
use supervisor::command;

server_runtime::entry!(main);

const PROMPT: &str = "denali> ";
/// Nanoseconds between attempts to reach a console that does not answer.
const PAUSE: u64 = 1_000_000_000;

fn main(startup: Startup) -> ! {
    let mut peers = Peers::new(&startup);
    if peers.console.is_none() {
        server_runtime::log!("there is no channel to the console, so nobody can type anything");
        hypercall::sleep_forever();
    }
    if startup.incarnation == 0 {
        let _ = peers.print("Type help for a list of commands.\n");
    }
    loop {
        match read_line(&mut peers) {
            Ok(line) => {
                let answer = match command::parse(&line) {
                    Ok(Some(command)) => peers.carry_out(&command),
                    Ok(None) => continue,
                    Err(told) => format!("{told}\n"),
                };
                // A console restarted while it printed has lost a part of the answer; the operator asks again.
                let _ = peers.print(&answer);
            }
            // The prompt is written again, by a console that began anew.
            Err(CallError::Restarted) => {}
            Err(_) => pause(),
        }
    }
}

/// Shows the prompt and waits for a line.
fn read_line(peers: &mut Peers) -> Result<String, CallError> {
    peers.print(PROMPT)?;
    let Some(console) = &mut peers.console else { return Err(CallError::Gone) };
    match console.call(&Request::ReadLine)? {
        Response::Line(line) => Ok(line),
        Response::Taken => {
            peers.print("\nThe console has another reader; waiting for it to end.\n")?;
            Err(CallError::Gone)
        }
        _ => Err(CallError::Malformed),
    }
}

fn pause() {
    let until = clock::now().saturating_add(PAUSE).min(NEVER - 1);
    // An interrupt (a peer was restarted) ends the wait early; the time is what counts.
    while clock::now() < until {
        hypercall::idle(until);
    }
}
