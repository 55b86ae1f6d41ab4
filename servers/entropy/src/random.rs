//! A ChaCha20 generator keyed with what the machine has that nobody can guess.

use chacha20::{
    ChaCha20Rng,
    rand_core::{Rng, SeedableRng},
};

/// The generator. Its bytes are never repeated, so no two who ask get the same.
pub struct Random(ChaCha20Rng);

impl Random {
    /// Keyed with all of `words`: hardware random numbers, and the clock in case there are none. Each word changes every
    /// bit of what follows, so words that can be guessed do no harm beside others that cannot.
    pub fn new(words: impl IntoIterator<Item = u64>) -> Random {
        let mut key = [0; 32];
        for word in words {
            for (byte, part) in key.iter_mut().zip(word.to_le_bytes()) {
                *byte ^= part;
            }
            ChaCha20Rng::from_seed(key).fill_bytes(&mut key);
        }
        Random(ChaCha20Rng::from_seed(key))
    }

    /// Fresh random bytes.
    pub fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.0.fill_bytes(&mut seed);
        seed
    }
}

impl core::fmt::Debug for Random {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Random(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn seeds_never_repeat() {
        let mut seeds = BTreeSet::new();
        for words in [[0, 0], [0, 1], [1, 0], [1, 1]] {
            let mut random = Random::new(words);
            for _ in 0..1000 {
                assert!(seeds.insert(random.seed()));
            }
        }
        assert!(seeds.insert(Random::new([]).seed()));
    }

    #[test]
    fn the_first_word_still_counts_after_many() {
        let words = |first| core::iter::once(first).chain(0..100);
        assert_ne!(Random::new(words(1)).seed(), Random::new(words(2)).seed());
    }
}
