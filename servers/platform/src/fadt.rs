//! What the FADT says of the machine (ACPI 6.5, 5.2.9).

use crate::tables::{u16_at, u32_at, u64_at};

/// Flag of the FADT: the reset register is there.
const RESET_SUPPORTED: u32 = 1 << 10;

/// A register of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Register {
    /// At an I/O port.
    Port(u16),
    /// At a physical address.
    Memory(u64),
    /// In configuration space of bus 0: device, function, offset.
    Config(u8, u8, u16),
}

/// What is of use here. A table that ends too early leaves out what would follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fadt {
    /// Power management control registers, 16 bits each.
    pub control: [Option<Register>; 2],
    /// The port and the value that make the firmware leave these registers to the system.
    pub enable: Option<(u16, u8)>,
    /// The register that resets the machine, 8 bits, and what to write to it.
    pub reset: Option<(Register, u8)>,
    /// Register of the clock that holds the century; 0: none.
    pub century: u8,
}

impl Fadt {
    /// From the whole table.
    pub fn read(table: &[u8]) -> Fadt {
        let byte = |offset: usize| table.get(offset).copied().unwrap_or(0);
        let control = |wide, narrow| {
            let port = || u32_at(table, narrow).and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
            address(table, wide).or_else(|| port().map(Register::Port))
        };
        let command = u32_at(table, 48).and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        let can_reset = u32_at(table, 112).is_some_and(|flags| flags & RESET_SUPPORTED != 0);
        Fadt {
            control: [control(172, 64), control(184, 68)],
            enable: command.map(|port| (port, byte(52))).filter(|(_, value)| *value != 0),
            reset: address(table, 116).filter(|_| can_reset).map(|register| (register, byte(128))),
            century: byte(108),
        }
    }
}

/// A generic address: space, bits, offset, access size, address (5.2.3.2).
fn address(table: &[u8], offset: usize) -> Option<Register> {
    let address = u64_at(table, offset + 4).filter(|address| *address != 0)?;
    match *table.get(offset)? {
        0 => Some(Register::Memory(address)),
        1 => u16::try_from(address).ok().map(Register::Port),
        2 => {
            let field = |shift: u32| u16_at(&address.to_le_bytes(), shift as usize / 8);
            let (device, function) = (field(32)?, field(16)?);
            let location = u8::try_from(device).ok().zip(u8::try_from(function).ok());
            let (device, function) = location.filter(|(device, function)| *device < 32 && *function < 8)?;
            field(0).filter(|offset| *offset < 256).map(|offset| Register::Config(device, function, offset))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{vec, vec::Vec};
    use proptest::prelude::*;

    /// As QEMU's q35.
    fn q35() -> Vec<u8> {
        let mut table = vec![0; 244];
        table[48..52].copy_from_slice(&0xb2u32.to_le_bytes());
        table[52] = 2;
        table[64..68].copy_from_slice(&0x604u32.to_le_bytes());
        table[108] = 0x32;
        table[112..116].copy_from_slice(&(RESET_SUPPORTED | 0x84a5).to_le_bytes());
        table[116..128].copy_from_slice(&[1, 8, 0, 0, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0]);
        table[128] = 0x0f;
        table
    }

    #[test]
    fn reads_what_qemu_says() {
        let expected = Fadt {
            control: [Some(Register::Port(0x604)), None],
            enable: Some((0xb2, 2)),
            reset: Some((Register::Port(0xcf9), 0xf)),
            century: 0x32,
        };
        assert_eq!(Fadt::read(&q35()), expected);
        // ACPI 1.0 has no more than 116 bytes.
        assert_eq!(Fadt::read(&q35()[..116]), Fadt { reset: None, ..expected });
        assert_eq!(Fadt::read(&[]), Fadt::default());
    }

    #[test]
    fn wide_addresses_come_first() {
        let mut table = q35();
        table[172..184].copy_from_slice(&[0, 16, 0, 2, 0x04, 0x30, 0xd0, 0xfe, 1, 0, 0, 0]);
        table[116..128].copy_from_slice(&[2, 8, 0, 1, 0x44, 0, 1, 0, 31, 0, 0, 0]);
        let fadt = Fadt::read(&table);
        assert_eq!(fadt.control[0], Some(Register::Memory(0x1_fed0_3004)));
        assert_eq!(fadt.reset, Some((Register::Config(31, 1, 0x44), 0x0f)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>) {
            let _ = Fadt::read(&bytes);
        }
    }
}
