mod arp;
mod away;
mod full;
mod world;

use super::*;
use crate::header::tests::{arp_packet, ipv4_packet};
use alloc::{boxed::Box, vec, vec::Vec};
use core::mem::offset_of;
use proptest::prelude::*;
use protocol::{
    nic::{QueuePage, RECEIVE_RING, SEND_RING, SWITCH_INDICES},
    service::net_driver::{self, RingPage},
};
use std::collections::BTreeSet;
use world::*;

#[test]
fn packets_go_out_whole_and_in_order() {
    let mut bench = Bench::new([15]);
    let packets: Vec<_> = [42, 60, 63, 64, 65, 1000, 1514].into_iter().map(|length| out(15, length)).collect();
    packets.iter().for_each(|packet| bench.put(15, packet));
    bench.run();
    assert_eq!(bench.drive(100), packets);
    assert_eq!((bench.own(15).taken, bench.own(15).refused), (7, 0));
    assert_eq!(bench.world.raised, [at(15)]);
}

#[test]
fn packets_from_the_network_find_their_vm() {
    let mut bench = Bench::new([15, 16]);
    let packet = ipv4_packet(OUTSIDE, mac(16), OUTSIDE_ADDRESS, address(16), 600);
    let reply = arp_packet(2, OUTSIDE, mac(15), OUTSIDE_ADDRESS, address(15));
    bench.arrive(&packet);
    bench.arrive(&reply);
    bench.run();
    assert_eq!((bench.received(16), bench.received(15)), (vec![packet], vec![reply]));
    assert_eq!(bench.world.raised.len(), 2);
    assert_eq!(bench.world.uplink.read_u32(offset_of!(RingPage, received_taken)), 2);
}

#[test]
fn nothing_is_flooded() {
    let mut bench = Bench::new([15, 16]);
    bench.arrive(&ipv4_packet(OUTSIDE, ALL, OUTSIDE_ADDRESS, [255; 4], 100));
    bench.arrive(&arp_packet(1, OUTSIDE, ALL, OUTSIDE_ADDRESS, [10, 0, 2, 99]));
    bench.arrive(&ipv4_packet(OUTSIDE, mac(99), OUTSIDE_ADDRESS, address(99), 100));
    bench.arrive(&ipv4_packet(mac(15), mac(16), address(15), address(16), 100));
    bench.arrive(&[0; 14]);
    bench.run();
    assert!(bench.received(15).is_empty() && bench.received(16).is_empty());
    assert_eq!(bench.switch.lost(), Lost { unknown: 2, multicast: 2, forged: 1, no_uplink: 0, answers: 0 });
}

#[test]
fn vms_talk_to_each_other_without_the_network() {
    let mut bench = Bench::new([15, 16]);
    let announced = arp_packet(2, mac(16), mac(15), address(16), address(15));
    let data = between(15, 16, 1514);
    bench.put(16, &announced);
    bench.put(15, &data);
    bench.run();
    assert_eq!((bench.received(16), bench.received(15)), (vec![data], vec![announced]));
    assert!(bench.drive(100).is_empty());
    let raised: BTreeSet<_> = bench.world.raised.iter().map(|vm| vm.frame).collect();
    assert_eq!((raised.len(), bench.world.raised.len()), (2, 2), "each is told once");
}

#[test]
fn a_vm_is_told_that_its_packets_were_taken_as_it_wants() {
    use protocol::nic::{Indices, NOTIFY_LOOK, NOTIFY_NEVER, NOTIFY_TAKEN};
    // What it wants; told when a packet was taken; and when there was none.
    for (notify, taken, none) in
        [(NOTIFY_TAKEN, 1, 0), (NOTIFY_NEVER, 0, 0), (NOTIFY_LOOK, 1, 1), (77, 1, 0), (u32::MAX, 1, 0)]
    {
        let mut bench = Bench::new([15]);
        bench.write(15, offset_of!(Indices, notify), &notify.to_le_bytes());
        bench.put(15, &out(15, 60));
        bench.run();
        assert_eq!((bench.own(15).taken, bench.world.raised.len()), (1, taken), "{notify}");
        bench.world.raised.clear();
        bench.switch.rung(vm(15), at(15));
        bench.run();
        assert_eq!((bench.own(15).taken, bench.world.raised.len()), (1, none), "{notify}");
        // What arrives is told in any case.
        bench.arrive(&ipv4_packet(OUTSIDE, mac(15), OUTSIDE_ADDRESS, address(15), 100));
        bench.world.raised.clear();
        bench.run();
        assert_eq!(bench.world.raised.len(), 1);
    }
}

#[test]
fn a_vm_that_waits_for_the_network_to_take_is_told_when_it_has() {
    use protocol::nic::{Indices, NOTIFY_LOOK};
    let mut bench = Bench::new([15]);
    bench.write(15, offset_of!(Indices, notify), &NOTIFY_LOOK.to_le_bytes());
    let mut sent = 0;
    while sent < net_driver::ENTRIES + 3 {
        bench.put(15, &out(15, 60));
        bench.run();
        sent += 1;
    }
    assert_eq!(bench.own(15).taken as usize, net_driver::ENTRIES, "the others wait");
    bench.world.raised.clear();
    for _ in 0..10 {
        bench.switch.rung(vm(15), at(15));
        bench.run();
    }
    assert!(bench.world.raised.is_empty(), "else it would ring and be told for ever");
    bench.drive(100);
    bench.run();
    assert_eq!((bench.own(15).taken as usize, bench.world.raised.is_empty()), (sent, false));
}

#[test]
fn a_vm_is_told_of_an_acknowledgement_with_what_comes_behind_it() {
    use crate::{header::tests::tcp_packet, quiet::DELAY};
    let segment = |flags, data| tcp_packet((mac(15), address(15)), (OUTSIDE, OUTSIDE_ADDRESS), flags, 0, data);
    let (alone, data) = (segment(0x10, 0), segment(0x18, 100));
    let mut bench = Bench::new([15]);
    // It is there, but not told of, until something else comes, or a second one, or the time has passed.
    for (next, passes) in [(Some(&data), 0), (Some(&alone), 0), (None, DELAY)] {
        bench.world.raised.clear();
        bench.arrive(&alone);
        bench.run();
        assert_eq!((bench.world.raised.len(), bench.received(15)), (0, vec![alone.clone()]));
        let until = bench.world.now + DELAY;
        assert_eq!(bench.switch.next_look(), until);
        if let Some(next) = next {
            bench.arrive(next);
        }
        bench.world.now += passes;
        bench.run();
        assert_eq!((bench.world.raised.len(), bench.switch.next_look()), (1, protocol::abi::NEVER));
        bench.received(15);
        bench.offer(15, 2);
    }
    // Two at once are one of them and a second one.
    bench.world.raised.clear();
    bench.arrive(&alone);
    bench.arrive(&alone);
    bench.run();
    assert_eq!(bench.world.raised.len(), 1);
}

#[test]
fn what_may_not_be_sent_is_refused() {
    let mut bench = Bench::new([15, 16]);
    bench.put(15, &ipv4_packet(mac(16), OUTSIDE, address(15), OUTSIDE_ADDRESS, 100));
    bench.put(15, &ipv4_packet(mac(15), OUTSIDE, address(16), OUTSIDE_ADDRESS, 100));
    bench.put(15, &arp_packet(2, mac(15), OUTSIDE, address(16), OUTSIDE_ADDRESS));
    bench.put(15, &[0; 13]);
    bench.put(15, &vec![0; 1515]);
    bench.put(15, &out(15, 200));
    bench.run();
    assert_eq!(bench.drive(100), [out(15, 200)]);
    assert_eq!((bench.own(15).taken, bench.own(15).refused), (6, 5));
}

#[test]
fn a_packet_changed_after_the_check_is_sent_as_it_was_checked() {
    let mut bench = Bench::new([15, 16]);
    let (first, second) = (out(15, 300), between(15, 16, 300));
    bench.put(15, &first);
    bench.put(15, &second);
    // As soon as the beginning of a packet was read, the VM overwrites it in its memory.
    bench.world.hook = Some(Box::new(|vms, copy| {
        if let (Place::Vm { vm: from, address, .. }, Place::Scratch(HEADERS..RECEIVERS)) = (copy.from, copy.to) {
            vms.get_mut(&(from as u8)).unwrap()[(address - BASE) as usize..][..LOOK].fill(0xee);
        }
    }));
    bench.run();
    assert_eq!(bench.drive(100), [first]);
    assert_eq!(bench.received(16), [second]);
}

#[test]
fn everybody_gets_a_turn() {
    let mut bench = Bench::new(1..=20);
    for _ in 0..32 {
        bench.put(1, &out(1, 1000));
    }
    (2..=20).for_each(|number| bench.put(number, &out(number, 60)));
    // Three rounds of eight VMs: all twenty, and the first again.
    for _ in 0..3 {
        bench.round();
    }
    let sent = bench.drive(1000);
    for number in 2..=20 {
        assert!(sent.contains(&out(number, 60)), "VM {number} has waited behind a flood");
    }
    assert_eq!(sent.len(), 19 + 2 * PACKETS);
}

#[test]
fn a_slow_driver_holds_packets_back_and_loses_none() {
    let mut bench = Bench::new(1..=10);
    let mut expected = Vec::new();
    for index in 0..20 {
        for number in 1..=10 {
            let packet = out(number, 100 + index);
            bench.put(number, &packet);
            expected.push(packet);
        }
    }
    bench.run();
    let held = net_driver::ENTRIES;
    assert_eq!((1..=10).map(|number| bench.own(number).taken).sum::<u32>() as usize, held);
    let mut sent = Vec::new();
    while sent.len() < expected.len() {
        let more = bench.drive(7);
        assert!(!more.is_empty(), "stuck after {}", sent.len());
        sent.extend(more);
        bench.run();
    }
    for number in 1..=10 {
        let of = |packets: &[Vec<u8>]| packets.iter().filter(|p| p[11] == number).cloned().collect::<Vec<_>>();
        assert_eq!(of(&sent), of(&expected), "VM {number}");
    }
}

#[test]
fn local_packets_behind_a_held_one_stay_in_order() {
    let mut bench = Bench::new([15, 16]);
    bench.switch.uplink.set_state(State::Starting);
    bench.put(16, &between(16, 15, 70));
    bench.put(15, &between(15, 16, 60));
    bench.put(15, &out(15, 61));
    bench.put(15, &between(15, 16, 62));
    bench.run();
    assert_eq!(bench.received(16), [between(15, 16, 60)]);
    assert_eq!(bench.received(15), [between(16, 15, 70)]);
    bench.switch.uplink.set_state(State::Up);
    bench.run();
    assert_eq!(bench.received(16), [between(15, 16, 62)]);
    assert_eq!(bench.drive(9), [out(15, 61)]);
}

#[test]
fn without_a_driver_packets_for_the_network_are_lost() {
    let mut bench = Bench::new([15]);
    bench.switch.uplink.set_state(State::Starting);
    bench.put(15, &out(15, 61));
    bench.run();
    assert_eq!(bench.own(15).taken, 0);
    bench.switch.uplink.set_state(State::Absent);
    bench.run();
    assert_eq!((bench.own(15).taken, bench.switch.lost().no_uplink), (1, 1));
}

#[test]
fn a_page_that_cannot_be_brought_costs_its_owner() {
    let mut bench = Bench::new([15, 16, 17]);
    // The second packet of 15 lies in a page that cannot be had, but its beginning does not.
    for length in [300, 1514, 302] {
        bench.put(15, &between(15, 16, length));
    }
    bench.put(15, &out(15, 303));
    let second = BASE + 0x11000 + 1600;
    bench.entry(15, SEND_RING, 1, (second & !0xfff) + 0x1000 - 100, 1514);
    let packet = between(15, 16, 1514);
    let offset = ((second & !0xfff) + 0x1000 - 100 - BASE) as usize;
    bench.write(15, offset, &packet[..100]);
    bench.put(17, &between(17, 16, 400));
    bench.world.broken.insert((15, (second >> 12) + 1));
    // The third packet must not lie there too.
    bench.write(15, 0x1e000, &between(15, 16, 302));
    bench.entry(15, SEND_RING, 2, BASE + 0x1e000, 302);
    bench.write(15, 0x1f000, &out(15, 303));
    bench.entry(15, SEND_RING, 3, BASE + 0x1f000, 303);
    bench.run();
    let mut received = bench.received(16);
    received.retain(|packet| packet[11] == 15);
    assert_eq!(received, [between(15, 16, 300), between(15, 16, 302)]);
    assert_eq!(bench.drive(9), [out(15, 303)]);
    assert_eq!((bench.own(15).taken, bench.own(15).refused, bench.own(17).taken), (4, 1, 1));

    // A receiver's buffer that cannot be had: it alone loses.
    let mut bench = Bench::new([15, 16, 17]);
    bench.world.broken.insert((16, (BASE + 0x1000) >> 12));
    bench.put(15, &between(15, 16, 100));
    bench.put(15, &between(15, 17, 101));
    bench.run();
    assert_eq!(bench.received(17), [between(15, 17, 101)]);
    assert_eq!((bench.own(15).refused, bench.own(16).dropped, bench.own(16).arrived), (0, 1, 0));
}

#[test]
fn a_new_switch_goes_on_where_the_old_one_was() {
    let mut bench = Bench::new([15, 16]);
    (0..5).for_each(|_| bench.put(15, &between(15, 16, 100)));
    bench.run();
    assert_eq!(bench.received(16).len(), 5);
    bench.switch = Switch::new(100, Uplink::new(Some(bench.world.uplink)));
    bench.put(15, &between(15, 16, 200));
    bench.attach(15);
    bench.attach(16);
    bench.run();
    assert_eq!(bench.received(16), [between(15, 16, 200)]);
    assert_eq!(bench.own(15).taken, 6);
}

#[test]
fn a_detached_vm_is_forgotten() {
    let mut bench = Bench::new([15, 16]);
    bench.put(15, &between(15, 16, 100));
    assert!(bench.switch.detach(vm(15)) && !bench.switch.detach(vm(15)));
    bench.run();
    assert!(bench.received(16).is_empty());
    bench.switch.rung(vm(15), at(15));
    bench.add(17);
    bench.put(17, &between(17, 16, 100));
    bench.run();
    assert_eq!(bench.received(16), [between(17, 16, 100)]);
}

#[test]
fn a_round_costs_few_calls() {
    let mut bench = Bench::new(1..=8);
    for number in 1..=8 {
        (0..8).for_each(|_| bench.put(number, &between(number, number % 8 + 1, 1000)));
    }
    bench.world.calls = 0;
    bench.round();
    assert_eq!(bench.world.calls, 6, "64 packets, six batches");
    assert_eq!((1..=8).map(|number| bench.received(number).len()).sum::<usize>(), 64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever 15 and 16 write into their pages, 17 gets its packets, nobody's memory changes beyond the buffers that it
    /// offered and the switch's part of its queue page, and nothing forged leaves.
    #[test]
    fn hostile_pages_harm_nobody_else(
        writes in prop::collection::vec(
            (15u8..=16, prop_oneof![0usize..1200, 0usize..0x3000], prop_oneof![
                any::<u32>(), 0u32..70, (BASE as u32)..(BASE as u32 + 0x3000), Just(0x0008_0000u32),
            ]),
            1..300,
        ),
        every in 1usize..20,
    ) {
        let mut bench = Bench::new([15, 16, 17, 18]);
        let before = bench.world.vms[&18].clone();
        let mut expected = Vec::new();
        for (step, (number, offset, value)) in writes.into_iter().enumerate() {
            bench.write(number, offset / 4 * 4, &value.to_le_bytes());
            bench.switch.rung(vm(number), at(number));
            if step % every == 0 {
                bench.run();
                bench.offer(17, 8u32.saturating_sub(bench.offered[&17] - bench.own(17).arrived));
                let packet = between(18, 17, 60 + step);
                bench.put(18, &packet);
                expected.push(packet);
                bench.run();
            }
            for packet in bench.drive(usize::MAX) {
                let header = Header::read(&packet).unwrap();
                let number = header.source[5];
                prop_assert!((15..=16).contains(&number) && header.is_from(mac(number), address(number)));
            }
        }
        bench.run();
        let mut received = bench.received(17);
        received.retain(|packet| packet[11] == 18);
        prop_assert!(expected.ends_with(&received[received.len().saturating_sub(8)..]));
        // 18 received nothing unless somebody sent it something true.
        let after = bench.world.vms[&18].clone();
        if bench.own(18).arrived == 0 {
            let own = SWITCH_INDICES..SWITCH_INDICES + Own::LENGTH;
            let buffers = size_of::<QueuePage>()..0x11000;
            for (offset, (old, new)) in before.iter().zip(&after).enumerate() {
                let written = own.contains(&offset) || offset < 8 || (SEND_RING..RECEIVE_RING).contains(&offset) || offset >= 0x11000;
                prop_assert!(old == new || written, "{offset:#x}");
                prop_assert!(!buffers.contains(&offset) || old == new);
            }
        }
    }
}
