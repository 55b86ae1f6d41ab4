//! Traps, doorbells, events.

use super::*;
use protocol::domain::{Control, Event, EventKind, line};

fn handled(world: &mut World, domain: Frame, queue: u8, handler: Frame) {
    let generation = world.kernel.frames.generation(handler);
    world.kernel.machine.block_mut(domain).services[usize::from(queue)] =
        crate::block::DomainRef { frame: handler, generation };
}

fn collect(world: &mut World, server: Frame, queue: u8) -> std::vec::Vec<(Frame, u32)> {
    let taken = world.simple(server, Number::Collect, u64::from(queue), &[BASE, 64]).unwrap().rdi;
    (0..taken)
        .map(|index| {
            let at = BASE + index * size_of::<Event>() as u64;
            (world.peek_u64(server, at) as Frame, world.peek_u64(server, at + 16) as u32)
        })
        .collect()
}

#[test]
fn a_fault_goes_to_the_handler_and_the_domain_waits() {
    let mut world = World::new();
    let (pager, vm) = (world.server(), world.vm());
    handled(&mut world, vm, 0, pager);
    world.run(vm);
    world.kernel.exception(14, 6, 0x1234_5000);
    assert_eq!(world.state(vm), State::Trapped);
    assert_eq!(world.kernel.machine.block(pager).pending, 1 << line::TRAP);
    assert_eq!(collect(&mut world, pager, 0), [(vm, EventKind::PageFault as u32)]);
    assert_eq!(world.peek_u64(pager, BASE + 24), 0x1234_5000);
    assert_eq!(collect(&mut world, pager, 0), []);
    world.connect(pager, 0, vm, 0, 0);
    let control = |world: &mut World, control: Control| {
        world.simple(pager, Number::DomainControl, protocol::abi::Target::slot(0).0, &[control as u64, 0x20_1000])
    };
    control(&mut world, Control::Resume).unwrap();
    assert_eq!(world.state(vm), State::Runnable);
    assert_eq!(control(&mut world, Control::Resume).unwrap_err(), Error::BadArgument);
}

#[test]
fn a_doorbell_rung_twice_is_one_event() {
    let mut world = World::new();
    let (switch, first, second) = (world.server(), world.vm(), world.vm());
    for vm in [first, second] {
        handled(&mut world, vm, 1, switch);
        world.simple(vm, Number::Doorbell, 1, &[]).unwrap();
        world.simple(vm, Number::Doorbell, 1, &[]).unwrap();
    }
    assert_eq!(world.kernel.machine.block(switch).pending, 1 << line::NIC);
    let bell = EventKind::Doorbell as u32;
    assert_eq!(collect(&mut world, switch, 1), [(first, bell), (second, bell)]);
    world.simple(first, Number::Doorbell, 1, &[]).unwrap();
    assert_eq!(collect(&mut world, switch, 1), [(first, bell)]);
    assert_eq!(world.simple(first, Number::Doorbell, 2, &[]).unwrap_err(), Error::Gone);
    for device in [0, 4, u64::MAX] {
        assert_eq!(world.simple(first, Number::Doorbell, device, &[]).unwrap_err(), Error::BadArgument);
    }
}

#[test]
fn exit_stops_for_good_and_ready_waits() {
    let mut world = World::new();
    let (pager, ready, done) = (world.server(), world.vm(), world.vm());
    handled(&mut world, ready, 0, pager);
    handled(&mut world, done, 0, pager);
    world.enter(ready, Request::new(Number::Ready), 0, &[], 0);
    world.enter(done, Request::new(Number::Exit), 3, &[], 0);
    assert_eq!((world.state(ready), world.state(done)), (State::Trapped, State::Stopped));
    let events = collect(&mut world, pager, 0);
    assert_eq!(events, [(ready, EventKind::Ready as u32), (done, EventKind::Exit as u32)]);
}

#[test]
fn a_server_without_a_handler_is_reported() {
    let mut world = World::new();
    let server = world.server();
    world.run(server);
    world.kernel.exception(13, 0, 0);
    assert_eq!(world.kernel.machine.debug, 0x20_1000u64.to_le_bytes());
}

#[test]
fn nobody_waits_for_a_server_that_is_lost() {
    let mut world = World::new();
    let (server, waiting, late) = (world.server(), world.server(), world.server());
    world.connect(waiting, 0, server, 0, 0);
    world.connect(late, 0, server, 0, 0);
    let call = Request::message(Number::Call, 0, 0);
    world.enter(waiting, call, 0, &[], 0);
    assert_eq!(world.state(waiting), State::Calling);
    world.run(server);
    world.kernel.exception(13, 0, 0);
    assert_eq!(world.state(waiting), State::Runnable);
    assert_eq!(Reply(world.registers(waiting).rax).result(), Err(Error::Gone));
    let registers = world.enter(late, call, 0, &[], 0);
    assert_eq!((Reply(registers.rax).result(), world.state(late)), (Err(Error::Gone), State::Runnable));
}

/// Lets timer interrupts come for as long as a timer of a domain is set.
fn until_at_rest(world: &mut World) {
    for _ in 0..1000 {
        let Some(deadline) = world.kernel.cpu.timers.earliest(&world.kernel.machine) else { return };
        world.kernel.machine.now = world.kernel.machine.now.max(deadline);
        world.kernel.timer_interrupt();
    }
    panic!("it does not come to rest");
}

fn is_told(world: &World, client: Frame) -> bool {
    world.state(client) == State::Runnable && Reply(world.registers(client).rax).result() == Err(Error::Gone)
}

/// Servers that call another one, and wait.
fn callers(world: &mut World, server: Frame, count: usize) -> std::vec::Vec<Frame> {
    let callers: std::vec::Vec<_> = (0..count).map(|_| world.server()).collect();
    for caller in &callers {
        world.connect(*caller, 0, server, 0, 0);
        world.enter(*caller, Request::message(Number::Call, 0, 0), 0, &[], 0);
        assert_eq!(world.state(*caller), State::Calling);
    }
    callers
}

#[test]
fn all_of_many_that_wait_for_a_lost_server_are_told_a_few_at_a_time() {
    let mut world = World::with_frames(4096);
    let server = world.server();
    let callers = callers(&mut world, server, 200);
    let told = |world: &World| callers.iter().filter(|caller| is_told(world, **caller)).count();
    world.run(server);
    let mut before = told(&world);
    world.kernel.exception(13, 0, 0);
    let mut steps = 0;
    loop {
        let now = told(&world);
        assert!(now - before <= 64, "{} at once", now - before);
        before = now;
        if now == callers.len() {
            break;
        }
        steps += 1;
        assert!(steps < 100, "{now} are told");
        world.kernel.machine.now += 2;
        world.kernel.timer_interrupt();
    }
    until_at_rest(&mut world);
}

#[test]
fn without_init_nobody_waits_for_a_server_that_has_ended() {
    let mut world = World::with_frames(8192);
    let init = world.server();
    let [stopped, trapped, alive] = [0; 3].map(|_| world.server());
    for server in [stopped, trapped, alive] {
        handled(&mut world, server, 0, init);
    }
    let of_stopped = callers(&mut world, stopped, 100);
    let of_trapped = callers(&mut world, trapped, 100);
    let of_alive = callers(&mut world, alive, 2);
    // One is to be started again later, of another `init` has not yet heard.
    world.connect(init, 0, stopped, 0, 0);
    let stop = [Control::Stop as u64, 0, 0, 0];
    world.simple(init, Number::DomainControl, protocol::abi::Target::slot(0).0, &stop).unwrap();
    world.run(trapped);
    world.kernel.exception(13, 0, 0);
    let all_wait =
        |world: &World, callers: &[Frame]| callers.iter().all(|caller| world.state(*caller) == State::Calling);
    assert!(all_wait(&world, &of_stopped) && all_wait(&world, &of_trapped));
    assert!(world.kernel.machine.debug.is_empty(), "there is somebody to handle it");

    world.run(init);
    world.kernel.exception(13, 0, 0);
    until_at_rest(&mut world);
    assert!(of_stopped.iter().chain(&of_trapped).all(|caller| is_told(&world, *caller)));
    assert!(all_wait(&world, &of_alive), "a server that lives on is not lost");

    // Whoever ends from now on is lost at once, and said to be.
    let said = world.kernel.machine.debug.len();
    world.run(alive);
    world.kernel.exception(13, 0, 0);
    until_at_rest(&mut world);
    assert!(of_alive.iter().all(|caller| is_told(&world, *caller)));
    assert!(world.kernel.machine.debug.len() > said);
}

#[test]
fn collect_refuses_bad_buffers_and_loses_nothing() {
    let mut world = World::new();
    let (pager, vm) = (world.server(), world.vm());
    handled(&mut world, vm, 0, pager);
    world.run(vm);
    world.kernel.exception(13, 0, 0);
    for (queue, address, room) in
        [(4, BASE, 1), (0, BASE, 65), (0, BASE + 4, 1), (0, BASE + PAGES * PAGE - 16, 1), (0, u64::MAX - 7, 1)]
    {
        assert!(world.simple(pager, Number::Collect, queue, &[address, room]).is_err());
    }
    assert_eq!(collect(&mut world, pager, 0).len(), 1);
}
