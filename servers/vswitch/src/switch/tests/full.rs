//! VMs that have no buffer.

use super::world::*;
use crate::away::{AWAY_ONLY, FULL_EACH, HOLD_FULL, LOOK_EVERY};
use core::mem::offset_of;
use protocol::{abi::NEVER, nic::Indices};
use std::{vec, vec::Vec};

/// Buffers that a VM of the bench offers at first.
const OFFERED: usize = 8;

fn packets(from: u8, to: u8, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| between(from, to, 100 + number)).collect()
}

impl Bench {
    /// A VM sends as much to another one, in as many rounds as that takes.
    fn flood(&mut self, from: u8, to: u8, count: usize) -> Vec<Vec<u8>> {
        let packets = packets(from, to, count);
        for packet in &packets {
            self.put(from, packet);
            self.run();
        }
        packets
    }

    /// Packets that are held for a VM; its page says whether there are any.
    fn held(&self, number: u8) -> usize {
        let held = self.switch.ports.by_vm(vm(number)).map_or(0, |id| self.switch.waits.held(id));
        assert_eq!(self.word(number, offset_of!(Indices, held)), u32::from(held > 0), "VM {number}");
        held
    }

    fn ring(&mut self, number: u8) {
        self.switch.rung(vm(number), at(number));
        self.run();
    }
}

#[test]
fn what_is_more_than_its_buffers_waits_for_it_and_its_peer_does_not() {
    let mut bench = Bench::new([15, 16]);
    let sent = packets(15, 16, OFFERED + 12);
    sent.iter().for_each(|packet| bench.put(15, packet));
    bench.run();
    assert_eq!(bench.received(16), sent[..OFFERED]);
    assert_eq!((bench.held(16), bench.own(16).dropped, bench.own(15).taken), (12, 0, 20));
    // What it offers is not seen before it rings, and what comes meanwhile stands behind.
    bench.offer(16, 3);
    bench.put(15, &between(15, 16, 99));
    bench.run();
    assert!(bench.received(16).is_empty());
    bench.ring(16);
    assert_eq!((bench.received(16), bench.held(16)), (sent[OFFERED..][..3].to_vec(), 10));
    bench.offer(16, 20);
    bench.ring(16);
    let rest = [&sent[OFFERED + 3..], &[between(15, 16, 99)]].concat();
    assert_eq!((bench.received(16), bench.held(16), bench.own(16).dropped), (rest, 0, 0));
    assert!(bench.switch.waits.is_empty() && bench.switch.next_look() == NEVER);
}

#[test]
fn a_vm_hears_once_that_it_is_full() {
    let mut bench = Bench::new([15, 16]);
    bench.flood(15, 16, OFFERED);
    bench.received(16);
    bench.world.raised.clear();
    bench.flood(15, 16, 3);
    let told = |bench: &Bench| bench.world.raised.iter().filter(|place| **place == at(16)).count();
    assert_eq!((told(&bench), bench.held(16)), (1, 3));
    // It rings, though it has offered nothing: it is not told of that, or it would ring and be told for ever.
    bench.ring(16);
    assert_eq!((told(&bench), bench.held(16)), (1, 3));
}

#[test]
fn a_full_vm_sends() {
    let mut bench = Bench::new([15, 16]);
    bench.flood(15, 16, OFFERED + 1);
    for number in 0..20 {
        bench.put(16, &out(16, 200 + number));
    }
    bench.run();
    assert_eq!((bench.drive(100).len(), bench.own(16).taken, bench.held(16)), (20, 20, 1));
    // One that comes back with something to send, and is full at once.
    bench.world.quick = false;
    bench.world.leave(16);
    bench.flood(15, 16, 1);
    bench.switch.rung(vm(16), at(16));
    bench.run();
    bench.filled.insert(16, 21);
    bench.write(16, 0, &21u32.to_le_bytes());
    bench.entry(16, protocol::nic::SEND_RING, 20, BASE + 0x11000, 200);
    for vm in bench.world.bring_all() {
        bench.switch.brought(vm);
    }
    bench.run();
    assert_eq!((bench.own(16).taken, bench.held(16)), (21, 2));
}

#[test]
fn there_is_an_end_to_what_is_held() {
    let mut bench = Bench::new([15, 16]);
    bench.flood(15, 16, OFFERED + FULL_EACH + 5);
    assert_eq!((bench.received(16).len(), bench.held(16)), (OFFERED, FULL_EACH));
    bench.offer(16, 1);
    bench.ring(16);
    assert_eq!((bench.received(16).len(), bench.own(16).dropped), (1, 5));
    bench.world.now += HOLD_FULL;
    bench.run();
    let own = bench.own(16);
    assert_eq!((bench.held(16), own.dropped as usize, own.arrived as usize), (0, 4 + FULL_EACH, OFFERED + 1));
    assert!(bench.switch.waits.is_empty());
}

#[test]
fn a_vm_that_offers_without_ringing_is_looked_at_now_and_then() {
    let mut bench = Bench::new([15, 16]);
    let sent = bench.flood(15, 16, OFFERED + 2);
    assert_eq!(bench.received(16).len(), OFFERED);
    bench.offer(16, 8);
    assert_eq!(bench.switch.next_look(), LOOK_EVERY);
    bench.world.now += LOOK_EVERY;
    bench.run();
    assert_eq!((bench.received(16), bench.held(16)), (sent[OFFERED..].to_vec(), 0));
}

#[test]
fn vms_that_are_full_leave_buffers_for_those_that_are_away() {
    let many = 20;
    let mut bench = Bench::new(1..=many);
    bench.world.quick = false;
    for number in 2..many {
        bench.flood(1, number, OFFERED + FULL_EACH);
    }
    let held: usize = (2..many).map(|number| bench.held(number)).sum();
    assert_eq!(held, crate::away::HELD - AWAY_ONLY);
    bench.world.leave(many);
    let sent = bench.flood(1, many, 5);
    for vm in bench.world.bring_all() {
        bench.switch.brought(vm);
    }
    bench.run();
    assert_eq!(bench.received(many), sent);
}

#[test]
fn with_too_many_that_are_waited_for_a_full_vm_loses() {
    let mut bench = Bench::new([15, 16, 17]);
    bench.switch.waits = crate::away::Waits::with_room(1);
    bench.flood(15, 16, OFFERED + 1);
    bench.flood(15, 17, OFFERED + 2);
    assert_eq!((bench.held(16), bench.held(17), bench.own(17).dropped), (1, 0, 2));
    // One that is waited for already has its place.
    bench.flood(15, 16, 1);
    assert_eq!(bench.held(16), 2);
}

#[test]
fn a_buffer_that_is_none_loses_what_comes() {
    let mut bench = Bench::new([15, 16]);
    bench.entry(16, protocol::nic::RECEIVE_RING, 0, BASE + 0x1000, 10);
    bench.flood(15, 16, 3);
    assert_eq!((bench.own(16).dropped, bench.held(16), bench.received(16)), (3, 0, vec![]));
}
