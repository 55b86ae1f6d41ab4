//! The wall clock: the real-time clock of the PC (MC146818).

/// Access to the clock's registers.
pub trait Registers {
    /// Reads a register.
    fn read(&mut self, register: u8) -> u8;
}

const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
/// Status A: an update is under way.
const UPDATING: u8 = 1 << 7;
/// Status B: numbers are binary, not BCD.
const BINARY: u8 = 1 << 2;
/// Status B: hours count to 24.
const HOURS_24: u8 = 1 << 1;
/// With hours to 12: afternoon.
const AFTERNOON: u8 = 1 << 7;
/// Attempts to read the clock between two updates. An update takes 2 ms, a read more than 1 µs.
const ATTEMPTS: usize = 20_000;

/// Seconds since 1970-01-01 UTC. The register of the century is named in the FADT; 0: there is none.
///
/// `None` if the clock does not answer sensibly.
pub fn read(registers: &mut impl Registers, century: u8) -> Option<u64> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        if registers.read(STATUS_A) & UPDATING != 0 {
            continue;
        }
        let numbers = [0x00, 0x02, 0x04, 0x07, 0x08, 0x09].map(|register| registers.read(register));
        let century = if century == 0 { 0 } else { registers.read(century) };
        let now = Some((numbers, century));
        // An update between two reads shows as a difference.
        if now == last {
            return seconds(numbers, century, registers.read(STATUS_B));
        }
        last = now;
    }
    None
}

/// From second, minute, hour, day, month and year as read.
fn seconds(numbers: [u8; 6], century: u8, status: u8) -> Option<u64> {
    let number = |value: u8| match status & BINARY {
        0 => (value >> 4).checked_mul(10)?.checked_add(value & 0xf).filter(|_| value >> 4 < 10 && value & 0xf < 10),
        _ => Some(value),
    };
    let [second, minute, hour, day, month, year] = numbers;
    let afternoon = status & HOURS_24 == 0 && hour & AFTERNOON != 0;
    let hour = number(if status & HOURS_24 == 0 { hour & !AFTERNOON } else { hour })?;
    let hour = match (status & HOURS_24, hour) {
        (0, 12) => 0,
        (_, hour) => hour,
    };
    let hour = u64::from(hour) + if afternoon { 12 } else { 0 };
    let [second, minute] = [u64::from(number(second)?), u64::from(number(minute)?)];
    let [day, month] = [u64::from(number(day)?), u64::from(number(month)?)];
    // Without a century, or with nonsense in its place, it is this one.
    let century = number(century).filter(|century| (19..=29).contains(century)).unwrap_or(20);
    let year = u64::from(century) * 100 + u64::from(number(year).filter(|year| *year < 100)?);
    let sensible =
        second < 60 && minute < 60 && hour < 24 && (1..=12).contains(&month) && (1..=31).contains(&day) && year >= 1970;
    sensible.then(|| days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
}

/// Days from 1970-01-01 to a day of the Gregorian calendar, from 1970 on.
fn days(year: u64, month: u64, day: u64) -> u64 {
    // Years begin in March, so that the leap day is the last of a year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Clock {
        registers: [u8; 128],
        /// Reads of the status until it says that no update is under way.
        busy: usize,
    }

    impl Registers for Clock {
        fn read(&mut self, register: u8) -> u8 {
            if register == STATUS_A && self.busy > 0 {
                self.busy -= 1;
                return UPDATING;
            }
            self.registers[usize::from(register)]
        }
    }

    fn clock(numbers: [u8; 6], century: u8, status: u8) -> Clock {
        let mut registers = [0; 128];
        for (register, value) in [0, 2, 4, 7, 8, 9].into_iter().zip(numbers) {
            registers[register] = value;
        }
        registers[0x32] = century;
        registers[usize::from(STATUS_B)] = status;
        Clock { registers, busy: 3 }
    }

    #[test]
    fn reads_every_way_to_write_a_time() {
        // 2024-02-29 13:37:42 UTC.
        let expected = Some(1_709_213_862);
        let bcd = [0x42, 0x37, 0x13, 0x29, 0x02, 0x24];
        assert_eq!(read(&mut clock(bcd, 0x20, HOURS_24), 0x32), expected);
        assert_eq!(read(&mut clock(bcd, 0xff, HOURS_24), 0), expected);
        assert_eq!(read(&mut clock([0x42, 0x37, 0x81, 0x29, 0x02, 0x24], 0x20, 0), 0x32), expected);
        assert_eq!(read(&mut clock([42, 37, 13, 29, 2, 24], 20, HOURS_24 | BINARY), 0x32), expected);
        assert_eq!(read(&mut clock([0, 0, 0x12, 1, 1, 0x70], 0x19, 0), 0x32), Some(0));
    }

    #[test]
    fn a_clock_that_makes_no_sense_is_not_believed() {
        assert_eq!(read(&mut clock([0x42, 0x37, 0x13, 0x29, 0x13, 0x24], 0x20, HOURS_24), 0x32), None);
        assert_eq!(read(&mut clock([0xff; 6], 0xff, 0xff), 0x32), None);
        let mut stuck = clock([0; 6], 0, 0);
        stuck.busy = usize::MAX;
        assert_eq!(read(&mut stuck, 0), None);
    }

    proptest! {
        #[test]
        fn days_follow_each_other(year in 1970u64..2999, month in 1u64..=12, day in 1u64..28) {
            prop_assert_eq!(days(year, month, day + 1), days(year, month, day) + 1);
            prop_assert_eq!(days(year + 1, 1, 1), days(year, 12, 31) + 1);
        }

        #[test]
        fn any_registers_are_harmless(numbers: [u8; 6], century: u8, status: u8) {
            let _ = read(&mut clock(numbers, century, status), 0x32);
        }
    }
}
