//! Runs of VMs: how the VMs of a manifest are written.
//!
//! VMs come in thousands that differ in a number at the end of the name and in an address. Such a run is written as its first VM and how many
//! more there are, so the manifest of a million VMs is no longer than that of a few.

use super::Vm;
use crate::{nic::usual_mac, numbered, service::PLACE_BITS};
use alloc::{format, string::String, vec::Vec};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// VMs in a manifest at most: they all have a place.
pub const VMS_MAX: u32 = 1 << PLACE_BITS;

/// A VM, and how many more there are like it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Run<V> {
    pub first: V,
    pub more: u32,
}

impl Run<Vm> {
    /// A VM of the run: 0 is the first. `None` if there is no such VM.
    pub fn get(&self, index: u32) -> Option<Vm> {
        if index > self.more { None } else { nth(&self.first, index) }
    }

    /// The name of that VM.
    pub fn name(&self, index: u32) -> Option<String> {
        let (stem, number) = numbered::split(&self.first.name);
        match index {
            0 => Some(self.first.name.clone()),
            _ if index > self.more => None,
            _ => Some(format!("{stem}{}", number?.checked_add(index)?)),
        }
    }

    /// Whether all VMs of the run exist: if the last does, so do the others.
    pub fn is_sound(&self) -> bool {
        nth(&self.first, self.more).is_some()
    }

    /// How many.
    pub fn len(&self) -> u64 {
        u64::from(self.more) + 1
    }
}

/// The VM that many numbers and addresses on from `first`. `None` if that has no number, or a MAC address of its own.
fn nth(first: &Vm, distance: u32) -> Option<Vm> {
    if distance == 0 {
        return Some(first.clone());
    }
    let (stem, number) = numbered::split(&first.name);
    let number = number?.checked_add(distance)?;
    let address = u32::from_be_bytes(first.address).checked_add(distance)?.to_be_bytes();
    let counts_on = first.mac == usual_mac(first.address);
    let Vm { image, memory, arguments, disks, .. } = first;
    counts_on.then(|| Vm {
        name: format!("{stem}{number}"),
        image: image.clone(),
        memory: *memory,
        mac: usual_mac(address),
        address,
        arguments: arguments.clone(),
        disks: disks.clone(),
    })
}

/// Writes VMs as runs.
pub(super) fn serialize<S: Serializer>(vms: &[Vm], serializer: S) -> Result<S::Ok, S::Error> {
    let mut runs: Vec<Run<&Vm>> = Vec::new();
    for vm in vms {
        match runs.last_mut() {
            Some(run) if nth(run.first, run.more + 1).as_ref() == Some(vm) => run.more += 1,
            _ => runs.push(Run { first: vm, more: 0 }),
        }
    }
    runs.serialize(serializer)
}

/// Reads runs of VMs.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vm>, D::Error> {
    let runs = Vec::<Run<Vm>>::deserialize(deserializer)?;
    let count = runs.iter().map(Run::len).fold(0, u64::saturating_add);
    if count > VMS_MAX.into() || !runs.iter().all(Run::is_sound) {
        return Err(D::Error::custom("runs of VMs that cannot be"));
    }
    Ok(runs.iter().flat_map(|run| (0..=run.more).filter_map(|index| run.get(index))).collect())
}
