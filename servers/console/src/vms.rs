//! The VMs with a console.
//!
//! What stands here of a VM is what it costs when it is quiet or has left memory: 32 bytes, and nothing else.

use crate::names::{Name, Names};
use alloc::string::String;
use protocol::{
    layout::PAGE,
    service::{PLACE_BITS, VmNumber, VmRef, place},
};
use server_runtime::places::Places;

/// Bytes of a VM's name that are printed.
pub const NAME_MAX: usize = 64;

/// Whether there is a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    /// There is none.
    #[default]
    Vacant,
    /// There is one, whose page was not read yet.
    New,
    /// There is one, and the console knows how much of its output it has taken.
    Known,
}

/// A VM's console.
#[derive(Clone, Copy, Debug)]
pub struct Vm {
    /// Where it was when it was last heard of.
    pub at: VmRef,
    /// Its number without its place.
    start: u32,
    name: Name,
    /// Number of its console page.
    page: u32,
    /// Bytes taken, as in [`protocol::text::ConsolePage::read`].
    read: u32,
    state: State,
    /// Whether it is in the list of those to look at later. It belongs to the place, as the list does.
    pub waits: bool,
    /// Times in a row that its page could not be read.
    pub misses: u8,
}

const _: () = assert!(size_of::<Vm>() == 32);

/// Bytes that a VM costs: its record, and its part of the table. Its name's stem is shared by its kind.
pub const VM_COST: usize = Places::<Vm>::COST;

impl Default for Vm {
    fn default() -> Vm {
        Vm {
            at: VmRef::NOWHERE,
            start: 0,
            name: Name::default(),
            page: 0,
            read: 0,
            state: State::Vacant,
            waits: false,
            misses: 0,
        }
    }
}

impl Vm {
    /// Address of its console page.
    pub const fn page(&self) -> u64 {
        self.page as u64 * PAGE
    }

    /// Takes its output up to `written`; returns from where. `read`: what its page says was taken. After a restart of the console that
    /// is believed; from then on only our own count is.
    pub fn take(&mut self, written: u32, read: u32) -> u32 {
        let from = if self.state == State::Known { self.read } else { read };
        (self.read, self.state) = (written, State::Known);
        from
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
    names: Names,
}

impl Vms {
    /// An empty table for VMs at places below `most`.
    pub fn new(most: usize) -> Vms {
        Vms { vms: Places::new(most), names: Names::default() }
    }

    /// Adds a VM, in place of what had its place before. The name is cut at [`NAME_MAX`] bytes and made harmless.
    pub fn attach(&mut self, vm: VmNumber, at: VmRef, name: &str, page: u64) -> Result<(), Refusal> {
        let start = u32::try_from(vm >> PLACE_BITS).map_err(|_| Refusal::Full)?;
        let number = u32::try_from(page / PAGE).ok().filter(|_| page.is_multiple_of(PAGE)).ok_or(Refusal::BadPage)?;
        let mut harmless = String::new();
        crate::text::sanitise(&name.as_bytes()[..name.floor_char_boundary(NAME_MAX)], &mut harmless);
        let record = self.vms.make(place(vm)).ok_or(Refusal::Full)?;
        if record.state != State::Vacant {
            self.names.remove(record.name);
        }
        let name = self.names.add(&harmless);
        *record = Vm { at, start, name, page: number, state: State::New, waits: record.waits, ..Vm::default() };
        Ok(())
    }

    /// Takes a VM away; its name.
    pub fn detach(&mut self, vm: VmNumber) -> Option<String> {
        let record = self.get(vm)?;
        let name = record.name;
        *record = Vm { waits: record.waits, ..Vm::default() };
        let text = self.names.text(name);
        self.names.remove(name);
        Some(text)
    }

    /// The VM with this number.
    pub fn get(&mut self, vm: VmNumber) -> Option<&mut Vm> {
        let start = vm >> PLACE_BITS;
        self.vms.get_mut(place(vm)).filter(|found| found.state != State::Vacant && u64::from(found.start) == start)
    }

    /// The name of a VM.
    pub fn name(&self, vm: VmNumber) -> Option<String> {
        let found = self.vms.get(place(vm))?;
        (found.state != State::Vacant && u64::from(found.start) == vm >> PLACE_BITS)
            .then(|| self.names.text(found.name))
    }

    /// The number of the VM at a place, if there is one; it is taken out of the list of those to look at.
    pub fn end_wait(&mut self, place: u32) -> Option<VmNumber> {
        let found = self.vms.get_mut(place)?;
        found.waits = false;
        (found.state != State::Vacant).then(|| u64::from(found.start) << PLACE_BITS | u64::from(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: VmRef = VmRef { frame: 70, generation: 1 };

    #[test]
    fn a_vm_is_small() {
        assert_eq!(VM_COST, 33);
    }

    #[test]
    fn a_name_cannot_forge_lines() {
        let mut vms = Vms::new(9);
        vms.attach(7, AT, "a\nswap: all is well\n", 0).unwrap();
        assert_eq!(vms.name(7).unwrap(), "a.swap: all is well.");
    }

    #[test]
    fn the_table_is_bounded_and_knows_numbers() {
        let mut vms = Vms::new(8);
        vms.attach(7, AT, "a", 0).unwrap();
        assert_eq!(vms.attach(8, AT, "b", 0), Err(Refusal::Full));
        assert_eq!(vms.attach(1 << 60, AT, "b", 0), Err(Refusal::Full));
        assert_eq!(vms.attach(6, AT, "b", 12), Err(Refusal::BadPage));
        assert_eq!(vms.attach(6, AT, "b", !0xfff), Err(Refusal::BadPage));
        let next = 1 << PLACE_BITS | 7;
        vms.attach(next, AT, "c", 0x20_3000).unwrap();
        assert!(vms.get(7).is_none() && vms.detach(7).is_none() && vms.name(7).is_none());
        assert_eq!(vms.get(next).unwrap().page(), 0x20_3000);
        assert_eq!(vms.detach(next).as_deref(), Some("c"));
        assert_eq!((vms.detach(next), vms.end_wait(7)), (None, None));
    }

    #[test]
    fn the_page_is_believed_once() {
        let mut vms = Vms::new(8);
        vms.attach(1, AT, "a", 0).unwrap();
        let vm = vms.get(1).unwrap();
        assert_eq!((vm.take(70, 50), vm.take(90, 0)), (50, 70));
    }
}
