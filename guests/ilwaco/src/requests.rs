//! Requests for a connection, a few at a time.
//!
//! A request that meets no socket that listens is refused, and more sockets listen only after tasks have run ([`crate::listeners`]). So of a burst no more
//! requests are given to the TCP/IP library than there are sockets that listen; the rest waits in the NIC's ring until tasks had their turn.

use crate::listeners::LOW;

/// Rounds of the executor from a request until another socket listens in the place of the one it has taken: its task runs, it wakes another, and that runs; and the
/// one in which the request came.
const ROUNDS: u32 = 4;

/// What was given to the library of late.
#[derive(Debug, Default)]
pub struct Requests {
    count: usize,
    /// The round of the last one.
    last: u32,
}

impl Requests {
    /// None.
    pub const fn new() -> Requests {
        Requests { count: 0, last: 0 }
    }

    /// Whether one more may be given to the library in this round of the executor; it is counted then.
    pub fn admit(&mut self, round: u32) -> bool {
        if round.wrapping_sub(self.last) >= ROUNDS {
            self.count = 0;
        }
        let admitted = self.count < LOW;
        if admitted {
            self.count += 1;
            self.last = round;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_admitted_in_portions() {
        let mut requests = Requests::new();
        for portion in [u32::MAX - 2, 1, 5] {
            for _ in 0..LOW {
                assert!(requests.admit(portion));
            }
            for round in 0..ROUNDS {
                assert!(!requests.admit(portion.wrapping_add(round)));
            }
        }
    }

    #[test]
    fn a_trickle_is_counted_until_there_was_a_pause() {
        let mut requests = Requests::new();
        let admitted = (100..200).filter(|round| round % 3 == 0 && requests.admit(*round)).count();
        // Six, each three rounds behind the other; then four rounds without, which end with the second that is not admitted.
        assert_eq!(admitted, 33 - 33 / 7);
        assert!((300..310).step_by(ROUNDS as usize).all(|round| requests.admit(round)));
    }
}
