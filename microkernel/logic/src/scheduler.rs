//! Who runs next: fixed bands, round robin within each, a reward for going idle early.

use crate::{
    Frame, Machine, NO_FRAME,
    block::{FLAG_REWARD, FLAG_WOKE, ListHead},
    lists::{self, Through},
};
use protocol::domain::BANDS;

/// Length of a time slice, in nanoseconds.
pub const SLICE: u64 = 10_000_000;

/// Time for which domains that woke go on, and others of the last band that woke go first, though domains of better bands wait, in nanoseconds. What
/// all of them cause, doorbells and packets, is then handled together: each switch to a server and back costs more than most of what it is for.
/// (As Denali batches the interrupts of its VMs.) A domain that did not just wake has to give way at once.
pub const BATCH: u64 = 1_000_000;

/// The run queues of one processor.
#[derive(Clone, Copy, Debug)]
pub struct Scheduler {
    queues: [ListHead; BANDS],
    lengths: [u32; BANDS],
    /// Bit `b`: queue `b` is not empty.
    waiting: u8,
}

impl Scheduler {
    /// Nobody waits.
    pub const EMPTY: Scheduler = Scheduler { queues: [ListHead::EMPTY; BANDS], lengths: [0; BANDS], waiting: 0 };

    /// Adds a domain at the front or the end of its band's queue.
    pub fn add<M: Machine>(&mut self, machine: &mut M, frame: Frame, front: bool) {
        let band = band(machine, frame);
        let push = if front { lists::push_front } else { lists::push_back };
        self.queues[band] = push(machine, self.queues[band], frame, Through::Main);
        self.lengths[band] += 1;
        self.waiting |= 1 << band;
    }

    /// Takes out a domain that is in its queue.
    pub fn remove<M: Machine>(&mut self, machine: &mut M, frame: Frame) {
        self.remove_of(machine, band(machine, frame), frame);
    }

    #[inline]
    fn remove_of<M: Machine>(&mut self, machine: &mut M, band: usize, frame: Frame) {
        self.queues[band] = lists::remove(machine, self.queues[band], frame, Through::Main);
        self.lengths[band] -= 1;
        self.waiting &= !(u8::from(self.lengths[band] == 0) << band);
    }

    /// Takes out the first domain of the best band that has any.
    pub fn take<M: Machine>(&mut self, machine: &mut M) -> Option<Frame> {
        let band = self.queues.iter().position(|queue| queue.first != NO_FRAME)?;
        let frame = self.queues[band].first;
        self.remove_of(machine, band, frame);
        Some(frame)
    }

    /// Takes out the first domain of a band.
    pub fn take_of<M: Machine>(&mut self, machine: &mut M, band: u8) -> Option<Frame> {
        let band = clamp(band);
        let frame = self.queues[band].first;
        if frame == NO_FRAME {
            return None;
        }
        self.remove_of(machine, band, frame);
        Some(frame)
    }

    /// Takes out the first domain of the last band, if it woke.
    pub fn take_woken<M: Machine>(&mut self, machine: &mut M) -> Option<Frame> {
        let first = self.queues[BANDS - 1].first;
        if first == NO_FRAME || machine.block(first).flags & FLAG_WOKE == 0 {
            return None;
        }
        self.remove_of(machine, BANDS - 1, first);
        Some(first)
    }

    /// Whether a domain of a band better than `band` waits.
    #[inline(always)]
    pub fn better_than(&self, band: u8) -> bool {
        let better = !(u8::MAX << (band & 7));
        self.waiting & better != 0
    }

    /// Whether a domain of this band or a better one waits.
    #[inline(always)]
    pub fn any_as_good(&self, band: u8) -> bool {
        let as_good = !(u8::MAX << 1 << (band & 7));
        self.waiting & as_good != 0
    }

    /// Whether a domain of this band waits.
    pub fn any_in(&self, band: u8) -> bool {
        self.len_of(band) != 0
    }

    /// How many of a band wait.
    pub fn len_of(&self, band: u8) -> u32 {
        self.lengths[clamp(band)]
    }

    /// How many wait.
    pub fn len(&self) -> u32 {
        self.lengths.iter().sum()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }
}

fn clamp(band: u8) -> usize {
    usize::from(band).min(BANDS - 1)
}

fn band<M: Machine>(machine: &M, frame: Frame) -> usize {
    clamp(machine.block(frame).band)
}

/// Whether a domain that wakes goes to the front: it went idle before its last slice was over (Denali, section 4.1: "receives
/// higher priority for its next quantum"). Once.
#[inline]
pub fn take_reward<M: Machine>(machine: &mut M, frame: Frame) -> bool {
    let block = machine.block_mut(frame);
    let reward = block.flags & FLAG_REWARD != 0;
    block.flags &= !FLAG_REWARD;
    reward
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;
    use std::vec::Vec;

    fn drain(scheduler: &mut Scheduler, machine: &mut Model) -> Vec<Frame> {
        core::iter::from_fn(|| scheduler.take(machine)).collect()
    }

    #[test]
    fn better_bands_first_then_in_order() {
        let mut machine = Model::with_blocks(1..7);
        for (frame, band) in [(1, 2), (2, 1), (3, 2), (4, 0), (5, 1), (6, 2)] {
            machine.block_mut(frame).band = band;
        }
        let mut scheduler = Scheduler::EMPTY;
        for frame in 1..7 {
            scheduler.add(&mut machine, frame, false);
        }
        assert!(scheduler.better_than(1) && !scheduler.better_than(0));
        assert_eq!(drain(&mut scheduler, &mut machine), [4, 2, 5, 1, 3, 6]);
    }

    #[test]
    fn who_idled_early_goes_to_the_front_once() {
        let mut machine = Model::with_blocks(1..2);
        machine.block_mut(1).flags = FLAG_REWARD;
        assert!(take_reward(&mut machine, 1) && !take_reward(&mut machine, 1));
    }

    #[test]
    fn removal_from_anywhere() {
        let mut machine = Model::with_blocks(1..6);
        let mut scheduler = Scheduler::EMPTY;
        for frame in 1..6 {
            scheduler.add(&mut machine, frame, false);
        }
        for frame in [3, 1, 5] {
            scheduler.remove(&mut machine, frame);
        }
        assert_eq!((scheduler.len(), scheduler.is_empty()), (2, false));
        assert_eq!(drain(&mut scheduler, &mut machine), [2, 4]);
        assert!(scheduler.is_empty());
    }
}
