//! A pair of queues: commands, and what became of them (4.1).
//!
//! What the device writes into the completion queue is read once and checked by whoever takes it; nothing here follows an index
//! of the device's.

use crate::{
    command::{COMMAND, COMPLETION, Command, Completion, Status},
    registers::doorbell,
};
use block_driver::{Dma, pci::hardware::Hardware};
use server_runtime::mmio::Region;

/// A submission queue and its completion queue, both with the same number and as many entries.
#[derive(Debug)]
pub struct Queue {
    number: u16,
    entries: usize,
    submission: Dma,
    completion: Dma,
    /// Offsets of the doorbells.
    tail_doorbell: usize,
    head_doorbell: usize,
    tail: usize,
    /// The tail that the device was told.
    told_tail: usize,
    head: usize,
    told_head: usize,
    /// What the phase bit of the next completion is.
    phase: u32,
}

/// Bit of the phase in dword 3 of a completion.
const PHASE: u32 = 1 << 16;

impl Queue {
    /// Bytes that the two queues need.
    pub const fn bytes(entries: usize) -> [usize; 2] {
        [entries * COMMAND, entries * COMPLETION]
    }

    /// Empty queues in this memory, which both begin at page boundaries.
    pub fn new(number: u16, entries: usize, submission: Dma, completion: Dma, stride: usize) -> Queue {
        // No completion of a former life may look like one of this.
        completion.memory.zero(0, entries * COMPLETION);
        Queue {
            number,
            entries,
            submission,
            completion,
            tail_doorbell: doorbell(number, false, stride),
            head_doorbell: doorbell(number, true, stride),
            tail: 0,
            told_tail: 0,
            head: 0,
            told_head: 0,
            phase: PHASE,
        }
    }

    /// Physical address of the commands.
    pub const fn submission(&self) -> u64 {
        self.submission.physical
    }

    /// Physical address of the completions.
    pub const fn completion(&self) -> u64 {
        self.completion.physical
    }

    /// Puts a command up. The caller sees to it that there are fewer under way than entries.
    #[inline]
    pub fn push(&mut self, id: u16, command: &Command) {
        let place: Region = self.submission.memory.part(self.tail * COMMAND, COMMAND);
        for (index, word) in command.entry(id).into_iter().enumerate() {
            place.write_u64(index * 8, word);
        }
        self.tail = self.next(self.tail);
    }

    /// Tells the device what is new: commands, and room for completions.
    #[inline]
    pub fn ring(&mut self, hardware: &mut impl Hardware) {
        self.ring_head(hardware);
        if self.tail != self.told_tail {
            hardware.write(self.tail_doorbell, self.tail as u32);
            self.told_tail = self.tail;
        }
    }

    /// Tells the device that completions were taken. A device that interrupts by its line stops asking then.
    #[inline]
    pub fn ring_head(&mut self, hardware: &mut impl Hardware) {
        if self.head != self.told_head {
            hardware.write(self.head_doorbell, self.head as u32);
            self.told_head = self.head;
        }
    }

    /// Takes the next completion.
    #[inline]
    pub fn pop(&mut self) -> Option<Completion> {
        let at = self.head * COMPLETION;
        let memory = self.completion.memory;
        // The last word is the one that the device writes last.
        let word = memory.read_u32(at + 12);
        if word & PHASE != self.phase {
            return None;
        }
        let (result, queue) = (memory.read_u32(at), memory.read_u32(at + 8));
        self.head = self.next(self.head);
        if self.head == 0 {
            self.phase ^= PHASE;
        }
        Some(Completion { id: word as u16, status: Status::from_word(word), result, queue: (queue >> 16) as u16 })
    }

    /// Number of the pair.
    pub const fn number(&self) -> u16 {
        self.number
    }

    #[inline]
    const fn next(&self, index: usize) -> usize {
        if index + 1 == self.entries { 0 } else { index + 1 }
    }
}
