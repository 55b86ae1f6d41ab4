//! What is written to a disk, so that what is read can be checked, here and on the host.
//!
//! Every block tells its number and a generation, and all of it depends on both: a block that is somewhere else, older, or a
//! mixture of two is found.

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// The generation that the host writes.
pub const HOST: u64 = u64::MAX;

/// Word `index` of a block.
fn word(block: u64, generation: u64, index: usize) -> u64 {
    match index {
        0 => block,
        1 => generation,
        _ => {
            let mixed = block.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ generation.rotate_left(32) ^ index as u64;
            mixed.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ mixed >> 29
        }
    }
}

/// Fills whole blocks, the first of which is number `block`.
pub fn fill(bytes: &mut [u8], block: u64, generation: u64) {
    for (number, bytes) in (block..).zip(bytes.chunks_mut(BLOCK)) {
        for (index, word_bytes) in bytes.chunks_exact_mut(8).enumerate() {
            word_bytes.copy_from_slice(&word(number, generation, index).to_le_bytes());
        }
    }
}

/// The first block of these that is not as [`fill`] makes it.
pub fn wrong(bytes: &[u8], block: u64, generation: u64) -> Option<u64> {
    let is_right = |number: u64, bytes: &[u8]| {
        let mut words = bytes.chunks_exact(8).enumerate();
        words.all(|(index, found)| found == word(number, generation, index).to_le_bytes())
    };
    (block..).zip(bytes.chunks(BLOCK)).find(|(number, bytes)| !is_right(*number, bytes)).map(|(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn what_is_not_the_same_is_found() {
        let mut bytes = vec![0; 3 * BLOCK];
        fill(&mut bytes, 7, 2);
        assert_eq!(wrong(&bytes, 7, 2), None);
        assert_eq!(wrong(&bytes, 8, 2), Some(8));
        assert_eq!(wrong(&bytes, 7, 3), Some(7));
        for at in [0, 8, 16, BLOCK - 1] {
            bytes[BLOCK + at] ^= 1;
            assert_eq!(wrong(&bytes, 7, 2), Some(8), "{at}");
            bytes[BLOCK + at] ^= 1;
        }
        bytes.swap_with_slice(&mut vec![0; 3 * BLOCK]);
        assert_eq!(wrong(&bytes, 0, 0), Some(0));
    }
}
