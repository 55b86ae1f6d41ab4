//! The VMs of a manifest, left where they are: a record of 100,000 VMs taken apart would cost the loader more than the VMs do.

use super::{
    DecodeError, Manifest, Network, Server, Vm,
    run::{Run, VMS_MAX},
};
use alloc::{string::String, vec::Vec};
use core::cell::RefCell;

/// The VMs of a manifest in its bytes, decoded one by one.
#[derive(Clone, Debug, Default)]
pub struct VmTable<'a> {
    bytes: &'a [u8],
    /// Where each run begins: number of its first VM, offset.
    runs: Vec<(u32, u32)>,
    count: u32,
    /// The run that was last asked for, with its number: mostly that of the next question.
    last: RefCell<Option<(usize, Run<Vm>)>>,
}

impl<'a> VmTable<'a> {
    /// Takes a manifest apart: all but its VMs, and the table of those. Refuses what [`Manifest::decode`] refuses.
    pub fn decode(bytes: &'a [u8]) -> Result<(Manifest, VmTable<'a>), DecodeError> {
        let (head, mut rest) = postcard::take_from_bytes::<(u32, String, Vec<Server>)>(bytes)?;
        let (version, name, servers) = head;
        let written: u64;
        (written, rest) = postcard::take_from_bytes(rest)?;
        let (mut runs, mut count) = (Vec::new(), 0u32);
        for _ in 0..written {
            let offset = u32::try_from(bytes.len() - rest.len()).map_err(|_| DecodeError::SerdeDeCustom)?;
            // One that is damaged is found here, so that `get` finds none.
            let run: Run<Vm>;
            (run, rest) = postcard::take_from_bytes(rest)?;
            let next = u64::from(count) + run.len();
            if next > VMS_MAX.into() || !run.is_sound() {
                return Err(DecodeError::SerdeDeCustom);
            }
            runs.push((count, offset));
            count = next as u32;
        }
        runs.shrink_to_fit();
        let network: Network;
        (network, rest) = postcard::take_from_bytes(rest)?;
        if !rest.is_empty() {
            return Err(DecodeError::DeserializeBadEncoding);
        }
        Ok((
            Manifest { version, name, servers, vms: Vec::new(), network },
            VmTable { bytes, runs, count, last: RefCell::default() },
        ))
    }

    /// VMs.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// A VM.
    pub fn get(&self, index: usize) -> Option<Vm> {
        self.in_run(index, Run::get)
    }

    /// The name of a VM.
    pub fn name(&self, index: usize) -> Option<String> {
        self.in_run(index, Run::name)
    }

    /// Looks at a VM in its run.
    fn in_run<R>(&self, index: usize, look: impl FnOnce(&Run<Vm>, u32) -> Option<R>) -> Option<R> {
        let index = u32::try_from(index).ok().filter(|index| *index < self.count)?;
        let number = self.runs.partition_point(|(first, _)| *first <= index).checked_sub(1)?;
        let (first, offset) = *self.runs.get(number)?;
        let mut last = self.last.borrow_mut();
        let known = last.as_ref().is_some_and(|(last, _)| *last == number);
        if !known {
            let (run, _) = postcard::take_from_bytes::<Run<Vm>>(self.bytes.get(offset as usize..)?).ok()?;
            *last = Some((number, run));
        }
        look(&last.as_ref()?.1, index - first)
    }

    /// The run that a VM is in, and how many are in it: VMs that differ in their names, numbers and addresses only.
    pub fn run(&self, index: usize) -> Option<(usize, u32)> {
        let index = u32::try_from(index).ok().filter(|index| *index < self.count)?;
        let run = self.runs.partition_point(|(first, _)| *first <= index).checked_sub(1)?;
        let (first, _) = *self.runs.get(run)?;
        let end = self.runs.get(run + 1).map_or(self.count, |(next, _)| *next);
        Some((run, end - first))
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
    use crate::{
        manifest::{Disk, MANIFEST_VERSION},
        nic::usual_mac,
    };
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

    fn manifest(vms: Vec<Vm>) -> (Manifest, Vec<u8>) {
        let manifest = Manifest { version: MANIFEST_VERSION, name: "x".into(), vms, ..Manifest::default() };
        let bytes = postcard::to_allocvec(&manifest).unwrap();
        (manifest, bytes)
    }

    /// `count` VMs that count on.
    fn run(first: &Vm, number: u32, count: u32) -> Vec<Vm> {
        let vm = |index: u32| {
            let address = (u32::from_be_bytes(first.address) + index).to_be_bytes();
            let name = std::format!("{}{}", first.name, number + index);
            Vm { name, address, mac: usual_mac(address), ..first.clone() }
        };
        (0..count).map(vm).collect()
    }

    #[test]
    fn a_run_costs_no_more_than_one() {
        let first = Vm { name: "echo-".into(), image: "echo".into(), address: [10, 0, 2, 15], ..Vm::default() };
        let few = manifest(run(&first, 1, 1)).1.len();
        let (whole, bytes) = manifest(run(&first, 1, 50_000));
        assert!(bytes.len() <= few + 3, "{} bytes", bytes.len());
        let (_, table) = VmTable::decode(&bytes).unwrap();
        assert_eq!((table.len(), table.runs.len()), (50_000, 1));
        assert_eq!(table.get(49_999).as_ref(), whole.vms.last());
        assert_eq!(table.get(50_000), None);
        assert_eq!((table.run(49_999), table.run(50_000)), (Some((0, 50_000)), None));
        assert_eq!(Manifest::decode(&bytes), Ok(whole));
    }

    #[test]
    fn what_does_not_count_on_stands_alone() {
        let first = Vm { name: "a".into(), address: [10, 0, 2, 15], ..Vm::default() };
        let good = run(&first, 8, 4);
        let changes: [fn(&mut Vm); 5] = [
            |vm| vm.name.push('x'),
            |vm| vm.address[3] += 1,
            |vm| vm.mac[0] = 0x52,
            |vm| vm.arguments.push('x'),
            |vm| vm.disks.push(Disk { name: "d".into(), read_only: false, blocks: 1 }),
        ];
        for change in changes {
            let mut vms = good.clone();
            change(&mut vms[2]);
            let (whole, bytes) = manifest(vms);
            let (_, table) = VmTable::decode(&bytes).unwrap();
            assert!((2..=3).contains(&table.runs.len()));
            let of: Vec<_> = (0..4).filter_map(|index| table.run(index)).collect();
            assert!(of.is_sorted() && of[0] == (0, 2) && of[3].0 + 1 == table.runs.len(), "{of:?}");
            assert_eq!(table.iter().collect::<Vec<_>>(), whole.vms);
            let names: Vec<_> = (0..5).filter_map(|index| table.name(index)).collect();
            assert_eq!(names, whole.vms.iter().map(|vm| vm.name.clone()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn runs_that_cannot_be_are_refused() {
        let one = run(&Vm { name: "a".into(), address: [10, 0, 0, 0], ..Vm::default() }, 8, 1).remove(0);
        let nameless = Vm { name: "a".into(), ..one.clone() };
        let own_mac = Vm { mac: [0x52; 6], ..one.clone() };
        let last = Vm { address: [255; 4], mac: usual_mac([255; 4]), ..one.clone() };
        for (first, more, good) in [
            (&one, VMS_MAX - 1, true),
            (&one, VMS_MAX, false),
            (&one, u32::MAX, false),
            (&nameless, 1, false),
            (&own_mac, 1, false),
            (&last, 1, false),
        ] {
            let head = (MANIFEST_VERSION, "", Vec::<Server>::new());
            let runs = std::vec![Run { first: first.clone(), more }];
            let bytes = postcard::to_allocvec(&(head, runs, Network::default())).unwrap();
            let table = VmTable::decode(&bytes).map(|(_, table)| table.len());
            assert_eq!(table.is_ok(), good, "{more} more than {}", first.name);
            assert!(good || Manifest::decode(&bytes).is_err());
        }
    }

    proptest! {
        #[test]
        fn says_what_the_manifest_says(kinds in prop::collection::vec((vm(), 0u32..100_000, 1u32..5), 0..10), damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>()))) {
            let vms = kinds.iter().flat_map(|(vm, number, count)| match count {
                1 => std::vec![vm.clone()],
                _ => run(&Vm { address: [10, 0, 2, 15], ..vm.clone() }, *number, *count),
            });
            let (_, mut bytes) = manifest(vms.collect());
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
