//! Who runs next: fixed bands, round robin within each, a reward for going idle early.

use crate::{
    Frame, Machine, NO_FRAME,
    block::{FLAG_REWARD, ListHead},
    lists::{self, Through},
};
use protocol::domain::BANDS;

/// Length of a time slice, in nanoseconds.
pub const SLICE: u64 = 10_000_000;

/// The run queues of one processor.
#[derive(Clone, Copy, Default, Debug)]
pub struct Scheduler {
    queues: [ListHead; BANDS],
    /// Bit `b`: queue `b` is not empty.
    waiting: u8,
}

impl Scheduler {
    /// Adds a domain that woke up: at the front if it went idle before its last slice was over (Denali, section 4.1: "receives
    /// higher priority for its next quantum"), else at the end.
    pub fn wake<M: Machine>(&mut self, machine: &mut M, frame: Frame) {
        let block = machine.block_mut(frame);
        let reward = block.flags & FLAG_REWARD != 0;
        block.flags &= !FLAG_REWARD;
        self.add(machine, frame, reward);
    }

    /// Adds a domain at the front or the end of its band's queue.
    pub fn add<M: Machine>(&mut self, machine: &mut M, frame: Frame, front: bool) {
        let queue = self.queue(machine, frame);
        let push = if front { lists::push_front } else { lists::push_back };
        *queue = push(machine, *queue, frame, Through::Main);
        self.note();
    }

    /// Takes out a domain that is in its queue.
    pub fn remove<M: Machine>(&mut self, machine: &mut M, frame: Frame) {
        let queue = self.queue(machine, frame);
        *queue = lists::remove(machine, *queue, frame, Through::Main);
        self.note();
    }

    /// Takes out the first domain of the best band that has any.
    pub fn take<M: Machine>(&mut self, machine: &mut M) -> Option<Frame> {
        let queue = self.queues.iter_mut().find(|queue| queue.first != NO_FRAME)?;
        let frame = queue.first;
        *queue = lists::remove(machine, *queue, frame, Through::Main);
        self.note();
        Some(frame)
    }

    /// Whether a domain of a band better than `band` waits.
    #[inline(always)]
    pub fn better_than(&self, band: u8) -> bool {
        let better = !(u8::MAX << (band & 7));
        self.waiting & better != 0
    }

    /// Keeps `waiting` true.
    fn note(&mut self) {
        self.waiting = 0;
        for (band, queue) in self.queues.iter().enumerate() {
            self.waiting |= u8::from(queue.first != NO_FRAME) << band;
        }
    }

    /// Whether a domain of this band waits.
    pub fn any_in(&self, band: u8) -> bool {
        self.queues[usize::from(band).min(BANDS - 1)].first != NO_FRAME
    }

    fn queue<M: Machine>(&mut self, machine: &M, frame: Frame) -> &mut ListHead {
        &mut self.queues[usize::from(machine.block(frame).band).min(BANDS - 1)]
    }
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
        let mut scheduler = Scheduler::default();
        for frame in 1..7 {
            scheduler.wake(&mut machine, frame);
        }
        assert!(scheduler.better_than(1) && !scheduler.better_than(0));
        assert_eq!(drain(&mut scheduler, &mut machine), [4, 2, 5, 1, 3, 6]);
    }

    #[test]
    fn who_idled_early_goes_to_the_front_once() {
        let mut machine = Model::with_blocks(1..4);
        let mut scheduler = Scheduler::default();
        scheduler.wake(&mut machine, 1);
        scheduler.wake(&mut machine, 2);
        machine.block_mut(3).flags = FLAG_REWARD;
        scheduler.wake(&mut machine, 3);
        assert_eq!(machine.block(3).flags, 0);
        assert_eq!(drain(&mut scheduler, &mut machine), [3, 1, 2]);
    }

    #[test]
    fn removal_from_anywhere() {
        let mut machine = Model::with_blocks(1..6);
        let mut scheduler = Scheduler::default();
        for frame in 1..6 {
            scheduler.add(&mut machine, frame, false);
        }
        for frame in [3, 1, 5] {
            scheduler.remove(&mut machine, frame);
        }
        assert_eq!(drain(&mut scheduler, &mut machine), [2, 4]);
    }
}
