//! A ring of legacy descriptors (8254x 3.2.3 and 3.3.3, 82574 7.1.4 and 7.2.10).
//!
//! A descriptor is 16 bytes: the address of a buffer; its length in bits 0 to 15 of the second half, a command (transmit) in
//! bits 24 to 31, a status in bits 32 to 39, errors (receive) in bits 40 to 47.

use crate::registers::{RING_HEAD, RING_HIGH, RING_LENGTH, RING_LOW, RING_TAIL};
use net_driver::Dma;
use server_runtime::mmio::Region;

/// Descriptors of a ring. A ring in which all descriptors are the card's looks like one in which none is, so it has to be longer than
/// the 128 buffers that the kit gives; and with 256 an index is a byte that wraps by itself.
pub const SLOTS: usize = 256;
/// Bytes of a descriptor.
pub const DESCRIPTOR: usize = 16;
/// Bytes of a ring.
pub const BYTES: usize = SLOTS * DESCRIPTOR;
/// In the status: the card is done with it.
pub const DONE: u32 = 1 << 0;
/// In the status of a received packet: it ends in this buffer.
pub const LAST: u32 = 1 << 1;

/// Something that the card is done with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finished {
    /// Entry of the kit's.
    pub entry: usize,
    /// Bytes received.
    pub length: usize,
    /// Status in bits 0 to 7, errors in 8 to 15.
    pub status: u32,
}

/// A ring, and which of the kit's entries each of its descriptors stands for.
#[derive(Debug)]
pub struct Ring {
    memory: Region,
    physical: u64,
    /// Offset of its registers.
    registers: usize,
    entries: [u8; SLOTS],
    /// The next descriptor to fill; the oldest that is the card's; what the card was told of last.
    next: u8,
    oldest: u8,
    told: u8,
}

impl Ring {
    /// A ring in `memory`, [`BYTES`] at least, with its registers at offset `registers`.
    pub fn new(memory: Dma, registers: usize) -> Ring {
        let memory = memory.part(0, BYTES);
        Ring {
            memory: memory.memory,
            physical: memory.physical,
            registers,
            entries: [0; SLOTS],
            next: 0,
            oldest: 0,
            told: 0,
        }
    }

    /// Empties it; the card must not use it. Returns what to write into which registers.
    pub fn reset(&mut self) -> [(usize, u32); 5] {
        self.memory.zero(0, BYTES);
        (self.next, self.oldest, self.told) = (0, 0, 0);
        [
            (RING_LOW, self.physical as u32),
            (RING_HIGH, (self.physical >> 32) as u32),
            (RING_LENGTH, BYTES as u32),
            (RING_HEAD, 0),
            (RING_TAIL, 0),
        ]
        .map(|(register, value)| (self.registers + register, value))
    }

    /// Buffers that are the card's.
    pub fn under_way(&self) -> usize {
        usize::from(self.next.wrapping_sub(self.oldest))
    }

    /// Fills the next descriptor; the card is not told yet.
    pub fn put(&mut self, entry: usize, address: u64, length_and_command: u32) {
        let slot = usize::from(self.next);
        self.memory.write_u64(slot * DESCRIPTOR, address);
        self.memory.write_u64(slot * DESCRIPTOR + 8, u64::from(length_and_command));
        self.entries[slot] = entry as u8;
        self.next = self.next.wrapping_add(1);
    }

    /// What to write into which register to tell the card of what was put, if it was not told yet.
    pub fn tail(&mut self) -> Option<(usize, u32)> {
        let new = self.told != self.next;
        self.told = self.next;
        new.then(|| (self.registers + RING_TAIL, u32::from(self.next)))
    }

    /// The next descriptor that the card is done with. It finishes them in order.
    pub fn finished(&mut self) -> Option<Finished> {
        if self.oldest == self.next {
            return None;
        }
        let slot = usize::from(self.oldest);
        let status = self.memory.read_u32(slot * DESCRIPTOR + 12);
        if status & DONE == 0 {
            return None;
        }
        // Read after the status: what the card has written with it.
        let length = self.memory.read_u32(slot * DESCRIPTOR + 8) as usize & 0xffff;
        self.oldest = self.oldest.wrapping_add(1);
        Some(Finished { entry: usize::from(self.entries[slot]), length, status })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn ring() -> Ring {
        let memory = Dma { memory: Region::of(vec![!0; BYTES / 8].leak()), physical: 0x12_3456_7000 };
        Ring::new(memory, 0x2800)
    }

    #[test]
    fn it_is_told_to_the_card_by_its_registers() {
        let mut ring = ring();
        let [low, high, length, head, tail] = ring.reset();
        assert_eq!((low, high), ((0x2800, 0x3456_7000), (0x2804, 0x12)));
        assert_eq!((length, head, tail), ((0x2808, 4096), (0x2810, 0), (0x2818, 0)));
        assert_eq!(ring.tail(), None);
        ring.put(7, 1, 2);
        ring.put(8, 1, 2);
        assert_eq!((ring.tail(), ring.tail(), ring.under_way()), (Some((0x2818, 2)), None, 2));
        assert_eq!(ring.finished(), None);
    }

    #[test]
    fn it_goes_around() {
        let mut ring = ring();
        ring.reset();
        for number in 0..1000usize {
            ring.put(number % 128, 0, 0);
            let at = number % SLOTS * DESCRIPTOR;
            assert_eq!(ring.finished(), None);
            ring.memory.write_u32(at + 8, 0xabcd_0000 | number as u32);
            ring.memory.write_u32(at + 12, DONE | LAST);
            let expected = Finished { entry: number % 128, length: number, status: DONE | LAST };
            assert_eq!((ring.finished(), ring.finished()), (Some(expected), None));
        }
    }
}
