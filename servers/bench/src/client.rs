//! The side that measures.

use alloc::vec::Vec;
use bench::{
    HANDLED, SHARED, label,
    result::Measurement,
    service::{Echo, Request},
};
use core::hint::black_box;
use hypercall::Outgoing;
use protocol::abi::{Lend, NEVER, Target};
use server_runtime::{Client, Startup, clock::rdtsc, log, memory, mmio::Region};

/// Runs of each measurement.
const RUNS: usize = 9;

/// The way to the peer.
struct Peer {
    slot: u8,
    shared: Region,
}

/// Measures everything once, prints it, and sleeps.
pub fn run(startup: &Startup) -> ! {
    let name = startup.option("peer").unwrap_or("bench-peer");
    let Some(channel) = startup.channel(name) else { panic!("there is no channel to the peer {name:?}") };
    let Some(shared) = memory::shared(SHARED) else { panic!("there is no shared memory {SHARED:?}") };
    let peer = Peer { slot: channel.slot, shared };
    // The typed call comes last: after it, the peer is a server of that service.
    let all: [fn(&Peer) -> Measurement; 5] = [null_call, call_reply, virtual_interrupt, context_switch, typed_call];
    for measure in all {
        log!("{}", measure(&peer));
    }
    log!("all is measured");
    hypercall::sleep_forever()
}

/// Instructions of `work`, as each run counts them.
fn runs(each: u64, work: impl Fn()) -> Vec<u64> {
    let once = || {
        let start = rdtsc();
        for _ in 0..each {
            work();
        }
        rdtsc() - start
    };
    // The first run, on cold tables and caches, does not count.
    once();
    (0..RUNS).map(|_| once()).collect()
}

/// The same without what the loop itself takes.
fn net_runs(each: u64, work: impl Fn()) -> Vec<u64> {
    let empty = runs(each, || black_box(())).into_iter().min().unwrap_or(0);
    runs(each, work).into_iter().map(|run| run.saturating_sub(empty)).collect()
}

/// Enter the kernel and leave it.
fn null_call(_: &Peer) -> Measurement {
    const EACH: u64 = 10_000;
    Measurement { name: "null-call", runs: net_runs(EACH, hypercall::null), each: EACH, conditions: &[] }
}

/// A call with a message of 8 bytes to a server that waits, and its reply with as many.
fn call_reply(peer: &Peer) -> Measurement {
    const EACH: u64 = 1000;
    let runs = net_runs(EACH, || {
        let number = black_box(7u64);
        let answer = hypercall::call(peer.slot, Outgoing::new(label::ECHO, &number.to_le_bytes()), None, Lend::NONE);
        let echoed = answer.is_ok_and(|answer| answer.short() == Some(&number.to_le_bytes()));
        assert!(echoed, "the peer does not answer as it should");
    });
    Measurement { name: "call-reply", runs, each: EACH, conditions: &[("bytes", "8")] }
}

/// From before the call that raises a line to the first instruction of the peer's handler.
fn virtual_interrupt(peer: &Peer) -> Measurement {
    let once = || {
        peer.shared.write_u64(HANDLED, 0);
        let start = rdtsc();
        raise(peer);
        // The peer raises a line of ours when it is done.
        while peer.shared.read_u64(HANDLED) == 0 {
            hypercall::idle(NEVER);
        }
        peer.shared.read_u64(HANDLED) - start
    };
    for _ in 0..10 {
        once();
    }
    let runs = (0..RUNS * 10).map(|_| once()).collect();
    Measurement { name: "virtual-interrupt", runs, each: 1, conditions: &[("receiver", "waiting")] }
}

/// Two domains that wake each other: half a round is one raise, one wait and one switch.
fn context_switch(peer: &Peer) -> Measurement {
    const ROUNDS: u64 = 1000;
    let once = || {
        let rounds = ROUNDS.to_le_bytes();
        let message = Outgoing::new(label::ROUNDS, &rounds);
        if let Err(error) = hypercall::call(peer.slot, message, None, Lend::NONE) {
            panic!("the peer does not take part: {error}");
        }
        let start = rdtsc();
        for _ in 0..ROUNDS {
            raise(peer);
            hypercall::idle(NEVER);
        }
        rdtsc() - start
    };
    once();
    let runs = (0..RUNS).map(|_| once()).collect();
    Measurement { name: "context-switch", runs, each: 2 * ROUNDS, conditions: &[("by", "raise-and-idle")] }
}

/// The same call as servers make it: a typed request, encoded, decoded, dispatched, answered.
fn typed_call(peer: &Peer) -> Measurement {
    const EACH: u64 = 1000;
    if let Err(error) = hypercall::call(peer.slot, Outgoing::new(label::SERVE, &[]), None, Lend::NONE) {
        panic!("the peer does not serve: {error}");
    }
    let client = core::cell::RefCell::new(Client::<Echo>::new(peer.slot));
    let runs = net_runs(EACH, || {
        let number = black_box(7);
        let answer = client.borrow_mut().call(&Request(number));
        assert!(answer.is_ok_and(|answer| answer.0 == number), "the peer does not answer as it should");
    });
    Measurement { name: "typed-call-reply", runs, each: EACH, conditions: &[("bytes", "1")] }
}

fn raise(peer: &Peer) {
    if let Err(error) = hypercall::raise(Target::slot(peer.slot)) {
        panic!("the peer cannot be interrupted: {error}");
    }
}
