//! Time: the TSC since kernel entry, and the local APIC's timer.

use crate::apic;
use core::arch::x86_64::{__cpuid, _rdtsc};
use x86_64::{instructions::port::Port, registers::model_specific::Msr};

/// Oscillator of the legacy timer, in Hz.
const PIT_HZ: u64 = 1_193_182;
/// How long the clocks are compared at least: 5 ms. The legacy timer goes round in 55 ms.
const PIT_TICKS: u16 = (PIT_HZ / 200) as u16;
/// Times that they are compared at most, until it is known how fast they are within one part of so many.
const COMPARISONS: usize = 16;
const PRECISION: u64 = 500;
/// Readings of all clocks of which the quickest counts: an emulator may have to wait for its host in the midst of one.
const READINGS: usize = 8;
/// Times that they are read before the legacy timer is held to be missing.
const PATIENCE: u32 = 1_000_000;
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
        for next in (0..COMPARISONS).filter_map(|_| against_pit()) {
            let best = best.insert(best.filter(|best| best.doubt <= next.doubt).unwrap_or(next));
            if best.doubt.saturating_mul(PRECISION) <= best.tsc {
                break;
            }
        }
        let hz = |ticks: u64, pit: u64| (u128::from(ticks) * u128::from(PIT_HZ) / u128::from(pit.max(1))) as u64;
        let (tsc, timer) = best.map_or((0, 0), |best| (hz(best.tsc, best.pit), hz(best.timer, best.pit)));
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

/// What the clocks counted between two readings.
#[derive(Clone, Copy)]
struct Comparison {
    /// Ticks of the TSC.
    tsc: u64,
    /// Ticks of the local APIC's timer.
    timer: u64,
    /// Ticks of the legacy timer.
    pit: u64,
    /// How many ticks of the TSC the readings took.
    doubt: u64,
}

/// All clocks at one moment.
#[derive(Clone, Copy)]
struct Reading {
    tsc: u64,
    timer: u32,
    pit: u16,
    /// How many ticks of the TSC it took.
    doubt: u64,
}

/// Channel 2 of the legacy timer (Intel 8254), which counts down once.
struct Pit {
    gate: Port<u8>,
    mode: Port<u8>,
    counter: Port<u8>,
}

impl Pit {
    /// The quickest of some readings.
    fn read(&mut self) -> Option<Reading> {
        let one = |_| {
            // SAFETY: the count is latched, then read; nobody else uses the timer yet.
            unsafe {
                let before = ticks();
                self.mode.write(0x80u8);
                let timer = apic::timer();
                let doubt = ticks().wrapping_sub(before);
                let pit = u16::from_le_bytes([self.counter.read(), self.counter.read()]);
                Reading { tsc: before.wrapping_add(doubt / 2), timer, pit, doubt }
            }
        };
        (0..READINGS).map(one).min_by_key(|reading| reading.doubt)
    }

    /// Whether it has counted to the end.
    fn over(&mut self) -> bool {
        // SAFETY: reading this port changes nothing.
        unsafe { self.gate.read() & 0x20 != 0 }
    }
}

/// Compares the clocks while the legacy timer runs. `None` if it does not, or has come to its end unnoticed.
fn against_pit() -> Option<Comparison> {
    let mut pit = Pit { gate: Port::new(0x61), mode: Port::new(0x43), counter: Port::new(0x42) };
    // SAFETY: ports of the legacy timer and its gate, which nobody else uses yet: gate on, speaker off, one shot, from 65,535.
    let before = unsafe {
        let before = pit.gate.read() & !3;
        pit.gate.write(before | 1);
        pit.mode.write(0xb0);
        pit.counter.write(0xff);
        pit.counter.write(0xff);
        before
    };
    apic::set_timer(u32::MAX);
    // The count begins a little after it was set: this reading is for nothing.
    let _ = pit.read();
    let first = pit.read();
    let last = (0..PATIENCE).find_map(|_| {
        let last = pit.read().filter(|last| first.is_some_and(|first| first.pit.wrapping_sub(last.pit) >= PIT_TICKS));
        (pit.over() || last.is_some()).then_some(last)
    });
    let over = pit.over();
    apic::set_timer(0);
    // SAFETY: as above.
    unsafe { pit.gate.write(before) };
    let (first, last) = (first?, last??);
    (!over).then_some(Comparison {
        tsc: last.tsc.wrapping_sub(first.tsc),
        timer: u64::from(first.timer.wrapping_sub(last.timer)),
        pit: u64::from(first.pit.wrapping_sub(last.pit)),
        doubt: first.doubt.saturating_add(last.doubt),
    })
}
