//! A queue of VMs that takes no memory of its own: it runs through their records. All VMs may stand in one at some time, so room kept for that
//! would count for every VM that is swapped out, and room taken when it is needed may not be there.
//!
//! It uses the links by which VMs in memory stand in the clock's ring: who stands in a queue is in neither another queue nor the ring. Everybody who is
//! destroyed must be taken out before, so the flags of a VM say in which it stands.

use crate::record::VmTable;

/// First come, first served. Links are places + 1; 0: nobody.
#[derive(Debug, Default)]
pub struct Queue {
    first: u32,
    last: u32,
    length: u32,
}

impl Queue {
    /// How many stand in it.
    pub const fn len(&self) -> u32 {
        self.length
    }

    /// Whether nobody does.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The place of who is served next.
    pub fn front(&self) -> Option<u32> {
        self.first.checked_sub(1)
    }

    /// Puts a VM behind all others.
    pub fn push_back(&mut self, vms: &mut VmTable, place: u32) {
        let before = self.last;
        let Some(vm) = vms.get_mut(place) else { return };
        vm.ring = [before, 0];
        match before.checked_sub(1).and_then(|before| vms.get_mut(before)) {
            Some(before) => before.ring[1] = place + 1,
            None => self.first = place + 1,
        }
        self.last = place + 1;
        self.length += 1;
    }

    /// Puts a VM before all others.
    pub fn push_front(&mut self, vms: &mut VmTable, place: u32) {
        let after = self.first;
        let Some(vm) = vms.get_mut(place) else { return };
        vm.ring = [0, after];
        match after.checked_sub(1).and_then(|after| vms.get_mut(after)) {
            Some(after) => after.ring[0] = place + 1,
            None => self.last = place + 1,
        }
        self.first = place + 1;
        self.length += 1;
    }

    /// Takes the first out.
    pub fn pop_front(&mut self, vms: &mut VmTable) -> Option<u32> {
        let first = self.front()?;
        self.remove(vms, first);
        Some(first)
    }

    /// Takes a VM out that stands in this queue.
    pub fn remove(&mut self, vms: &mut VmTable, place: u32) {
        let Some(vm) = vms.get_mut(place) else { return };
        let [before, after] = core::mem::take(&mut vm.ring);
        match before.checked_sub(1).and_then(|before| vms.get_mut(before)) {
            Some(before) => before.ring[1] = after,
            None => self.first = after,
        }
        match after.checked_sub(1).and_then(|after| vms.get_mut(after)) {
            Some(after) => after.ring[0] = before,
            None => self.last = before,
        }
        self.length -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::VmRecord;
    use proptest::prelude::*;
    use std::{boxed::Box, collections::VecDeque, vec::Vec};

    proptest! {
        #[test]
        fn behaves_like_any_queue(steps in prop::collection::vec((0u8..4, 0u32..20), 0..200)) {
            let mut vms = VmTable::default();
            assert!(vms.reserve(0));
            let records: Vec<_> = (0..crate::record::PER_FRAME).map(|_| VmRecord::default()).collect();
            vms.add(0, Box::leak(records.into_boxed_slice()));
            let (mut queue, mut model) = (Queue::default(), VecDeque::new());
            for (step, place) in steps {
                let stands = model.contains(&place);
                match step {
                    0 if !stands => {
                        queue.push_back(&mut vms, place);
                        model.push_back(place);
                    }
                    1 if !stands => {
                        queue.push_front(&mut vms, place);
                        model.push_front(place);
                    }
                    2 if stands => {
                        queue.remove(&mut vms, place);
                        model.retain(|other| *other != place);
                    }
                    3 => prop_assert_eq!(queue.pop_front(&mut vms), model.pop_front()),
                    _ => {}
                }
                prop_assert_eq!((queue.front(), queue.len()), (model.front().copied(), model.len() as u32));
                prop_assert_eq!(queue.is_empty(), model.is_empty());
            }
            while let Some(place) = model.pop_front() {
                prop_assert_eq!(queue.pop_front(&mut vms), Some(place));
            }
            prop_assert!((0..20).all(|place| vms.get(place).is_some_and(|vm| vm.ring == [0; 2])));
        }
    }
}
