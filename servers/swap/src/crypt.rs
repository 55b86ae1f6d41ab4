//! Secrecy of swap space: everything written there is encrypted and authenticated.
//!
//! ChaCha20-Poly1305 (RFC 8439), by a crate that was audited, with a key that is made at each boot and exists in the memory of this server only.
//! A nonce is a number that counts all writes since boot and is kept with the tag, where no disk reaches it: so a nonce is
//! never used twice, and what comes back from a disk is either exactly what was last written there for this VM at this
//! place, or it is noticed. A page of another VM, of another place, or an older one of the same place does not pass.

use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit, aead::inout::InOutBuf};

/// Bytes of the key.
pub const KEY: usize = 32;
/// Bytes of a tag.
pub const TAG: usize = 16;

/// What keeps a page apart from all others: the VM's number, and the number of the page or segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// A page of a VM's memory.
    Page(u64, u32),
    /// A segment of a suspended VM.
    Segment(u64, u32),
}

impl Place {
    fn bytes(self) -> [u8; 16] {
        let (vm, number) = match self {
            Place::Page(vm, page) => (vm, u64::from(page)),
            Place::Segment(vm, segment) => (vm, u64::from(segment) | 1 << 63),
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&vm.to_le_bytes());
        bytes[8..].copy_from_slice(&number.to_le_bytes());
        bytes
    }
}

/// The cipher.
pub struct Cipher(ChaCha20Poly1305);

impl core::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Cipher")
    }
}

fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&counter.to_le_bytes());
    nonce
}

impl Cipher {
    /// With this key.
    pub fn new(key: &[u8; KEY]) -> Cipher {
        Cipher(ChaCha20Poly1305::new(key.into()))
    }

    /// Encrypts in place; the tag. `counter` must never have been used with this key.
    pub fn seal(&self, counter: u64, place: Place, bytes: &mut [u8]) -> [u8; TAG] {
        let sealed = self.0.encrypt_inout_detached(&nonce(counter).into(), &place.bytes(), InOutBuf::from(bytes));
        // Only 256 GiB in one piece are refused. An all-zero tag then fails to open.
        sealed.map_or([0; TAG], Into::into)
    }

    /// Decrypts in place. `false` if these are not the bytes that were sealed so; they are undefined then.
    pub fn open(&self, counter: u64, place: Place, bytes: &mut [u8], tag: &[u8; TAG]) -> bool {
        let buffer = InOutBuf::from(bytes);
        self.0.decrypt_inout_detached(&nonce(counter).into(), &place.bytes(), buffer, tag.into()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn nothing_but_the_same_comes_back(page in prop::collection::vec(any::<u8>(), 1..300), counter in 1u64..1000, flip: prop::sample::Index) {
            let cipher = Cipher::new(&[7; KEY]);
            let place = Place::Page(9, 4);
            let mut sealed: Vec<u8> = page.clone();
            let tag = cipher.seal(counter, place, &mut sealed);
            let open = |counter, place, bytes: &[u8], tag: &[u8; TAG]| {
                let mut bytes = bytes.to_vec();
                cipher.open(counter, place, &mut bytes, tag).then_some(bytes)
            };
            prop_assert_eq!(open(counter, place, &sealed, &tag), Some(page.clone()));
            prop_assert_eq!(open(counter + 1, place, &sealed, &tag), None);
            for other in [Place::Page(8, 4), Place::Page(9, 5), Place::Segment(9, 4)] {
                prop_assert_eq!(open(counter, other, &sealed, &tag), None);
            }
            let mut changed = sealed.clone();
            changed[flip.index(page.len())] ^= 1;
            prop_assert_eq!(open(counter, place, &changed, &tag), None);
            let mut other = sealed;
            prop_assert!(!Cipher::new(&[8; KEY]).open(counter, place, &mut other, &tag));
        }
    }
}
