//! VMs and pages that are not in memory.

use super::{super::*, world::*};
use crate::{
    away::{ASK_AGAIN, HELD_EACH, HOLD, LOOK_EVERY},
    header::tests::ipv4_packet,
    memory::Copy,
};
use core::mem::offset_of;
use proptest::prelude::*;
use protocol::service::net_driver;
use std::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    vec,
    vec::Vec,
};

/// A bench whose pager takes its time.
fn slow(numbers: impl IntoIterator<Item = u8>) -> Bench {
    let mut bench = Bench::new(numbers);
    bench.world.quick = false;
    bench
}

impl Bench {
    /// The pager brings what it was asked for, and the switch goes on.
    fn bring(&mut self) {
        let brought = self.world.bring_all();
        brought.into_iter().for_each(|vm| self.switch.brought(vm));
        self.run();
    }
}

fn inward(to: u8, length: usize) -> Vec<u8> {
    ipv4_packet(OUTSIDE, mac(to), OUTSIDE_ADDRESS, address(to), length)
}

const QUEUE: u64 = BASE / 4096;

#[test]
fn a_vm_that_was_moved_is_found() {
    let mut bench = Bench::new([15, 16]);
    bench.world.leave(16);
    bench.put(15, &between(15, 16, 300));
    bench.run();
    assert_eq!(bench.received(16), [between(15, 16, 300)]);
    assert_eq!((bench.world.asks, bench.switch.at(vm(16))), (1, bench.world.at.get(&16).copied()));
    assert_eq!(bench.world.raised.last(), bench.world.at.get(&16));
    bench.put(15, &between(15, 16, 301));
    bench.run();
    assert_eq!((bench.received(16), bench.world.asks), (vec![between(15, 16, 301)], 1));
}

#[test]
fn packets_are_held_for_a_vm_that_is_away_and_nobody_waits() {
    let mut bench = slow([15, 16, 17]);
    bench.world.leave(16);
    bench.put(15, &between(15, 16, 300));
    bench.put(15, &between(15, 17, 301));
    bench.put(15, &between(15, 16, 302));
    bench.put(15, &out(15, 303));
    bench.arrive(&inward(16, 304));
    bench.arrive(&inward(17, 305));
    bench.run();
    assert_eq!((bench.own(15).taken, bench.drive(9)), (4, vec![out(15, 303)]));
    assert_eq!(bench.received(17), [inward(17, 305), between(15, 17, 301)]);
    assert_eq!(bench.world.asks, 1, "one question for all of them");
    bench.bring();
    assert_eq!(bench.received(16), [inward(16, 304), between(15, 16, 300), between(15, 16, 302)]);
    assert!(bench.world.told.contains(&16) && bench.switch.waits.is_empty());
    assert_eq!(bench.switch.next_look(), protocol::abi::NEVER);
}

#[test]
fn only_so_many_are_held_the_oldest_of_them() {
    let mut bench = slow(15..=60);
    bench.world.leave(16);
    (0..20).for_each(|length| bench.put(15, &between(15, 16, 100 + length)));
    bench.run();
    assert_eq!((bench.dropped(16) as usize, bench.own(15).taken), (20 - HELD_EACH, 20));
    assert_eq!(bench.own(16).dropped, 0, "it is told when it is back");
    bench.bring();
    let kept: Vec<_> = (0..HELD_EACH).map(|length| between(15, 16, 100 + length)).collect();
    assert_eq!((bench.received(16), bench.own(16).dropped as usize), (kept, 20 - HELD_EACH));
    // Many VMs that are away: no more than there are buffers.
    for number in 17..=60 {
        bench.world.leave(number);
        (0..8).for_each(|length| bench.arrive(&inward(number, 100 + length)));
        bench.run();
    }
    let dropped = |bench: &Bench| (17..=60).map(|number| bench.dropped(number)).sum::<u32>();
    assert_eq!(dropped(&bench) as usize, 44 * 8 - crate::away::HELD);
    bench.bring();
    let received: usize = (17..=60).map(|number| bench.received(number).len()).sum();
    assert_eq!((received, dropped(&bench) as usize), (crate::away::HELD, 44 * 8 - crate::away::HELD));
}

#[test]
fn a_packet_is_held_for_so_long_and_no_longer() {
    let mut bench = slow([15, 16]);
    bench.world.leave(16);
    bench.put(15, &between(15, 16, 100));
    bench.run();
    let asked = bench.world.asks;
    bench.world.now += HOLD / 2;
    bench.put(15, &between(15, 16, 101));
    bench.run();
    assert_eq!(bench.world.asks, asked + 1, "asked once more");
    bench.run();
    assert_eq!(bench.world.asks, asked + 1, "but not all the time");
    bench.world.now += HOLD / 2;
    assert!(bench.switch.next_look() <= bench.world.now);
    bench.run();
    assert_eq!(bench.dropped(16), 1);
    bench.bring();
    assert_eq!((bench.received(16), bench.own(16).dropped), (vec![between(15, 16, 101)], 1));
}

#[test]
fn a_restarted_pager_is_asked_again() {
    let mut bench = slow([15, 16]);
    bench.world.leave(16);
    bench.put(15, &between(15, 16, 100));
    bench.run();
    bench.world.asked.clear();
    bench.world.now += LOOK_EVERY;
    bench.run();
    assert!(bench.world.asked.is_empty());
    bench.world.now += ASK_AGAIN;
    bench.switch.pager_restarted();
    bench.run();
    assert_eq!(bench.world.asked.len(), 1);
    bench.bring();
    assert_eq!(bench.received(16), [between(15, 16, 100)]);
}

#[test]
fn a_vm_that_will_never_be_back_is_forgotten() {
    let mut bench = slow([15, 16]);
    bench.world.leave(16);
    bench.put(15, &between(15, 16, 100));
    bench.run();
    bench.world.vms.remove(&16);
    bench.world.now += ASK_AGAIN;
    bench.run();
    assert!(bench.switch.waits.is_empty());
    // Detached while something is held for it: the buffers are free again.
    let mut bench = slow([15, 16]);
    for _ in 0..2 * crate::away::HELD / HELD_EACH {
        bench.world.leave(16);
        (0..HELD_EACH).for_each(|_| bench.arrive(&inward(16, 100)));
        bench.run();
        assert_eq!(bench.dropped(16), 0);
        assert!(bench.switch.detach(vm(16)));
        bench.attach(16);
    }
}

#[test]
fn a_sender_whose_packets_are_not_there_goes_on_later() {
    let mut bench = slow([15, 16, 17]);
    bench.put(15, &between(15, 16, 100));
    bench.put(15, &between(15, 16, 99));
    bench.put(15, &between(15, 16, 1514));
    bench.put(15, &out(15, 102));
    bench.put(17, &between(17, 16, 103));
    // The end of the third packet.
    bench.world.missing.insert((15, (BASE + 0x11000) / 4096 + 1));
    bench.run();
    assert_eq!((bench.own(15).taken, bench.own(17).taken), (2, 1));
    // It waits for that, and receives meanwhile.
    bench.put(17, &between(17, 15, 104));
    bench.run();
    assert_eq!(bench.received(15), [between(17, 15, 104)]);
    bench.bring();
    assert_eq!((bench.own(15).taken, bench.own(15).refused, bench.drive(9)), (4, 0, vec![out(15, 102)]));
    let expected = [between(15, 16, 100), between(15, 16, 99), between(17, 16, 103), between(15, 16, 1514)];
    assert_eq!(bench.received(16), expected);
    // Its queue page, then the beginning of a packet; then it leaves whole, with the doorbell rung.
    bench.put(15, &out(15, 105));
    bench.world.missing.insert((15, QUEUE));
    bench.run();
    assert!(bench.drive(9).is_empty());
    bench.bring();
    bench.put(15, &out(15, 106));
    bench.world.missing.insert((15, (BASE + 0x11000) / 4096 + 1));
    bench.run();
    bench.world.leave(15);
    bench.bring();
    assert_eq!(bench.drive(9), [out(15, 105), out(15, 106)]);
}

#[test]
fn a_buffer_that_is_not_there_is_brought_and_order_kept() {
    let mut bench = slow([15, 16]);
    // The second buffer of 16.
    bench.world.missing.insert((16, (BASE + 0x1000 + BUFFER as u64 * 2) / 4096));
    (0..4).for_each(|length| bench.put(15, &between(15, 16, 100 + length)));
    bench.run();
    assert_eq!((bench.own(15).taken, bench.own(16).arrived), (4, 2));
    bench.arrive(&inward(16, 104));
    bench.run();
    bench.bring();
    let mut expected: Vec<_> = (0..4).map(|length| between(15, 16, 100 + length)).collect();
    expected.push(inward(16, 104));
    assert_eq!((bench.received(16), bench.own(16).dropped), (expected, 0));
}

/// Whether a copy goes from this part of the scratch memory to a VM.
fn goes(copy: &Copy, part: &core::ops::Range<usize>, number: u8) -> bool {
    matches!(copy.from, Place::Scratch(offset) if part.contains(&offset))
        && matches!(copy.to, Place::Vm { vm: to, .. } if to == vm(number))
}

#[test]
fn lengths_and_indices_reach_a_vm_that_left_in_between() {
    let (lengths, indices) = (LENGTHS..INDICES, INDICES..HELD);
    // Its queue page is taken before its lengths, or its indices, are written; or is there again, unasked, for the indices.
    for (taken, back) in [(lengths.clone(), None), (indices.clone(), None), (lengths, Some(indices))] {
        let mut bench = slow([15, 16]);
        bench.put(15, &between(15, 16, 100));
        bench.put(15, &between(15, 16, 101));
        let (mut hit, mut calls) = (false, 0);
        bench.world.trap = Some(Box::new(move |copy, missing, _| {
            if goes(copy, &taken, 16) && !core::mem::replace(&mut hit, true) {
                missing.insert((16, QUEUE));
            }
            // Not for the call that lengths and indices are tried in together.
            if back.as_ref().is_some_and(|back| goes(copy, back, 15)) {
                calls += 1;
                if calls == 2 {
                    missing.clear();
                }
            }
        }));
        bench.run();
        assert_eq!(bench.own(15).taken, 2);
        assert!(bench.received(16).is_empty(), "without a length nothing has arrived");
        bench.bring();
        assert_eq!(bench.received(16), [between(15, 16, 100), between(15, 16, 101)]);
        assert!(bench.world.told.contains(&16));
    }
}

#[test]
fn what_a_vm_is_owed_is_kept_when_it_leaves_again() {
    let mut bench = slow([15, 16]);
    bench.put(15, &between(15, 16, 100));
    let mut hit = false;
    bench.world.trap = Some(Box::new(move |copy, missing, _| {
        if goes(copy, &(INDICES..HELD), 16) && !core::mem::replace(&mut hit, true) {
            missing.insert((16, QUEUE));
        }
    }));
    bench.run();
    // It is back, but its queue page is gone again before anybody could look.
    let brought = bench.world.bring_all();
    bench.world.missing.insert((16, QUEUE));
    brought.into_iter().for_each(|vm| bench.switch.brought(vm));
    bench.run();
    assert!(bench.received(16).is_empty() && !bench.world.told.contains(&16));
    bench.bring();
    assert_eq!((bench.received(16), bench.world.told.contains(&16)), (vec![between(15, 16, 100)], true));
}

#[test]
fn a_vm_that_leaves_before_it_is_told_is_told_later() {
    let mut bench = slow([15, 16]);
    bench.put(16, &between(16, 15, 100));
    // The indices of 15 are written; then, while those of 16 are, 15 leaves.
    bench.world.trap = Some(Box::new(|copy, _, at| {
        if goes(copy, &(INDICES..HELD), 16) {
            at.remove(&15);
        }
    }));
    bench.run();
    assert!(!bench.world.told.contains(&15));
    bench.world.trap = None;
    bench.bring();
    assert_eq!((bench.world.told.contains(&15), bench.received(15)), (true, vec![between(16, 15, 100)]));
}

#[test]
fn a_buffer_that_can_never_be_had_costs_one_of_those_held() {
    let mut bench = slow([15, 16]);
    bench.world.leave(16);
    (0..4).for_each(|length| bench.put(15, &between(15, 16, 100 + length)));
    bench.run();
    // The page of its first two buffers.
    bench.world.broken.insert((16, BASE / 4096 + 1));
    for vm in bench.world.bring_all() {
        bench.switch.brought(vm);
    }
    // The first is lost at once, and leaves a gap: nothing that comes now may overtake the others.
    bench.round();
    assert_eq!(bench.dropped(16), 1);
    bench.world.broken.clear();
    bench.arrive(&inward(16, 104));
    bench.run();
    let expected = [101, 102, 103].map(|length| between(15, 16, length));
    let received = bench.received(16);
    assert_eq!((&received[..3], &received[3..]), (&expected[..], &[inward(16, 104)][..]));
}

#[test]
fn a_page_that_never_stays_does_not_hang_the_switch() {
    let mut bench = Bench::new([15, 16]);
    bench.put(15, &between(15, 16, 100));
    // The pager says that it is here, and when one looks it is not.
    bench.world.liar = true;
    bench.world.missing.insert((16, QUEUE));
    bench.run();
    assert_eq!(bench.own(15).taken, 1);
    bench.world.liar = false;
    bench.world.now += ASK_AGAIN;
    bench.run();
    assert_eq!(bench.received(16), [between(15, 16, 100)]);
}

#[test]
fn a_vm_that_is_nowhere_is_left_in_peace_until_something_is_for_it() {
    let mut bench = slow([15, 16]);
    bench.world.leave(16);
    bench.switch = Switch::new(100, Uplink::new(Some(bench.world.uplink)));
    bench.attach(15);
    bench.attach(16);
    bench.run();
    assert_eq!(bench.world.asks, 0);
    bench.put(15, &between(15, 16, 100));
    bench.run();
    bench.bring();
    assert_eq!(bench.received(16), [between(15, 16, 100)]);
}

#[test]
fn only_so_many_are_waited_for_and_the_others_have_their_turn_later() {
    let mut bench = slow(1..=6);
    bench.switch.waits = Waits::with_room(2);
    // Packets for three that are away: the pager is asked for all of them, but packets are held for two only.
    (1..=3).for_each(|number| bench.world.leave(number));
    (1..=3).for_each(|number| bench.arrive(&inward(number, 100)));
    // Two whose packets are not there, and one that is well.
    for number in [4, 5] {
        bench.put(number, &between(number, 6, 1514));
        bench.world.missing.insert((number, (BASE + 0x11000) / 4096));
    }
    bench.put(6, &out(6, 101));
    bench.run();
    assert_eq!((bench.drive(9), bench.switch.waits.len(), bench.world.asks), (vec![out(6, 101)], 2, 5));
    assert_eq!((bench.own(4).taken, bench.own(5).taken), (0, 0));
    bench.bring();
    let got: Vec<_> = (1..=3).map(|number| bench.received(number).len()).collect();
    assert_eq!(got, [1, 1, 0]);
    let mut from: Vec<_> = bench.received(6).iter().map(|packet| packet[11]).collect();
    from.sort_unstable();
    assert_eq!((from, bench.switch.crowd.len()), (vec![4, 5], 0));
    // The one that lost its packet gets the next.
    bench.arrive(&inward(3, 102));
    bench.run();
    bench.bring();
    assert_eq!(bench.received(3), [inward(3, 102)]);
}

#[derive(Clone, Debug)]
enum Step {
    Send(u8, u8, usize),
    Arrive(u8, usize),
    Leave(u8),
    Evict(u8, u64),
    Run,
    Bring,
    Restart,
    Wait(u64),
    Read(u8),
}

fn steps() -> impl Strategy<Value = Step> {
    let vm = || 1u8..=4;
    prop_oneof![
        6 => (vm(), 0u8..=4, 42usize..1514).prop_map(|(from, to, length)| Step::Send(from, to, length)),
        3 => (vm(), 42usize..1514).prop_map(|(to, length)| Step::Arrive(to, length)),
        2 => vm().prop_map(Step::Leave),
        2 => (vm(), 0u64..(WINDOW as u64 / 4096)).prop_map(|(vm, page)| Step::Evict(vm, page)),
        3 => Just(Step::Run),
        3 => Just(Step::Bring),
        1 => Just(Step::Restart),
        1 => (0u64..2 * ASK_AGAIN).prop_map(Step::Wait),
        4 => vm().prop_map(Step::Read),
    ]
}

/// Puts a number into a packet behind its headers.
fn numbered(mut packet: Vec<u8>, number: u32) -> Vec<u8> {
    packet[34..38].copy_from_slice(&number.to_le_bytes());
    packet
}

/// What each VM has got, and 0, the network: number of the packet, length.
type Got = BTreeMap<u8, Vec<(u32, usize)>>;

/// A VM that was told looks what has come and offers its buffers anew.
fn read(bench: &mut Bench, got: &mut Got, number: u8) {
    if bench.world.at.contains_key(&number) && bench.world.told.remove(&number) {
        let packets = bench.received(number);
        let arrived = bench.own(number).arrived;
        let offered = bench.offered[&number];
        bench.offer(number, (8 + arrived).saturating_sub(offered));
        let number_of = |packet: &Vec<u8>| u32::from_le_bytes(*packet[34..].first_chunk().unwrap());
        got.entry(number).or_default().extend(packets.iter().map(|packet| (number_of(packet), packet.len())));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// VMs and pages come and go at any time, and so does the pager's memory: no packet is delivered twice, those of one sender to one
    /// receiver keep their order, each is delivered whole or counted as dropped, and nobody waits for ever.
    #[test]
    fn each_packet_once_in_order_or_counted(steps in prop::collection::vec(steps(), 1..150), quick: bool) {
        let mut bench = Bench::new(1..=4);
        bench.world.quick = quick;
        let mut got = Got::new();
        // For each number: sender, receiver, length. 0 is the network.
        let mut sent: Vec<(u8, u8, usize)> = Vec::new();
        for step in steps {
            match step {
                Step::Send(from, to, length) => {
                    let room = bench.filled.get(&from).copied().unwrap_or(0) - bench.own(from).taken < 32;
                    if !bench.world.at.contains_key(&from) || !room || from == to {
                        continue;
                    }
                    let packet = if to == 0 { out(from, length) } else { between(from, to, length) };
                    bench.put(from, &numbered(packet, sent.len() as u32));
                    sent.push((from, to, length));
                }
                Step::Arrive(to, length) => {
                    let taken = bench.world.uplink.read_u32(offset_of!(net_driver::RingPage, received_taken));
                    if (bench.driver_arrived - taken) as usize >= net_driver::ENTRIES {
                        continue;
                    }
                    bench.arrive(&numbered(inward(to, length), sent.len() as u32));
                    sent.push((0, to, length));
                }
                Step::Leave(number) => bench.world.leave(number),
                Step::Evict(number, page) => drop(bench.world.missing.insert((number, QUEUE + page))),
                Step::Run => drop(bench.round()),
                Step::Bring => {
                    let brought = bench.world.bring_all();
                    brought.into_iter().for_each(|vm| bench.switch.brought(vm));
                }
                Step::Restart => {
                    bench.world.asked.clear();
                    bench.switch.pager_restarted();
                }
                Step::Wait(time) => bench.world.now += time,
                Step::Read(number) => read(&mut bench, &mut got, number),
            }
            let most = bench.switch.waits.len();
            prop_assert!(most <= 4);
        }
        // In the end all come back: nothing is left anywhere.
        for _ in 0..100 {
            bench.world.now += ASK_AGAIN;
            // A line that is raised brings its VM.
            let told: Vec<_> = bench.world.told.iter().copied().collect();
            told.into_iter().for_each(|number| bench.world.come(number));
            bench.bring();
            (1..=4).for_each(|number| read(&mut bench, &mut got, number));
            for packet in bench.drive(1000) {
                let number = u32::from_le_bytes(*packet[34..].first_chunk().unwrap());
                got.entry(0).or_default().push((number, packet.len()));
            }
        }
        prop_assert!(bench.switch.waits.is_empty() && bench.world.asked.is_empty());
        for number in 1..=4u8 {
            bench.world.come(number);
            let own = bench.own(number);
            let received = got.get(&number).map_or(0, Vec::len);
            let expected = sent.iter().filter(|(_, to, _)| *to == number).count();
            prop_assert_eq!(expected, received + own.dropped as usize, "VM {}: {:?}", number, own);
            prop_assert_eq!(bench.filled.get(&number).copied().unwrap_or(0), own.taken);
            prop_assert_eq!(own.refused, 0);
            prop_assert_eq!((own.arrived as usize, bench.dropped(number)), (received, own.dropped));
        }
        let out = sent.iter().filter(|(_, to, _)| *to == 0).count();
        prop_assert_eq!(out, got.get(&0).map_or(0, Vec::len));
        for (receiver, packets) in got {
            let all: BTreeSet<_> = packets.iter().map(|(number, _)| number).collect();
            prop_assert_eq!(all.len(), packets.len(), "a packet came twice");
            let mut last = BTreeMap::new();
            for (number, length) in packets {
                let (from, to, sent_length) = sent[number as usize];
                prop_assert_eq!((to, sent_length), (receiver, length));
                let before = last.insert(from, number);
                prop_assert!(before.is_none_or(|before| before < number), "{} overtook {:?}", number, before);
            }
        }
    }
}
