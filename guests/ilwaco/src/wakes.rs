//! When tasks are to be woken.
//!
//! `embassy-time` says when a timer ends and never that it is no longer wanted: what waited with a time limit and was in time is woken at the limit all
//! the same. For a machine with one program that is nothing. Here it would be a run of a VM that has nothing to do, of which there may be very many. So all that
//! a task has asked for is forgotten when it is polled ([`Wakes::forget`]): it asks again, as it polls again what it waits for.

use alloc::vec::Vec;
use core::task::Waker;

/// `next`: there is none.
pub const NEVER: u64 = u64::MAX;

/// The wakes that were asked for. There are few: one for each task that waits with a limit.
pub struct Wakes(Vec<(u64, Waker)>);

impl Wakes {
    /// None.
    pub const NONE: Wakes = Wakes(Vec::new());

    /// Asks for a wake at a time. Of several that are asked for with one waker, the earliest counts.
    pub fn set(&mut self, at: u64, waker: &Waker) {
        match self.0.iter_mut().find(|(_, other)| other.will_wake(waker)) {
            Some((earliest, _)) => *earliest = at.min(*earliest),
            None => self.0.push((at, waker.clone())),
        }
    }

    /// Forgets what was asked for with this waker.
    pub fn forget(&mut self, waker: &Waker) {
        if let Some(at) = self.0.iter().position(|(_, other)| other.will_wake(waker)) {
            self.0.swap_remove(at);
        }
    }

    /// Wakes all whose time has come. When the next one's comes, or [`NEVER`].
    pub fn next(&mut self, now: u64) -> u64 {
        let mut next = NEVER;
        self.0.retain(|(at, waker)| {
            let waits = *at > now;
            if waits {
                next = next.min(*at);
            } else {
                waker.wake_by_ref();
            }
            waits
        });
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{
        collections::BTreeMap,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        task::Wake,
    };

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(usize, u64),
        Forget(usize),
        Next(u64),
    }

    const TASKS: usize = 4;

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..TASKS, 0u64..100).prop_map(|(task, at)| Step::Set(task, at)),
            1 => (0..TASKS).prop_map(Step::Forget),
            2 => (0u64..100).prop_map(Step::Next),
        ]
    }

    #[test]
    fn what_was_in_time_wakes_nobody() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut wakes = Wakes::NONE;
        wakes.set(10, &waker);
        wakes.set(5, &waker);
        assert_eq!(wakes.next(1), 5);
        // It is polled, and waits for something else.
        wakes.forget(&waker);
        wakes.set(20, &waker);
        assert_eq!(wakes.next(10), 20);
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
        assert_eq!(wakes.next(20), NEVER);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }

    proptest! {
        /// Against a map from each waker to the earliest time.
        #[test]
        fn agrees_with_a_map(steps in proptest::collection::vec(step(), 0..60)) {
            let counts: Vec<Arc<Count>> = (0..TASKS).map(|_| Arc::default()).collect();
            let wakers: Vec<Waker> = counts.iter().cloned().map(Waker::from).collect();
            let (mut wakes, mut map, mut woken) = (Wakes::NONE, BTreeMap::new(), [0; TASKS]);
            for step in steps {
                match step {
                    Step::Set(task, at) => {
                        wakes.set(at, &wakers[task]);
                        let earliest = map.entry(task).or_insert(at);
                        *earliest = at.min(*earliest);
                    }
                    Step::Forget(task) => {
                        wakes.forget(&wakers[task]);
                        map.remove(&task);
                    }
                    Step::Next(now) => {
                        let next = wakes.next(now);
                        map.retain(|task, at| {
                            woken[*task] += u32::from(*at <= now);
                            *at > now
                        });
                        prop_assert_eq!(next, map.values().copied().min().unwrap_or(NEVER));
                    }
                }
                for (count, woken) in counts.iter().zip(&woken) {
                    prop_assert_eq!(count.0.load(Ordering::Relaxed), *woken);
                }
            }
        }
    }
}
