//! The DMAR table: remapping units, and memory that firmware wants its devices to reach (VT-d 4.1, 8).

use crate::{
    tables::{u16_at, u64_at},
    wiring::Bridge,
};
use alloc::vec::Vec;
use core::ops::Range;
use pci_types::PciAddress;
use protocol::layout::PAGE;

/// Bytes of the table before its structures.
const STRUCTURES: usize = 48;
/// Structures that are used.
const UNITS_MAX: usize = 32;
const RESERVED_MAX: usize = 64;
const UNIT: u16 = 0;
const RESERVED_MEMORY: u16 = 1;
/// Kind of a scope: an endpoint.
const ENDPOINT: u8 = 1;

/// What is of use here. Only segment 0 is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Dmar {
    /// Frames with the registers of the units.
    pub units: Vec<u64>,
    /// Devices that firmware goes on using, each with the frames it may reach.
    pub reserved: Vec<(PciAddress, Range<u64>)>,
}

impl Dmar {
    /// From the whole table. `bridges`: those by which it says where devices are.
    pub fn read(table: &[u8], bridges: &[Bridge]) -> Dmar {
        let mut found = Dmar::default();
        let mut rest = table.get(STRUCTURES..).unwrap_or_default();
        while let (Some(kind), Some(length)) = (u16_at(rest, 0), u16_at(rest, 2)) {
            let Some((structure, others)) = rest.split_at_checked(usize::from(length).max(4)) else { break };
            rest = others;
            if u16_at(structure, 6) != Some(0) {
                continue;
            }
            match (kind, u64_at(structure, 8)) {
                (UNIT, Some(base)) if base != 0 && base.is_multiple_of(PAGE) && found.units.len() < UNITS_MAX => {
                    found.units.push(base / PAGE);
                }
                (RESERVED_MEMORY, Some(first)) => {
                    let Some(last) = u64_at(structure, 16).filter(|last| *last >= first && *last < 1 << 52) else {
                        continue;
                    };
                    let frames = first / PAGE..last / PAGE + 1;
                    let mut scopes = structure.get(24..).unwrap_or_default();
                    while let [kind, length, _, _, _, bus, ..] = *scopes {
                        let Some((scope, others)) = scopes.split_at_checked(usize::from(length).max(6)) else { break };
                        scopes = others;
                        let device = (kind == ENDPOINT).then(|| place(bus, &scope[6..], bridges)).flatten();
                        if let Some(device) = device.filter(|_| found.reserved.len() < RESERVED_MAX) {
                            found.reserved.push((device, frames.clone()));
                        }
                    }
                }
                _ => {}
            }
        }
        found
    }
}

/// The function at the end of a path of devices and functions, from a bus on.
fn place(mut bus: u8, path: &[u8], bridges: &[Bridge]) -> Option<PciAddress> {
    let mut steps = path.chunks_exact(2).peekable();
    loop {
        let step = steps.next()?;
        let here = (step[0] < 32 && step[1] < 8).then(|| PciAddress::new(0, bus, step[0], step[1]))?;
        if steps.peek().is_none() {
            return Some(here);
        }
        bus = bridges.iter().find(|(bridge, _)| *bridge == here)?.1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn structure(kind: u16, segment: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(kind.to_le_bytes());
        bytes.extend((8 + body.len() as u16).to_le_bytes());
        bytes.extend([0, 0]);
        bytes.extend(segment.to_le_bytes());
        bytes.extend(body);
        bytes
    }

    fn reserved(first: u64, last: u64, scopes: &[u8]) -> Vec<u8> {
        let body = [&first.to_le_bytes()[..], &last.to_le_bytes(), scopes].concat();
        structure(RESERVED_MEMORY, 0, &body)
    }

    #[test]
    fn finds_units_and_reserved_memory() {
        let unit = |segment, base: u64| structure(UNIT, segment, &base.to_le_bytes());
        let bridges = [(PciAddress::new(0, 0, 28, 0), 3)];
        let scopes = [1, 8, 0, 0, 0, 0, 29, 0, 1, 10, 0, 0, 0, 0, 28, 0, 5, 1, 3, 8, 0, 0, 0, 0, 31, 7];
        let table = [
            alloc::vec![0; STRUCTURES],
            unit(0, 0xfed9_0000),
            unit(1, 0xfed9_1000),
            unit(0, 0xfed9_2004),
            reserved(0x7f00_0000, 0x7f00_1fff, &scopes),
            reserved(0x2000, 0x1000, &scopes),
        ];
        let dmar = Dmar::read(&table.concat(), &bridges);
        assert_eq!(dmar.units, [0xf_ed90]);
        let frames = 0x7_f000..0x7_f002;
        let devices = [PciAddress::new(0, 0, 29, 0), PciAddress::new(0, 3, 5, 1)];
        assert_eq!(dmar.reserved, devices.map(|device| (device, frames.clone())));
    }

    proptest! {
        #[test]
        fn any_table_is_read_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let table = [alloc::vec![0; STRUCTURES], bytes].concat();
            let dmar = Dmar::read(&table, &[]);
            prop_assert!(dmar.reserved.iter().all(|(_, frames)| frames.start < frames.end));
        }
    }
}
