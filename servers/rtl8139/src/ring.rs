//! A ring of C+ descriptors (chapters 9.2 and 9.3), and what waits for room in it.
//!
//! A descriptor is 16 bytes: a word with its owner, flags and a length; a word for VLANs; the address of a buffer.

use net_driver::Dma;
use protocol::service::net_driver::ENTRIES;
use server_runtime::mmio::Region;

/// Descriptors of a ring: as many as the card can have. The kit gives twice as many buffers; the rest waits.
pub const SLOTS: usize = 64;
/// Bytes of a descriptor.
pub const DESCRIPTOR: usize = 16;
/// Bytes of a ring. It must be a multiple of 256 bytes from the beginning of memory.
pub const BYTES: usize = SLOTS * DESCRIPTOR;

/// The card owns the descriptor.
pub const OWN: u32 = 1 << 31;
/// The ring ends here.
pub const END: u32 = 1 << 30;
/// The packet begins here.
pub const FIRST: u32 = 1 << 29;
/// The packet ends here.
pub const LAST: u32 = 1 << 28;
/// Received: the packet is damaged.
pub const ERROR: u32 = 1 << 21;
/// The bytes of the buffer, or of the packet.
pub const LENGTH: u32 = 0x1fff;

/// A buffer that is or will be the card's.
#[derive(Clone, Copy, Debug, Default)]
struct Given {
    entry: usize,
    address: u64,
    word: u32,
}

/// A ring. Numbers of buffers count up freely.
#[derive(Debug)]
pub struct Ring {
    memory: Region,
    physical: u64,
    buffers: [Given; ENTRIES],
    /// Buffers put, those of them that have got a descriptor, and those that the card is done with.
    put: u32,
    filled: u32,
    taken: u32,
    /// Whether the card was not told of some of them.
    fresh: bool,
}

impl Ring {
    /// A ring in `memory`, [`BYTES`] at least.
    pub fn new(memory: Dma) -> Ring {
        let memory = memory.part(0, BYTES);
        let buffers = [Given::default(); ENTRIES];
        Ring { memory: memory.memory, physical: memory.physical, buffers, put: 0, filled: 0, taken: 0, fresh: false }
    }

    /// Its physical address.
    pub fn physical(&self) -> u64 {
        self.physical
    }

    /// Empties it; the card must not use it.
    pub fn reset(&mut self) {
        self.memory.zero(0, BYTES);
        (self.put, self.filled, self.taken, self.fresh) = (0, 0, 0, false);
    }

    /// Buffers that the card is not done with, those that wait among them.
    pub fn under_way(&self) -> usize {
        self.put.wrapping_sub(self.taken) as usize
    }

    /// Puts a buffer, with flags and length in `word`. At most [`ENTRIES`] may be under way.
    pub fn put(&mut self, entry: usize, address: u64, word: u32) {
        self.buffers[self.put as usize % ENTRIES] = Given { entry, address, word };
        self.put = self.put.wrapping_add(1);
        self.fill();
    }

    /// Gives buffers that wait a descriptor, as long as there are some.
    fn fill(&mut self) {
        while self.filled != self.put && self.filled.wrapping_sub(self.taken) < SLOTS as u32 {
            let Given { address, word, .. } = self.buffers[self.filled as usize % ENTRIES];
            let slot = self.filled as usize % SLOTS;
            let end = if slot == SLOTS - 1 { END } else { 0 };
            self.memory.write_u64(slot * DESCRIPTOR + 8, address);
            // The owner last: from here on the card may use it. The word for VLANs stays zero in what is sent.
            self.memory.write_u32(slot * DESCRIPTOR + 4, 0);
            self.memory.write_u32(slot * DESCRIPTOR, OWN | end | word);
            self.filled = self.filled.wrapping_add(1);
            self.fresh = true;
        }
    }

    /// Whether descriptors were filled since this was last asked.
    pub fn fresh(&mut self) -> bool {
        core::mem::take(&mut self.fresh)
    }

    /// The next buffer that the card is done with: its entry, and the descriptor's first word. The card finishes them in order.
    pub fn finished(&mut self) -> Option<(usize, u32)> {
        if self.taken == self.filled {
            return None;
        }
        let word = self.memory.read_u32(self.taken as usize % SLOTS * DESCRIPTOR);
        if word & OWN != 0 {
            return None;
        }
        let entry = self.buffers[self.taken as usize % ENTRIES].entry;
        self.taken = self.taken.wrapping_add(1);
        self.fill();
        Some((entry, word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn what_has_no_room_waits_and_keeps_its_turn() {
        let memory = Dma { memory: Region::of(vec![!0; BYTES / 8].leak()), physical: 0x1000 };
        let mut ring = Ring::new(memory);
        ring.reset();
        (ring.put, ring.filled, ring.taken) = (u32::MAX - 70, u32::MAX - 70, u32::MAX - 70);
        assert!(!ring.fresh());
        for entry in 0..ENTRIES {
            ring.put(entry, entry as u64 * 2048, LAST | entry as u32);
        }
        assert!(ring.fresh());
        assert_eq!((ring.under_way(), ring.filled.wrapping_sub(ring.taken)), (ENTRIES, SLOTS as u32));
        let mut at = (u32::MAX - 70) as usize % SLOTS;
        for entry in 0..ENTRIES {
            assert_eq!(ring.finished(), None);
            let word = memory.memory.read_u32(at * DESCRIPTOR);
            assert_eq!(word & !END, OWN | LAST | entry as u32);
            assert_eq!(word & END != 0, at == SLOTS - 1);
            assert_eq!(memory.memory.read_u64(at * DESCRIPTOR + 8), entry as u64 * 2048);
            memory.memory.write_u32(at * DESCRIPTOR, word & !OWN);
            at = (at + 1) % SLOTS;
            assert_eq!(ring.finished(), Some((entry, word & !OWN)));
            assert_eq!(ring.fresh(), entry < ENTRIES - SLOTS);
        }
        assert_eq!((ring.finished(), ring.under_way()), (None, 0));
    }
}
