//! Random numbers fit for cryptography: ChaCha20, keyed with the seed in the virtual register page.
//!
//! Taking the seed wipes it there. A clone gets a new one, and the generator then starts over. What the VM that it is a clone of goes on with is in that VM's register
//! page when it says `ready`, and nowhere else: a clone has not the means to tell what another one draws.

use super::registers::{loaded, put_seed, take_seed};
use crate::sequence::Key;
use chacha20::ChaCha20Rng;
use core::{
    cell::RefCell,
    convert::Infallible,
    sync::atomic::{Ordering, compiler_fence},
};
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

/// Before the VM says `ready`: the generator is gone from memory, and its register page holds a seed for itself. Clones have register pages of their own.
pub(super) fn park() {
    let mut seed = [0; 32];
    fill(&mut seed);
    put_seed(&seed);
    critical_section::with(|section| {
        let mut state = STATE.borrow_ref_mut(section);
        if let Some(state) = &mut *state {
            state.generator = ChaCha20Rng::from_seed([0; 32]);
            // What lies there now may be seen: so it is written, though it is given up with the next line.
            compiler_fence(Ordering::SeqCst);
        }
        *state = None;
    });
    KEY.lock(|key| key.set(None));
    wipe(&mut seed);
    wipe_stack();
    wipe_vectors();
}

/// Bytes of the stack that drawing random numbers has used at most.
const STACK: usize = 3072;

/// Overwrites what drawing a seed has left on the stack.
#[inline(never)]
fn wipe_stack() {
    let mut dead = [0u8; STACK];
    wipe(&mut dead);
}

/// Clears the vector registers, which the generator may have worked with: they are part of what a clone begins with.
fn wipe_vectors() {
    // SAFETY: it changes registers only, and says which.
    unsafe {
        core::arch::asm!(
            "pxor xmm0, xmm0", "pxor xmm1, xmm1", "pxor xmm2, xmm2", "pxor xmm3, xmm3",
            "pxor xmm4, xmm4", "pxor xmm5, xmm5", "pxor xmm6, xmm6", "pxor xmm7, xmm7",
            "pxor xmm8, xmm8", "pxor xmm9, xmm9", "pxor xmm10, xmm10", "pxor xmm11, xmm11",
            "pxor xmm12, xmm12", "pxor xmm13, xmm13", "pxor xmm14, xmm14", "pxor xmm15, xmm15",
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// Overwrites bytes that will not be read again, so that the compiler does not leave it out.
fn wipe(bytes: &mut [u8]) {
    for byte in bytes {
        // SAFETY: it is borrowed mutably.
        unsafe { core::ptr::from_mut(byte).write_volatile(0) };
    }
}

/// The key of this VM's sequence numbers; another one after `ready`.
static KEY: embassy_sync::blocking_mutex::CriticalSectionMutex<core::cell::Cell<Option<Key>>> =
    embassy_sync::blocking_mutex::CriticalSectionMutex::new(core::cell::Cell::new(None));

/// That key.
pub(super) fn key() -> Key {
    KEY.lock(|key| {
        key.get().unwrap_or_else(|| {
            let mut new = Key::default();
            fill(&mut new);
            key.set(Some(new));
            new
        })
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
