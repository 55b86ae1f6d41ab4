//! How the machine is switched off, and how it is reset (ACPI 6.5, 4.8.3 and 7.3.4).

use crate::fadt::{Fadt, Register};

/// In a control register: ACPI mode is on.
const ACPI_MODE: u16 = 1;
/// In a control register: the sleep type, and the bit that enters it.
const SLEEP_TYPE: u16 = 7 << 10;
const SLEEP: u16 = 1 << 13;
/// Nanoseconds that firmware may take to change to ACPI mode.
const MODE_TIME: u64 = 3_000_000_000;
/// Nanoseconds that the power, or the old life of the machine, may take to end.
const END_TIME: u64 = 500_000_000;
/// Nanoseconds between two looks.
const LOOK: u64 = 10_000_000;
/// Port of QEMU's `isa-debug-exit`, which reads as 0: a value `v` written there ends the emulator with status `2 v + 1`.
const EXIT: u16 = 0xf4;
const EXIT_SUCCESS: u8 = 0x10;
const EXIT_FAILURE: u8 = 0x11;
/// The keyboard controller: its status (bit 1: it still has a byte to take), and the command that pulses the processor's reset.
const KEYBOARD: u16 = 0x64;
const KEYBOARD_FULL: u8 = 2;
const KEYBOARD_RESET: u8 = 0xfe;
/// The reset control register of PC chipsets: what arms it, and what then resets.
const RESET_CONTROL: u16 = 0xcf9;
const RESET_STEPS: [u8; 2] = [0x02, 0x06];

/// The machine's registers.
pub trait Registers {
    /// Reads 8 bits.
    fn read_u8(&mut self, register: Register) -> u8;
    /// Writes 8 bits.
    fn write_u8(&mut self, register: Register, value: u8);
    /// Reads 16 bits.
    fn read_u16(&mut self, register: Register) -> u16;
    /// Writes 16 bits.
    fn write_u16(&mut self, register: Register, value: u16);
    /// Lets nanoseconds pass.
    fn wait(&mut self, nanoseconds: u64);
}

/// Switches the machine off. `sleep`: the sleep types of \_S5, if the firmware says them. `success`: for an emulator's exit status.
///
/// It returns if the machine goes on.
pub fn off(machine: &mut impl Registers, fadt: &Fadt, sleep: Option<[u8; 2]>, success: bool) {
    // An emulator that wants to know how it ended is told so. Elsewhere nothing is at this port, and it reads as ones.
    if machine.read_u8(Register::Port(EXIT)) == 0 {
        machine.write_u8(Register::Port(EXIT), if success { EXIT_SUCCESS } else { EXIT_FAILURE });
    }
    let Some(sleep) = sleep else { return };
    let Some(first) = fadt.control[0] else { return };
    if let Some((port, value)) = fadt.enable
        && machine.read_u16(first) & ACPI_MODE == 0
    {
        machine.write_u8(Register::Port(port), value);
        let mut waited = 0;
        while machine.read_u16(first) & ACPI_MODE == 0 && waited < MODE_TIME {
            machine.wait(LOOK);
            waited += LOOK;
        }
    }
    for (register, kind) in fadt.control.into_iter().zip(sleep) {
        let Some(register) = register else { continue };
        let value = machine.read_u16(register) & !(SLEEP_TYPE | SLEEP) | u16::from(kind) << 10 & SLEEP_TYPE;
        machine.write_u16(register, value);
        machine.write_u16(register, value | SLEEP);
    }
    machine.wait(END_TIME);
}

/// Resets the machine: by the register that the firmware names, else by the keyboard controller, else by the chipset.
///
/// It returns if the machine goes on.
pub fn reset(machine: &mut impl Registers, fadt: &Fadt) {
    if let Some((register, value)) = fadt.reset {
        machine.write_u8(register, value);
        machine.wait(END_TIME);
    }
    let mut waited = 0;
    while machine.read_u8(Register::Port(KEYBOARD)) & KEYBOARD_FULL != 0 && waited < END_TIME {
        machine.wait(LOOK);
        waited += LOOK;
    }
    machine.write_u8(Register::Port(KEYBOARD), KEYBOARD_RESET);
    machine.wait(END_TIME);
    for value in RESET_STEPS {
        machine.write_u8(Register::Port(RESET_CONTROL), value);
        machine.wait(LOOK);
    }
    machine.wait(END_TIME);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// A machine on which nothing works, unless it has to be enabled first.
    #[derive(Default)]
    struct Broken {
        exits: bool,
        mode: u16,
        enables: bool,
        written: Vec<(Register, u16)>,
        waited: u64,
    }

    impl Registers for Broken {
        fn read_u8(&mut self, register: Register) -> u8 {
            if register == Register::Port(EXIT) && self.exits { 0 } else { 0xff }
        }
        fn write_u8(&mut self, register: Register, value: u8) {
            self.written.push((register, value.into()));
        }
        fn read_u16(&mut self, _: Register) -> u16 {
            self.mode
        }
        fn write_u16(&mut self, register: Register, value: u16) {
            self.written.push((register, value));
        }
        fn wait(&mut self, nanoseconds: u64) {
            self.waited += nanoseconds;
            if self.enables {
                self.mode |= ACPI_MODE;
            }
        }
    }

    const CONTROL: [Register; 2] = [Register::Port(0x604), Register::Memory(0xfed0_0000)];

    fn fadt() -> Fadt {
        Fadt {
            control: CONTROL.map(Some),
            enable: Some((0xb2, 2)),
            reset: Some((Register::Port(0xcf9), 0x0f)),
            century: 0,
        }
    }

    #[test]
    fn off_enters_the_sleep_type_in_both_registers() {
        let mut machine = Broken { enables: true, mode: 0x1c00 | 0x4000, ..Broken::default() };
        off(&mut machine, &fadt(), Some([5, 7]), true);
        let expected = [
            (Register::Port(0xb2), 2),
            (CONTROL[0], 0x4001 | 5 << 10),
            (CONTROL[0], 0x4001 | 5 << 10 | SLEEP),
            (CONTROL[1], 0x4001 | 7 << 10),
            (CONTROL[1], 0x4001 | 7 << 10 | SLEEP),
        ];
        assert_eq!(machine.written, expected);
    }

    #[test]
    fn off_gives_up() {
        let mut machine = Broken::default();
        off(&mut machine, &fadt(), Some([5, 5]), true);
        assert_eq!(machine.waited, MODE_TIME + END_TIME);
        let mut machine = Broken { exits: true, ..Broken::default() };
        off(&mut machine, &Fadt::default(), None, false);
        assert_eq!(machine.written, [(Register::Port(EXIT), EXIT_FAILURE.into())]);
    }

    #[test]
    fn reset_tries_everything() {
        let mut machine = Broken::default();
        reset(&mut machine, &fadt());
        let ports: Vec<_> = machine.written;
        let port = |port, value| (Register::Port(port), value);
        assert_eq!(ports, [port(0xcf9, 0x0f), port(0x64, 0xfe), port(0xcf9, 2), port(0xcf9, 6)]);
    }
}
