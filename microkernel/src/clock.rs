//! Time: the TSC since kernel entry, and the local APIC's timer.

use crate::apic;
use core::arch::x86_64::{__cpuid, _rdtsc};
use x86_64::{instructions::port::Port, registers::model_specific::Msr};

/// Oscillator of the legacy timer, in Hz.
const PIT_HZ: u64 = 1_193_182;
/// How long the clocks are compared each time: 5 ms.
const PIT_TICKS: u64 = PIT_HZ / 200;
/// Times that they are compared at most, until it is known how fast they are within one part of so many: an emulator may have to wait for its
/// host just when one is read.
const COMPARISONS: usize = 16;
const PRECISION: u64 = 500;
/// Polls after which the legacy timer is held to be missing.
const PATIENCE: u32 = 50_000_000;
/// Used when nothing says how fast the TSC is.
const ASSUMED_HZ: u64 = 1_000_000_000;

/// How TSC and timer run.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// TSC at kernel entry.
    pub base: u64,
    /// Nanoseconds = ticks × multiplier >> 32.
    pub multiplier: u64,
    /// TSC ticks a second.
    pub tsc_hz: u64,
    /// Timer ticks per nanosecond, × 2^32.
    timer_multiplier: u64,
}

/// The time stamp counter.
#[inline]
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has it, and ring 0 may always read it.
    unsafe { _rdtsc() }
}

/// Moves this processor's time stamp counter, which [`crate::cpu::has_tsc_adjust`].
pub fn move_ticks(by: u64) {
    let mut adjust = Msr::new(0x3b);
    // SAFETY: IA32_TSC_ADJUST, which moves the counter and nothing else.
    unsafe { adjust.write(adjust.read().wrapping_add(by)) };
}

impl Clock {
    /// Measures TSC and timer against the legacy timer.
    pub fn measure(base: u64) -> Clock {
        let mut best: Option<Comparison> = None;
        for _ in 0..COMPARISONS {
            let Some(next) = against_pit() else { break };
            let best = best.insert(best.filter(|best| best.doubt <= next.doubt).unwrap_or(next));
            if best.doubt.saturating_mul(PRECISION) <= best.tsc {
                break;
            }
        }
        let hz = |ticks: u64| (u128::from(ticks) * u128::from(PIT_HZ) / u128::from(PIT_TICKS)) as u64;
        let (tsc, timer) = best.map_or((0, 0), |best| (hz(best.tsc), hz(best.timer)));
        let stated = stated_tsc_hz();
        let tsc_hz = stated.or((tsc != 0).then_some(tsc)).unwrap_or_else(|| {
            crate::say!("no way to measure the TSC: taking it for {} MHz; time may run wrong", ASSUMED_HZ / 1_000_000);
            ASSUMED_HZ
        });
        let timer_hz = if timer == 0 { ASSUMED_HZ } else { timer };
        Clock {
            base,
            multiplier: ((1_000_000_000u128 << 32) / u128::from(tsc_hz)) as u64,
            tsc_hz,
            timer_multiplier: ((u128::from(timer_hz) << 32) / 1_000_000_000) as u64,
        }
    }

    /// Nanoseconds since kernel entry.
    #[inline]
    pub fn now(&self) -> u64 {
        self.nanoseconds(ticks().wrapping_sub(self.base))
    }

    /// Nanoseconds for a difference of ticks.
    pub fn nanoseconds(&self, ticks: u64) -> u64 {
        protocol::registers::nanoseconds(ticks, 0, self.multiplier)
    }

    /// Sets the timer to `deadline`, or as near to it as one shot reaches.
    pub fn arm(&self, deadline: u64) {
        if deadline == protocol::abi::NEVER {
            apic::set_timer(0);
            return;
        }
        let left = deadline.saturating_sub(self.now());
        let count = (u128::from(left) * u128::from(self.timer_multiplier)) >> 32;
        apic::set_timer(u32::try_from(count).unwrap_or(u32::MAX).max(1));
    }
}

/// TSC ticks a second as the processor states them (Intel SDM vol. 2, CPUID leaf 15H).
fn stated_tsc_hz() -> Option<u64> {
    if __cpuid(0).eax < 0x15 {
        return None;
    }
    let leaf = __cpuid(0x15);
    if leaf.eax == 0 || leaf.ebx == 0 || leaf.ecx == 0 {
        return None;
    }
    Some(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax))
}

/// What was counted while the legacy timer ran once.
#[derive(Clone, Copy)]
struct Comparison {
    /// Ticks of the TSC.
    tsc: u64,
    /// Ticks of the local APIC's timer.
    timer: u64,
    /// By how many ticks of the TSC the beginning and the end may have been missed.
    doubt: u64,
}

/// Lets channel 2 of the legacy timer run once; `None` if it does not.
fn against_pit() -> Option<Comparison> {
    let mut gate: Port<u8> = Port::new(0x61);
    let mut mode: Port<u8> = Port::new(0x43);
    let mut counter: Port<u8> = Port::new(0x42);
    // SAFETY: ports of the legacy timer and its gate, which nobody else uses yet: gate on, speaker off, one shot.
    unsafe {
        let before = gate.read() & !3;
        gate.write(before | 1);
        mode.write(0xb0);
        counter.write(PIT_TICKS as u8);
        let earliest = ticks();
        counter.write((PIT_TICKS >> 8) as u8);
        apic::set_timer(u32::MAX);
        let start = ticks();
        let mut running = start;
        let over = (0..PATIENCE).any(|_| {
            // Read before the port: what passes between the two is doubtful as well.
            let now = ticks();
            let over = gate.read() & 0x20 != 0;
            if !over {
                running = now;
            }
            over
        });
        let (end, left) = (ticks(), apic::timer());
        let doubt = start.wrapping_sub(earliest).saturating_add(ticks().wrapping_sub(running));
        apic::set_timer(0);
        gate.write(before);
        over.then_some(Comparison { tsc: end.wrapping_sub(start), timer: u64::from(u32::MAX - left), doubt })
    }
}
