//! The VMs with a console, and the lines that they are in the middle of.

use crate::limit::Bucket;
use alloc::{string::String, vec::Vec};
use hashbrown::HashMap;
use protocol::{
    service::{VmNumber, VmRef, place},
    text::OUTPUT,
};

/// Bytes of a VM's line before it is printed without having ended.
pub const LINE_MAX: usize = 240;
/// Bytes of a VM's name that are printed.
pub const NAME_MAX: usize = 64;

/// A VM's console.
#[derive(Debug)]
pub struct Vm {
    /// The VM.
    pub vm: VmNumber,
    /// Where it was when it was last heard of.
    pub at: VmRef,
    /// What is printed before each line.
    pub name: String,
    /// Address of its console page.
    pub page: u64,
    /// Its allowance.
    pub bucket: Bucket,
    /// Bytes lost since the last report of it.
    pub lost: u64,
    /// Whether it is in the list of those to look at later.
    pub waits: bool,
    /// Bytes taken, as in [`protocol::text::ConsolePage::read`]; unknown until its page was read.
    read: Option<u32>,
    line: Vec<u8>,
}

impl Vm {
    /// A VM whose console was not read yet. The name is cut at [`NAME_MAX`] bytes and made harmless.
    pub fn new(vm: VmNumber, at: VmRef, name: &str, page: u64, now: u64) -> Vm {
        let mut harmless = String::new();
        crate::text::sanitise(&name.as_bytes()[..name.floor_char_boundary(NAME_MAX)], &mut harmless);
        Vm {
            vm,
            at,
            name: harmless,
            page,
            bucket: Bucket::new(now),
            lost: 0,
            waits: false,
            read: None,
            line: Vec::new(),
        }
    }

    /// Takes the output that is new in the VM's ring and gives each complete line to `print`. `written` and `read` are the
    /// indices in the VM's page, which may be nonsense. Returns the new `read`.
    pub fn take(
        &mut self,
        written: u32,
        read: u32,
        ring: &[u8; OUTPUT],
        now: u64,
        mut print: impl FnMut(&[u8]),
    ) -> u32 {
        // After a restart of the console the page knows where it was; from then on only our own count is believed.
        let read = *self.read.get_or_insert(read);
        let unread = written.wrapping_sub(read);
        let kept = unread.min(OUTPUT as u32);
        let allowed = self.bucket.take(u64::from(kept), now) as u32;
        self.lost += u64::from(unread - allowed);
        let first = written.wrapping_sub(kept);
        for index in 0..allowed {
            let byte = ring[first.wrapping_add(index) as usize % OUTPUT];
            if byte != b'\n' {
                self.line.push(byte);
            }
            if byte == b'\n' || self.line.len() >= LINE_MAX {
                print(&self.line);
                self.line.clear();
            }
        }
        if self.line.is_empty() {
            // Most VMs are between lines most of the time; they hold no buffer then.
            self.line = Vec::new();
        }
        self.read = Some(written);
        written
    }

    /// Gives the line that the VM is in the middle of to `print`, if there is one.
    pub fn flush(&mut self, print: impl FnOnce(&[u8])) {
        if !self.line.is_empty() {
            print(&core::mem::take(&mut self.line));
        }
    }

    /// Whether the VM is in the middle of a line.
    pub fn has_begun_line(&self) -> bool {
        !self.line.is_empty()
    }
}

/// The table, by place.
#[derive(Debug)]
pub struct Vms {
    vms: HashMap<u32, Vm>,
    most: usize,
}

impl Vms {
    /// An empty table for `most` VMs.
    pub fn new(most: usize) -> Vms {
        Vms { vms: HashMap::new(), most }
    }

    /// Adds a VM, in place of what had its place before. Gives it back if the table is full.
    pub fn attach(&mut self, vm: Vm) -> Result<(), Vm> {
        let place = place(vm.vm);
        if self.vms.len() >= self.most && !self.vms.contains_key(&place) {
            return Err(vm);
        }
        self.vms.insert(place, vm);
        Ok(())
    }

    /// Takes a VM away.
    pub fn detach(&mut self, vm: VmNumber) -> Option<Vm> {
        self.get(vm)?;
        self.vms.remove(&place(vm))
    }

    /// The VM with this number.
    pub fn get(&mut self, vm: VmNumber) -> Option<&mut Vm> {
        self.vms.get_mut(&place(vm)).filter(|found| found.vm == vm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::BURST;
    use proptest::prelude::*;

    const VM: VmNumber = 7;
    const AT: VmRef = VmRef { frame: 70, generation: 1 };

    fn ring(text: &[u8], at: u32) -> [u8; OUTPUT] {
        let mut ring = [0; OUTPUT];
        for (index, byte) in text.iter().enumerate() {
            ring[(at as usize + index) % OUTPUT] = *byte;
        }
        ring
    }

    fn take(vm: &mut Vm, text: &str, at: u32) -> Vec<String> {
        let mut lines = Vec::new();
        let print = |line: &[u8]| lines.push(String::from_utf8_lossy(line).into_owned());
        vm.take(at.wrapping_add(text.len() as u32), at, &ring(text.as_bytes(), at), 0, print);
        lines
    }

    #[test]
    fn lines_are_put_together_across_the_end_of_the_ring() {
        let mut vm = Vm::new(VM, AT, "web", 0, 0);
        let at = u32::MAX - 3;
        assert_eq!(take(&mut vm, "hello\nwor", at), ["hello"]);
        assert!(vm.has_begun_line());
        assert_eq!(take(&mut vm, "ld\n", at.wrapping_add(9)), ["world"]);
        assert!(!vm.has_begun_line());
    }

    #[test]
    fn what_was_overwritten_is_counted() {
        let mut vm = Vm::new(VM, AT, "web", 0, 0);
        let ring = [b'\n'; OUTPUT];
        let mut lines = 0;
        assert_eq!(vm.take(OUTPUT as u32 + 100, 0, &ring, 0, |_| lines += 1), OUTPUT as u32 + 100);
        assert_eq!((lines, vm.lost), (OUTPUT, 100));
    }

    #[test]
    fn a_name_cannot_forge_lines() {
        let vm = Vm::new(VM, AT, "a\nswap: all is well\n", 0, 0);
        assert_eq!(vm.name, "a.swap: all is well.");
    }

    #[test]
    fn the_table_is_bounded_and_knows_numbers() {
        let mut vms = Vms::new(1);
        vms.attach(Vm::new(VM, AT, "a", 0, 0)).unwrap();
        assert!(vms.attach(Vm::new(8, AT, "b", 0, 0)).is_err());
        let next = 1 << 24 | 7;
        vms.attach(Vm::new(next, AT, "c", 0, 0)).unwrap();
        assert!(vms.get(VM).is_none() && vms.detach(VM).is_none());
        assert_eq!(vms.detach(next).unwrap().name, "c");
    }

    proptest! {
        #[test]
        fn nonsense_indices_are_harmless(steps in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u8>()), 1..50)) {
            let mut vm = Vm::new(VM, AT, "x", 0, 0);
            let mut printed = 0u64;
            for (written, read, fill) in steps {
                vm.take(written, read, &[fill; OUTPUT], 0, |line| {
                    assert!(line.len() <= LINE_MAX);
                    printed += line.len() as u64;
                });
                prop_assert!(printed <= BURST);
            }
        }
    }
}
