//! The VMs with a console.
//!
//! What stands here of a VM is what it costs when it is quiet or has left memory: 12 bytes, and nothing else. How much of its output was
//! taken stands in its console page: a VM that changes that harms only itself.

use crate::kinds::{Kinds, Name};
use alloc::string::String;
use protocol::{
    layout::PAGE,
    service::{PLACE_BITS, VmNumber, console::NAME_MAX, place},
};
use server_runtime::places::Places;

/// A VM's console.
#[derive(Clone, Copy, Debug)]
struct Vm {
    /// The VM's number without its place.
    start: u32,
    /// [`Name::NOBODY`]: there is no VM.
    name: Name,
}

/// Bytes that a VM costs: its record, and its part of the table. What its kind shares is not counted.
pub const VM_COST: usize = Places::<Vm>::COST;

impl Default for Vm {
    fn default() -> Vm {
        Vm { start: 0, name: Name::NOBODY }
    }
}

/// Why a VM was not added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No room for it.
    Full,
    /// Its page is none.
    BadPage,
}

/// The table.
#[derive(Debug)]
pub struct Vms {
    vms: Places<Vm>,
    kinds: Kinds,
}

impl Vms {
    /// An empty table for VMs at places below `most`.
    pub fn new(most: usize) -> Vms {
        Vms { vms: Places::new(most), kinds: Kinds::default() }
    }

    /// Adds a VM, in place of what had its place before. The name is cut at [`NAME_MAX`] bytes and made harmless.
    pub fn attach(&mut self, vm: VmNumber, name: &str, page: u64) -> Result<(), Refusal> {
        let start = u32::try_from(vm >> PLACE_BITS).map_err(|_| Refusal::Full)?;
        let page = u32::try_from(page / PAGE).ok().filter(|_| page.is_multiple_of(PAGE)).ok_or(Refusal::BadPage)?;
        let mut harmless = String::new();
        crate::text::sanitise(&name.as_bytes()[..name.floor_char_boundary(NAME_MAX)], &mut harmless);
        let record = self.vms.make(place(vm)).ok_or(Refusal::Full)?;
        self.kinds.remove(record.name);
        *record = Vm { start, name: self.kinds.add(&harmless, page) };
        Ok(())
    }

    /// Takes a VM away; its name.
    pub fn detach(&mut self, vm: VmNumber) -> Option<String> {
        let found = self.get(vm)?;
        if let Some(record) = self.vms.get_mut(place(vm)) {
            *record = Vm::default();
        }
        let text = self.kinds.text(found);
        self.kinds.remove(found);
        Some(text)
    }

    fn get(&self, vm: VmNumber) -> Option<Name> {
        (self.at(place(vm)) == Some(vm)).then(|| self.vms.get(place(vm)).map(|record| record.name)).flatten()
    }

    /// Address of a VM's console page.
    pub fn page(&self, vm: VmNumber) -> Option<u64> {
        Some(u64::from(self.kinds.page(self.get(vm)?)) * PAGE)
    }

    /// The name of a VM.
    pub fn name(&self, vm: VmNumber) -> Option<String> {
        Some(self.kinds.text(self.get(vm)?))
    }

    /// The number of the VM at a place, if there is one.
    pub fn at(&self, place: u32) -> Option<VmNumber> {
        let record = self.vms.get(place).filter(|record| record.name != Name::NOBODY)?;
        Some(u64::from(record.start) << PLACE_BITS | u64::from(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_small() {
        assert_eq!(VM_COST, 13);
    }

    #[test]
    fn a_name_cannot_forge_lines() {
        let mut vms = Vms::new(9);
        vms.attach(7, "a\nswap: all is well\n", 0).unwrap();
        assert_eq!(vms.name(7).unwrap(), "a.swap: all is well.");
    }

    #[test]
    fn the_table_is_bounded_and_knows_numbers() {
        let mut vms = Vms::new(8);
        vms.attach(7, "a", 0).unwrap();
        assert_eq!(vms.attach(8, "b", 0), Err(Refusal::Full));
        assert_eq!(vms.attach(1 << 60, "b", 0), Err(Refusal::Full));
        assert_eq!(vms.attach(6, "b", 12), Err(Refusal::BadPage));
        assert_eq!(vms.attach(6, "b", !0xfff), Err(Refusal::BadPage));
        let next = 1 << PLACE_BITS | 7;
        vms.attach(next, "c", 0x20_3000).unwrap();
        assert!(vms.page(7).is_none() && vms.detach(7).is_none() && vms.name(7).is_none());
        assert_eq!(vms.page(next), Some(0x20_3000));
        assert_eq!(vms.detach(next).as_deref(), Some("c"));
        assert_eq!((vms.detach(next), vms.at(7)), (None, None));
    }
}
