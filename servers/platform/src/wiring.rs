//! How the interrupt pins of PCI devices are wired (ACPI 6.5, 6.2.13; PCI Local Bus 3.0, 2.2.6).
//!
//! The firmware says it in AML, which the server interprets once: what it has found is kept.

use crate::config::PciAddress;
use alloc::vec::Vec;
use protocol::domain::InterruptSource;
use serde::{Deserialize, Serialize};

/// Pins of a device: INTA to INTD, 1 to 4.
pub const PINS: u8 = 4;
/// Bridges followed upward; more than there can be buses.
const BRIDGES_MAX: usize = 256;

/// Where a pin of a device is wired to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Route {
    /// Bus.
    pub bus: u8,
    /// Device; all of its functions.
    pub device: u8,
    /// 1 to 4.
    pub pin: u8,
    /// The line.
    pub line: Line,
}

/// A line of an I/O APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Line {
    /// Its global number.
    pub number: u32,
    /// Whether it is level-triggered.
    pub level: bool,
    /// Whether it is active low.
    pub low: bool,
}

impl Line {
    /// As PCI has it.
    pub const fn pci(number: u32) -> Line {
        Line { number, level: true, low: true }
    }

    /// For the kernel.
    pub const fn source(self) -> InterruptSource {
        InterruptSource::Line { number: self.number, level: self.level, low: self.low }
    }
}

/// What the interpreter has found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Findings {
    /// The sleep types that switch the machine off, for its two control registers.
    pub sleep: Option<[u8; 2]>,
    /// Routes of pins.
    pub routes: Vec<Route>,
}

/// A bridge, and the bus behind it.
pub type Bridge = (PciAddress, u8);

/// The route of a function's pin. Where the firmware says nothing of a bus behind a bridge, the pins are those of
/// the bridge's slot, turned by the number of the device.
pub fn route(routes: &[Route], bridges: &[Bridge], address: PciAddress, pin: u8) -> Option<Route> {
    let (mut address, mut pin) = (address, pin);
    for _ in 0..BRIDGES_MAX {
        if !(1..=PINS).contains(&pin) {
            return None;
        }
        let here = |route: &&Route| (route.bus, route.device, route.pin) == (address.bus(), address.device(), pin);
        if let Some(route) = routes.iter().find(here) {
            return Some(*route);
        }
        pin = (pin - 1 + address.device()) % PINS + 1;
        address = bridges.iter().find(|(_, bus)| *bus == address.bus())?.0;
    }
    None
}

/// The interrupt in a resource template, as a link device's _CRS has it (6.4). `None` if there is none, or it is switched off.
pub fn interrupt(mut template: &[u8]) -> Option<Line> {
    while let [tag, ..] = *template {
        let (header, length) = match tag {
            0x80.. => (3, usize::from(crate::tables::u16_at(template, 1)?)),
            _ => (1, usize::from(tag & 7)),
        };
        let body = template.get(header..header + length)?;
        template = &template[header + length..];
        match (tag, body) {
            // Extended interrupt: flags, how many, numbers.
            (0x89, [flags, count, ..]) if *count > 0 => {
                let number = crate::tables::u32_at(body, 2).filter(|number| *number != 0)?;
                return Some(Line { number, level: flags & 2 == 0, low: flags & 4 != 0 });
            }
            // Interrupts of the legacy controllers: a mask, and perhaps flags.
            (0x20..=0x27, [low, high, flags @ ..]) => {
                // Interrupt 0 is the timer's: whoever shifts a number into the mask that is none says it.
                let mask = u16::from_le_bytes([*low, *high]) & !1;
                let number = (mask != 0).then(|| mask.trailing_zeros())?;
                let flags = flags.first().copied().unwrap_or(1);
                return Some(Line { number, level: flags & 1 == 0, low: flags & 8 != 0 });
            }
            // The end.
            (0x78..=0x7f, _) => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(bus: u8, device: u8) -> PciAddress {
        PciAddress::new(0, bus, device, 0)
    }

    #[test]
    fn pins_behind_bridges_are_turned() {
        let route = |bus, device, pin, number| Route { bus, device, pin, line: Line::pci(number) };
        let routes = [route(0, 3, 1, 16), route(0, 3, 2, 17), route(0, 3, 3, 18), route(2, 0, 1, 40)];
        let bridges = [(at(0, 3), 1), (at(1, 1), 2), (at(9, 1), 9)];
        let number = |bus, device, pin| super::route(&routes, &bridges, at(bus, device), pin).map(|r| r.line.number);
        assert_eq!(number(0, 3, 2), Some(17));
        assert_eq!(number(0, 4, 2), None);
        // INTA of device 1 is INTB of the bridge.
        assert_eq!(number(1, 1, 1), Some(17));
        assert_eq!(number(1, 2, 1), Some(18));
        assert_eq!(number(1, 3, 1), None);
        assert_eq!(number(2, 0, 1), Some(40));
        // INTB of device 0 is INTB of its bridge, device 1 on bus 1: INTC of the one above.
        assert_eq!(number(2, 0, 2), Some(18));
        assert_eq!((number(0, 3, 0), number(0, 3, 5), number(9, 1, 1)), (None, None, None));
    }

    #[test]
    fn reads_link_devices() {
        // QEMU's: level, active high, shared, interrupt 10.
        let qemu = [0x89, 6, 0, 0x09, 1, 10, 0, 0, 0, 0x79, 0];
        assert_eq!(interrupt(&qemu), Some(Line { number: 10, level: true, low: false }));
        // An old board's: IRQ 11, level, active low, shared.
        assert_eq!(interrupt(&[0x23, 0, 8, 0x18, 0x79, 0]), Some(Line { number: 11, level: true, low: true }));
        assert_eq!(interrupt(&[0x22, 0x20, 0, 0x79, 0]), Some(Line { number: 5, level: false, low: false }));
        assert_eq!(interrupt(&[0x47, 1, 0, 0, 0, 0, 0, 0, 0x22, 0x20, 0]).map(|line| line.number), Some(5));
        for none in [
            &[][..],
            &[0x79, 0],
            &[0x89, 6, 0, 9, 1, 0, 0, 0, 0],
            &[0x22, 0, 0],
            &[0x22, 1, 0],
            &[0x89, 6, 0, 9, 1, 10],
        ] {
            assert_eq!(interrupt(none), None, "{none:x?}");
        }
    }

    proptest! {
        #[test]
        fn any_template_is_harmless(bytes: Vec<u8>) {
            let _ = interrupt(&bytes);
        }

        #[test]
        fn any_bridges_are_followed_to_an_end(bridges: Vec<(u8, u8, u8)>, bus: u8, device in 0u8..32, pin: u8) {
            let bridges: Vec<_> = bridges.iter().map(|(from, device, to)| (at(*from, device % 32), *to)).collect();
            prop_assert_eq!(route(&[], &bridges, at(bus, device), pin), None);
        }
    }
}
