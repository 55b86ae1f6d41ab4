//! Calls, replies, one-way messages, long messages, capabilities in messages, dying peers.

use super::*;
use protocol::abi::{NEVER, Target, Wake};

const CALL: Request = Request::message(Number::Call, 7, 64);
const WAIT: Request = Request::message(Number::ReplyWait, 0, 0);

fn wait(world: &mut World, server: Frame) {
    world.enter(server, WAIT, 0, &[], NEVER);
}

#[test]
fn a_call_switches_to_the_waiting_server_and_the_reply_back() {
    let mut world = World::new();
    let (client, server) = (world.vm(), world.server());
    world.connect(client, 3, server, 99, 0);
    wait(&mut world, server);
    world.enter(client, CALL, 3, &[1, 2, 3, 4, 5, 6, 7, 8], 0);
    assert_eq!(world.kernel.running(), server);
    let got = *world.registers(server);
    let reply = Reply(got.rax).result().unwrap();
    assert_eq!((reply.wake(), reply.label(), reply.length()), (Wake::Call, 7, 64));
    assert_eq!((got.words, got.r15), ([1, 2, 3, 4, 5, 6, 7, 8], 99));

    world.enter(server, Request::message(Number::ReplyWait, 1, 64), got.rdi, &[9, 9, 9, 9, 9, 9, 9, 9], NEVER);
    assert_eq!(world.kernel.running(), client);
    let answer = world.registers(client);
    assert_eq!((Reply(answer.rax).result().unwrap().label(), answer.words), (1, [9; 8]));
    assert_eq!(world.state(server), State::Receiving);
}

#[test]
fn callers_are_taken_in_order_and_each_answered_once() {
    let mut world = World::new();
    let server = world.server();
    let clients: [Frame; 3] = core::array::from_fn(|_| world.vm());
    for client in clients {
        world.connect(client, 0, server, u64::from(client), 0);
        world.enter(client, CALL, 0, &[u64::from(client)], 0);
        assert_eq!(world.state(client), State::Calling);
    }
    let mut tokens = std::vec::Vec::new();
    for client in clients {
        let got = world.enter(server, WAIT, 0, &[], NEVER);
        assert_eq!((got.r15, got.words[0]), (u64::from(client), u64::from(client)));
        tokens.push(got.rdi);
    }
    // Answered out of order, with others still waiting.
    for (client, token) in clients.into_iter().zip(tokens).rev() {
        world.simple(server, Number::Reply, token, &[]).unwrap();
        assert_eq!(world.state(client), State::Runnable);
        assert_eq!(world.simple(server, Number::Reply, token, &[]).unwrap_err(), Error::Gone);
    }
}

#[test]
fn only_the_server_called_can_answer() {
    let mut world = World::new();
    let (client, server, other) = (world.vm(), world.server(), world.server());
    world.connect(client, 0, server, 0, 0);
    wait(&mut world, server);
    world.enter(client, CALL, 0, &[], 0);
    let token = world.registers(server).rdi;
    assert_eq!(world.simple(other, Number::Reply, token, &[]).unwrap_err(), Error::Gone);
    let forged = Target(token).0 ^ 1 << 32;
    assert_eq!(world.simple(server, Number::Reply, forged, &[]).unwrap_err(), Error::Gone);
    assert_eq!(world.state(client), State::Awaiting);
}

#[test]
fn long_messages_are_copied_once_into_the_buffer() {
    let mut world = World::new();
    let (client, server) = (world.server(), world.server());
    world.connect(client, 0, server, 0, 0);
    world.simple(server, Number::SetBuffer, BASE + PAGE, &[]).unwrap();
    wait(&mut world, server);
    let text: std::vec::Vec<u8> = (0..4096u32).map(|i| (i % 251) as u8).collect();
    let source = BASE + 100;
    world.poke(client, source, &text);
    world.enter(client, Request::message(Number::Call, 1, 4096), 0, &[source], 0);
    assert_eq!(Reply(world.registers(server).rax).length(), 4096);
    assert_eq!(world.peek(server, BASE + PAGE, 4096), text);
}

#[test]
fn a_long_message_from_memory_that_is_not_there() {
    let mut world = World::new();
    let (server, bad, vm) = (world.server(), world.server(), world.vm());
    world.simple(server, Number::SetBuffer, BASE + PAGE, &[]).unwrap();
    wait(&mut world, server);
    for (slot, client) in [(0, bad), (1, vm)] {
        world.connect(client, slot, server, 0, 0);
    }
    let long = Request::message(Number::Call, 1, 4096);
    let missing = BASE + (PAGES - 1) * PAGE + 8;
    let got = world.enter(bad, long, 0, &[missing], 0);
    assert_eq!(Reply(got.rax).result(), Err(Error::BadAddress));
    // A VM faults, and will execute the call again.
    let before = world.registers(vm).rip;
    let got = world.enter(vm, long, 1, &[missing], 0);
    assert_eq!((world.state(vm), got.rip, got.rax), (State::Trapped, before - 2, long.0));
    for address in [u64::MAX - 100, 0xffff_8000_0000_0000, 1 << 39] {
        let got = world.enter(bad, long, 0, &[address], 0);
        assert_eq!(Reply(got.rax).result(), Err(Error::BadAddress));
    }
    assert_eq!(world.state(server), State::Receiving);
}

#[test]
fn a_capability_comes_along_if_a_slot_accepts_it() {
    let mut world = World::new();
    let (client, server) = (world.server(), world.server());
    world.connect(client, 0, server, 0, 0);
    world.enter(server, WAIT.accept(5), 0, &[], NEVER);
    world.enter(client, CALL.give(ALL), 0, &[], 0);
    assert!(Reply(world.registers(server).rax).has_capability());
    assert_eq!(world.kernel.machine.block(server).slots[5], World::memory());
    // The slot is full now: the next one is left out.
    let token = world.registers(server).rdi;
    world.enter(server, WAIT.accept(5), token, &[], NEVER);
    world.enter(client, CALL.give(ALL), 0, &[], 0);
    assert!(!Reply(world.registers(server).rax).has_capability());
}

#[test]
fn send_never_blocks() {
    let mut world = World::new();
    let (client, server) = (world.server(), world.server());
    world.connect(client, 0, server, 4, 0);
    let send = Request::message(Number::Send, 2, 8);
    assert_eq!(Reply(world.enter(client, send, 0, &[5], 0).rax).result(), Err(Error::Busy));
    wait(&mut world, server);
    assert!(Reply(world.enter(client, send, 0, &[5], 0).rax).result().is_ok());
    let got = world.registers(server);
    assert_eq!((Reply(got.rax).wake(), got.rdi, got.r15, got.words[0]), (Wake::Send, 0, 4, 5));
}

#[test]
fn callers_of_a_server_that_is_reset_are_told_once() {
    let mut world = World::new();
    let (init, server, waiting, queued, later) = (world.server(), world.server(), world.vm(), world.vm(), world.vm());
    world.connect(init, 0, server, 0, 0);
    for client in [waiting, queued, later] {
        world.connect(client, 0, server, 0, 0);
    }
    // Who handles it will start it again: that is worth waiting for.
    let handler = crate::block::DomainRef { frame: init, generation: world.kernel.frames.generation(init) };
    world.kernel.machine.block_mut(server).services[0] = handler;
    wait(&mut world, server);
    world.enter(waiting, CALL, 0, &[], 0);
    world.enter(queued, CALL, 0, &[], 0);
    let reset = protocol::domain::Control::Reset as u64;
    while world.simple(init, Number::DomainControl, Target::slot(0).0, &[reset]).is_err() {}
    for client in [waiting, queued] {
        assert_eq!(Reply(world.registers(client).rax).result(), Err(Error::Gone));
    }
    assert_eq!(Reply(world.enter(later, CALL, 0, &[], 0).rax).result(), Err(Error::Gone));
    // Now all of them know: their next calls wait for the new one.
    for client in [waiting, queued, later] {
        world.enter(client, CALL, 0, &[], 0);
        assert_eq!(world.state(client), State::Calling);
    }
}

#[test]
fn a_wait_ends_at_its_deadline() {
    let mut world = World::new();
    let server = world.server();
    world.enter(server, WAIT, 0, &[], 500);
    assert_eq!(world.kernel.machine.timer, Some(500));
    world.kernel.machine.now = 500;
    world.kernel.timer_interrupt();
    assert_eq!(Reply(world.registers(server).rax).wake(), Wake::Deadline);
    assert_eq!(world.kernel.running(), server);
}

#[test]
fn bad_slots_and_lengths_are_refused() {
    let mut world = World::new();
    let client = world.server();
    world.connect(client, 0, client, 0, 0);
    for (slot, error) in [
        (0, Error::BadArgument),
        (1, Error::NoCapability),
        (64, Error::NoCapability),
        (u64::MAX, Error::NoCapability),
        (60, Error::NoCapability),
    ] {
        assert_eq!(Reply(world.enter(client, CALL, slot, &[], 0).rax).result(), Err(error), "slot {slot}");
    }
    let long = Request::message(Number::Call, 0, 4097);
    assert_eq!(Reply(world.enter(client, long, 0, &[], 0).rax).result(), Err(Error::TooLong));
}
