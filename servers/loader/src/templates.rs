//! Which VMs are clones of which template.
//!
//! VMs are of one *kind* if they are made from the same image with the same memory and arguments, all with an address or all without, and have no disks. Of the
//! first VM of a kind whose image says that it says `ready`, a template is made once it does; the others of that kind are clones of it. VMs with disks
//! are not cloned: what one has read of its disk before `ready` is not what is on another's.

use alloc::{borrow::ToOwned, collections::BTreeMap, string::String};
use protocol::{
    manifest::Vm,
    service::{VmNumber, pager::ImageNumber},
};

/// Time in which a VM that was started at boot is to say `ready`, in nanoseconds; after it the others of its kind are started without it.
pub const PATIENCE: u64 = 1_000_000_000;
/// Restarts of the loader leave room for this many clones of a template before each.
const CLONES_BETWEEN_RESTARTS: u32 = 1 << 20;

/// A kind of VMs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Kind {
    image: String,
    memory: u64,
    arguments: String,
    addressed: bool,
}

impl Kind {
    /// The kind of a VM; `None`: it has disks.
    pub fn of(vm: &Vm) -> Option<Kind> {
        let (image, arguments) = (vm.image.to_owned(), vm.arguments.to_owned());
        vm.disks.is_empty().then_some(Kind { image, memory: vm.memory, arguments, addressed: vm.address != [0; 4] })
    }
}

/// What is known of a kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Template {
    /// This VM is to say `ready`; until then others of the kind wait.
    Awaited { vm: VmNumber, until: u64 },
    /// The pager has it, and so many clones were made.
    Made { number: ImageNumber, clones: u32 },
    /// There is none, and will be none.
    Never,
}

/// The templates, by kind.
#[derive(Debug, Default)]
pub struct Templates {
    kinds: BTreeMap<Kind, Template>,
}

impl Templates {
    /// The template of a kind, and the generation of a new clone: how many were made, with it.
    pub fn next_clone(&mut self, kind: &Kind) -> Option<(ImageNumber, u32)> {
        match self.kinds.get_mut(kind)? {
            Template::Made { number, clones } => {
                *clones = clones.checked_add(1)?;
                Some((*number, *clones))
            }
            Template::Awaited { .. } | Template::Never => None,
        }
    }

    /// Until when VMs of a kind wait for the first to say `ready`; `None`: they do not.
    pub fn waits_until(&self, kind: &Kind) -> Option<u64> {
        match self.kinds.get(kind)? {
            Template::Awaited { until, .. } => Some(*until),
            Template::Made { .. } | Template::Never => None,
        }
    }

    /// A VM of a kind was started on its own: if it is the first, it is to say `ready`.
    pub fn started(&mut self, kind: Kind, vm: VmNumber, now: u64) {
        self.kinds.entry(kind).or_insert(Template::Awaited { vm, until: now.saturating_add(PATIENCE) });
    }

    /// Whether a template is to be made of a VM that said `ready`.
    pub fn wants(&self, kind: &Kind, vm: VmNumber) -> bool {
        matches!(self.kinds.get(kind), Some(Template::Awaited { vm: awaited, .. }) if *awaited == vm)
    }

    /// The pager has made a template; `None`: it could not.
    pub fn made(&mut self, kind: Kind, number: Option<ImageNumber>) {
        let template = number.map_or(Template::Never, |number| Template::Made { number, clones: 0 });
        self.kinds.insert(kind, template);
    }

    /// After a restart of the loader: there is a clone of this template.
    pub fn found(&mut self, kind: Kind, number: ImageNumber, incarnation: u32) {
        let clones = incarnation.saturating_mul(CLONES_BETWEEN_RESTARTS);
        self.kinds.insert(kind, Template::Made { number, clones });
    }

    /// The pager does not know the template any more, or refuses to make clones of it.
    pub fn forget(&mut self, kind: &Kind) {
        self.kinds.remove(kind);
    }

    /// A VM has ended: if it was to say `ready`, another one of its kind is to.
    pub fn ended(&mut self, kind: &Kind, vm: VmNumber) {
        if self.wants(kind, vm) {
            self.kinds.remove(kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{string::ToString, vec, vec::Vec};

    fn vm() -> Vm {
        Vm {
            name: "a".to_string(),
            image: "web".to_string(),
            memory: 0,
            mac: [2, 0, 0, 0, 0, 1],
            address: [10, 0, 0, 1],
            arguments: String::new(),
            disks: Vec::new(),
        }
    }

    #[test]
    fn kinds_are_what_a_vm_cannot_tell_apart() {
        let other = Vm { name: "b".to_string(), mac: [2, 0, 0, 0, 0, 2], address: [10, 0, 0, 2], ..vm() };
        assert_eq!(Kind::of(&vm()), Kind::of(&other));
        let disk = protocol::manifest::Disk { name: "d".to_string(), read_only: true, blocks: 0 };
        assert_eq!(Kind::of(&Vm { disks: vec![disk], ..vm() }), None);
        for unlike in [
            Vm { image: "x".to_string(), ..vm() },
            Vm { memory: 1, ..vm() },
            Vm { arguments: "x".to_string(), ..vm() },
            Vm { address: [0; 4], ..vm() },
        ] {
            assert_ne!(Kind::of(&vm()), Kind::of(&unlike));
        }
    }

    #[test]
    fn the_first_is_awaited_and_the_others_are_its_clones() {
        let (mut templates, kind) = (Templates::default(), Kind::of(&vm()).unwrap());
        assert_eq!((templates.next_clone(&kind), templates.waits_until(&kind)), (None, None));
        templates.started(kind.clone(), 5, 10);
        templates.started(kind.clone(), 6, 20);
        assert_eq!((templates.next_clone(&kind), templates.waits_until(&kind)), (None, Some(10 + PATIENCE)));
        assert_eq!((templates.wants(&kind, 5), templates.wants(&kind, 6)), (true, false));
        templates.ended(&kind, 6);
        templates.made(kind.clone(), Some(77));
        assert_eq!((templates.next_clone(&kind), templates.next_clone(&kind)), (Some((77, 1)), Some((77, 2))));
        templates.ended(&kind, 5);
        assert_eq!(templates.next_clone(&kind), Some((77, 3)), "the template stays when its VM ends");
        templates.forget(&kind);
        assert_eq!(templates.next_clone(&kind), None);
    }

    #[test]
    fn one_that_ends_before_is_awaited_no_longer() {
        let (mut templates, kind) = (Templates::default(), Kind::of(&vm()).unwrap());
        templates.started(kind.clone(), 5, 10);
        templates.ended(&kind, 5);
        assert_eq!(templates.waits_until(&kind), None);
        templates.started(kind.clone(), 6, 20);
        assert!(templates.wants(&kind, 6));
        templates.made(kind.clone(), None);
        assert_eq!((templates.next_clone(&kind), templates.waits_until(&kind)), (None, None));
        assert!(!templates.wants(&kind, 6));
    }

    #[test]
    fn generations_do_not_come_again_after_a_restart() {
        let (mut templates, kind) = (Templates::default(), Kind::of(&vm()).unwrap());
        templates.found(kind.clone(), 4, 2);
        assert_eq!(templates.next_clone(&kind), Some((4, 2 * CLONES_BETWEEN_RESTARTS + 1)));
        templates.found(kind.clone(), 4, u32::MAX);
        assert_eq!(templates.next_clone(&kind), None, "none is left");
    }
}
