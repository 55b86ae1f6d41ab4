//! Memory-mapped configuration space, from the MCFG (PCI Firmware Specification 3.3, 4.1.2).

use crate::{
    config::PciAddress,
    tables::{u16_at, u64_at},
};
use alloc::vec::Vec;
use protocol::layout::PAGE;

/// Bytes of the table before its entries, and of an entry.
const ENTRIES: usize = 44;
const ENTRY: usize = 16;
/// Entries taken.
const WINDOWS_MAX: usize = 32;
/// Frames of a bus: one for each function.
const BUS_FRAMES: u64 = 256;

/// The configuration space of some buses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// Frame of function 0 of device 0 of the first bus.
    pub frame: u64,
    /// PCI segment.
    pub segment: u16,
    /// First bus.
    pub first: u8,
    /// Last bus.
    pub last: u8,
}

impl Window {
    /// The frame with a function's configuration space, if it is in this window.
    pub fn function(&self, address: PciAddress) -> Option<u64> {
        let here = address.segment() == self.segment && (self.first..=self.last).contains(&address.bus());
        let bus = u64::from(address.bus().checked_sub(self.first)?);
        let function = u64::from(address.device()) << 3 | u64::from(address.function());
        here.then_some(self.frame + bus * BUS_FRAMES + function)
    }
}

/// The windows of a whole table; those that make no sense are left out.
pub fn windows(table: &[u8]) -> Vec<Window> {
    let entries = table.get(ENTRIES..).unwrap_or_default().chunks_exact(ENTRY).take(WINDOWS_MAX);
    let window = |entry: &[u8]| {
        let (base, segment) = (u64_at(entry, 0)?, u16_at(entry, 8)?);
        let (first, last) = (entry[10], entry[11]);
        // The address is that of bus 0, wherever the window begins.
        let start = base.checked_add(u64::from(first) * BUS_FRAMES * PAGE)?;
        let sound = base != 0 && base.is_multiple_of(PAGE) && first <= last && base < 1 << 52;
        sound.then_some(Window { frame: start / PAGE, segment, first, last })
    };
    entries.filter_map(window).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(entries: &[(u64, u16, u8, u8)]) -> Vec<u8> {
        let mut table = alloc::vec![0; ENTRIES];
        for (base, segment, first, last) in entries {
            table.extend(base.to_le_bytes());
            table.extend(segment.to_le_bytes());
            table.extend([*first, *last, 0, 0, 0, 0]);
        }
        table
    }

    #[test]
    fn reads_what_qemu_says() {
        let windows = windows(&table(&[(0xb000_0000, 0, 0, 255), (0x8000_0000, 1, 16, 31)]));
        assert_eq!(windows.len(), 2);
        assert_eq!(windows[0].function(PciAddress::new(0, 2, 31, 3)), Some(0xb_0000 + 0x2fb));
        assert_eq!(windows[0].function(PciAddress::new(1, 16, 0, 0)), None);
        assert_eq!(windows[1].function(PciAddress::new(1, 16, 0, 0)), Some(0x8_1000));
        assert_eq!(windows[1].function(PciAddress::new(1, 15, 0, 0)), None);
    }

    #[test]
    fn nonsense_is_left_out() {
        assert!(windows(&[]).is_empty());
        assert!(windows(&table(&[(0, 0, 0, 255), (0xb000_0001, 0, 0, 255), (0xb000_0000, 0, 9, 8)])).is_empty());
    }

    proptest! {
        #[test]
        fn any_table_is_harmless(bytes: Vec<u8>, bus: u8) {
            for window in windows(&bytes) {
                let _ = window.function(PciAddress::new(0, bus, 31, 7));
            }
        }
    }
}
