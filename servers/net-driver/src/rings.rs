//! The rings shared with the switch, from the driver's side.
//!
//! The indices in the shared page that the switch writes are read once and checked against the driver's own; a switch
//! that writes nonsense is not followed and harms only its own packets.

use crate::{Buffer, NetDriver, Problem};
use core::mem::offset_of;
use protocol::{
    layout::PAGE,
    nic::{FRAME_MAX, FRAME_MIN},
    service::net_driver::{BUFFER, ENTRIES, RingPage, SHARED_BYTES, receive_buffer, send_buffer},
};
use server_runtime::mmio::{self, Region};

/// What the driver counted since it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Packets sent.
    pub sent: u64,
    /// Packets received.
    pub received: u64,
    /// Packets that were not sent or not handed on because their length makes no sense.
    pub lost: u64,
    /// Times that an index of the switch made no sense.
    pub nonsense: u64,
}

/// The rings and the device behind them.
pub struct Rings<D> {
    device: D,
    shared: Region,
    physical: u64,
    /// Packets given to the device, and those of them that it has sent.
    submitted: u32,
    sent_taken: u32,
    /// Which entries between the two were sent already, out of turn.
    sent: [bool; ENTRIES],
    /// Packets that have arrived, and those of them that the switch has taken; the rest of the buffers has the device.
    arrived: u32,
    received_taken: u32,
    /// Lengths of packets that arrived out of turn.
    received: [Option<u32>; ENTRIES],
    counters: Counters,
}

/// Why shared memory cannot hold the rings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooSmall;

impl<D: NetDriver> Rings<D> {
    /// Rings in `shared`, which lies at `physical`. They are not used before [`Rings::start`].
    pub fn new(device: D, shared: Region, physical: u64) -> Result<Rings<D>, TooSmall> {
        if shared.length() < SHARED_BYTES {
            return Err(TooSmall);
        }
        Ok(Rings {
            device,
            shared,
            physical,
            submitted: 0,
            sent_taken: 0,
            sent: [false; ENTRIES],
            arrived: 0,
            received_taken: 0,
            received: [None; ENTRIES],
            counters: Counters::default(),
        })
    }

    /// Begins anew, both sides from zero: resets the device and gives it all receive buffers.
    pub fn start(&mut self) -> Result<(), Problem> {
        self.device.restart()?;
        self.shared.zero(0, PAGE as usize);
        (self.submitted, self.sent_taken, self.arrived, self.received_taken) = (0, 0, 0, 0);
        self.sent = [false; ENTRIES];
        self.received = [None; ENTRIES];
        for entry in 0..ENTRIES {
            self.device.offer(entry, self.buffer(receive_buffer(entry)));
        }
        self.device.notify();
        Ok(())
    }

    /// The device.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn buffer(&self, offset: usize) -> Buffer {
        Buffer { memory: self.shared.part(offset, BUFFER), physical: self.physical + offset as u64 }
    }

    /// Moves everything that can move, in both directions. Returns whether the switch has to be told.
    pub fn work(&mut self) -> bool {
        let before = (self.sent_taken, self.arrived);
        self.reap_sent();
        self.reap_received();
        let refilled = self.refill();
        let submitted = self.submit();
        if refilled || submitted {
            self.device.notify();
        }
        if submitted {
            // What was sent while the device was asked to tell of it: it may not tell.
            self.reap_sent();
        }
        self.publish(before)
    }

    fn reap_sent(&mut self) {
        // A device that makes up entries without end is not listened to for longer than its ring is.
        for _ in 0..ENTRIES {
            let Some(entry) = self.device.sent() else {
                break;
            };
            if let Some(sent) = self.sent.get_mut(entry) {
                *sent = true;
            }
        }
        self.advance_sent();
    }

    fn advance_sent(&mut self) {
        while self.sent_taken != self.submitted {
            let sent = &mut self.sent[self.sent_taken as usize % ENTRIES];
            if !core::mem::replace(sent, false) {
                break;
            }
            self.sent_taken = self.sent_taken.wrapping_add(1);
        }
    }

    fn reap_received(&mut self) {
        for _ in 0..ENTRIES {
            let Some((entry, length)) = self.device.received() else {
                break;
            };
            if let Some(received) = self.received.get_mut(entry) {
                *received = Some(length as u32);
            }
        }
        while self.arrived.wrapping_sub(self.received_taken) < ENTRIES as u32 {
            let entry = self.arrived as usize % ENTRIES;
            let Some(length) = self.received[entry].take() else {
                break;
            };
            let sensible = (FRAME_MIN..=FRAME_MAX).contains(&(length as usize));
            self.counters.lost += u64::from(!sensible);
            self.counters.received += u64::from(sensible);
            // The switch passes over an empty packet.
            self.shared.write_u32(offset_of!(RingPage, receive) + entry * 4, if sensible { length } else { 0 });
            self.arrived = self.arrived.wrapping_add(1);
        }
    }

    /// Gives buffers that the switch has emptied back to the device.
    fn refill(&mut self) -> bool {
        let taken = self.shared.read_u32(offset_of!(RingPage, received_taken));
        let count = taken.wrapping_sub(self.received_taken);
        if count > self.arrived.wrapping_sub(self.received_taken) {
            self.counters.nonsense += 1;
            return false;
        }
        for _ in 0..count {
            let entry = self.received_taken as usize % ENTRIES;
            self.device.offer(entry, self.buffer(receive_buffer(entry)));
            self.received_taken = self.received_taken.wrapping_add(1);
        }
        count > 0
    }

    /// Gives packets that the switch put up to the device.
    fn submit(&mut self) -> bool {
        let filled = self.shared.read_u32(offset_of!(RingPage, sent_filled));
        if filled.wrapping_sub(self.sent_taken) > ENTRIES as u32 || filled.wrapping_sub(self.submitted) > ENTRIES as u32
        {
            self.counters.nonsense += 1;
            return false;
        }
        let mut any = false;
        while self.submitted != filled {
            let entry = self.submitted as usize % ENTRIES;
            self.submitted = self.submitted.wrapping_add(1);
            let length = self.shared.read_u32(offset_of!(RingPage, send) + entry * 4) as usize;
            if (FRAME_MIN..=FRAME_MAX).contains(&length) {
                self.device.send(entry, self.buffer(send_buffer(entry)), length);
                self.counters.sent += 1;
                any = true;
            } else {
                self.sent[entry] = true;
                self.counters.lost += 1;
            }
        }
        self.advance_sent();
        any
    }

    /// Shows the switch what moved.
    fn publish(&mut self, before: (u32, u32)) -> bool {
        if before == (self.sent_taken, self.arrived) {
            return false;
        }
        mmio::full_fence();
        self.shared.write_u32(offset_of!(RingPage, sent_taken), self.sent_taken);
        self.shared.write_u32(offset_of!(RingPage, arrived), self.arrived);
        self.shared.write_u32(offset_of!(RingPage, lost), self.counters.lost as u32);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Switch;
    use alloc::{collections::VecDeque, vec, vec::Vec};
    use proptest::prelude::*;
    use protocol::service::net_driver::HEADROOM;

    const PHYSICAL: u64 = 0x1234_5000;

    /// A device that sends and receives when told to.
    #[derive(Default)]
    struct Mock {
        offered: VecDeque<(usize, Buffer)>,
        sending: VecDeque<(usize, Buffer, usize)>,
        received: VecDeque<(usize, usize)>,
        sent: VecDeque<usize>,
        wire: Vec<Vec<u8>>,
        notified: usize,
        restarts: usize,
    }

    impl Mock {
        /// Sends the packet at place `at` of those that wait.
        fn transmit(&mut self, at: usize) {
            if let Some((entry, buffer, length)) = self.sending.remove(at) {
                assert_eq!(buffer.physical, PHYSICAL + send_buffer(entry) as u64);
                let mut packet = vec![0; length];
                buffer.memory.copy_out(HEADROOM, &mut packet);
                self.wire.push(packet);
                self.sent.push_back(entry);
            }
        }
        /// Receives into the buffer at place `at` of those offered.
        fn receive(&mut self, at: usize, packet: &[u8]) -> bool {
            let Some((entry, buffer)) = self.offered.remove(at) else {
                return false;
            };
            assert_eq!(buffer.physical, PHYSICAL + receive_buffer(entry) as u64);
            buffer.memory.copy_in(HEADROOM, packet);
            self.received.push_back((entry, packet.len()));
            true
        }
    }

    impl NetDriver for Mock {
        fn mac(&self) -> [u8; 6] {
            [2, 0, 0, 0, 0, 1]
        }
        fn link(&mut self) -> bool {
            true
        }
        fn restart(&mut self) -> Result<(), Problem> {
            *self = Mock { restarts: self.restarts + 1, ..Mock::default() };
            Ok(())
        }
        fn offer(&mut self, entry: usize, buffer: Buffer) {
            assert!(self.offered.iter().all(|(other, _)| *other != entry), "offered twice");
            self.offered.push_back((entry, buffer));
        }
        fn send(&mut self, entry: usize, buffer: Buffer, length: usize) {
            assert!(self.sending.iter().all(|(other, ..)| *other != entry), "sent twice");
            self.sending.push_back((entry, buffer, length));
        }
        fn notify(&mut self) {
            self.notified += 1;
        }
        fn received(&mut self) -> Option<(usize, usize)> {
            self.received.pop_front()
        }
        fn sent(&mut self) -> Option<usize> {
            self.sent.pop_front()
        }
        fn interrupt(&mut self, _: u64) {}
    }

    /// The rings, and the switch.
    struct Bench {
        rings: Rings<Mock>,
        switch: Switch,
    }

    impl Bench {
        fn new() -> Bench {
            let switch = Switch::new();
            let mut rings = Rings::new(Mock::default(), switch.shared, PHYSICAL).unwrap();
            rings.start().unwrap();
            Bench { rings, switch }
        }
        fn put(&mut self, packet: &[u8]) {
            self.switch.put(packet);
        }
        fn sent_taken(&self) -> u32 {
            self.switch.sent_taken()
        }
        fn take(&mut self) -> Option<Vec<u8>> {
            self.switch.take()
        }
    }

    fn packet(number: u8) -> Vec<u8> {
        vec![number; 60 + usize::from(number)]
    }

    #[test]
    fn packets_go_out_in_one_batch_with_one_notification() {
        let mut bench = Bench::new();
        let notified = bench.rings.device.notified;
        (0..50).for_each(|number| bench.put(&packet(number)));
        assert!(!bench.rings.work());
        assert_eq!((bench.rings.device.sending.len(), bench.rings.device.notified), (50, notified + 1));
        (0..50).for_each(|_| bench.rings.device.transmit(0));
        assert!(bench.rings.work());
        assert_eq!(bench.sent_taken(), 50);
        assert_eq!(bench.rings.device.wire, (0..50).map(packet).collect::<Vec<_>>());
        assert!(!bench.rings.work(), "nothing moved, nobody is told");
    }

    #[test]
    fn a_device_may_finish_in_any_order() {
        let mut bench = Bench::new();
        (0..3).for_each(|number| bench.put(&packet(number)));
        bench.rings.work();
        bench.rings.device.transmit(2);
        assert!(!bench.rings.work());
        bench.rings.device.transmit(0);
        assert!(bench.rings.work());
        assert_eq!(bench.sent_taken(), 1);
        bench.rings.device.transmit(0);
        assert!(bench.rings.work());
        assert_eq!(bench.sent_taken(), 3);

        bench.rings.device.receive(1, &packet(1));
        assert!(!bench.rings.work());
        bench.rings.device.receive(0, &packet(0));
        assert!(bench.rings.work());
        assert_eq!((bench.take(), bench.take(), bench.take()), (Some(packet(0)), Some(packet(1)), None));
    }

    #[test]
    fn a_slow_switch_gets_its_buffers_filled_once() {
        let mut bench = Bench::new();
        for number in 0..ENTRIES {
            assert!(bench.rings.device.receive(0, &packet(number as u8)));
        }
        assert!(bench.rings.work());
        assert!(!bench.rings.device.receive(0, &packet(0)), "no buffer is left");
        assert_eq!(bench.take(), Some(packet(0)));
        bench.rings.work();
        assert!(bench.rings.device.receive(0, &packet(200)));
        bench.rings.work();
        for number in 1..ENTRIES {
            assert_eq!(bench.take(), Some(packet(number as u8)));
        }
        assert_eq!((bench.take(), bench.take()), (Some(packet(200)), None));
    }

    #[test]
    fn lengths_that_make_no_sense_are_passed_over() {
        let mut bench = Bench::new();
        bench.put(&[1; 13]);
        bench.put(&packet(1));
        bench.put(&[1; FRAME_MAX + 1]);
        bench.rings.work();
        bench.rings.device.transmit(0);
        assert!(bench.rings.work());
        assert_eq!((bench.sent_taken(), bench.rings.counters.lost), (3, 2));
        assert_eq!(bench.rings.device.wire, [packet(1)]);
        bench.rings.device.receive(0, &[9; 5]);
        bench.rings.work();
        assert_eq!(bench.take(), Some(Vec::new()));
    }

    #[test]
    fn a_new_switch_starts_from_zero() {
        let mut bench = Bench::new();
        (0..5).for_each(|number| bench.put(&packet(number)));
        bench.rings.device.receive(0, &packet(7));
        bench.rings.work();
        bench.rings.start().unwrap();
        bench.switch.restart();
        assert_eq!((bench.rings.device.restarts, bench.rings.device.offered.len()), (2, ENTRIES));
        assert_eq!((bench.take(), bench.sent_taken()), (None, 0));
        bench.put(&packet(9));
        bench.rings.work();
        bench.rings.device.transmit(0);
        bench.rings.work();
        assert_eq!((bench.sent_taken(), &bench.rings.device.wire[..]), (1, &[packet(9)][..]));
    }

    #[test]
    fn memory_must_be_large_enough() {
        let page = Region::of(vec![0; 512].leak());
        assert_eq!(Rings::new(Mock::default(), page, 0).err(), Some(TooSmall));
    }

    proptest! {
        #[test]
        fn order_and_contents_survive(steps in prop::collection::vec((0u8..6, any::<u8>()), 1..600)) {
            let mut bench = Bench::new();
            let (mut out, mut inward, mut taken) = (Vec::new(), VecDeque::new(), 0usize);
            for (step, number) in steps {
                match step {
                    0 if bench.switch.room() => {
                        bench.put(&packet(number));
                        out.push(packet(number));
                    }
                    1 => bench.rings.device.transmit(0),
                    2 if bench.rings.device.receive(0, &packet(number)) => inward.push_back(packet(number)),
                    3 => if let Some(packet) = bench.take() {
                        prop_assert_eq!(Some(packet), inward.pop_front());
                        taken += 1;
                    },
                    _ => drop(bench.rings.work()),
                }
            }
            prop_assert!(out.starts_with(&bench.rings.device.wire));
            prop_assert!(bench.rings.counters.received as usize >= taken);
            prop_assert_eq!(bench.rings.counters.nonsense, 0);
        }

        #[test]
        fn a_switch_gone_mad_harms_nobody(
            steps in prop::collection::vec((0usize..4, any::<u32>(), any::<u32>()), 1..100)
        ) {
            let mut bench = Bench::new();
            for (step, value, small) in steps {
                match step {
                    0 => bench.switch.shared.write_u32(offset_of!(RingPage, sent_filled), if small % 2 == 0 { value } else { small % 300 }),
                    1 => bench.switch.shared.write_u32(offset_of!(RingPage, received_taken), if small % 2 == 0 { value } else { small % 300 }),
                    2 => bench.switch.shared.write_u32(offset_of!(RingPage, send) + small as usize % ENTRIES * 4, value % 3000),
                    _ => {
                        bench.rings.device.transmit(small as usize % 8);
                        bench.rings.device.receive(small as usize % 8, &packet(value as u8));
                    }
                }
                // The mock panics if a buffer is given to it twice.
                bench.rings.work();
                prop_assert!(bench.rings.submitted.wrapping_sub(bench.rings.sent_taken) <= ENTRIES as u32);
                prop_assert!(bench.rings.arrived.wrapping_sub(bench.rings.received_taken) <= ENTRIES as u32);
            }
        }
    }
}
