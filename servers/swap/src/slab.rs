//! A vector with holes that are used again: numbers that stay, O(1), and a refusal instead of a panic when the heap is full.

use alloc::vec::Vec;

/// The heap is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

#[derive(Debug)]
enum Entry<T> {
    Used(T),
    /// The next hole + 1; 0: none.
    Hole(u32),
}

/// Values by number.
#[derive(Debug)]
pub struct Slab<T> {
    entries: Vec<Entry<T>>,
    /// First hole + 1; 0: none.
    hole: u32,
    used: u32,
}

impl<T> Slab<T> {
    /// Without values.
    pub const fn new() -> Slab<T> {
        Slab { entries: Vec::new(), hole: 0, used: 0 }
    }

    /// Values in it.
    pub const fn len(&self) -> u32 {
        self.used
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// One more than the largest number ever given.
    pub fn end(&self) -> u32 {
        self.entries.len() as u32
    }

    /// The number that the next value gets.
    pub fn next(&self) -> u32 {
        self.hole.checked_sub(1).unwrap_or(self.end())
    }

    /// Puts a value at this number, which a restarted server had given before.
    pub fn insert_at(&mut self, number: u32, value: T) -> Result<(), Full> {
        while self.end() <= number {
            self.reserve_one()?;
            self.entries.push(Entry::Hole(self.hole));
            self.hole = self.end();
        }
        // Rare and few: the chain of holes is searched.
        let (mut before, mut at) = (None, self.hole);
        while let Some(hole) = at.checked_sub(1) {
            let Some(Entry::Hole(next)) = self.entries.get(hole as usize) else { return Err(Full) };
            let next = *next;
            if hole == number {
                match before {
                    Some(before) => {
                        if let Some(entry) = self.entries.get_mut(before) {
                            *entry = Entry::Hole(next);
                        }
                    }
                    None => self.hole = next,
                }
                if let Some(entry) = self.entries.get_mut(hole as usize) {
                    *entry = Entry::Used(value);
                    self.used += 1;
                }
                return Ok(());
            }
            (before, at) = (Some(hole as usize), next);
        }
        Err(Full)
    }

    /// Makes sure that the next [`Slab::insert`] succeeds.
    pub fn reserve(&mut self) -> Result<(), Full> {
        if self.hole != 0 {
            return Ok(());
        }
        self.reserve_one()
    }

    fn reserve_one(&mut self) -> Result<(), Full> {
        u32::try_from(self.entries.len() + 1).map_err(|_| Full)?;
        self.entries.try_reserve(1).map_err(|_| Full)
    }

    /// Keeps a value; its number.
    pub fn insert(&mut self, value: T) -> Result<u32, Full> {
        let number = match self.hole.checked_sub(1) {
            Some(number) => {
                let entry = self.entries.get_mut(number as usize).ok_or(Full)?;
                if let Entry::Hole(next) = *entry {
                    self.hole = next;
                }
                *entry = Entry::Used(value);
                number
            }
            None => {
                self.reserve()?;
                let number = self.end();
                self.entries.push(Entry::Used(value));
                number
            }
        };
        self.used += 1;
        Ok(number)
    }

    /// Gives a value back.
    pub fn remove(&mut self, number: u32) -> Option<T> {
        let entry = self.entries.get_mut(number as usize)?;
        if let Entry::Hole(_) = entry {
            return None;
        }
        let Entry::Used(value) = core::mem::replace(entry, Entry::Hole(self.hole)) else { return None };
        self.hole = number + 1;
        self.used -= 1;
        Some(value)
    }

    /// The value with this number.
    pub fn get(&self, number: u32) -> Option<&T> {
        match self.entries.get(number as usize)? {
            Entry::Used(value) => Some(value),
            Entry::Hole(_) => None,
        }
    }

    /// The value with this number, to change.
    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        match self.entries.get_mut(number as usize)? {
            Entry::Used(value) => Some(value),
            Entry::Hole(_) => None,
        }
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn behaves_like_a_map(steps in proptest::collection::vec((any::<bool>(), 0u32..20), 0..200)) {
            let mut slab = Slab::new();
            let mut model = BTreeMap::new();
            for (insert, value) in steps {
                if insert {
                    let number = slab.insert(value).unwrap();
                    prop_assert_eq!(model.insert(number, value), None);
                } else {
                    prop_assert_eq!(slab.remove(value), model.remove(&value));
                }
                prop_assert_eq!(slab.len() as usize, model.len());
                for number in 0..slab.end() {
                    prop_assert_eq!(slab.get(number), model.get(&number));
                }
            }
        }
    }
}
