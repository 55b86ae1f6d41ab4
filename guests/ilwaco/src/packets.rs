//! Bookkeeping of a NIC: which packet buffer is free, offered to the switch, or waiting to be sent.
//!
//! Two habits keep the working set of a VM small. The free buffer that was used last is used first,
//! so that a quiet VM lives in a few pages whatever the size of its pool. And only as many buffers
//! are offered as traffic needs: the switch fills offered buffers one after the other, so every one
//! that is offered is sooner or later touched. In a burst the switch holds what there is no buffer for until more are offered.

use crate::window::{Buffer, BufferIndex, Buffers};
use core::sync::atomic::{Ordering, fence};
use protocol::nic::{ENTRIES, FRAME_MAX, NOTIFY_LOOK, NOTIFY_NEVER};

/// Most buffers of a window.
pub const BUFFERS_MAX: usize = 64;
/// Fewest buffers: a few to receive into, one to send from.
pub const BUFFERS_MIN: usize = 4;
/// Buffers offered while there is little traffic: what one client sends at a time.
const DEPTH_MIN: u32 = 4;
/// Packets without a burst after which one buffer less is offered.
const PATIENCE: u32 = 128;

/// A stack of buffer numbers: last in, first out.
struct Pool {
    items: [BufferIndex; BUFFERS_MAX],
    count: usize,
}

impl Pool {
    fn push(&mut self, buffer: BufferIndex) {
        // Each buffer is in one place at a time, so there is always room for it.
        if let Some(slot) = self.items.get_mut(self.count) {
            *slot = buffer;
            self.count += 1;
        }
    }

    fn pop(&mut self) -> Option<BufferIndex> {
        self.count = self.count.checked_sub(1)?;
        Some(self.items[self.count])
    }
}

/// The state of one NIC.
pub struct Packets {
    buffers: Buffers,
    free: Pool,
    /// Buffer behind each entry of the receive ring.
    receiving: [BufferIndex; ENTRIES],
    /// Buffer behind each entry of the send ring.
    sending: [BufferIndex; ENTRIES],
    offered: u32,
    taken: u32,
    filled: u32,
    reclaimed: u32,
    /// Buffers to keep offered.
    depth: u32,
    depth_max: u32,
    /// Packets since the last burst.
    quiet: u32,
    dropped: u32,
    /// A buffer to send from was asked for in vain.
    waits: bool,
}

/// A packet that has arrived. Give it back with [`Packets::release`].
#[derive(Debug)]
pub struct Received {
    buffer: Buffer,
    length: usize,
}

impl Received {
    /// The frame.
    pub fn bytes(&mut self) -> &mut [u8] {
        let length = self.length;
        &mut self.buffer.bytes()[..length]
    }
}

/// A buffer for a packet to send. Send it with [`Packets::send`].
#[derive(Debug)]
pub struct Outgoing(Buffer);

impl Outgoing {
    /// Room for the frame.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.0.bytes()[..FRAME_MAX]
    }
}

impl Packets {
    /// Takes over a window and offers the first buffers. The NIC line should be enabled before.
    pub fn new(buffers: Buffers) -> Packets {
        let mut free = Pool { items: [0; BUFFERS_MAX], count: 0 };
        // The lowest number comes out first: the buffer in the queue page itself.
        for buffer in (0..buffers.count()).rev() {
            free.push(buffer);
        }
        // At most two thirds wait for packets, so that there is always something to send from.
        let depth_max = (u32::from(buffers.count()) * 2 / 3).clamp(1, ENTRIES as u32);
        let mut packets = Packets {
            buffers,
            free,
            receiving: [0; ENTRIES],
            sending: [0; ENTRIES],
            offered: 0,
            taken: 0,
            filled: 0,
            reclaimed: 0,
            depth: DEPTH_MIN.min(depth_max),
            depth_max,
            quiet: 0,
            dropped: 0,
            waits: false,
        };
        packets.set_waits(false);
        packets.offer();
        packets
    }

    /// Offers buffers until as many as needed are offered.
    fn offer(&mut self) {
        let before = self.offered;
        while self.offered.wrapping_sub(self.taken) < self.depth {
            let Some(index) = self.free.pop() else { break };
            let slot = self.offered as usize % ENTRIES;
            self.receiving[slot] = index;
            let (address, capacity) = self.buffers.place(index);
            self.buffers.queue().receive[slot].set(address, capacity);
            self.offered = self.offered.wrapping_add(1);
        }
        if self.offered != before {
            // Release: the entries are written before the switch may see them counted.
            self.buffers.queue().offered.store(self.offered, Ordering::Release);
        }
    }

    /// Offers more after a burst or a loss, gradually less when there is none.
    fn adapt(&mut self, waiting: u32) {
        let dropped = self.buffers.queue().dropped.load(Ordering::Relaxed);
        let lost = core::mem::replace(&mut self.dropped, dropped) != dropped;
        if lost || waiting * 2 >= self.depth {
            self.depth = (self.depth * 2).min(self.depth_max);
            self.quiet = 0;
        } else {
            self.quiet += 1;
            if self.quiet >= PATIENCE && self.depth > DEPTH_MIN {
                self.depth -= 1;
                self.quiet = 0;
            }
        }
    }

    /// The next packet that has arrived.
    pub fn receive(&mut self) -> Option<Received> {
        // Acquire: what the switch wrote before it advanced `arrived` is visible after this.
        let arrived = self.buffers.queue().arrived.load(Ordering::Acquire);
        let waiting = arrived.wrapping_sub(self.taken);
        // More arrivals than were offered cannot be: then the queue page is not what it should be, and nothing is taken.
        if waiting == 0 || waiting > self.offered.wrapping_sub(self.taken) {
            return None;
        }
        self.adapt(waiting);
        let slot = self.taken as usize % ENTRIES;
        let index = self.receiving[slot];
        let (_, capacity) = self.buffers.place(index);
        let length = self.buffers.queue().receive[slot].length().min(capacity) as usize;
        self.taken = self.taken.wrapping_add(1);
        Some(Received { buffer: self.buffers.take(index), length })
    }

    /// Gives back the buffers of packets that were not received, up to the one with this number.
    pub fn forget(&mut self, end: u32) {
        while end.wrapping_sub(self.taken) <= self.offered.wrapping_sub(self.taken)
            && self.taken != end
            && let Some(packet) = self.receive()
        {
            self.release(packet);
        }
    }

    /// Gives the buffer of a packet back.
    pub fn release(&mut self, packet: Received) {
        self.free.push(packet.buffer.index());
        self.offer();
    }

    /// Whether the switch holds packets and there is a buffer for them: the doorbell is to be rung.
    pub fn is_awaited(&self) -> bool {
        let queue = self.buffers.queue();
        // Either the switch sees what was offered before, or what it wrote then is seen here.
        fence(Ordering::SeqCst);
        queue.held.load(Ordering::Acquire) != 0 && queue.arrived.load(Ordering::Acquire) != self.offered
    }

    /// Whether a packet has arrived that was not received yet.
    pub fn has_arrived(&self) -> bool {
        self.buffers.queue().arrived.load(Ordering::Acquire) != self.taken
    }

    /// A buffer for a packet to send; `None` while the send ring is full or no buffer is free. After that the NIC line is raised when one
    /// may be free, once the doorbell has rung.
    pub fn outgoing(&mut self) -> Option<Outgoing> {
        if let Some(packet) = self.take_free() {
            if self.waits {
                self.set_waits(false);
            }
            return Some(packet);
        }
        if !self.waits {
            self.set_waits(true);
            // Either the switch sees that, or what it took before is seen here.
            fence(Ordering::SeqCst);
        }
        self.take_free()
    }

    fn set_waits(&mut self, waits: bool) {
        self.waits = waits;
        let notify = if waits { NOTIFY_LOOK } else { NOTIFY_NEVER };
        self.buffers.queue().notify.store(notify, Ordering::Release);
    }

    fn take_free(&mut self) -> Option<Outgoing> {
        self.reclaim();
        if self.filled.wrapping_sub(self.reclaimed) as usize >= ENTRIES {
            return None;
        }
        self.free.pop().map(|index| Outgoing(self.buffers.take(index)))
    }

    /// Puts a buffer from [`Packets::outgoing`] back unsent.
    pub fn unused(&mut self, packet: Outgoing) {
        self.free.push(packet.0.index());
    }

    /// Queues the first `length` bytes of a packet. The doorbell is the caller's, once for a batch.
    pub fn send(&mut self, packet: Outgoing, length: usize) {
        let slot = self.filled as usize % ENTRIES;
        let index = packet.0.index();
        self.sending[slot] = index;
        let (address, _) = self.buffers.place(index);
        self.buffers.queue().send[slot].set(address, length.min(FRAME_MAX) as u32);
        self.filled = self.filled.wrapping_add(1);
        // Release: packet and entry are written before the switch may see them counted.
        self.buffers.queue().sent_filled.store(self.filled, Ordering::Release);
    }

    /// Frees the buffers of packets that the switch has copied.
    fn reclaim(&mut self) {
        let sent = self.buffers.queue().sent_taken.load(Ordering::Acquire);
        // The switch cannot have taken more than there was.
        if sent.wrapping_sub(self.reclaimed) > self.filled.wrapping_sub(self.reclaimed) {
            return;
        }
        while self.reclaimed != sent {
            self.free.push(self.sending[self.reclaimed as usize % ENTRIES]);
            self.reclaimed = self.reclaimed.wrapping_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Window;
    use std::{boxed::Box, collections::BTreeSet, vec, vec::Vec};

    const COUNT: usize = 40;

    /// A switch as the protocol has it.
    struct Switch {
        window: &'static Window<COUNT>,
        sent: u32,
        arrived: u32,
        wire: Vec<Vec<u8>>,
        touched: BTreeSet<u64>,
    }

    impl Switch {
        fn new() -> (Switch, Packets) {
            let window: &'static Window<COUNT> = Box::leak(Box::new(Window::new()));
            let packets = Packets::new(Buffers::of(window));
            (Switch { window, sent: 0, arrived: 0, wire: vec![], touched: BTreeSet::new() }, packets)
        }

        /// Delivers one packet; false: dropped for want of a buffer.
        fn deliver(&mut self, frame: &[u8]) -> bool {
            let queue = self.window.queue();
            if self.arrived == queue.offered.load(Ordering::Acquire) {
                queue.dropped.fetch_add(1, Ordering::Relaxed);
                return false;
            }
            let entry = &queue.receive[self.arrived as usize % ENTRIES];
            assert!(entry.length() as usize >= FRAME_MAX && entry.address() >= self.window as *const _ as u64);
            self.touched.insert(entry.address());
            self.window.write(entry.address(), frame);
            entry.set(entry.address(), frame.len() as u32);
            self.arrived = self.arrived.wrapping_add(1);
            queue.arrived.store(self.arrived, Ordering::Release);
            true
        }

        fn collect(&mut self) {
            let queue = self.window.queue();
            while self.sent != queue.sent_filled.load(Ordering::Acquire) {
                let entry = &queue.send[self.sent as usize % ENTRIES];
                self.wire.push(self.window.read(entry.address(), entry.length() as usize));
                self.sent = self.sent.wrapping_add(1);
                queue.sent_taken.store(self.sent, Ordering::Release);
            }
        }
    }

    fn send(packets: &mut Packets, frame: &[u8]) -> bool {
        let Some(mut buffer) = packets.outgoing() else { return false };
        buffer.bytes()[..frame.len()].copy_from_slice(frame);
        packets.send(buffer, frame.len());
        true
    }

    #[test]
    fn packets_arrive_in_order_and_whole() {
        let (mut switch, mut packets) = Switch::new();
        for round in 0..1000u32 {
            assert!(switch.deliver(&round.to_le_bytes()));
            let mut packet = packets.receive().expect("it was delivered");
            assert_eq!(packet.bytes(), round.to_le_bytes());
            packets.release(packet);
            assert!(packets.receive().is_none());
        }
    }

    #[test]
    fn what_came_before_is_forgotten_and_no_more() {
        let (mut switch, mut packets) = Switch::new();
        for number in 0..DEPTH_MIN {
            assert!(switch.deliver(&number.to_le_bytes()));
        }
        // Ends that are nonsense, or past.
        for end in [u32::MAX, 1000, 0] {
            packets.forget(end);
        }
        packets.forget(2);
        let mut packet = packets.receive().unwrap();
        assert_eq!(packet.bytes(), 2u32.to_le_bytes());
        packets.release(packet);
        packets.forget(2);
        assert!(packets.receive().is_some_and(|mut packet| packet.bytes() == 3u32.to_le_bytes()));
    }

    #[test]
    fn packets_are_sent_in_order_and_buffers_come_back() {
        let (mut switch, mut packets) = Switch::new();
        for round in 0..200u32 {
            for part in 0..4 {
                assert!(send(&mut packets, &(round * 4 + part).to_le_bytes()));
            }
            switch.collect();
        }
        let sent: Vec<u32> = switch.wire.iter().map(|f| u32::from_le_bytes(f[..4].try_into().unwrap())).collect();
        assert_eq!(sent, (0..800).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_ring_refuses_until_the_switch_took_packets() {
        let (mut switch, mut packets) = Switch::new();
        let mut sent = 0;
        while send(&mut packets, &[1; 60]) {
            sent += 1;
        }
        assert!(sent > 0 && sent <= COUNT);
        assert_eq!(switch.window.queue().notify.load(Ordering::Relaxed), NOTIFY_LOOK, "else it would wait for ever");
        switch.collect();
        assert!(send(&mut packets, &[2; 60]));
        assert_eq!(switch.window.queue().notify.load(Ordering::Relaxed), NOTIFY_NEVER);
    }

    #[test]
    fn a_quiet_vm_sends_from_one_buffer() {
        let (mut switch, mut packets) = Switch::new();
        let mut places = BTreeSet::new();
        for _ in 0..100 {
            let mut buffer = packets.outgoing().unwrap();
            places.insert(buffer.bytes().as_ptr() as u64);
            packets.send(buffer, 60);
            switch.collect();
        }
        assert_eq!(places.len(), 1);
    }

    #[test]
    fn bursts_and_losses_deepen_the_ring_and_quiet_shrinks_it() {
        let (mut switch, mut packets) = Switch::new();
        let start = packets.depth;
        while switch.deliver(&[0; 60]) {}
        while let Some(packet) = packets.receive() {
            packets.release(packet);
        }
        assert!(packets.depth > start && packets.depth <= packets.depth_max);
        for _ in 0..PATIENCE * 64 {
            assert!(switch.deliver(&[0; 60]));
            let packet = packets.receive().unwrap();
            packets.release(packet);
        }
        assert_eq!(packets.depth, DEPTH_MIN);
        switch.touched.clear();
        for _ in 0..100 {
            assert!(switch.deliver(&[0; 60]));
            let packet = packets.receive().unwrap();
            packets.release(packet);
        }
        assert!(switch.touched.len() <= DEPTH_MIN as usize);
    }

    #[test]
    fn what_the_switch_holds_is_asked_for_once_there_is_a_buffer() {
        let (mut switch, mut packets) = Switch::new();
        while switch.deliver(&[0; 60]) {}
        assert!(!packets.is_awaited());
        switch.window.queue().held.store(1, Ordering::Relaxed);
        assert!(!packets.is_awaited(), "there is no buffer for it");
        let packet = packets.receive().unwrap();
        assert!(!packets.is_awaited());
        packets.release(packet);
        assert!(packets.is_awaited());
        switch.window.queue().held.store(0, Ordering::Relaxed);
        assert!(!packets.is_awaited());
    }

    #[test]
    fn nonsense_of_the_switch_is_not_believed() {
        let (switch, mut packets) = Switch::new();
        let queue = switch.window.queue();
        queue.arrived.store(1000, Ordering::Relaxed);
        assert!(packets.receive().is_none());
        queue.sent_taken.store(77, Ordering::Relaxed);
        assert!(packets.outgoing().is_some());
        queue.arrived.store(1, Ordering::Relaxed);
        queue.receive[0].set(0, u32::MAX);
        let mut packet = packets.receive().unwrap();
        assert!(packet.bytes().len() < 4096);
        packets.release(packet);
    }

    #[test]
    fn no_buffer_is_lost_or_in_two_places() {
        let (mut switch, mut packets) = Switch::new();
        let mut seed = 7u32;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match seed >> 30 {
                0 => {
                    switch.deliver(&[0; 60]);
                }
                1 => {
                    if let Some(packet) = packets.receive() {
                        packets.release(packet);
                    }
                }
                2 => {
                    send(&mut packets, &[0; 60]);
                }
                _ => switch.collect(),
            }
            let mut seen = BTreeSet::new();
            let free = packets.free.items[..packets.free.count].iter();
            let receiving = (0..packets.offered.wrapping_sub(packets.taken))
                .map(|i| &packets.receiving[packets.taken.wrapping_add(i) as usize % ENTRIES]);
            let sending = (0..packets.filled.wrapping_sub(packets.reclaimed))
                .map(|i| &packets.sending[packets.reclaimed.wrapping_add(i) as usize % ENTRIES]);
            for index in free.chain(receiving).chain(sending) {
                assert!(seen.insert(*index), "buffer {index} is in two places");
            }
            assert_eq!(seen.len(), COUNT + 1);
        }
    }
}
