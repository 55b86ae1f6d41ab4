//! When a server that died is started again.

use alloc::collections::VecDeque;
use protocol::manifest::Restart;

const MILLISECOND: u64 = 1_000_000;
/// Deaths that are remembered at most: a policy that allows more is taken as allowing this many.
const REMEMBERED: u32 = 1000;

/// What to do after a death.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Start it again after so many nanoseconds.
    After(u64),
    /// Leave it, after so many deaths.
    GiveUp(u32),
}

/// The deaths of one server.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Times of the deaths within the window, oldest first.
    deaths: VecDeque<u64>,
}

impl History {
    /// Notes a death at `now` (nanoseconds) and decides.
    pub fn died(&mut self, policy: Restart, now: u64) -> Verdict {
        let Restart::Always { pause, most, window } = policy else {
            return Verdict::GiveUp(1);
        };
        let oldest = now.saturating_sub(u64::from(window) * MILLISECOND);
        while self.deaths.front().is_some_and(|death| *death < oldest) {
            self.deaths.pop_front();
        }
        self.deaths.push_back(now);
        let deaths = self.deaths.len() as u32;
        if deaths >= most.min(REMEMBERED) {
            return Verdict::GiveUp(deaths);
        }
        // No pause need be longer than the window: by its end the deaths are forgotten.
        let doubled = u64::from(pause).checked_shl(deaths - 1).filter(|p| p >> (deaths - 1) == u64::from(pause));
        let longest = u64::from(window.max(pause));
        Verdict::After(doubled.unwrap_or(longest).min(longest) * MILLISECOND)
    }

    /// Forgets all deaths: the operator starts the server again.
    pub fn forget(&mut self) {
        self.deaths.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn always(pause: u32, most: u32, window: u32) -> Restart {
        Restart::Always { pause, most, window }
    }

    #[test]
    fn the_pause_doubles_and_then_it_is_given_up() {
        let mut history = History::default();
        let policy = always(10, 4, 60_000);
        let pauses: Vec<_> = (0..4).map(|death| history.died(policy, death * MILLISECOND)).collect();
        let after = |milliseconds| Verdict::After(milliseconds * MILLISECOND);
        assert_eq!(pauses, [after(10), after(20), after(40), Verdict::GiveUp(4)]);
        history.forget();
        assert_eq!(history.died(policy, 5 * MILLISECOND), after(10));
    }

    #[test]
    fn deaths_long_ago_do_not_count() {
        let mut history = History::default();
        for minute in 0..100 {
            assert_eq!(history.died(Restart::DEFAULT, minute * 61_000 * MILLISECOND), Verdict::After(10 * MILLISECOND));
        }
    }

    #[test]
    fn never_is_never() {
        assert_eq!(History::default().died(Restart::Never, 5), Verdict::GiveUp(1));
        assert_eq!(History::default().died(always(10, 0, 0), 5), Verdict::GiveUp(1));
    }

    proptest! {
        #[test]
        fn any_policy_ends_or_waits(pause: u32, most: u32, window: u32, times in proptest::collection::vec(any::<u32>(), 0..50)) {
            let mut history = History::default();
            let mut now = 0;
            for time in times {
                now += u64::from(time);
                match history.died(always(pause, most, window), now) {
                    Verdict::After(wait) => {
                        prop_assert!(wait >= u64::from(pause) * MILLISECOND);
                        prop_assert!(wait <= u64::from(window.max(pause)) * MILLISECOND);
                    }
                    Verdict::GiveUp(deaths) => prop_assert!(deaths >= most.min(REMEMBERED)),
                }
            }
        }
    }
}
