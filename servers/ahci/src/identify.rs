//! What a disk says of itself (ACS 7.16).

use crate::error::Error;

/// Bytes of it.
pub const LENGTH: usize = 512;
/// Low byte of the last word if the high byte is a checksum.
const CHECKED: u16 = 0xa5;

/// A disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Serial number, as it is stored.
    pub serial: [u16; 10],
    /// Sectors.
    pub sectors: u64,
    /// Bytes of one: a power of two, 512 to 4,096.
    pub sector: u32,
    /// Commands that it can queue; 0 if it cannot.
    pub queued: usize,
    /// Whether it flushes by the command with 48-bit addresses.
    pub long_flush: bool,
}

impl Identity {
    /// From what the disk has written.
    pub fn parse(data: &[u8; LENGTH]) -> Result<Identity, Error> {
        let word = |index: usize| u16::from_le_bytes([data[index * 2], data[index * 2 + 1]]);
        let long = |index: usize| u64::from(word(index)) | u64::from(word(index + 1)) << 16;
        let sum = data.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        if word(255) & 0xff == CHECKED && sum != 0 {
            return Err(Error::Checksum);
        }
        // A word whose two highest bits are 01 has a meaning.
        let valid = |index: usize| if word(index) >> 14 == 1 { word(index) } else { 0 };
        let sectors = long(100) | long(102) << 32;
        if valid(83) & 1 << 10 == 0 || !(1..1 << 48).contains(&sectors) {
            return Err(Error::Capacity);
        }
        let sector = if valid(106) & 1 << 12 != 0 { long(117) * 2 } else { 512 };
        if !(512..=4096).contains(&sector) || !sector.is_power_of_two() {
            return Err(Error::Sector(sector));
        }
        if word(128) & 1 << 2 != 0 {
            return Err(Error::Locked);
        }
        let can_queue = ![0, 0xffff].contains(&word(76)) && word(76) & 1 << 8 != 0;
        let mut serial = [0; 10];
        serial.iter_mut().zip(10..).for_each(|(to, index)| *to = word(index));
        Ok(Identity {
            serial,
            sectors,
            sector: sector as u32,
            queued: if can_queue { usize::from(word(75) & 31) + 1 } else { 0 },
            long_flush: valid(83) & 1 << 13 != 0,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A disk of so many sectors of 512 bytes that queues 32 commands.
    pub fn disk(sectors: u64) -> [u8; LENGTH] {
        let mut data = [0; LENGTH];
        let mut put = |index: usize, value: u16| data[index * 2..][..2].copy_from_slice(&value.to_le_bytes());
        put(10, 0x3132);
        let words = [(75, 31), (76, 1 << 8), (83, 1 << 14 | 1 << 13 | 1 << 10), (106, 1 << 14)];
        words.into_iter().for_each(|(index, value)| put(index, value));
        (0..4).for_each(|index| put(100 + index, (sectors >> (16 * index)) as u16));
        data
    }

    /// With a word changed.
    pub fn with(mut data: [u8; LENGTH], index: usize, value: u16) -> [u8; LENGTH] {
        data[index * 2..][..2].copy_from_slice(&value.to_le_bytes());
        data
    }

    #[test]
    fn disks_that_can_be_used_and_those_that_cannot() {
        let usual = Identity::parse(&disk(1000)).unwrap();
        let mut serial = [0; 10];
        serial[0] = 0x3132;
        assert_eq!(usual, Identity { serial, sectors: 1000, sector: 512, queued: 32, long_flush: true });
        let large = with(with(disk(1000), 106, 1 << 14 | 1 << 12), 117, 2048);
        assert_eq!(Identity::parse(&large).unwrap().sector, 4096);
        assert_eq!(Identity::parse(&with(large, 117, 2047)), Err(Error::Sector(4094)));
        assert_eq!(Identity::parse(&with(large, 118, 1)).map(drop), Err(Error::Sector((65536 + 2048) * 2)));
        assert_eq!(Identity::parse(&disk(0)), Err(Error::Capacity));
        assert_eq!(Identity::parse(&with(disk(1000), 83, 1 << 10)), Err(Error::Capacity));
        assert_eq!(Identity::parse(&with(disk(1000), 128, 1 << 2)), Err(Error::Locked));
        assert_eq!(Identity::parse(&with(disk(1000), 76, 0xffff)).unwrap().queued, 0);
        assert_eq!(Identity::parse(&with(disk(1000), 255, 0x00a5)), Err(Error::Checksum));
        let sum = with(disk(1000), 255, 0xa5).iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert!(Identity::parse(&with(disk(1000), 255, u16::from(sum.wrapping_neg()) << 8 | 0xa5)).is_ok());
    }

    proptest! {
        #[test]
        fn any_data_can_be_read(data in prop::collection::vec(any::<u8>(), LENGTH)) {
            let data: [u8; LENGTH] = data.try_into().unwrap();
            if let Ok(identity) = Identity::parse(&data) {
                prop_assert!(identity.sectors > 0 && identity.queued <= 32 && (512..=4096).contains(&identity.sector));
            }
        }
    }
}
