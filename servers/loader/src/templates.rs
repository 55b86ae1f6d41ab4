//! Which VMs are clones of which template.
//!
//! VMs of one *kind* differ in their names, numbers and addresses only: they are a run of the manifest ([`protocol::manifest::VmTable::run`]), and have no disks. Of the
//! first VM of a kind whose image says that it says `ready`, a template is made once it does; the others of that kind are clones of it. VMs with disks
//! are not cloned: what one has read of its disk before `ready` is not what is on another's.

use alloc::collections::BTreeMap;
use protocol::service::{VmNumber, pager::ImageNumber};

/// Time in which a VM that was started at boot is to say `ready`, in nanoseconds; after it the others of its kind are started without it.
pub const PATIENCE: u64 = 1_000_000_000;
/// Time that the first clone has to itself, in nanoseconds: from what it does until it waits, the pager learns what others will need at once.
pub const ALONE: u64 = 5_000_000;
/// Restarts of the loader leave room for this many clones of a template before each.
const CLONES_BETWEEN_RESTARTS: u32 = 1 << 20;

/// A kind of VMs: the number of their run.
pub type Kind = usize;

/// What is known of a kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Template {
    /// This VM is to say `ready`; until then others of the kind wait.
    Awaited { vm: VmNumber, until: u64 },
    /// The pager has it. Until then no other clone is made of it than its first.
    Made { number: ImageNumber, until: Option<u64> },
    /// There is none, and will be none.
    Never,
}

/// The templates, by kind.
#[derive(Debug)]
pub struct Templates {
    kinds: BTreeMap<Kind, Template>,
    /// The generation of the next clone of a kind, if not `first`.
    generations: BTreeMap<Kind, u32>,
    first: u32,
}

impl Templates {
    /// None yet. `incarnation`: restarts of the loader so far.
    pub fn new(incarnation: u32) -> Templates {
        let first = incarnation.saturating_mul(CLONES_BETWEEN_RESTARTS).saturating_add(1);
        Templates { kinds: BTreeMap::new(), generations: BTreeMap::new(), first }
    }

    /// The template of a kind, and the generation of a new clone. No two clones of a kind have the same, whatever became of its template between them.
    pub fn next_clone(&mut self, kind: Kind, now: u64) -> Option<(ImageNumber, u32)> {
        match self.kinds.get_mut(&kind)? {
            Template::Made { number, until } => {
                let next = self.generations.entry(kind).or_insert(self.first);
                let generation = *next;
                *next = next.checked_add(1)?;
                until.get_or_insert(now.saturating_add(ALONE));
                Some((*number, generation))
            }
            Template::Awaited { .. } | Template::Never => None,
        }
    }

    /// Until when VMs of a kind wait for the first to say `ready`, or for the first clone to have had its time; `None`: they do not.
    pub fn waits_until(&self, kind: Kind) -> Option<u64> {
        match self.kinds.get(&kind)? {
            Template::Awaited { until, .. } => Some(*until),
            Template::Made { until, .. } => Some(until.unwrap_or(0)),
            Template::Never => None,
        }
    }

    /// Whether the next VM of a kind is one that others wait for: the first, or the first clone.
    pub fn is_new(&self, kind: Kind) -> bool {
        matches!(self.kinds.get(&kind), None | Some(Template::Made { until: None, .. }))
    }

    /// A VM of a kind was started on its own: if it is the first, it is to say `ready`.
    pub fn started(&mut self, kind: Kind, vm: VmNumber, now: u64) {
        self.kinds.entry(kind).or_insert(Template::Awaited { vm, until: now.saturating_add(PATIENCE) });
    }

    /// Whether a template is to be made of a VM that said `ready`.
    pub fn wants(&self, kind: Kind, vm: VmNumber) -> bool {
        matches!(self.kinds.get(&kind), Some(Template::Awaited { vm: awaited, .. }) if *awaited == vm)
    }

    /// The pager has made a template; `None`: it could not.
    pub fn made(&mut self, kind: Kind, number: Option<ImageNumber>) {
        let template = number.map_or(Template::Never, |number| Template::Made { number, until: None });
        self.kinds.insert(kind, template);
    }

    /// After a restart of the loader or the pager: there is a clone of this template.
    pub fn found(&mut self, kind: Kind, number: ImageNumber) {
        if !matches!(self.kinds.get(&kind), Some(Template::Made { .. })) {
            self.kinds.insert(kind, Template::Made { number, until: Some(0) });
        }
    }

    /// The pager does not know the template any more, or refuses to make clones of it.
    pub fn forget(&mut self, kind: Kind) {
        self.kinds.remove(&kind);
    }

    /// The pager was restarted: it may have given the number of a template to another image.
    pub fn lost(&mut self) {
        self.kinds.retain(|_, template| !matches!(template, Template::Made { .. }));
    }

    /// A VM has ended: if it was to say `ready`, another one of its kind is to.
    pub fn ended(&mut self, kind: Kind, vm: VmNumber) {
        if self.wants(kind, vm) {
            self.kinds.remove(&kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = 3;

    #[test]
    fn the_first_is_awaited_and_the_others_are_its_clones() {
        let mut templates = Templates::new(0);
        assert_eq!((templates.next_clone(KIND, 9), templates.waits_until(KIND)), (None, None));
        templates.started(KIND, 5, 10);
        templates.started(KIND, 6, 20);
        assert_eq!((templates.next_clone(KIND, 9), templates.waits_until(KIND)), (None, Some(10 + PATIENCE)));
        assert_eq!((templates.wants(KIND, 5), templates.wants(KIND, 6)), (true, false));
        templates.ended(KIND, 6);
        templates.made(KIND, Some(77));
        assert_eq!((templates.waits_until(KIND), templates.next_clone(KIND, 50)), (Some(0), Some((77, 1))));
        assert_eq!((templates.waits_until(KIND), templates.next_clone(KIND, 60)), (Some(50 + ALONE), Some((77, 2))));
        assert_eq!(templates.waits_until(KIND), Some(50 + ALONE));
        templates.ended(KIND, 5);
        assert_eq!(templates.next_clone(KIND, 9), Some((77, 3)), "the template stays when its VM ends");
        templates.forget(KIND);
        assert_eq!(templates.next_clone(KIND, 9), None);
    }

    #[test]
    fn one_that_ends_before_is_awaited_no_longer() {
        let mut templates = Templates::new(0);
        templates.started(KIND, 5, 10);
        templates.ended(KIND, 5);
        assert_eq!(templates.waits_until(KIND), None);
        templates.started(KIND, 6, 20);
        assert!(templates.wants(KIND, 6));
        templates.made(KIND, None);
        assert_eq!((templates.next_clone(KIND, 9), templates.waits_until(KIND)), (None, None));
        assert!(!templates.wants(KIND, 6));
    }

    #[test]
    fn generations_do_not_come_again_after_a_restart() {
        let mut templates = Templates::new(2);
        templates.found(KIND, 4);
        assert_eq!(templates.next_clone(KIND, 9), Some((4, 2 * CLONES_BETWEEN_RESTARTS + 1)));
        let mut templates = Templates::new(u32::MAX);
        templates.found(KIND, 4);
        assert_eq!(templates.next_clone(KIND, 9), None, "none is left");
    }

    #[test]
    fn numbers_are_learned_anew_when_the_pager_was_restarted_but_generations_go_on() {
        let mut templates = Templates::new(0);
        templates.made(KIND, Some(77));
        templates.started(KIND + 1, 5, 10);
        assert_eq!(templates.next_clone(KIND, 9), Some((77, 1)));
        templates.lost();
        assert_eq!(templates.next_clone(KIND, 9), None);
        assert!(templates.wants(KIND + 1, 5), "a VM that is awaited has not gone");
        // One that was started meanwhile is not needed.
        templates.started(KIND, 6, 20);
        templates.found(KIND, 78);
        assert_eq!((templates.wants(KIND, 6), templates.next_clone(KIND, 9)), (false, Some((78, 2))));
        templates.found(KIND, 79);
        assert_eq!(templates.next_clone(KIND, 9), Some((78, 3)), "what is known is not learned from an old clone");
    }
}
