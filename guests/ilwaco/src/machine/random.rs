//! Random numbers fit for cryptography: ChaCha20, keyed with the seed in the virtual register page.
//!
//! Taking the seed wipes it there. A clone gets a new one, and the generator then starts over.

use super::registers::{loaded, take_seed};
use chacha20::ChaCha20Rng;
use core::{cell::RefCell, convert::Infallible};
use critical_section::Mutex;
use rand_core::{SeedableRng, TryCryptoRng, TryRng};

struct State {
    /// Clone generation for which it was seeded.
    generation: u32,
    generator: ChaCha20Rng,
}

static STATE: Mutex<RefCell<Option<State>>> = Mutex::new(RefCell::new(None));

/// Seeds the generator.
pub(super) fn start() {
    with(|_| ());
}

fn with<R>(work: impl FnOnce(&mut ChaCha20Rng) -> R) -> R {
    critical_section::with(|section| {
        let mut state = STATE.borrow_ref_mut(section);
        let generation = loaded!(clone_generation);
        if state.as_ref().is_some_and(|state| state.generation != generation) {
            *state = None;
        }
        let state = state.get_or_insert_with(|| State { generation, generator: ChaCha20Rng::from_seed(take_seed()) });
        work(&mut state.generator)
    })
}

/// Fills a buffer with random bytes.
pub fn fill(buffer: &mut [u8]) {
    with(|generator| match generator.try_fill_bytes(buffer) {
        Ok(()) => (),
    });
}

/// 64 random bits.
pub fn next_u64() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// The VM's generator for whoever wants one of `rand_core`'s.
#[derive(Clone, Copy, Debug, Default)]
pub struct Random;

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(next_u64() as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(next_u64())
    }

    fn try_fill_bytes(&mut self, buffer: &mut [u8]) -> Result<(), Infallible> {
        fill(buffer);
        Ok(())
    }
}

impl TryCryptoRng for Random {}
