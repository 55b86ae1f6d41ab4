//! The frame table does what a map does, and finds itself again.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::{vec, vec::Vec};

fn records(count: usize) -> Vec<Record> {
    (0..count).map(|_| Record::default()).collect()
}

#[test]
fn layouts_fit() {
    for frames in [16, 100, 4096, 65_536, 1 << 20, 1 << 24] {
        let layout = Layout::new(&Pool::new([(1, 0x1000, frames)])).unwrap();
        assert_eq!(u64::from(layout.frames), frames);
        let share = f64::from(layout.reserved()) / frames as f64;
        assert!(frames < 1000 || share < 0.009, "{share} of {frames} frames");
    }
    assert_eq!(Layout::new(&Pool::default()), None);
    assert_eq!(Layout::new(&Pool::new([(1, 0, 1)])), None);
    // The table of both extents has to fit into the first.
    assert_eq!(Layout::new(&Pool::new([(1, 0x10_0000, 1000), (2, 0, 1000)])).unwrap().frames, 2000);
    assert_eq!(Layout::new(&Pool::new([(1, 0x10_0000, 10), (2, 0, 10_000)])), None);
}

#[test]
fn chains_stay_short() {
    let pool = Pool::new([(1, 0, 1 << 16)]);
    let layout = Layout::new(&pool).unwrap();
    let (mut records, mut heads) = (records(1 << 16), vec![0; layout.heads as usize]);
    let mut table = FrameTable::new(pool, &layout, &mut records, &mut heads, 0x9e37_79b9_7f4a_7c15).unwrap();
    let mut list = List::default();
    let mut taken = 0;
    // Pages a power of two apart: what a hostile guest would try first.
    while table.take(&mut list, taken >> 10, Usage::Page((taken & 1023) << 12)).is_some() {
        taken += 1;
    }
    let longest = table.heads.iter().map(|head| {
        let (mut link, mut length) = (*head, 0);
        while link != 0 {
            (link, length) = (table.records[link as usize - 1].chain, length + 1);
        }
        length
    });
    assert!(longest.max().unwrap() < 20);
}

#[derive(Clone, Debug)]
enum Step {
    Take(u32, u32),
    Promote(u32, u32),
    Give(u32, u32),
    Release(u32, u32),
    /// The server dies and finds its table again; this owner is no more.
    Recover(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u32..4, 0u32..40).prop_map(|(owner, page)| Step::Take(owner, page)),
        4 => (0u32..4, 0u32..40).prop_map(|(owner, page)| Step::Promote(owner, page)),
        3 => (0u32..4, 0u32..40).prop_map(|(owner, page)| Step::Give(owner, page)),
        1 => (0u32..4, 1u32..6).prop_map(|(owner, limit)| Step::Release(owner, limit)),
        1 => (0u32..6).prop_map(Step::Recover),
    ]
}

struct Lists([List; 4], u32);

impl Owners for Lists {
    fn list(&mut self, owner: u32, _: Usage) -> Option<&mut List> {
        if owner == self.1 { None } else { self.0.get_mut(owner as usize) }
    }
}

proptest! {
    #[test]
    fn behaves_like_a_map(steps in proptest::collection::vec(step(), 1..400), seed: u64) {
        // Two extents, the second below the first.
        let pool = Pool::new([(1, 7000, 40), (2, 500, 24)]);
        let layout = Layout::new(&pool).unwrap();
        let (mut records, mut heads) = (records(64), vec![0; layout.heads as usize]);
        let mut table = FrameTable::new(pool, &layout, &mut records, &mut heads, seed).unwrap();
        let mut lists = Lists(Default::default(), 9);
        // Frame, and whether it is a page already.
        let mut model: BTreeMap<(u32, u32), (Frame, bool)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Take(owner, page) if !model.contains_key(&(owner, page)) => {
                    match table.take(&mut lists.0[owner as usize], owner, Usage::Incoming(page)) {
                        Some(frame) => {
                            prop_assert!((7000 + table.reserved()..7040).contains(&frame) || (500..524).contains(&frame));
                            prop_assert_eq!(table.slot(frame), if frame < 7000 { 2 } else { 1 });
                            model.insert((owner, page), (frame, false));
                        }
                        None => prop_assert_eq!(model.len() as u32, 64 - table.reserved()),
                    }
                }
                Step::Promote(owner, page) => {
                    if let Some((frame, is_page)) = model.get_mut(&(owner, page)) {
                        table.promote(*frame);
                        *is_page = true;
                    }
                }
                Step::Give(owner, page) => {
                    if let Some((frame, _)) = model.remove(&(owner, page)) {
                        table.give(&mut lists.0[owner as usize], frame);
                    }
                }
                Step::Release(owner, limit) => {
                    let list = &mut lists.0[owner as usize];
                    let before = list.len();
                    prop_assert_eq!(table.release(list, limit), before.min(limit));
                    model.retain(|(o, _), (frame, _)| *o != owner || table.usage(*frame).is_some());
                }
                Step::Recover(gone) => {
                    lists = Lists(Default::default(), gone);
                    table.recover(&mut lists);
                    model.retain(|(owner, _), _| *owner != gone);
                }
                Step::Take(..) => {}
            }
            prop_assert_eq!(table.used() - table.reserved(), model.len() as u32);
            let frames: BTreeSet<_> = model.values().collect();
            prop_assert_eq!(frames.len(), model.len());
            for owner in 0..4 {
                let mut listed = BTreeSet::new();
                let mut at = table.first_of(&lists.0[owner as usize]);
                while let Some(frame) = at {
                    prop_assert!(listed.insert(frame));
                    at = table.next_of(frame);
                }
                let wanted: BTreeSet<_> = model.iter().filter(|((o, _), _)| *o == owner).map(|(_, (f, _))| *f).collect();
                prop_assert_eq!(lists.0[owner as usize].len() as usize, listed.len());
                prop_assert_eq!(listed, wanted);
                for page in 0..40 {
                    let known = model.get(&(owner, page)).copied();
                    let found = |usage| table.find(owner, usage);
                    prop_assert_eq!(found(Usage::Page(page)), known.filter(|(_, page)| *page).map(|(frame, _)| frame));
                    prop_assert_eq!(found(Usage::Incoming(page)), known.filter(|(_, page)| !*page).map(|(frame, _)| frame));
                }
            }
        }
    }
}
