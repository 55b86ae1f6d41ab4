//! The VMs of a manifest, left where they are: a record of 100,000 VMs taken apart would cost the loader more than the VMs do.

use super::{DecodeError, Manifest, Network, Server, Vm};
use alloc::{string::String, vec::Vec};

/// The VMs of a manifest in its bytes, decoded one by one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VmTable<'a> {
    bytes: &'a [u8],
    /// Where each begins.
    offsets: Vec<u32>,
}

/// Bytes that a VM costs in the table, besides those of the manifest.
pub const VM_COST: usize = size_of::<u32>();

impl<'a> VmTable<'a> {
    /// Takes a manifest apart: all but its VMs, and the table of those. Refuses what [`Manifest::decode`] refuses.
    pub fn decode(bytes: &'a [u8]) -> Result<(Manifest, VmTable<'a>), DecodeError> {
        let (head, mut rest) = postcard::take_from_bytes::<(u32, String, Vec<Server>)>(bytes)?;
        let (version, name, servers) = head;
        let count: u64;
        (count, rest) = postcard::take_from_bytes(rest)?;
        let mut offsets = Vec::new();
        for _ in 0..count {
            let offset = u32::try_from(bytes.len() - rest.len()).map_err(|_| DecodeError::SerdeDeCustom)?;
            // One that is damaged is found here, so that `get` finds none.
            (_, rest) = postcard::take_from_bytes::<Vm>(rest)?;
            offsets.push(offset);
        }
        offsets.shrink_to_fit();
        let network: Network;
        (network, rest) = postcard::take_from_bytes(rest)?;
        if !rest.is_empty() {
            return Err(DecodeError::DeserializeBadEncoding);
        }
        Ok((Manifest { version, name, servers, vms: Vec::new(), network }, VmTable { bytes, offsets }))
    }

    /// VMs.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// A VM.
    pub fn get(&self, index: usize) -> Option<Vm> {
        let offset = *self.offsets.get(index)? as usize;
        postcard::take_from_bytes(self.bytes.get(offset..)?).ok().map(|(vm, _)| vm)
    }

    /// All VMs, in order.
    pub fn iter(&self) -> impl Iterator<Item = Vm> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::manifest::{Disk, MANIFEST_VERSION};
    use proptest::prelude::*;

    fn vm() -> impl Strategy<Value = Vm> {
        let addresses = (any::<[u8; 6]>(), any::<[u8; 4]>());
        let disks = prop::collection::vec(("[a-z]{0,9}", any::<bool>(), any::<u64>()), 0..3);
        ("[a-z]{0,9}", "[a-z]{0,200}", any::<u64>(), addresses, ".{0,40}", disks).prop_map(
            |(name, image, memory, (mac, address), arguments, disks)| Vm {
                name,
                image,
                memory,
                mac,
                address,
                arguments,
                disks: disks.into_iter().map(|(name, read_only, blocks)| Disk { name, read_only, blocks }).collect(),
            },
        )
    }

    proptest! {
        #[test]
        fn says_what_the_manifest_says(vms in prop::collection::vec(vm(), 0..20), damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>()))) {
            let manifest = Manifest { version: MANIFEST_VERSION, name: "x".into(), vms, ..Manifest::default() };
            let mut bytes = postcard::to_allocvec(&manifest).unwrap();
            if let Some((index, value)) = damage {
                let at = index.index(bytes.len());
                bytes[at] = value;
            }
            match (Manifest::decode(&bytes), VmTable::decode(&bytes)) {
                (Ok(mut whole), Ok((rest, table))) => {
                    prop_assert_eq!(table.iter().collect::<Vec<_>>(), core::mem::take(&mut whole.vms));
                    prop_assert_eq!((table.get(table.len()), rest), (None, whole));
                }
                (Err(_), Err(_)) => {}
                (whole, table) => prop_assert!(false, "{:?} {:?}", whole.is_ok(), table.is_ok()),
            }
        }
    }
}
