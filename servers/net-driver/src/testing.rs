//! For tests of drivers: the switch's side of the rings.

use alloc::{vec, vec::Vec};
use core::mem::offset_of;
use protocol::service::net_driver::{ENTRIES, HEADROOM, RingPage, SHARED_BYTES, receive_buffer, send_buffer};
use server_runtime::mmio::Region;

/// A switch that does what it should.
#[derive(Debug)]
pub struct Switch {
    /// The memory shared with the driver. It is leaked.
    pub shared: Region,
    filled: u32,
    taken: u32,
}

impl Default for Switch {
    fn default() -> Switch {
        Switch::new()
    }
}

impl Switch {
    /// One with memory of its own, full of ones.
    pub fn new() -> Switch {
        Switch { shared: Region::of(vec![!0; SHARED_BYTES / 8].leak()), filled: 0, taken: 0 }
    }

    /// Begins anew, as it does after the driver has.
    pub fn restart(&mut self) {
        (self.filled, self.taken) = (0, 0);
    }

    /// Whether a packet more can be put up.
    pub fn room(&self) -> bool {
        self.filled.wrapping_sub(self.sent_taken()) < ENTRIES as u32
    }

    /// Puts up a packet to send.
    pub fn put(&mut self, packet: &[u8]) {
        let entry = self.filled as usize % ENTRIES;
        self.shared.copy_in(send_buffer(entry) + HEADROOM, packet);
        self.shared.write_u32(offset_of!(RingPage, send) + entry * 4, packet.len() as u32);
        self.filled = self.filled.wrapping_add(1);
        self.shared.write_u32(offset_of!(RingPage, sent_filled), self.filled);
    }

    /// Packets that were sent, as the driver says.
    pub fn sent_taken(&self) -> u32 {
        self.shared.read_u32(offset_of!(RingPage, sent_taken))
    }

    /// Takes the next packet that has arrived.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        if self.taken == self.shared.read_u32(offset_of!(RingPage, arrived)) {
            return None;
        }
        let entry = self.taken as usize % ENTRIES;
        let mut packet = vec![0; self.shared.read_u32(offset_of!(RingPage, receive) + entry * 4) as usize];
        self.shared.copy_out(receive_buffer(entry) + HEADROOM, &mut packet);
        self.taken = self.taken.wrapping_add(1);
        self.shared.write_u32(offset_of!(RingPage, received_taken), self.taken);
        Some(packet)
    }
}
