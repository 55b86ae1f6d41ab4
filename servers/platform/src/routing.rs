//! I/O APICs and the lines of legacy interrupts, from the MADT (ACPI 6.5, 5.2.12).

use alloc::vec::Vec;
use protocol::domain::InterruptSource;

/// ISA interrupts.
pub const ISA: usize = 16;
/// I/O APICs taken from a table.
pub const IO_APICS_MAX: usize = 16;
/// Where the first I/O APIC is if nobody says.
const DEFAULT_IO_APIC: IoApic = IoApic { address: 0xfec0_0000, first: 0 };

const ENTRY_IO_APIC: u8 = 1;
const ENTRY_OVERRIDE: u8 = 2;
/// In the flags of an override: polarity (bits 0-1) and trigger (bits 2-3), 0 meaning that of the bus.
const LOW: u16 = 0b11;
const LEVEL: u16 = 0b11 << 2;

/// An I/O APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoApic {
    /// Physical address of its registers.
    pub address: u64,
    /// First global system interrupt.
    pub first: u32,
}

/// A line of an I/O APIC as the table says it is wired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Override {
    number: u32,
    flags: u16,
}

/// Why a table was not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// An entry is shorter than its kind needs, or longer than what is left of the table.
    Entry,
    /// It names no I/O APIC.
    NoIoApic,
}

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Malformed::Entry => "an entry has an impossible length",
            Malformed::NoIoApic => "it names no I/O APIC",
        })
    }
}

/// How interrupts are wired.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Routing {
    /// The I/O APICs.
    pub io_apics: Vec<IoApic>,
    overrides: [Option<Override>; ISA],
}

impl Default for Routing {
    /// A PC of old: one I/O APIC at the usual address, ISA interrupt `n` on its line `n`, but the timer's on line 2.
    fn default() -> Routing {
        let mut overrides = [None; ISA];
        overrides[0] = Some(Override { number: 2, flags: 0 });
        Routing { io_apics: Vec::from([DEFAULT_IO_APIC]), overrides }
    }
}

impl Routing {
    /// From the entries of a MADT: what follows its 44 bytes of header. Entries of other kinds are passed over.
    pub fn from_madt(mut entries: &[u8]) -> Result<Routing, Malformed> {
        let mut routing = Routing { io_apics: Vec::new(), overrides: [None; ISA] };
        while let [kind, length, ..] = *entries {
            let length = usize::from(length);
            if length < 2 {
                return Err(Malformed::Entry);
            }
            let (entry, rest) = entries.split_at_checked(length).ok_or(Malformed::Entry)?;
            entries = rest;
            match kind {
                ENTRY_IO_APIC if routing.io_apics.len() < IO_APICS_MAX => {
                    let (address, first) = (word(entry, 4)?, word(entry, 8)?);
                    routing.io_apics.push(IoApic { address: u64::from(address), first });
                }
                ENTRY_OVERRIDE => {
                    let number = word(entry, 4)?;
                    let flags = entry.get(8..10).ok_or(Malformed::Entry)?;
                    let flags = u16::from(flags[0]) | u16::from(flags[1]) << 8;
                    if let Some(line) = routing.overrides.get_mut(usize::from(entry[3])) {
                        *line = Some(Override { number, flags });
                    }
                }
                _ => {}
            }
        }
        if routing.io_apics.is_empty() { Err(Malformed::NoIoApic) } else { Ok(routing) }
    }

    /// The line of an ISA interrupt: edge-triggered and active high unless the table says otherwise.
    pub fn isa(&self, number: u8) -> Option<InterruptSource> {
        let wired = *self.overrides.get(usize::from(number))?;
        let Override { number, flags } = wired.unwrap_or(Override { number: u32::from(number), flags: 0 });
        Some(InterruptSource::Line { number, level: flags & LEVEL == LEVEL, low: flags & LOW == LOW })
    }

    /// The line of a PCI interrupt that the firmware has put on an ISA interrupt: level-triggered and active low unless
    /// the table says otherwise.
    pub fn pci(&self, number: u8) -> Option<InterruptSource> {
        let wired = *self.overrides.get(usize::from(number))?;
        let Override { number, flags } = wired.unwrap_or(Override { number: u32::from(number), flags: LEVEL | LOW });
        let level = flags & LEVEL == 0 || flags & LEVEL == LEVEL;
        let low = flags & LOW == 0 || flags & LOW == LOW;
        Some(InterruptSource::Line { number, level, low })
    }
}

fn word(entry: &[u8], offset: usize) -> Result<u32, Malformed> {
    let bytes = entry.get(offset..).and_then(|bytes| bytes.first_chunk()).ok_or(Malformed::Entry)?;
    Ok(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As QEMU's q35.
    const MADT: [u8; 8 + 12 + 10 + 10 + 6] = [
        0, 8, 0, 0, 1, 0, 0, 0, // local APIC
        1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0, // I/O APIC
        2, 10, 0, 0, 2, 0, 0, 0, 0, 0, // timer on line 2
        2, 10, 0, 11, 11, 0, 0, 0, 0x0d, 0, // 11: active high, level
        4, 6, 0xff, 0, 0, 1, // local APIC NMI
    ];

    #[test]
    fn reads_what_qemu_says() {
        let routing = Routing::from_madt(&MADT).unwrap();
        assert_eq!(routing.io_apics, [DEFAULT_IO_APIC]);
        let line = |number, level, low| Some(InterruptSource::Line { number, level, low });
        assert_eq!(routing.isa(0), line(2, false, false));
        assert_eq!(routing.isa(4), line(4, false, false));
        assert_eq!(routing.isa(11), line(11, true, false));
        assert_eq!(routing.pci(11), line(11, true, false));
        assert_eq!(routing.pci(10), line(10, true, true));
        assert_eq!((routing.isa(16), routing.pci(255)), (None, None));
    }

    #[test]
    fn a_damaged_table_is_refused() {
        assert_eq!(Routing::from_madt(&[]), Err(Malformed::NoIoApic));
        assert_eq!(Routing::from_madt(&MADT[..15]), Err(Malformed::Entry));
        assert_eq!(Routing::from_madt(&[1, 0, 0]), Err(Malformed::Entry));
        assert_eq!(Routing::from_madt(&[1, 4, 0, 0]), Err(Malformed::Entry));
        assert_eq!(Routing::from_madt(&[2, 4, 0, 0]), Err(Malformed::Entry));
    }

    #[test]
    fn the_default_is_a_pc() {
        let routing = Routing::default();
        assert_eq!(routing.io_apics[0].address, 0xfec0_0000);
        assert_eq!(routing.isa(4), Some(InterruptSource::Line { number: 4, level: false, low: false }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_bounded(bytes: Vec<u8>) {
            if let Ok(routing) = Routing::from_madt(&bytes) {
                prop_assert!(!routing.io_apics.is_empty() && routing.io_apics.len() <= IO_APICS_MAX);
            }
        }
    }
}
