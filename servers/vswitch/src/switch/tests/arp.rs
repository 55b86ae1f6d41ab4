//! Addresses that are asked for: the switch answers for the VMs.

use super::{super::*, world::*};
use crate::header::tests::arp_packet;
use protocol::service::net_driver;
use std::{vec, vec::Vec};

/// The answer: that the VM's address is at its MAC address.
fn reply(number: u8, to: Mac, to_address: [u8; 4]) -> Vec<u8> {
    let mut packet = arp_packet(2, mac(number), to, address(number), to_address);
    packet[32..38].copy_from_slice(&to);
    packet.resize(ARP_REPLY, 0);
    packet
}

fn ask(from: u8, to: [u8; 4]) -> Vec<u8> {
    arp_packet(1, mac(from), ALL, address(from), to)
}

#[test]
fn the_network_gets_its_answer_and_no_vm_is_touched() {
    let mut bench = Bench::new([15, 16]);
    bench.world.quick = false;
    bench.world.leave(16);
    bench.world.calls = 0;
    bench.arrive(&arp_packet(1, OUTSIDE, ALL, OUTSIDE_ADDRESS, address(15)));
    // To everybody; to the VM alone, as one does that knows it already; whether an address is free.
    bench.arrive(&arp_packet(1, OUTSIDE, ALL, OUTSIDE_ADDRESS, address(16)));
    bench.arrive(&arp_packet(1, OUTSIDE, mac(16), OUTSIDE_ADDRESS, address(16)));
    bench.arrive(&arp_packet(1, OUTSIDE, ALL, [0; 4], address(16)));
    bench.run();
    let answers = [15, 16, 16].map(|number| reply(number, OUTSIDE, OUTSIDE_ADDRESS));
    let sent = bench.drive(9);
    assert_eq!((&sent[..3], &sent[3..]), (&answers[..], &[reply(16, OUTSIDE, [0; 4])][..]));
    assert_eq!((bench.world.calls, bench.world.asks, bench.world.raised.len()), (0, 0, 0));
    assert_eq!(bench.switch.lost(), Lost::default());
}

#[test]
fn a_vm_gets_its_answer_in_its_turn_and_nobody_else_is_touched() {
    let mut bench = Bench::new([15, 16]);
    bench.world.quick = false;
    bench.world.leave(16);
    bench.put(15, &out(15, 100));
    bench.put(15, &ask(15, address(16)));
    // It may be longer than it has to be.
    let mut long = ask(15, address(16));
    long.resize(1514, 7);
    bench.put(15, &long);
    bench.put(15, &out(15, 101));
    bench.run();
    assert_eq!(bench.received(15), vec![reply(16, mac(15), address(15)); 2]);
    assert_eq!((bench.own(15).taken, bench.own(15).refused), (4, 0));
    assert_eq!((bench.drive(9), bench.world.asks), (vec![out(15, 100), out(15, 101)], 0));
    assert_eq!(bench.world.raised, [at(15)], "it is told once of all");
}

#[test]
fn questions_for_others_and_for_oneself_go_to_the_network_alone() {
    let mut bench = Bench::new([15, 16]);
    let mut announced = arp_packet(2, mac(15), ALL, address(15), address(15));
    announced[32..38].copy_from_slice(&ALL);
    let mut dhcp = between(15, 16, 300);
    dhcp[..6].copy_from_slice(&ALL);
    let packets = [
        ask(15, OUTSIDE_ADDRESS),
        // Is the address free? It is mine now.
        arp_packet(1, mac(15), ALL, [0; 4], address(15)),
        ask(15, address(15)),
        announced,
        dhcp,
    ];
    packets.iter().for_each(|packet| bench.put(15, packet));
    bench.run();
    assert_eq!(bench.drive(9), packets);
    assert!(bench.received(15).is_empty() && bench.received(16).is_empty());
}

#[test]
fn who_lies_gets_no_answer() {
    let mut bench = Bench::new([15, 16]);
    // In the name of another VM; a question whose answer would go to somebody else.
    let mut forged = ask(15, address(16));
    forged[22..28].copy_from_slice(&mac(16));
    bench.put(15, &forged);
    bench.put(15, &arp_packet(1, mac(15), ALL, OUTSIDE_ADDRESS, address(16)));
    bench.run();
    assert_eq!((bench.own(15).refused, bench.own(15).arrived), (2, 0));
    let mut elsewhere = arp_packet(1, OUTSIDE, ALL, OUTSIDE_ADDRESS, address(16));
    elsewhere[22..28].copy_from_slice(&[0x52, 0, 0, 0, 0, 1]);
    let to_all = arp_packet(1, ALL, ALL, OUTSIDE_ADDRESS, address(16));
    for packet in
        [ask(15, address(16)), elsewhere, to_all, arp_packet(1, OUTSIDE, mac(15), OUTSIDE_ADDRESS, address(16))]
    {
        bench.arrive(&packet);
    }
    bench.run();
    assert!(bench.drive(9).is_empty() && bench.received(15).is_empty() && bench.received(16).is_empty());
    assert_eq!(bench.switch.lost().forged, 4);
}

#[test]
fn answers_for_which_there_is_no_room_are_lost_and_counted() {
    let mut bench = Bench::new([15]);
    let questions = net_driver::ENTRIES + 10;
    for _ in 0..questions / 10 {
        (0..10).for_each(|_| bench.arrive(&arp_packet(1, OUTSIDE, ALL, OUTSIDE_ADDRESS, address(15))));
        bench.run();
    }
    let sent = bench.drive(usize::MAX).len();
    assert_eq!((sent, sent as u64 + bench.switch.lost().answers), (net_driver::ENTRIES, (questions / 10 * 10) as u64));
    // A detached VM has no address any more.
    bench.switch.detach(vm(15));
    bench.arrive(&arp_packet(1, OUTSIDE, ALL, OUTSIDE_ADDRESS, address(15)));
    bench.run();
    assert_eq!((bench.drive(9).len(), bench.switch.lost().multicast), (0, 1));
}
