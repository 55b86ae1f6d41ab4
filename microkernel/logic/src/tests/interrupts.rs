//! Virtual interrupts: every line raised arrives, none that was not, in whatever order a domain waits, masks and polls.

use super::*;
use crate::scheduler::BATCH;
use core::mem::offset_of;
use proptest::prelude::*;
use protocol::{
    abi::{NEVER, Target, Wake},
    domain::Device,
    registers::RegisterPage,
};

const ENABLED: u64 = BASE + offset_of!(RegisterPage, enabled) as u64;
const PENDING: u64 = BASE + offset_of!(RegisterPage, pending) as u64;
const MASK: u64 = BASE + offset_of!(RegisterPage, mask) as u64;
const HANDLER: u64 = BASE + offset_of!(RegisterPage, handler) as u64;
const SAVED: u64 = BASE + offset_of!(RegisterPage, saved_instruction) as u64;

#[derive(Clone, Debug)]
enum Step {
    Raise(u8),
    Idle,
    SetMask(u64),
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..64).prop_map(Step::Raise),
        Just(Step::Idle),
        any::<u64>().prop_map(Step::SetMask),
        Just(Step::Take),
    ]
}

proptest! {
    /// What a VM has seen and what is still to come are together what was raised; a VM waits only while nothing that it
    /// has not masked is pending.
    #[test]
    fn a_vm_sees_what_was_raised(steps in proptest::collection::vec(step(), 0..100)) {
        let mut world = World::new();
        let vm = world.vm();
        let (mut raised, mut seen, mut mask) = (0u64, 0u64, u64::MAX);
        world.poke(vm, MASK, &mask.to_le_bytes());
        for step in steps {
            match step {
                Step::Raise(line) => {
                    world.kernel.raise(vm, line);
                    raised |= 1 << line;
                }
                Step::Idle if world.state(vm) == State::Runnable => {
                    world.enter(vm, Request::new(Number::Idle), NEVER, &[], 0);
                }
                Step::SetMask(new) if world.state(vm) == State::Runnable => {
                    mask = new;
                    world.poke(vm, MASK, &mask.to_le_bytes());
                }
                Step::Take if world.state(vm) == State::Runnable => {
                    world.run(vm);
                    world.kernel.spurious_interrupt();
                    seen |= world.peek_u64(vm, PENDING);
                    world.poke(vm, PENDING, &[0; 8]);
                    raised &= !seen;
                    seen = 0;
                }
                _ => {}
            }
            let pending = world.peek_u64(vm, PENDING) | world.kernel.machine.block(vm).pending;
            prop_assert_eq!(pending, raised);
            if world.state(vm) == State::Idle {
                prop_assert_eq!(pending & mask, 0, "waits although an enabled line is pending");
            }
        }
    }

    /// A server takes all that is pending with one wait, each line once.
    #[test]
    fn a_server_takes_all_at_once(lines in proptest::collection::hash_set(0u8..64, 1..20), before: bool) {
        let mut world = World::new();
        let server = world.server();
        let wait = Request::message(Number::ReplyWait, 0, 0);
        if before {
            world.enter(server, wait, 0, &[], NEVER);
        }
        let mut taken = 0;
        let mut wanted = 0;
        for line in &lines {
            world.kernel.raise(server, *line);
            wanted |= 1u64 << line;
        }
        for _ in 0..2 {
            if world.state(server) == State::Runnable {
                let got = if before && taken == 0 { *world.registers(server) } else { world.enter(server, wait, 0, &[], NEVER) };
                if world.state(server) == State::Runnable {
                    prop_assert_eq!(Reply(got.rax).wake(), Wake::Interrupts);
                    prop_assert_eq!(taken & got.r15, 0);
                    taken |= got.r15;
                }
            }
        }
        prop_assert_eq!(taken, wanted);
    }

    /// Whatever a VM writes into its register page, the kernel goes on and the VM's instruction pointer stays in its half.
    #[test]
    fn a_scribbled_register_page_harms_nobody(words in proptest::collection::vec(any::<u64>(), 16), line in 0u8..64) {
        let mut world = World::new();
        let (vm, other) = (world.vm(), world.vm());
        world.poke(vm, BASE, &bytes(&words));
        world.run(vm);
        world.kernel.raise(vm, line);
        world.kernel.spurious_interrupt();
        let _ = world.simple(vm, Number::InterruptReturn, 0, &[]);
        prop_assert!(world.registers(vm).rip < protocol::layout::SPACE_END);
        prop_assert_eq!(world.registers(vm).rflags & 0x0003_7200, 0x200, "no privileged flag, interrupts on");
        prop_assert_eq!(world.state(other), State::Runnable);
    }
}

#[test]
fn the_handler_is_entered_and_left() {
    let mut world = World::new();
    let vm = world.vm();
    for (at, value) in [(ENABLED, 1), (MASK, 1 << 9), (HANDLER, 0x20_2000)] {
        world.poke(vm, at, &u64::to_le_bytes(value));
    }
    world.run(vm);
    let registers = &mut world.kernel.machine.block_mut(vm).registers;
    (registers.rax, registers.rcx, registers.r11) = (11, 12, 13);
    let before = *world.registers(vm);
    world.kernel.raise(vm, 8);
    world.kernel.spurious_interrupt();
    assert_eq!(world.registers(vm).rip, before.rip, "line 8 is masked");
    world.kernel.raise(vm, 9);
    world.kernel.spurious_interrupt();
    assert_eq!(world.registers(vm).rip, 0x20_2000);
    assert_eq!((world.peek_u64(vm, SAVED), world.peek_u64(vm, ENABLED)), (before.rip, 0));
    assert_eq!(world.peek_u64(vm, PENDING), 1 << 8 | 1 << 9);
    // Not entered again while it runs.
    world.kernel.raise(vm, 9);
    world.kernel.spurious_interrupt();
    assert_eq!(world.peek_u64(vm, SAVED), before.rip);
    world.poke(vm, PENDING, &[0; 8]);
    world.enter(vm, Request::new(Number::InterruptReturn), 0, &[], 0);
    assert_eq!(world.peek_u64(vm, ENABLED), 1);
    let after = Registers { rdi: before.rdi, r15: before.r15, ..*world.registers(vm) };
    assert_eq!(after, before, "nothing is lost but what the handler itself changed");
}

#[test]
fn idle_ends_by_time_and_is_rewarded() {
    let mut world = World::new();
    let (vm, other) = (world.vm(), world.vm());
    world.enter(vm, Request::new(Number::Idle), 1_000, &[], 0);
    assert_eq!((world.state(vm), world.kernel.running()), (State::Idle, other));
    world.kernel.machine.now = 1_000;
    world.kernel.timer_interrupt();
    assert_eq!(world.state(vm), State::Runnable);
    assert_eq!(Reply(world.registers(vm).rax), Reply::OK);
}

#[test]
fn idle_rings_before_it_waits() {
    let (mut world, switch, vms) = switch_and_idle_vms(2);
    world.kernel.raise(vms[0], 1);
    // With what is pending it does not wait, but it has rung.
    world.simple(vms[0], Number::Idle, NEVER, &[Device::Nic.bit()]).unwrap();
    assert_eq!((world.state(vms[0]), world.kernel.running()), (State::Runnable, vms[0]));
    // Nobody is behind its disk.
    world.kernel.raise(vms[1], 1);
    world.kernel.machine.block_mut(vms[1]).pending = 0;
    world.enter(vms[1], Request::new(Number::Idle), NEVER, &[Device::Nic.bit() | Device::Disk.bit()], 0);
    assert_eq!(world.state(vms[1]), State::Idle);
    let found = world.simple(switch, Number::Collect, 1, &[BASE, 8]).unwrap();
    assert_eq!(found.rdi, 2);
    for doorbells in [1, 1 << 4, u64::MAX] {
        assert_eq!(world.simple(vms[0], Number::Idle, NEVER, &[doorbells]).unwrap_err(), Error::BadArgument);
    }
    let found = world.simple(switch, Number::Collect, 1, &[BASE, 8]).unwrap();
    assert_eq!(found.rdi, 0, "a wrong request does nothing");
}

#[test]
fn a_slice_ends_when_another_vm_waits() {
    let mut world = World::new();
    let (first, second) = (world.vm(), world.vm());
    world.run(first);
    world.kernel.cpu.reschedule = true;
    world.kernel.spurious_interrupt();
    assert_eq!(world.kernel.running(), first);
    world.kernel.machine.now += crate::scheduler::SLICE;
    world.kernel.timer_interrupt();
    assert_eq!(world.kernel.running(), second);
}

#[test]
fn a_vm_that_runs_alone_is_not_interrupted() {
    let mut world = World::new();
    let vm = world.vm();
    world.run(vm);
    world.kernel.cpu.reschedule = true;
    world.kernel.spurious_interrupt();
    for _ in 0..3 {
        world.kernel.machine.now += 2 * crate::scheduler::SLICE;
        world.kernel.timer_interrupt();
        assert_eq!(world.kernel.running(), vm);
        assert!(world.kernel.machine.timer.is_none_or(|timer| timer == NEVER), "{:?}", world.kernel.machine.timer);
    }
    // Until somebody else of its band can run: then its slice ends.
    let other = world.vm();
    world.kernel.spurious_interrupt();
    let end = world.kernel.machine.timer.unwrap();
    assert!(end > world.kernel.machine.now && end <= world.kernel.machine.now + crate::scheduler::SLICE);
    world.kernel.machine.now = end;
    world.kernel.timer_interrupt();
    assert_eq!(world.kernel.running(), other);
}

/// A switch that waits and VMs that idle, and none of them has run for long.
fn switch_and_idle_vms(count: usize) -> (World, Frame, std::vec::Vec<Frame>) {
    let mut world = World::new();
    let switch = world.server();
    let vms: std::vec::Vec<_> = (0..count).map(|_| world.vm()).collect();
    world.enter(switch, Request::message(Number::ReplyWait, 0, 0), 0, &[], NEVER);
    let generation = world.kernel.frames.generation(switch);
    for vm in &vms {
        world.kernel.machine.block_mut(*vm).services[1] = crate::block::DomainRef { frame: switch, generation };
        world.connect(switch, 10, *vm, 0, 1);
        world.enter(*vm, Request::new(Number::Idle), NEVER, &[], 0);
        world.poke(*vm, MASK, &u64::MAX.to_le_bytes());
    }
    (world, switch, vms)
}

/// The VM that runs rings, and goes idle.
fn ring_and_idle(world: &mut World, vm: Frame) {
    assert_eq!(world.kernel.running(), vm);
    world.simple(vm, Number::Doorbell, 1, &[]).unwrap();
    assert_eq!(world.kernel.running(), vm, "who woke is not interrupted by what it causes");
    world.poke(vm, PENDING, &[0; 8]);
    world.enter(vm, Request::new(Number::Idle), NEVER, &[], 0);
}

#[test]
fn vms_that_woke_go_before_the_server_that_they_call() {
    let (mut world, switch, vms) = switch_and_idle_vms(3);
    vms.iter().for_each(|vm| world.kernel.raise(*vm, 1));
    let hog = world.vm();
    world.kernel.machine.block_mut(hog).flags &= !crate::block::FLAG_WOKE;
    world.kernel.spurious_interrupt();
    // Each has its turn, and only then the switch, which finds what all of them have rung for; and then who can run anyway.
    for _ in 0..3 {
        let vm = world.kernel.running();
        assert!(vms.contains(&vm), "{vm}");
        ring_and_idle(&mut world, vm);
    }
    assert_eq!(world.kernel.running(), switch);
    let found = world.simple(switch, Number::Collect, 1, &[BASE, 8]).unwrap();
    assert_eq!(found.rdi, 3);
    world.enter(switch, Request::message(Number::ReplyWait, 0, 0), 0, &[], NEVER);
    assert_eq!(world.kernel.running(), hog);
}

#[test]
fn a_better_domain_waits_so_long_and_no_longer() {
    let (mut world, switch, vms) = switch_and_idle_vms(2);
    vms.iter().for_each(|vm| world.kernel.raise(*vm, 1));
    world.kernel.spurious_interrupt();
    let first = world.kernel.running();
    world.simple(first, Number::Doorbell, 1, &[]).unwrap();
    let begun = world.kernel.machine.now;
    assert_eq!(world.kernel.machine.timer, Some(begun + BATCH));
    // It goes on and on; others wake meanwhile, which changes nothing.
    world.kernel.machine.now += BATCH / 2;
    world.simple(first, Number::Doorbell, 1, &[]).unwrap();
    assert_eq!((world.kernel.running(), world.kernel.machine.timer), (first, Some(begun + BATCH)));
    world.kernel.machine.now = begun + BATCH;
    world.kernel.timer_interrupt();
    assert_eq!(world.kernel.running(), switch);
    world.enter(switch, Request::message(Number::ReplyWait, 0, 0), 0, &[], NEVER);
    // It goes on with its slice, but has to give way at once from now on, until it waits and wakes again.
    assert_eq!(world.kernel.running(), first);
    world.simple(first, Number::Doorbell, 1, &[]).unwrap();
    world.kernel.raise(switch, 3);
    world.kernel.spurious_interrupt();
    assert_eq!(world.kernel.running(), switch);
}

#[test]
fn who_runs_for_long_gives_way_at_once() {
    let (mut world, switch, vms) = switch_and_idle_vms(1);
    let hog = world.vm();
    world.kernel.spurious_interrupt();
    assert_eq!(world.kernel.running(), hog);
    // Preempted once, it is no longer one that woke.
    world.kernel.raise(switch, 3);
    world.kernel.machine.now += BATCH;
    world.kernel.timer_interrupt();
    world.kernel.machine.now += BATCH;
    world.kernel.timer_interrupt();
    assert_eq!(world.kernel.running(), switch);
    world.enter(switch, Request::message(Number::ReplyWait, 0, 0), 0, &[], NEVER);
    assert_eq!(world.kernel.running(), hog);
    world.kernel.raise(switch, 3);
    world.kernel.spurious_interrupt();
    assert_eq!(world.kernel.running(), switch);
    world.kernel.raise(vms[0], 1);
    world.enter(switch, Request::message(Number::ReplyWait, 0, 0), 0, &[], NEVER);
    assert_eq!(world.kernel.running(), vms[0]);
}

#[test]
fn a_batch_in_which_nobody_waits_any_more_leaves_no_timer() {
    let (mut world, switch, vms) = switch_and_idle_vms(1);
    world.kernel.raise(vms[0], 1);
    world.kernel.spurious_interrupt();
    world.simple(vms[0], Number::Doorbell, 1, &[]).unwrap();
    world.kernel.extract(switch);
    world.kernel.machine.now += BATCH;
    world.kernel.timer_interrupt();
    assert_eq!((world.kernel.running(), world.kernel.cpu.armed), (vms[0], NEVER));
}

/// Runs the kernel as the domains would: `act` says what the running one does; returns how often each ran.
fn share(
    world: &mut World,
    steps: u32,
    mut act: impl FnMut(&mut World, Frame),
) -> std::collections::BTreeMap<Frame, u32> {
    let mut turns = std::collections::BTreeMap::new();
    for _ in 0..steps {
        let running = world.kernel.running();
        if running == NO_FRAME {
            world.kernel.machine.now = world.kernel.machine.timer.unwrap();
        } else {
            *turns.entry(running).or_default() += 1;
            world.kernel.machine.now += 1_000_000;
            act(world, running);
        }
        if world.kernel.machine.timer.is_some_and(|timer| timer <= world.kernel.machine.now) {
            world.kernel.timer_interrupt();
        }
    }
    turns
}

#[test]
fn waking_a_server_all_the_time_gains_nothing() {
    let mut world = World::new();
    let (switch, flooding, other) = (world.server(), world.vm(), world.vm());
    let generation = world.kernel.frames.generation(switch);
    world.kernel.machine.block_mut(flooding).services[1] = crate::block::DomainRef { frame: switch, generation };
    world.enter(switch, Request::message(Number::ReplyWait, 0, 0), 0, &[], NEVER);
    world.run(flooding);
    let turns = share(&mut world, 1000, |world, running| {
        if running == switch {
            world.simple(switch, Number::Collect, 1, &[BASE, 8]).unwrap();
            world.enter(switch, Request::message(Number::ReplyWait, 0, 0), 0, &[], NEVER);
        } else if running == flooding {
            world.simple(flooding, Number::Doorbell, 1, &[]).unwrap();
        }
    });
    assert!(turns[&other] >= turns[&flooding] * 8 / 10, "{turns:?}");
}

#[test]
fn short_pauses_gain_nothing() {
    let mut world = World::new();
    let (sly, other) = (world.vm(), world.vm());
    world.run(sly);
    let turns = share(&mut world, 1000, |world, running| {
        if running == sly {
            let soon = world.kernel.machine.now + 10;
            world.enter(sly, Request::new(Number::Idle), soon, &[], 0);
        }
    });
    assert!(turns[&other] >= turns[&sly] * 8 / 10, "{turns:?}");
}

#[test]
fn raise_needs_the_right_and_raises_the_line_of_the_capability() {
    let mut world = World::new();
    let (server, vm) = (world.server(), world.vm());
    world.connect(server, 2, vm, 0, 33);
    world.simple(server, Number::Raise, Target::slot(2).0, &[]).unwrap();
    assert_eq!(world.kernel.machine.block(vm).pending, 1 << 33);
    assert_eq!(world.simple(server, Number::Raise, Target::slot(3).0, &[]).unwrap_err(), Error::NoCapability);
    assert_eq!(world.simple(vm, Number::Raise, Target::slot(2).0, &[]).unwrap_err(), Error::NoCapability);
}
