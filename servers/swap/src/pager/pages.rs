//! The page map of a VM, and its pages in memory in runs.

use super::Pager;
use crate::{
    frames::{Frame, Usage},
    machine::Machine,
    map::{self, ENTRY, Entry},
    region::UNIT_BLOCKS,
    space,
};
use alloc::vec::Vec;
use protocol::{
    layout::PAGE,
    memory::{PageState, SCAN_PAGES, Scan},
    service::VmRef,
};

/// Entries of the pages of a unit at most.
pub(super) type Entries = [Entry; UNIT_BLOCKS as usize];

impl Pager<'_> {
    /// The entry of a page.
    pub(super) fn entry(&self, machine: &mut impl Machine, place: u32, page: u32) -> Entry {
        let mut entries = [Entry::NONE];
        self.read_entries(machine, place, page, &mut entries);
        let [entry] = entries;
        entry
    }

    /// The entries of pages in a row.
    pub(super) fn read_entries(&self, machine: &mut impl Machine, place: u32, first: u32, entries: &mut [Entry]) {
        let mut rest = entries;
        let mut page = first;
        while !rest.is_empty() {
            let (part, offset) = map::place(page);
            let here = rest.len().min((map::ENTRIES - page % map::ENTRIES) as usize);
            let (now, after) = core::mem::take(&mut rest).split_at_mut(here);
            now.fill(Entry::NONE);
            if let Some(frame) = self.frames.find(place, Usage::Map(part)) {
                for chunk in now.chunks_mut(UNIT_BLOCKS as usize).enumerate() {
                    let (index, chunk) = chunk;
                    let mut bytes = [0; ENTRY * UNIT_BLOCKS as usize];
                    let Some(bytes) = bytes.get_mut(..chunk.len() * ENTRY) else { continue };
                    // Without its map a page would be taken for one that was never written: better unreadable.
                    let at = offset + index * ENTRY * UNIT_BLOCKS as usize;
                    if machine.read_frame(frame, at, bytes).is_ok() {
                        for (entry, bytes) in chunk.iter_mut().zip(bytes.as_chunks().0) {
                            *entry = Entry::from_bytes(bytes);
                        }
                    } else {
                        chunk.fill(Entry { counter: u64::MAX, ..Entry::NONE });
                    }
                }
            }
            page += here as u32;
            rest = after;
        }
    }

    /// Makes sure that the map has room for pages in a row. `false`: there is no frame for it.
    pub(super) fn make_map(&mut self, machine: &mut impl Machine, place: u32, first: u32, count: u32) -> bool {
        let last = first + count.saturating_sub(1);
        (map::place(first).0..=map::place(last).0).all(|part| {
            if self.frames.find(place, Usage::Map(part)).is_some() {
                return true;
            }
            // It is nothing before it is empty.
            let Some(frame) = self.take(place, Usage::Filling(0)) else { return false };
            if machine.write_frame(frame, 0, &[0; PAGE as usize]).is_err() {
                self.give(place, frame);
                return false;
            }
            self.frames.turn(frame, Usage::Map(part));
            true
        })
    }

    /// Writes the entries of pages in a row, for which there is room ([`Pager::make_map`]).
    pub(super) fn write_entries(&mut self, machine: &mut impl Machine, place: u32, first: u32, entries: &[Entry]) {
        let mut rest = entries;
        let mut page = first;
        while !rest.is_empty() {
            let (part, offset) = map::place(page);
            let here = rest.len().min((map::ENTRIES - page % map::ENTRIES) as usize).min(UNIT_BLOCKS as usize);
            let (now, after) = rest.split_at(here);
            let mut bytes = [0; ENTRY * UNIT_BLOCKS as usize];
            for (entry, to) in now.iter().zip(bytes.chunks_exact_mut(ENTRY)) {
                to.copy_from_slice(&entry.to_bytes());
            }
            if let (Some(frame), Some(bytes)) = (self.frames.find(place, Usage::Map(part)), bytes.get(..here * ENTRY)) {
                let _ = machine.write_frame(frame, offset, bytes);
            }
            page += here as u32;
            rest = after;
        }
    }

    /// Pages of a VM's own that are in memory, by page; and the parts of its map. At most `most` frames are looked at, from `from` on, which
    /// must be one of its frames; the second part of the answer is where to go on.
    pub(super) fn resident(&self, place: u32, from: Option<Frame>, most: u32) -> (Resident, Option<Frame>) {
        let mut resident = Resident::default();
        let mut at = from.or_else(|| self.frames.first_of(&self.vms.get(place)?.frames));
        for _ in 0..most {
            let Some(frame) = at else { break };
            match self.frames.usage(frame) {
                Some(Usage::Page(page)) => resident.pages.push((page, frame)),
                Some(Usage::Map(part)) => resident.maps.push((part, frame)),
                Some(Usage::Incoming(_)) => resident.incoming = true,
                _ => {}
            }
            at = self.frames.next_of(frame);
        }
        resident.pages.sort_unstable();
        resident.maps.sort_unstable();
        (resident, at)
    }
}

/// What [`Pager::resident`] finds.
#[derive(Debug, Default)]
pub(super) struct Resident {
    /// Pages and their frames.
    pub pages: Vec<(u32, Frame)>,
    /// Parts of the map and their frames.
    pub maps: Vec<(u32, Frame)>,
    /// Pages are on their way in.
    pub incoming: bool,
}

/// The states of pages in order, looked at many in a call. Of what cannot be looked at it is taken that it is used.
pub(super) fn states(machine: &mut impl Machine, at: VmRef, pages: &[(u32, Frame)], action: Scan) -> Vec<u8> {
    let mut found = Vec::with_capacity(pages.len());
    let mut states = [0; SCAN_PAGES];
    let mut rest = pages;
    while let Some((first, _)) = rest.first() {
        let count = rest.iter().take_while(|(page, _)| page - first < SCAN_PAGES as u32).count();
        let (here, after) = rest.split_at(count);
        rest = after;
        let span = here.last().map_or(0, |(last, _)| (last - first + 1) as usize);
        let states = states.get_mut(..span).unwrap_or_default();
        if machine.scan(at, space::address(*first), states, action).is_err() {
            states.fill(PageState::ACCESSED.bits());
        }
        found.extend(here.iter().map(|(page, _)| states.get((page - first) as usize).copied().unwrap_or(0)));
    }
    found
}

/// Pages in a row, at the beginning of a list in order, of the same unit of the region.
pub(super) fn run_of(pages: &[(u32, Frame)]) -> usize {
    let Some((first, _)) = pages.first() else { return 0 };
    let same = |(index, (page, _)): &(usize, &(u32, Frame))| {
        *page == first + *index as u32 && page / UNIT_BLOCKS == first / UNIT_BLOCKS
    };
    pages.iter().enumerate().take_while(same).count()
}
