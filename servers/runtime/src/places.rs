//! Records of VMs by place: what a server keeps of each VM, a million of them or three.
//!
//! A VM's place ([`protocol::service::place`]) is small and its own while it is there, so a table needs no keys and no empty room
//! for hashing: a record costs what it is long. It grows by chunks and copies nothing when it does.

use alloc::{boxed::Box, vec::Vec};

/// Records in a chunk.
const CHUNK: usize = 32;

/// A table of records. A record that was never set is the default one.
#[derive(Debug)]
pub struct Places<T> {
    chunks: Vec<Option<Box<[T; CHUNK]>>>,
    most: usize,
}

impl<T: Default> Places<T> {
    /// An empty table for the places below `most`.
    pub const fn new(most: usize) -> Places<T> {
        Places { chunks: Vec::new(), most }
    }

    /// Bytes that a record costs, its part of the table included.
    pub const COST: usize = size_of::<T>() + size_of::<usize>().div_ceil(CHUNK);

    /// The record of a place; `None` if none near it was ever made.
    pub fn get(&self, place: u32) -> Option<&T> {
        let (chunk, index) = split(place);
        self.chunks.get(chunk)?.as_ref()?.get(index)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, place: u32) -> Option<&mut T> {
        let (chunk, index) = split(place);
        self.chunks.get_mut(chunk)?.as_mut()?.get_mut(index)
    }

    /// The record of a place, made if there is none; `None` beyond the end of the table.
    pub fn make(&mut self, place: u32) -> Option<&mut T> {
        if place as usize >= self.most {
            return None;
        }
        let (chunk, index) = split(place);
        if chunk >= self.chunks.len() {
            self.chunks.resize_with(chunk + 1, || None);
        }
        let chunk = self.chunks.get_mut(chunk)?;
        chunk.get_or_insert_with(|| Box::new(core::array::from_fn(|_| T::default()))).get_mut(index)
    }

    /// All records that were made, default ones between them included, with their places.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let chunks = self.chunks.iter().enumerate();
        let made = chunks.filter_map(|(number, chunk)| Some((number, chunk.as_ref()?)));
        made.flat_map(|(number, chunk)| {
            chunk.iter().enumerate().map(move |(index, record)| ((number * CHUNK + index) as u32, record))
        })
    }
}

const fn split(place: u32) -> (usize, usize) {
    (place as usize / CHUNK, place as usize % CHUNK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((0u32..400, any::<u16>()), 0..200)) {
            let mut places = Places::<u16>::new(300);
            let mut model = BTreeMap::new();
            for (place, value) in steps {
                match places.make(place) {
                    Some(record) => {
                        *record = value;
                        model.insert(place, value);
                    }
                    None => prop_assert!(place >= 300),
                }
            }
            for place in 0..400 {
                prop_assert_eq!(places.get(place).copied().unwrap_or(0), model.get(&place).copied().unwrap_or(0));
            }
            let set: BTreeMap<_, _> = places.iter().map(|(place, value)| (place, *value)).filter(|(_, v)| *v != 0).collect();
            model.retain(|_, value| *value != 0);
            prop_assert_eq!(set, model);
        }
    }

    #[test]
    fn the_last_place_is_far_away() {
        let mut places = Places::<u8>::new(usize::MAX);
        assert!(places.get(u32::MAX).is_none() && places.get_mut(u32::MAX).is_none());
        *places.make(100_000).unwrap() = 7;
        assert_eq!((places.get(100_000), places.get(5)), (Some(&7), None));
        assert_eq!(Places::<[u32; 16]>::COST, 65);
    }
}
