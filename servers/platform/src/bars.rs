//! Base address registers: where a function's registers lie, and how long they are.

use crate::config::{BAR, Config, PciAddress, command, set_command};
use alloc::vec::Vec;
use pci_types::CommandRegister;
use protocol::service::platform::Bar;
use serde::{Deserialize, Serialize};

/// Base address registers of a function.
pub const BARS: u8 = 6;

/// How much each base address register of a function decodes: the logarithm of its bytes to base 2; 0 for one that is not there, and
/// for the upper half of another.
///
/// It does not change as long as the machine runs, and to find it disturbs whoever uses the device; so it is found once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Lengths([u8; BARS as usize]);

impl Lengths {
    /// Finds them: ones are written into the registers (PCI Local Bus 3.0, 6.2.5.1).
    ///
    /// The function decodes nothing meanwhile: what a driver writes there is lost.
    pub fn probe(config: &impl Config, address: PciAddress) -> Lengths {
        let decode = CommandRegister::MEMORY_ENABLE | CommandRegister::IO_ENABLE;
        let before = command(config, address);
        set_command(config, address, before.difference(decode));
        let mut lengths = Lengths::default();
        for register in registers(config, address) {
            lengths.0[usize::from(register.number)] = probe(config, address, &register);
        }
        set_command(config, address, before);
        lengths
    }
}

/// The base address registers in use, and the numbers of those that would be if the firmware had given them an address.
/// Nothing is written.
pub fn bars(config: &impl Config, address: PciAddress, lengths: &Lengths) -> (Vec<Bar>, Vec<u8>) {
    let (mut bars, mut unplaced) = (Vec::new(), Vec::new());
    for Register { number, memory, start, .. } in registers(config, address) {
        let length = match lengths.0[usize::from(number)] {
            0 => continue,
            logarithm => 1u64.checked_shl(logarithm.into()),
        };
        match length.filter(|length| start != 0 && start.checked_add(*length).is_some()) {
            Some(length) => bars.push(Bar { number, address: start, length, memory }),
            None => unplaced.push(number),
        }
    }
    (bars, unplaced)
}

/// A base address register as it stands.
struct Register {
    number: u8,
    memory: bool,
    /// Whether the next one is its upper half.
    wide: bool,
    start: u64,
}

/// All of them, upper halves with their lower ones.
fn registers(config: &impl Config, address: PciAddress) -> impl Iterator<Item = Register> {
    let mut next = 0;
    core::iter::from_fn(move || {
        let number = next;
        let read = |number| u64::from(config.read(address, BAR + u16::from(number) * 4));
        let low = (number < BARS).then(|| read(number))?;
        let memory = low & 1 == 0;
        let wide = memory && low >> 1 & 3 == 2;
        // One that has no room for its upper half is none; its length is found to be 0.
        let high = if wide && number + 1 < BARS { read(number + 1) } else { 0 };
        next += if wide { 2 } else { 1 };
        Some(Register { number, memory, wide, start: high << 32 | low & !flags(memory) })
    })
}

/// The bits of a base address register that are not part of an address.
const fn flags(memory: bool) -> u64 {
    if memory { 0xf } else { 0x3 }
}

/// What [`Lengths`] says of one. What it held is put back.
fn probe(config: &impl Config, address: PciAddress, register: &Register) -> u8 {
    let mask = |number: u8| {
        let offset = BAR + u16::from(number) * 4;
        let value = config.read(address, offset);
        config.write(address, offset, !0);
        let mask = config.read(address, offset);
        config.write(address, offset, value);
        u64::from(mask)
    };
    let Register { number, memory, wide, .. } = *register;
    if wide && number + 1 == BARS {
        return 0;
    }
    let low = mask(number) & !flags(memory);
    let high = if wide { mask(number + 1) } else { 0 };
    match high << 32 | low {
        0 => 0,
        mask => mask.trailing_zeros() as u8,
    }
}
