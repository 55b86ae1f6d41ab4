//! What controller and namespace say of themselves (5.15.2).

use crate::{error::Error, registers::Capabilities};

/// Bytes of identify data.
pub const LENGTH: usize = 4096;
/// CNS: a namespace.
pub const NAMESPACE: u32 = 0;
/// CNS: the controller.
pub const CONTROLLER: u32 = 1;

/// The controller (figure 247).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Controller {
    /// Serial number.
    pub serial: [u8; 20],
    /// Most bytes of a transfer.
    pub transfer_most: u64,
    /// Whether it has a cache that loses its contents with the power.
    pub has_cache: bool,
    /// Whether it can write zeroes.
    pub can_zero: bool,
}

impl Controller {
    /// From identify data.
    pub fn parse(data: &[u8; LENGTH], capabilities: Capabilities) -> Controller {
        let mut serial = [0; 20];
        serial.copy_from_slice(&data[4..24]);
        let transfer_most = match data[77] {
            0 => u64::MAX,
            shift => capabilities.page_least().checked_shl(shift.into()).filter(|bytes| *bytes > 0).unwrap_or(u64::MAX),
        };
        Controller { serial, transfer_most, has_cache: data[525] & 1 != 0, can_zero: data[520] & 1 << 3 != 0 }
    }
}

/// A namespace (figure 245).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// Sectors.
    pub sectors: u64,
    /// Bytes of one: a power of two, 512 to 4,096.
    pub sector: u32,
    /// Whether zeros may be left without room of their own: they read as zeros all the same.
    pub can_deallocate: bool,
    /// Whether it cannot be written.
    pub read_only: bool,
}

impl Namespace {
    /// From identify data.
    pub fn parse(data: &[u8; LENGTH]) -> Result<Namespace, Error> {
        let mut number = [0; 8];
        number.copy_from_slice(&data[..8]);
        let sectors = u64::from_le_bytes(number);
        if sectors == 0 {
            return Err(Error::NoNamespace);
        }
        // Bits 5 and 6 are 0 where there are no more than 16 formats.
        let format = usize::from(data[26] & 0xf | data[26] >> 1 & 0x30);
        let format = &data[128 + format * 4..][..4];
        let metadata = u16::from_le_bytes([format[0], format[1]]);
        if metadata != 0 {
            return Err(Error::Metadata(metadata));
        }
        let shift = format[2];
        if !(9..=12).contains(&shift) {
            return Err(Error::Sector(1u64.checked_shl(shift.into()).unwrap_or(0)));
        }
        Ok(Namespace {
            sectors,
            sector: 1 << shift,
            // It is done by Write Zeroes, and leaves zeros.
            can_deallocate: data[33] & 0xf == 0b1001,
            read_only: data[99] & 1 != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A namespace of `sectors` sectors in format 3.
    fn namespace(sectors: u64, format: [u8; 4]) -> [u8; LENGTH] {
        let mut data = [0; LENGTH];
        data[..8].copy_from_slice(&sectors.to_le_bytes());
        data[26] = 3;
        data[128 + 12..][..4].copy_from_slice(&format);
        data
    }

    #[test]
    fn namespaces_that_can_be_used_and_those_that_cannot() {
        let usual = Namespace { sectors: 77, sector: 512, can_deallocate: false, read_only: false };
        assert_eq!(Namespace::parse(&namespace(77, [0, 0, 9, 0])), Ok(usual));
        let mut large = namespace(77, [0, 0, 12, 2]);
        (large[33], large[99]) = (0b1001, 1);
        let expected = Namespace { sector: 4096, can_deallocate: true, read_only: true, ..usual };
        assert_eq!(Namespace::parse(&large), Ok(expected));
        assert_eq!(Namespace::parse(&namespace(0, [0, 0, 9, 0])), Err(Error::NoNamespace));
        assert_eq!(Namespace::parse(&namespace(77, [8, 0, 9, 0])), Err(Error::Metadata(8)));
        assert_eq!(Namespace::parse(&namespace(77, [0, 0, 13, 0])), Err(Error::Sector(8192)));
        assert_eq!(Namespace::parse(&namespace(77, [0, 0, 0, 0])), Err(Error::Sector(1)));
    }

    #[test]
    fn the_controller() {
        let mut data = [0; LENGTH];
        data[4..7].copy_from_slice(b"abc");
        let plain = Controller::parse(&data, Capabilities(0));
        assert_eq!((plain.transfer_most, plain.has_cache, plain.can_zero), (u64::MAX, false, false));
        (data[77], data[520], data[525]) = (4, 1 << 3, 1);
        let other = Controller::parse(&data, Capabilities(0));
        assert_eq!((&other.serial[..3], other.transfer_most), (&b"abc"[..], 65536));
        assert!(other.has_cache && other.can_zero);
    }

    proptest! {
        #[test]
        fn any_data_can_be_read(data in prop::collection::vec(any::<u8>(), LENGTH), capabilities: u64) {
            let data: [u8; LENGTH] = data.try_into().unwrap();
            let _ = Controller::parse(&data, Capabilities(capabilities));
            if let Ok(namespace) = Namespace::parse(&data) {
                prop_assert!(namespace.sectors > 0 && (512..=4096).contains(&namespace.sector));
            }
        }
    }
}
