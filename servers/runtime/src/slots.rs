//! The empty slots of the server's capability table.

use core::ops::Range;
use protocol::capability::SLOTS;

/// Takes an empty slot; `None` if all are in use. It stays taken until [`free`].
pub fn alloc() -> Option<u8> {
    crate::state::get()?.slots.lock().take()
}

/// Empties a slot and gives it back.
pub fn free(slot: u8) {
    // An empty slot is not an error here: the capability may never have come.
    let _ = hypercall::capability_delete(slot);
    if let Some(state) = crate::state::get() {
        state.slots.lock().give(slot);
    }
}

const _: () = assert!(SLOTS == 64, "a set of slots is one word");

/// A set of slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlotSet {
    bits: u64,
    /// Slots that may ever be in the set.
    all: u64,
}

impl SlotSet {
    /// The slots of `range` that exist.
    pub fn new(range: Range<u8>) -> SlotSet {
        let bits = range.take_while(|slot| usize::from(*slot) < SLOTS).fold(0, |bits, slot| bits | 1 << slot);
        SlotSet { bits, all: bits }
    }

    /// Takes the lowest.
    pub fn take(&mut self) -> Option<u8> {
        let slot = self.bits.trailing_zeros();
        self.bits &= self.bits.checked_sub(1)?;
        Some(slot as u8)
    }

    /// Puts one back. Slots that were never in the set are passed over.
    pub fn give(&mut self, slot: u8) {
        self.bits |= 1u64.checked_shl(u32::from(slot)).unwrap_or(0) & self.all;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_out_each_slot_once() {
        let mut set = SlotSet::new(60..200);
        let taken: Vec<_> = core::iter::from_fn(|| set.take()).collect();
        assert_eq!(taken, [60, 61, 62, 63]);
        for slot in [62, 62, 5, 64, 255] {
            set.give(slot);
        }
        assert_eq!((set.take(), set.take()), (Some(62), None));
    }

    #[test]
    fn a_range_may_be_empty() {
        assert_eq!(SlotSet::new(64..64).take(), None);
        assert_eq!(SlotSet::new(0..64).take(), Some(0));
    }
}
