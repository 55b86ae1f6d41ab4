//! A device's registers and the time, as the logic of a driver sees them: on the machine they are [`Mapped`], off the metal a
//! double of the device.

use server_runtime::{clock, hypercall, mmio::Region};

/// Nanoseconds between two looks of [`Hardware::wait`] once the first ones have shown nothing.
const LOOK: u64 = 100_000;
/// Looks without a pause: what an emulated device does at once, or a real one within microseconds, is not slept for.
const LOOKS: usize = 100;

/// Registers of 32 bits, and a clock.
pub trait Hardware {
    /// Reads the register at `offset`, a multiple of 4. A device that is gone reads as all ones.
    fn read(&self, offset: usize) -> u32;

    /// Writes it. What was written to memory before is seen by the device before.
    fn write(&mut self, offset: usize, value: u32);

    /// Nanoseconds.
    fn now(&self) -> u64;

    /// Lets others run for so many nanoseconds, or until an interrupt comes.
    fn sleep(&mut self, nanoseconds: u64);

    /// Waits until `done` says so, at most so many nanoseconds. Returns whether it did.
    fn wait(&mut self, nanoseconds: u64, mut done: impl FnMut(&mut Self) -> bool) -> bool
    where
        Self: Sized,
    {
        let end = self.now().saturating_add(nanoseconds);
        for look in 0usize.. {
            if done(self) {
                return true;
            }
            if self.now() >= end {
                break;
            }
            if look >= LOOKS {
                self.sleep(LOOK);
            }
        }
        // Others may have run until long after the end.
        done(self)
    }
}

/// The registers of a device of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Mapped(Region);

impl Mapped {
    /// Registers that were mapped.
    pub const fn new(registers: Region) -> Mapped {
        Mapped(registers)
    }
}

impl Hardware for Mapped {
    #[inline]
    fn read(&self, offset: usize) -> u32 {
        self.0.read_u32(offset)
    }

    #[inline]
    fn write(&mut self, offset: usize, value: u32) {
        self.0.write_u32(offset, value);
    }

    fn now(&self) -> u64 {
        clock::now()
    }

    fn sleep(&mut self, nanoseconds: u64) {
        hypercall::idle(clock::now().saturating_add(nanoseconds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that is ready after so many nanoseconds, by a clock that moves at each look.
    struct Slow {
        ready: u64,
        now: u64,
        slept: usize,
    }

    impl Hardware for Slow {
        fn read(&self, _: usize) -> u32 {
            u32::from(self.now >= self.ready)
        }
        fn write(&mut self, _: usize, _: u32) {}
        fn now(&self) -> u64 {
            self.now
        }
        fn sleep(&mut self, nanoseconds: u64) {
            self.slept += 1;
            self.now += nanoseconds;
        }
    }

    #[test]
    fn waits_no_longer_than_it_has_to() {
        for (ready, limit, expected) in
            [(0, 0, true), (1, 0, false), (950_000, 1_000_000, true), (2_000_000, 1_000_000, false)]
        {
            let mut slow = Slow { ready, now: 0, slept: 0 };
            assert_eq!(slow.wait(limit, |slow| slow.read(0) == 1), expected, "ready at {ready}, limit {limit}");
            assert!(slow.now <= limit + LOOK && slow.slept as u64 <= limit.div_ceil(LOOK));
        }
    }
}
