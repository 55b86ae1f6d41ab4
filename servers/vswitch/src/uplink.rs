//! The rings shared with the network driver, from the switch's side.
//!
//! The driver's indices are read once and checked; a driver that writes nonsense is not followed.

use core::mem::offset_of;
use protocol::{
    nic::{FRAME_MAX, FRAME_MIN},
    service::net_driver::{ENTRIES, HEADROOM, RingPage, SHARED_BYTES, receive_buffer, send_buffer},
};
use server_runtime::mmio::{self, Region};

/// How the driver is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It has no device, or there is no driver: packets for the network are dropped.
    Absent,
    /// It is being started: packets for the network wait.
    Starting,
    /// Packets flow.
    Up,
}

/// The uplink.
#[derive(Debug)]
pub struct Uplink {
    memory: Option<Region>,
    state: State,
    /// Packets put up for sending, shown to the driver, and taken by it.
    filled: u32,
    shown: u32,
    sent: u32,
    /// Packets of the driver's taken, and shown to it as taken.
    taken: u32,
    returned: u32,
}

impl Uplink {
    /// An uplink through rings in `memory`; none if there is no memory, or too little.
    pub fn new(memory: Option<Region>) -> Uplink {
        let memory = memory.filter(|memory| memory.length() >= SHARED_BYTES);
        Uplink { memory, state: State::Absent, filled: 0, shown: 0, sent: 0, taken: 0, returned: 0 }
    }

    /// Whether there is memory for it.
    pub fn exists(&self) -> bool {
        self.memory.is_some()
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Sets it. Both sides begin at zero when the driver has started.
    pub fn set_state(&mut self, state: State) {
        self.state = if self.exists() { state } else { State::Absent };
        (self.filled, self.shown, self.sent, self.taken, self.returned) = (0, 0, 0, 0, 0);
    }

    /// The memory, if packets flow.
    fn up(&self) -> Option<Region> {
        self.memory.filter(|_| self.state == State::Up)
    }

    /// Free send buffers.
    pub fn room(&mut self) -> usize {
        let Some(memory) = self.up() else {
            return 0;
        };
        let sent = memory.read_u32(offset_of!(RingPage, sent_taken));
        if sent.wrapping_sub(self.sent) <= self.shown.wrapping_sub(self.sent) {
            self.sent = sent;
        }
        ENTRIES - self.filled.wrapping_sub(self.sent) as usize
    }

    /// The offset in the shared memory of the packet in the free send buffer `ahead` places on.
    pub fn send_place(&self, ahead: usize) -> usize {
        send_buffer(self.filled.wrapping_add(ahead as u32) as usize) + HEADROOM
    }

    /// Writes the beginning of a packet into the free send buffer `ahead` places on.
    pub fn write_header(&self, ahead: usize, header: &[u8]) {
        if let Some(memory) = self.up() {
            memory.copy_in(self.send_place(ahead), header);
        }
    }

    /// Puts the next free send buffer up, with a packet of `length` bytes.
    pub fn put_up(&mut self, length: usize) {
        if let Some(memory) = self.up() {
            let entry = self.filled as usize % ENTRIES;
            memory.write_u32(offset_of!(RingPage, send) + entry * 4, length as u32);
            self.filled = self.filled.wrapping_add(1);
        }
    }

    /// Packets that have arrived and were not taken.
    pub fn arrived(&self) -> usize {
        let Some(memory) = self.up() else {
            return 0;
        };
        let arrived = memory.read_u32(offset_of!(RingPage, arrived)).wrapping_sub(self.taken) as usize;
        if arrived <= ENTRIES { arrived } else { 0 }
    }

    /// The length of the packet `ahead` places on, its offset in the shared memory, and its first bytes into `header`.
    /// `None` if the length makes no sense.
    pub fn look(&self, ahead: usize, header: &mut [u8]) -> Option<(usize, usize, usize)> {
        let memory = self.up()?;
        let entry = self.taken.wrapping_add(ahead as u32) as usize % ENTRIES;
        let length = memory.read_u32(offset_of!(RingPage, receive) + entry * 4) as usize;
        if !(FRAME_MIN..=FRAME_MAX).contains(&length) {
            return None;
        }
        let place = receive_buffer(entry) + HEADROOM;
        let look = header.len().min(length);
        memory.copy_out(place, &mut header[..look]);
        Some((length, place, look))
    }

    /// Takes `count` packets; their buffers are the driver's again.
    pub fn take(&mut self, count: usize) {
        self.taken = self.taken.wrapping_add(count as u32);
    }

    /// Shows the driver what moved. Returns whether it has to be told.
    pub fn show(&mut self) -> bool {
        let Some(memory) = self.up() else {
            return false;
        };
        if (self.filled, self.taken) == (self.shown, self.returned) {
            return false;
        }
        mmio::full_fence();
        memory.write_u32(offset_of!(RingPage, sent_filled), self.filled);
        memory.write_u32(offset_of!(RingPage, received_taken), self.taken);
        (self.shown, self.returned) = (self.filled, self.taken);
        true
    }
}
