//! Deadlines, in a treap through the timer nodes of control blocks: insertion, removal and the
//! earliest in O(log n) steps for a million of them, with no memory of its own.
//!
//! A timer is named by its domain's frame and which of its two nodes it is; ties between deadlines are broken
//! by that name. Priorities are a mix of the name, and a domain does not know the frame of its control block, so nobody can choose deadlines
//! that make the tree deep; were it deep by chance, all ways through it are loops: it would cost time and no stack.

use crate::{Frame, Machine, NO_FRAME, block::TimerNode};

/// The node for the deadline of a wait.
pub const WAIT: usize = 0;
/// The node for the domain's own stop clock.
pub const CLOCK: usize = 1;

/// The name of a timer: frame × 2 + node; 0: none.
type Timer = u32;

const NONE: Timer = 0;

/// The tree.
#[derive(Clone, Copy, Debug)]
pub struct Timers {
    root: Timer,
}

fn name(frame: Frame, node: usize) -> Timer {
    frame << 1 | node as u32
}

fn get<M: Machine>(machine: &M, timer: Timer) -> &TimerNode {
    &machine.block(timer >> 1).timers[(timer & 1) as usize]
}

fn get_mut<M: Machine>(machine: &mut M, timer: Timer) -> &mut TimerNode {
    &mut machine.block_mut(timer >> 1).timers[(timer & 1) as usize]
}

/// A well-mixed function of the name (the finaliser of MurmurHash3).
fn priority(timer: Timer) -> u32 {
    let mut mixed = timer;
    mixed = (mixed ^ mixed >> 16).wrapping_mul(0x85eb_ca6b);
    mixed = (mixed ^ mixed >> 13).wrapping_mul(0xc2b2_ae35);
    mixed ^ mixed >> 16
}

fn key<M: Machine>(machine: &M, timer: Timer) -> (u64, Timer) {
    (get(machine, timer).deadline, timer)
}

/// Hangs a tree where the last one that was hung there is open: at its right or left, or at the root if there was none.
fn hang<M: Machine>(machine: &mut M, root: &mut Timer, last: Timer, right: bool, tree: Timer) {
    if last == NONE {
        *root = tree;
    } else if right {
        get_mut(machine, last).right = tree;
    } else {
        get_mut(machine, last).left = tree;
    }
}

/// Splits a tree into what comes before `at` and what comes after.
fn split<M: Machine>(machine: &mut M, mut tree: Timer, at: (u64, Timer)) -> (Timer, Timer) {
    let (mut less, mut more) = (NONE, NONE);
    let (mut last_less, mut last_more) = (NONE, NONE);
    while tree != NONE {
        let TimerNode { left, right, .. } = *get(machine, tree);
        if key(machine, tree) < at {
            hang(machine, &mut less, last_less, true, tree);
            (last_less, tree) = (tree, right);
        } else {
            hang(machine, &mut more, last_more, false, tree);
            (last_more, tree) = (tree, left);
        }
    }
    hang(machine, &mut less, last_less, true, NONE);
    hang(machine, &mut more, last_more, false, NONE);
    (less, more)
}

/// Joins two trees of which the first comes wholly before the second.
fn join<M: Machine>(machine: &mut M, mut less: Timer, mut more: Timer) -> Timer {
    let (mut root, mut last, mut right) = (NONE, NONE, false);
    while less != NONE && more != NONE {
        let upper_less = priority(less) > priority(more);
        let upper = if upper_less { less } else { more };
        hang(machine, &mut root, last, right, upper);
        (last, right) = (upper, upper_less);
        if upper_less {
            less = get(machine, upper).right;
        } else {
            more = get(machine, upper).left;
        }
    }
    let rest = if less == NONE { more } else { less };
    hang(machine, &mut root, last, right, rest);
    root
}

impl Timers {
    /// No timer is set.
    pub const EMPTY: Timers = Timers { root: NONE };

    /// Sets a timer of a domain, in place of its former setting.
    pub fn set<M: Machine>(&mut self, machine: &mut M, frame: Frame, node: usize, deadline: u64) {
        self.cancel(machine, frame, node);
        let timer = name(frame, node);
        let deadline = deadline.max(1);
        *get_mut(machine, timer) = TimerNode { deadline, left: NONE, right: NONE };
        let (less, more) = split(machine, self.root, (deadline, timer));
        let less = join(machine, less, timer);
        self.root = join(machine, less, more);
    }

    /// Takes a timer of a domain out, if it is set.
    #[inline]
    pub fn cancel<M: Machine>(&mut self, machine: &mut M, frame: Frame, node: usize) {
        if machine.block(frame).timers[node].deadline != 0 {
            self.remove(machine, name(frame, node));
        }
    }

    fn remove<M: Machine>(&mut self, machine: &mut M, timer: Timer) {
        let TimerNode { deadline, left, right } = core::mem::take(get_mut(machine, timer));
        let joined = join(machine, left, right);
        // Walk from the root to the parent of `timer`; its key is known although its node is cleared.
        let mut at = self.root;
        if at == timer {
            self.root = joined;
            return;
        }
        while at != NONE {
            let before = key(machine, at) < (deadline, timer);
            let node = get_mut(machine, at);
            let child = if before { &mut node.right } else { &mut node.left };
            if *child == timer {
                *child = joined;
                return;
            }
            at = *child;
        }
    }

    /// The earliest deadline.
    pub fn earliest<M: Machine>(&self, machine: &M) -> Option<u64> {
        self.first(machine).map(|timer| get(machine, timer).deadline)
    }

    /// How many are set.
    #[cfg(test)]
    pub fn count<M: Machine>(&self, machine: &M) -> usize {
        fn below<M: Machine>(machine: &M, tree: Timer) -> usize {
            if tree == NONE {
                0
            } else {
                1 + below(machine, get(machine, tree).left) + below(machine, get(machine, tree).right)
            }
        }
        below(machine, self.root)
    }

    fn first<M: Machine>(&self, machine: &M) -> Option<Timer> {
        let mut at = self.root;
        if at == NONE {
            return None;
        }
        while get(machine, at).left != NONE {
            at = get(machine, at).left;
        }
        Some(at)
    }

    /// Takes out one timer whose deadline is not after `now`: its domain and node.
    pub fn expire<M: Machine>(&mut self, machine: &mut M, now: u64) -> Option<(Frame, usize)> {
        let timer = self.first(machine)?;
        if get(machine, timer).deadline > now {
            return None;
        }
        self.remove(machine, timer);
        Some((timer >> 1, (timer & 1) as usize))
    }
}

const _: () = assert!(NO_FRAME == NONE);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;
    use proptest::prelude::*;
    use std::{collections::BTreeSet, vec::Vec};

    /// Deadlines in the order of the priorities make a tree that is a list.
    #[test]
    fn the_deepest_tree_needs_no_stack() {
        const COUNT: u32 = 20_000;
        let mut machine = Model::with_blocks(1..COUNT + 1);
        let mut names: Vec<Timer> = (1..=COUNT).map(|frame| name(frame, WAIT)).collect();
        names.sort_by_key(|timer| priority(*timer));
        let mut timers = Timers::EMPTY;
        for (at, timer) in names.iter().enumerate() {
            timers.set(&mut machine, timer >> 1, WAIT, u64::from(COUNT) - at as u64);
        }
        // Splits and joins along all of it.
        timers.set(&mut machine, names[COUNT as usize / 2] >> 1, CLOCK, u64::from(COUNT) * 2);
        timers.cancel(&mut machine, names[0] >> 1, WAIT);
        assert_eq!(timers.expire(&mut machine, u64::MAX), Some((names[COUNT as usize - 1] >> 1, WAIT)));
    }

    proptest! {
        /// Against an ordered set: the same earliest, the same order of expiry.
        #[test]
        fn agrees_with_an_ordered_set(steps in proptest::collection::vec((1u32..20, 0usize..2, 0u64..50, any::<bool>()), 0..300)) {
            let mut machine = Model::with_blocks(1..20);
            let mut timers = Timers::EMPTY;
            let mut set: BTreeSet<(u64, u32, usize)> = BTreeSet::new();
            for (frame, node, deadline, cancel) in steps {
                set.retain(|(_, f, n)| (*f, *n) != (frame, node));
                if cancel {
                    timers.cancel(&mut machine, frame, node);
                } else {
                    timers.set(&mut machine, frame, node, deadline);
                    set.insert((deadline.max(1), frame, node));
                }
                prop_assert_eq!(timers.earliest(&machine), set.first().map(|first| first.0));
            }
            let mut expired = Vec::new();
            while let Some((frame, node)) = timers.expire(&mut machine, 25) {
                expired.push((frame, node));
            }
            let wanted: Vec<_> = set.iter().filter(|t| t.0 <= 25).map(|(_, frame, node)| (*frame, *node)).collect();
            prop_assert_eq!(expired, wanted);
        }
    }
}
