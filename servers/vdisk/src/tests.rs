//! The whole server: storms of everything that can go wrong, and what it must never do.

mod guest;
mod system;

use crate::{
    change::State,
    model::{Chance, WINDOW},
    requests::Rights,
    serve::Server,
    store::{BLOCK, DATA_FIRST},
};
use alloc::{
    collections::BTreeMap,
    format,
    string::{String, ToString},
    vec::Vec,
};
use guest::{Guest, PAGES};
use proptest::prelude::*;
use protocol::{
    disk::{BLOCKS_MAX, COMPLETED, COMPLETIONS, ENTRIES, Kind, REQUESTS, Status},
    service::vdisk::{DiskInfo, Request, Response},
};
use system::{System, Ticket, disk_bytes};

/// Two honest guests, one mad one, a clumsy operator, and everything that can go wrong, from one seed.
fn storm(seed: u64, rounds: usize, fails: usize, slow_pager: bool, restarts: bool) {
    let mut system = System::new(seed, DATA_FIRST + 100);
    // What was there before must not be seen.
    system.model.medium[DATA_FIRST as usize * BLOCK..].fill(0x5a);
    system.model.safe[DATA_FIRST as usize * BLOCK..].fill(0x5a);
    // In pieces: between what is deleted again.
    for (name, blocks) in [("x", 10), ("p", 5), ("y", 10), ("q", 5), ("z", 70)] {
        assert_eq!(system.create(name, blocks), Response::Done);
    }
    for name in ["x", "y", "z"] {
        assert_eq!(system.ask(Request::Delete(name.into())), Response::Done);
    }
    assert_eq!(system.create("a", 75), Response::Done);
    assert_eq!(system.create("mad", 5), Response::Done);
    let attach_all = |system: &mut System| {
        assert_eq!(system.attach(1, PAGES, &[("a", false), ("p", true)]), Response::Done);
        assert_eq!(system.attach(2, PAGES, &[("p", true), ("q", false)]), Response::Done);
        assert_eq!(system.attach(3, 3, &[("mad", false), ("p", true)]), Response::Done);
    };
    attach_all(&mut system);
    let mut guests = [Guest::new(1, &[(75, false), (5, true)]), Guest::new(2, &[(5, true), (5, false)])];
    system.model.fails = fails;
    system.model.slow_pager = slow_pager;
    let mut mad = Chance(seed ^ 77);
    let mut disks: BTreeMap<String, Option<u64>> = BTreeMap::new();
    let mut asked: Vec<(Ticket, String, Option<u64>)> = Vec::new();
    for round in 0..rounds {
        for guest in &mut guests {
            if system.model.chance.one_in(2) {
                guest.submit(&mut system, (round % 251) as u8 + 1);
            }
            guest.look(&system);
        }
        if mad.one_in(4) {
            let memory = system.model.vms.get_mut(&3).unwrap();
            for _ in 0..mad.below(40) {
                let offset = if mad.one_in(2) { mad.below(64) } else { mad.below(1600) };
                let limit = if mad.one_in(2) { 4 } else { 256 };
                memory.bytes[offset] = mad.below(limit) as u8;
            }
            // Now and then something that nearly makes sense.
            let entry = REQUESTS + mad.below(ENTRIES) * 32;
            let words = [
                mad.below(3) as u64,
                mad.below(6) as u64,
                WINDOW + mad.below(3) as u64 * 4096,
                1 + mad.below(2) as u64,
            ];
            for (place, word) in words.iter().enumerate() {
                memory.bytes[entry + place * 8..][..8].copy_from_slice(&word.to_le_bytes());
            }
            let at = memory.at;
            system.server.rung(3, at);
        }
        if slow_pager && system.model.chance.one_in(5) {
            let vm = 1 + system.model.chance.below(3) as u64;
            let page = system.model.chance.below(PAGES as usize) as u64;
            let gone = system.model.chance.one_in(4);
            let memory = system.model.vms.get_mut(&vm).unwrap();
            memory.missing.insert(page);
            memory.missing.insert(0);
            memory.here &= !gone;
        }
        if system.model.chance.one_in(20) {
            let name = format!("n{}", system.model.chance.below(3));
            let blocks = 1 + system.model.chance.below(3) as u64;
            let (request, wanted) = match system.model.chance.one_in(2) {
                true => (Request::Create { name: name.clone(), blocks }, Some(blocks)),
                false => (Request::Delete(name.clone()), None),
            };
            asked.push((system.begin(request), name, wanted));
        }
        system.round();
        // What is answered is so from then on; what failed may be either.
        asked.retain(|(ticket, name, wanted)| match system.responses.remove(ticket) {
            Some(Response::Done) => {
                disks.insert(name.clone(), *wanted);
                false
            }
            Some(Response::Failed(_)) => {
                disks.remove(name);
                false
            }
            Some(_) => false,
            None => true,
        });
        if restarts && system.model.chance.one_in(60) {
            asked.drain(..).for_each(|(_, name, _)| _ = disks.remove(&name));
            let fails = core::mem::take(&mut system.model.fails);
            // It dies in the middle of something.
            system.model.dies_after = Some(system.model.chance.below(12));
            system.round();
            system.restart();
            attach_all(&mut system);
            system.model.fails = fails;
        }
    }
    // At rest all is answered, and no slot is lost.
    let mut after = Server::new();
    if seed.is_multiple_of(2) {
        for _ in 0..300 {
            system.settle();
            guests.iter_mut().for_each(|guest| guest.look(&system));
            if !guests.iter().any(Guest::has_open) {
                break;
            }
        }
        for guest in &guests {
            assert!(!guest.has_open(), "VM {} waits for {:?}", guest.vm, guest.open.iter().flatten().next());
        }
        assert_eq!((system.model.free(), system.server.under_way()), (8, 0));
        assert!(guests.iter().all(|guest| system.model.vms[&guest.vm].raised > 0));
        asked.retain(|(ticket, name, _)| {
            disks.remove(name);
            !system.responses.contains_key(ticket)
        });
        assert!(asked.is_empty());
    } else {
        asked.drain(..).for_each(|(_, name, _)| _ = disks.remove(&name));
    }
    system.model.cut();
    system.model.fails = 0;
    core::mem::swap(&mut system.server, &mut after);
    system.server.mount(system.model.blocks());
    system.settle();
    assert!(matches!(system.server.changes.state(), State::Open(_)), "{:?}", system.server.changes.state());
    for (guest, disk, name) in [(0, 0, "a"), (1, 1, "q")] {
        let bytes = disk_bytes(&system, name).expect("a disk in use");
        let contents = &guests[guest].disks[disk];
        bytes.chunks(BLOCK).enumerate().for_each(|(block, bytes)| contents.check_after_cut(block, bytes));
    }
    assert!(disk_bytes(&system, "p").unwrap().iter().all(|byte| *byte == 0), "nobody may write this one");
    for (name, wanted) in disks {
        assert_eq!(disk_bytes(&system, &name).map(|bytes| (bytes.len() / BLOCK) as u64), wanted, "{name}");
    }
    for name in ["n0", "n1", "n2"] {
        assert!(
            disk_bytes(&system, name).is_none_or(|bytes| bytes.iter().all(|byte| *byte == 0)),
            "a new disk is empty"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_quiet_machine(seed: u64) {
        storm(seed, 300, 0, false, false);
    }

    #[test]
    fn memory_comes_and_goes(seed: u64) {
        storm(seed, 300, 0, true, false);
    }

    #[test]
    fn the_disk_fails_and_the_server_dies(seed: u64) {
        storm(seed, 400, 15, true, true);
    }
}

/// A server dies when it has written a table and not flushed it; the next one finds that table, and begins to overwrite the other; then the power is cut.
#[test]
fn what_was_answered_outlives_a_death_and_a_cut() {
    for seed in 0..300 {
        let mut system = System::new(seed, DATA_FIRST + 50);
        for name in ["kept", "deleted", "first", "second"] {
            assert_eq!(system.create(name, 1), Response::Done);
        }
        assert_eq!(system.ask(Request::Delete("deleted".into())), Response::Done);
        for name in ["first", "second"] {
            system.begin(Request::Delete(name.into()));
            for _ in 0..system.model.chance.below(4) {
                system.round();
            }
            if name == "first" {
                system.restart();
                system.settle();
            }
        }
        system.model.cut();
        system.restart();
        system.settle();
        assert_eq!((system.find("deleted"), system.find("kept").is_some()), (None, true), "{seed}");
    }
}

#[test]
fn a_disk_is_written_by_one_or_read_by_many() {
    let mut system = System::new(1, DATA_FIRST + 50);
    assert_eq!(system.create("a", 5), Response::Done);
    assert_eq!(system.create("a", 5), Response::Exists);
    assert_eq!(system.create("b/", 5), Response::BadArgument);
    assert_eq!(system.create("b", 46), Response::Full);
    assert_eq!(system.attach(1, 4, &[("b", true)]), Response::NotFound);
    assert_eq!(system.attach(1, 4, &[("a", false), ("a", true)]), Response::InUse);
    assert_eq!(system.attach(1, 4, &[("a", true); 5]), Response::BadArgument);
    assert_eq!(system.attach(1, 4, &[("a", true)]), Response::Done);
    assert_eq!(system.attach(2, 4, &[("a", true)]), Response::Done);
    assert_eq!(system.attach(3, 4, &[("a", false)]), Response::InUse);
    assert_eq!(system.ask(Request::Delete("a".into())), Response::InUse);
    assert_eq!(system.find("a"), Some(DiskInfo { name: "a".into(), blocks: 5, users: 2, written: false }));
    assert_eq!(system.ask(Request::Detach(1)), Response::Done);
    assert_eq!(system.ask(Request::Detach(1)), Response::NotFound);
    assert_eq!(system.ask(Request::IsAttached(1)), Response::NotFound);
    assert_eq!(system.ask(Request::IsAttached(2)), Response::Done);
    // The other one ended without a word.
    system.model.vms.remove(&2);
    assert_eq!(system.attach(3, 4, &[("a", false)]), Response::Done);
    assert_eq!(system.attach(4, 4, &[("a", true)]), Response::InUse);
    // The loader was restarted.
    assert_eq!(system.attach(3, 4, &[("a", false)]), Response::Done);
    assert!(system.find("a").unwrap().written);
    assert_eq!(system.ask(Request::Space), Response::Space(50, 45));
}

#[test]
fn clients_have_rights() {
    let mut system = System::new(1, DATA_FIRST + 50);
    system.settle();
    let mut ask = |rights, request| system.server.request(&mut system.model, rights, 0, request);
    assert_eq!(ask(Rights::of("console"), Request::Delete("a".into())), Some(Response::Denied));
    assert_eq!(ask(Rights::of("supervisor"), Request::Detach(1)), Some(Response::Denied));
    assert_eq!(ask(Rights::of("swap"), Request::Space), Some(Response::Space(50, 50)));
    assert_eq!(ask(Rights::of("supervisor"), Request::Delete("a".into())), Some(Response::NotFound).filter(|_| false));
}

#[test]
fn a_store_that_cannot_be_used_says_why() {
    let mut system = System::new(1, DATA_FIRST + 50);
    system.model.medium[5] = 1;
    let before = system.model.medium.clone();
    let Response::NoStore(why) = system.create("a", 1) else { panic!() };
    assert!(why.contains("something else"), "{why}");
    let Response::NoStore(_) = system.attach(1, 4, &[]) else { panic!() };
    assert_eq!(system.model.medium, before);
    let mut system = System::new(1, DATA_FIRST + 50);
    system.model.fails = 1;
    let Response::NoStore(why) = system.create("a", 1) else { panic!() };
    assert_eq!(why, "the table of disks cannot be read: input/output error");
    assert!(system.server.notes()[0].contains("no virtual disks"));
}

#[test]
fn a_change_that_failed_is_written_again_before_anything_relies_on_it() {
    let mut system = System::new(1, DATA_FIRST + 50);
    assert_eq!(system.create("a", 5), Response::Done);
    system.model.fails = 1;
    assert!(matches!(system.ask(Request::Delete("a".into())), Response::Failed(_)));
    assert!(matches!(system.attach(1, 4, &[("a", false)]), Response::Failed(_)));
    system.model.fails = 0;
    assert_eq!(system.attach(1, 4, &[("a", false)]), Response::Done);
    system.settle();
    system.model.cut();
    system.restart();
    assert!(system.find("a").is_some());
}

#[test]
fn errors_are_those_of_the_protocol() {
    let mut system = System::new(3, DATA_FIRST + 50);
    assert_eq!(system.create("a", 5), Response::Done);
    assert_eq!(system.create("r", 5), Response::Done);
    assert_eq!(system.attach(1, 40, &[("a", false), ("r", true)]), Response::Done);
    let requests: [([u64; 4], Status); 9] = [
        ([0, 0, WINDOW + 4096, 5], Status::Ok),
        ([0, 1, WINDOW + 4096, 5], Status::OutOfRange),
        ([0, u64::MAX, WINDOW + 4096, 1], Status::OutOfRange),
        ([1 | 1 << 32, 0, WINDOW + 4096, 1], Status::ReadOnly),
        ([2 | 1 << 32, 0, 0, 0], Status::Ok),
        ([2 << 32, 0, WINDOW + 4096, 1], Status::NoDisk),
        ([0, 0, WINDOW + 4096, u64::from(BLOCKS_MAX) + 1], Status::BadRequest),
        ([9, 0, WINDOW + 4096, 1], Status::BadRequest),
        ([1, 0, WINDOW + 39 * 4096 + 8, 1], Status::BadRequest),
    ];
    let memory = system.model.vms.get_mut(&1).unwrap();
    for (index, (words, _)) in requests.iter().enumerate() {
        for (place, word) in words.iter().enumerate() {
            memory.bytes[REQUESTS + index * 32 + place * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
    }
    memory.bytes[0] = requests.len() as u8;
    let at = memory.at;
    system.server.rung(1, at);
    system.settle();
    let bytes = &system.model.vms[&1].bytes;
    assert_eq!(usize::from(bytes[COMPLETED]), requests.len());
    for place in 0..requests.len() {
        let entry = &bytes[COMPLETIONS + place * 8..][..8];
        assert_eq!(Status::from_u32(entry[4].into()), requests[usize::from(entry[0])].1, "request {}", entry[0]);
    }
    // A disk that fails.
    system.model.fails = 1;
    system.model.vms.get_mut(&1).unwrap().bytes[0] = requests.len() as u8 + 1;
    system.server.rung(1, at);
    system.server.work(&mut system.model);
    assert_eq!(system.server.report(0), None);
    let entry = REQUESTS + requests.len() * 32;
    let memory = system.model.vms.get_mut(&1).unwrap();
    for (place, word) in [0, 0, WINDOW + 4096, 1].iter().enumerate() {
        memory.bytes[entry + place * 8..][..8].copy_from_slice(&u64::to_le_bytes(*word));
    }
    memory.bytes[0] += 1;
    memory.bytes.copy_within(entry..entry + 32, entry + 32);
    system.server.rung(1, at);
    for _ in 0..10 {
        system.server.work(&mut system.model);
        system.model.step();
    }
    assert_eq!(
        system.server.report(0).unwrap().to_string(),
        "disk a: reading 1 blocks from 0 on for VM 1: input/output error"
    );
}

#[test]
fn one_flush_serves_all_who_wait() {
    let mut system = System::new(3, DATA_FIRST + 50);
    for vm in 1..=6 {
        assert_eq!(system.create(&format!("d{vm}"), 2), Response::Done);
        assert_eq!(system.attach(vm, 2, &[(&format!("d{vm}"), false)]), Response::Done);
    }
    system.settle();
    for vm in 1..=6 {
        let memory = system.model.vms.get_mut(&vm).unwrap();
        memory.bytes[REQUESTS] = Kind::Flush as u8;
        memory.bytes[0] = 1;
        let at = memory.at;
        system.server.rung(vm, at);
    }
    system.server.work(&mut system.model);
    assert_eq!((system.model.free(), system.server.under_way()), (7, 6));
    system.settle();
    assert!(system.model.vms.values().all(|memory| memory.bytes[COMPLETED] == 1));
}

#[test]
fn a_new_disk_never_shows_what_was_there() {
    let (mut before, mut after) = (0, 0);
    for seed in 0..400 {
        let mut system = System::new(seed, DATA_FIRST + 50);
        system.model.medium[DATA_FIRST as usize * BLOCK..].fill(0x5a);
        system.model.safe[DATA_FIRST as usize * BLOCK..].fill(0x5a);
        system.settle();
        system.begin(Request::Create { name: "a".into(), blocks: 20 });
        for _ in 0..seed % 20 {
            system.server.work(&mut system.model);
            system.model.step();
        }
        system.model.cut();
        system.restart();
        match system.find("a") {
            Some(_) => {
                after += 1;
                assert!(disk_bytes(&system, "a").unwrap().iter().all(|byte| *byte == 0), "seed {seed}");
            }
            None => before += 1,
        }
    }
    assert!(before > 50 && after > 50, "{before} {after}");
}
