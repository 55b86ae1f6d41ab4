//! What the machine has that nobody can guess.

use crate::Random;
use core::arch::x86_64::{__cpuid, _rdrand64_step};
use server_runtime::clock::rdtsc;

/// Bit of RDRAND in ECX of leaf 1 (Intel SDM vol. 2, CPUID).
const CPUID_RDRAND: u32 = 1 << 30;
/// Words taken from the hardware: 256 bits, twice.
const WORDS: usize = 8;
/// Times that the hardware is asked for a word: Intel's advice for RDRAND.
const ATTEMPTS: usize = 10;
/// Samples of the clock: their low bits differ with what caches and interrupts did.
const SAMPLES: usize = 64;

/// A generator keyed with hardware random numbers, the clock, and whatever else the caller knows. Says so in the log if the processor has no
/// random numbers: what comes out can be guessed then.
pub fn random(other: u64) -> Random {
    let hardware: [Option<u64>; WORDS] = core::array::from_fn(|_| hardware_word());
    if hardware.iter().any(Option::is_none) {
        server_runtime::log!(
            "warning: the processor has no random numbers: keys and seeds come from the clock alone and can be guessed"
        );
    }
    let clock = (0..SAMPLES).map(|_| rdtsc());
    Random::new(hardware.into_iter().flatten().chain(clock).chain([other]))
}

/// A random number of the processor's; `None` if it has none to give.
fn hardware_word() -> Option<u64> {
    if __cpuid(1).ecx & CPUID_RDRAND == 0 {
        return None;
    }
    // SAFETY: the processor has the instruction.
    (0..ATTEMPTS).find_map(|_| unsafe { rdrand() })
}

/// # Safety
/// The processor must have RDRAND.
#[target_feature(enable = "rdrand")]
unsafe fn rdrand() -> Option<u64> {
    let mut word = 0;
    (_rdrand64_step(&mut word) == 1).then_some(word)
}
