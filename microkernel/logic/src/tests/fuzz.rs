//! Every call with random registers, by servers and VMs: the kernel goes on, and its records stay consistent.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

#[derive(Clone, Debug)]
struct Attempt {
    who: usize,
    number: u8,
    high: u64,
    rdi: u64,
    words: [u64; 8],
    r15: u64,
    time: u64,
}

/// Values that mean something somewhere, and any others.
pub(super) fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..5,
        Just(u64::from(ALL)),
        0u64..64,
        (0u64..PAGES * PAGE / 8).prop_map(|offset| BASE + offset * 8),
        (0u64..60).prop_map(|frame| 2 << 60 | u64::from(ALL) << 54 | frame),
        (0u64..60, 0u64..4).prop_map(|(frame, sequence)| 3 << 60 | sequence << 32 | frame),
        (0u64..64).prop_map(|slot| 1 << 60 | slot << 48),
        Just(u64::MAX),
        any::<u64>(),
    ]
}

fn attempt() -> impl Strategy<Value = Attempt> {
    (
        0usize..4,
        0u8..32,
        prop_oneof![Just(1u64 << 63), any::<u64>()],
        value(),
        prop::array::uniform8(value()),
        value(),
        0u64..20_000_000,
    )
        .prop_map(|(who, number, high, rdi, words, r15, time)| Attempt {
            who,
            number,
            high,
            rdi,
            words,
            r15,
            time,
        })
}

/// Checks what must hold between any two system calls.
pub(super) fn check(world: &World) -> Result<(), TestCaseError> {
    let kernel = &world.kernel;
    let mut mapped: HashMap<Frame, u32> = HashMap::new();
    for frame in (1..FRAMES).filter(|frame| kernel.frames.kind(*frame) == FrameKind::Block) {
        let block = kernel.machine.block(frame);
        prop_assert_eq!(block.frame, frame);
        prop_assert_eq!(kernel.frames.kind(block.root), FrameKind::Table);
        for upper in kernel.machine.table(block.root).iter().filter(|entry| entry.is_present()) {
            prop_assert_eq!(kernel.frames.kind(upper.frame()), FrameKind::Table);
            for middle in kernel.machine.table(upper.frame()).iter().filter(|entry| entry.is_present()) {
                prop_assert_eq!(kernel.frames.kind(middle.frame()), FrameKind::Table);
                for page in kernel.machine.table(middle.frame()).iter().filter(|entry| entry.is_present()) {
                    *mapped.entry(page.frame()).or_default() += 1;
                }
            }
        }
    }
    for frame in 1..FRAMES {
        let count = mapped.get(&frame).copied().unwrap_or(0);
        prop_assert_eq!(kernel.frames.count(frame), count, "frame {} is mapped {} times", frame, count);
        prop_assert_eq!(kernel.frames.kind(frame) == FrameKind::User, count > 0);
    }
    if kernel.running() != NO_FRAME {
        prop_assert_eq!(world.state(kernel.running()), State::Runnable);
    }
    Ok(())
}

/// Two servers and two VMs that can call one another in a ring and handle one another's events.
fn four() -> (World, [Frame; 4]) {
    let mut world = World::new();
    let domains = [world.server(), world.server(), world.vm(), world.vm()];
    world.connect(domains[0], 0, domains[1], 1, 9);
    world.connect(domains[1], 0, domains[2], 2, 10);
    world.connect(domains[2], 0, domains[1], 3, 11);
    world.connect(domains[3], 0, domains[0], 4, 12);
    for (index, domain) in domains.iter().enumerate() {
        let service = domains[(index + 1) % 4];
        let generation = world.kernel.frames.generation(service);
        world.kernel.machine.block_mut(*domain).services = [crate::block::DomainRef { frame: service, generation }; 4];
    }
    (world, domains)
}

/// An attempt that is mostly a call or a reply, with the token or slot that it needs.
fn message() -> impl Strategy<Value = (usize, bool, u8, u16, bool)> {
    (0usize..4, any::<bool>(), any::<u8>(), 0u16..70, any::<bool>())
}

/// What two kernels must agree on.
fn digest(world: &World) -> std::vec::Vec<std::string::String> {
    let blocks = (1..FRAMES).filter(|frame| world.kernel.frames.kind(*frame) == FrameKind::Block);
    let mut lines: std::vec::Vec<_> = blocks
        .map(|frame| {
            let b = world.kernel.machine.block(frame);
            // Registers that a message does not fill are not part of it.
            let filled = if Request(b.registers.rax).length() <= 16 { 2 } else { 8 };
            std::format!(
                "{frame} {:x} {:x} {:x} {:x?} {:?} {} {} {:?} {:?} {:?} {} {:x} {} {:x} {:?}",
                b.registers.rax,
                b.registers.rdi,
                b.registers.r15,
                &b.registers.words[..filled],
                b.state(),
                b.sequence,
                b.partner,
                b.link,
                b.callers,
                b.clients,
                b.pending,
                b.request,
                b.badge,
                b.lend,
                b.timers
            )
        })
        .collect();
    lines.push(std::format!("{}", world.kernel.running()));
    lines
}

proptest! {
    /// The short way of a message does what the long way does.
    #[test]
    fn both_ways_agree(messages in prop::collection::vec(message(), 1..80)) {
        let (mut short, domains) = four();
        let (mut long, _) = four();
        long.kernel.long_way_only = true;
        for (who, call, label, length, timed) in messages {
            let domain = domains[who];
            if short.state(domain) != State::Runnable {
                continue;
            }
            let token = short.registers(domain).rdi;
            let number = if call { Number::Call } else { Number::ReplyWait };
            let (rdi, r15) = if call { (0, 0) } else { (token, if timed { 1000 } else { u64::MAX }) };
            for world in [&mut short, &mut long] {
                world.enter(domain, Request::message(number, label, length), rdi, &[BASE, 2, 3, 4, 5, 6, 7, 8], r15);
            }
            prop_assert_eq!(digest(&short), digest(&long));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn random_calls_break_nothing(attempts in prop::collection::vec(attempt(), 1..60)) {
        let (mut world, domains) = four();
        for Attempt { who, number, high, rdi, words, r15, time } in attempts {
            let domain = domains[who];
            // A domain that was destroyed or waits cannot call.
            if world.kernel.frames.kind(domain) == FrameKind::Block && world.state(domain) == State::Runnable {
                world.enter(domain, Request(high & !0xff | u64::from(number)), rdi, &words, r15);
            }
            world.kernel.machine.now += time;
            world.kernel.timer_interrupt();
            check(&world)?;
        }
    }
}
