//! A guest that uses its disks, and what they may hold.

use super::system::System;
use crate::{
    model::{Memory, WINDOW},
    store::BLOCK,
};
use alloc::{vec, vec::Vec};
use protocol::disk::{COMPLETED, COMPLETION_ENTRIES, COMPLETIONS, ENTRIES, Kind, REQUESTS, Status};

/// A guest that behaves: it never has two requests for a block under way of which one writes.
pub struct Guest {
    pub vm: u64,
    pub submitted: u32,
    pub completed: u32,
    /// Interrupts that it has taken.
    pub taken: u32,
    /// Requests under way, by entry: index, kind, disk, first block, blocks, value.
    pub open: Vec<Option<Open>>,
    pub disks: Vec<Contents>,
}

#[derive(Clone, Debug)]
pub struct Open {
    pub index: u32,
    pub kind: Kind,
    pub disk: usize,
    pub block: u64,
    pub count: u64,
    pub value: u8,
    /// For a flush: what was answered before, by block.
    pub before: Vec<usize>,
}

/// What a disk may hold: for each block the values written, oldest first; the ones before `floor` are gone for good; `sure` if the last one
/// is what reads find.
pub struct Contents {
    pub values: Vec<Vec<u8>>,
    pub floor: Vec<usize>,
    pub sure: Vec<bool>,
    pub read_only: bool,
}

impl Contents {
    pub fn new(blocks: u64, read_only: bool) -> Contents {
        let blocks = blocks as usize;
        Contents { values: vec![vec![0]; blocks], floor: vec![0; blocks], sure: vec![true; blocks], read_only }
    }

    pub fn check_read(&self, block: usize, bytes: &[u8]) {
        let values = &self.values[block];
        for sector in bytes.chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0]));
            let good = if self.sure[block] { values.last() == Some(&sector[0]) } else { values.contains(&sector[0]) };
            assert!(good, "block {block} reads {}, written was {values:?}, sure: {}", sector[0], self.sure[block]);
        }
    }

    pub fn check_after_cut(&self, block: usize, bytes: &[u8]) {
        let allowed = &self.values[block][self.floor[block]..];
        for sector in bytes.chunks(512) {
            let good = sector.iter().all(|byte| *byte == sector[0]) && allowed.contains(&sector[0]);
            assert!(good, "block {block} holds {}, allowed was {allowed:?}", sector[0]);
        }
    }
}

pub const PAGES: u64 = 1 + ENTRIES as u64 * 4;

impl Guest {
    pub fn new(vm: u64, disks: &[(u64, bool)]) -> Guest {
        let disks = disks.iter().map(|(blocks, read_only)| Contents::new(*blocks, *read_only)).collect();
        Guest { vm, submitted: 0, completed: 0, taken: 0, open: vec![None; ENTRIES], disks }
    }

    pub fn buffer(index: u32) -> usize {
        4096 + index as usize % ENTRIES * 4 * BLOCK
    }

    pub fn submit(&mut self, system: &mut System, value: u8) {
        let chance = &mut system.model.chance;
        let slot = self.submitted as usize % ENTRIES;
        let memory = system.model.vms.get_mut(&self.vm).expect("it is there");
        // A guest that runs is in memory, and touches its own pages.
        memory.here = true;
        memory.missing.clear();
        if self.open[slot].is_some() {
            return;
        }
        let disk = chance.below(self.disks.len());
        let blocks = self.disks[disk].values.len();
        let block = chance.below(blocks);
        let count = 1 + chance.below((blocks - block).min(4));
        let kind = match chance.below(if self.disks[disk].read_only { 1 } else { 5 }) {
            0 => Kind::Read,
            1 => Kind::Flush,
            _ => Kind::Write,
        };
        let overlaps = |open: &Open| {
            open.disk == disk
                && (open.block as usize) < block + count
                && block < (open.block + open.count) as usize
                && (kind == Kind::Write || open.kind == Kind::Write)
        };
        if kind != Kind::Flush && self.open.iter().flatten().any(overlaps) {
            return;
        }
        let contents = &mut self.disks[disk];
        let mut before = Vec::new();
        let buffer = Self::buffer(self.submitted);
        let (mut first, mut length) = (block as u64, count as u64);
        match kind {
            Kind::Write => {
                memory.bytes[buffer..buffer + count * BLOCK].fill(value);
                for block in block..block + count {
                    contents.values[block].push(value);
                    contents.sure[block] = false;
                }
            }
            Kind::Read => memory.bytes[buffer..buffer + count * BLOCK].fill(0xee),
            Kind::Flush => {
                (first, length) = (0, 0);
                // Of what is under way it is not known whether it is covered.
                let open = |block: usize| {
                    let covers =
                        |open: &&Open| (open.block as usize..(open.block + open.count) as usize).contains(&block);
                    self.open.iter().flatten().any(|o| o.disk == disk && o.kind == Kind::Write && covers(&o))
                };
                before = (0..blocks)
                    .map(|block| {
                        let last = contents.values[block].len() - 1;
                        if open(block) || !contents.sure[block] { contents.floor[block] } else { last }
                    })
                    .collect();
            }
        }
        let address = if kind == Kind::Flush { 0 } else { WINDOW + buffer as u64 };
        let entry = REQUESTS + slot * 32;
        let words = [u64::from(kind as u32) | (disk as u64) << 32, first, address, length];
        for (place, word) in words.iter().enumerate() {
            memory.bytes[entry + place * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
        self.open[slot] = Some(Open { index: self.submitted, kind, disk, block: first, count: length, value, before });
        self.submitted = self.submitted.wrapping_add(1);
        memory.bytes[..4].copy_from_slice(&self.submitted.to_le_bytes());
        let at = memory.at;
        system.server.rung(self.vm, at);
    }

    /// Takes answers, if it is told that there are some.
    pub fn look(&mut self, system: &System) {
        let Memory { bytes, raised, .. } = &system.model.vms[&self.vm];
        if core::mem::replace(&mut self.taken, *raised) == *raised {
            return;
        }
        let word = |offset: usize| u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap());
        while self.completed != word(COMPLETED) {
            let place = COMPLETIONS + self.completed as usize % COMPLETION_ENTRIES * 8;
            self.completed = self.completed.wrapping_add(1);
            let (index, status) = (word(place), Status::from_u32(word(place + 4)));
            let open = self.open[index as usize % ENTRIES].take().expect("an answer to a request");
            assert_eq!(open.index, index);
            let contents = &mut self.disks[open.disk];
            let blocks = open.block as usize..(open.block + open.count) as usize;
            match (open.kind, status) {
                (Kind::Read, Status::Ok) => {
                    let buffer = Self::buffer(index);
                    for (place, block) in blocks.enumerate() {
                        contents.check_read(block, &bytes[buffer + place * BLOCK..][..BLOCK]);
                    }
                }
                (Kind::Write, Status::Ok) => blocks.for_each(|block| {
                    assert_eq!(contents.values[block].last(), Some(&open.value));
                    contents.sure[block] = true;
                }),
                (Kind::Flush, Status::Ok) => {
                    for (floor, before) in contents.floor.iter_mut().zip(&open.before) {
                        *floor = (*floor).max(*before);
                    }
                }
                (_, Status::Failed) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn has_open(&self) -> bool {
        self.open.iter().any(Option::is_some)
    }
}
