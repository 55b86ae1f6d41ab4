//! With swap space: pages and whole VMs leave memory and come back.

use super::*;
use protocol::abi::NEVER;

/// More VMs than memory: 160 frames for VMs of 64 pages.
fn world() -> World {
    World::new(160, &[2048, 2048])
}

/// Makes so many VMs, one after the other, that do something and then idle until the time that it comes to.
fn idle_vms(world: &mut World, count: u64, mut work: impl FnMut(&mut World, u64) -> u64) {
    let image = world.define();
    for vm in 1..=count {
        world.create(vm, image, MEMORY).unwrap();
        let until = work(world, vm);
        world.idle(vm, until);
        world.settle();
    }
}

/// Has every VM write all pages of its heap.
fn write_all(world: &mut World, vms: u64) {
    for page in 54..64 {
        for vm in 1..=vms {
            let done = world.write(vm, page, (vm * 7) as u8 ^ page as u8);
            assert!(done.is_some(), "{:?}", world.stopped);
        }
    }
}

#[test]
fn more_vms_than_memory_keep_what_they_wrote() {
    let mut world = world();
    let image = world.populate(20);
    write_all(&mut world, 20);
    for _ in 0..2 {
        for vm in 1..=20 {
            for page in 54..64 {
                world.read(vm, page).unwrap();
            }
        }
    }
    let pool = world.pool();
    assert!(pool["page_ins"] > 100 && pool["page_outs"] > 100, "{pool:?}");
    for vm in 1..=20 {
        assert_eq!(world.ask(Request::Destroy(vm)), Response::Done);
    }
    world.settle();
    assert_eq!(world.ask(Request::DropImage(image)), Response::Done);
    assert_eq!((world.pager().in_use(), world.pager().units_in_use()), ((0, 0), 0));
    assert_eq!(world.model.taken_slots(), 0);
}

#[test]
fn idle_vms_leave_whole_and_come_back_as_they_were() {
    let mut world = world();
    idle_vms(&mut world, 20, |world, vm| {
        world.write(vm, 60, vm as u8).unwrap();
        world.act(vm, DATA + 0x200, Act::Write(9)).unwrap();
        NEVER
    });
    let suspended = world.pool()["suspended"];
    assert!(suspended >= 5, "{suspended} are suspended");
    assert_eq!(world.model.domains.len() as u64, 20 - suspended);
    for vm in 1..=20 {
        assert!(world.wake(vm));
        let (_, domain) = world.model.find(vm).unwrap();
        let windows = domain.parameters.windows;
        assert_eq!((domain.register, domain.parameters.services), (vm * 3, [NIC, 0, 0]));
        assert_eq!(windows[0].address, DATA & !4095);
        world.read(vm, 60).unwrap();
        world.act(vm, DATA + 0x200, Act::Read).unwrap();
        world.act(vm, SPACE_BASE + 5, Act::Read).unwrap();
        world.idle(vm, NEVER);
    }
}

#[test]
fn deadlines_wake_those_who_are_gone() {
    const LATER: u64 = 1 << 40;
    // A note may be a tick late.
    const TICK: u64 = 1 << crate::pager::clock::TICK;
    let deadline = |vm: u64| LATER + 2 * vm * TICK;
    let mut world = world();
    idle_vms(&mut world, 20, |world, vm| {
        for page in 56..62 {
            world.write(vm, page, vm as u8).unwrap();
        }
        deadline(vm)
    });
    world.tick = 0;
    let gone: Vec<u64> = (1..=20).filter(|vm| world.model.find(*vm).is_none()).collect();
    assert!(gone.len() > 5);
    let next = world.pager().next_deadline();
    assert!((deadline(gone[0])..=deadline(gone[0]) + TICK).contains(&next), "{next}");
    for vm in (1..=20).filter(|vm| !gone.contains(vm)) {
        assert_eq!(world.ask(Request::Destroy(vm)), Response::Done);
    }
    world.settle();
    for (index, vm) in gone.iter().enumerate().take(4) {
        world.model.now = deadline(*vm) + TICK;
        world.settle();
        for other in &gone {
            let runs = world.model.find(*other).is_some_and(|(_, domain)| domain.state == DomainState::Runs);
            assert_eq!(runs, gone[..=index].contains(other), "VM {other} at {}", world.model.now);
        }
    }
}

#[test]
fn who_runs_all_the_time_makes_room_for_others_in_turn() {
    let mut world = world();
    world.populate(20);
    for vm in 1..=20 {
        for page in 56..62 {
            world.write(vm, page, vm as u8).unwrap();
        }
    }
    // They never idle, and have no room together; but each of them is in memory again and again.
    let mut seen = [0; 21];
    for turn in 0..8000 {
        for vm in 1..=20 {
            if let Some((_, domain)) =
                world.model.find(vm).filter(|(_, domain)| domain.state == DomainState::Runs && !domain.held)
            {
                domain.switches += 1;
                domain.time += 1 << 20;
                seen[vm as usize] += 1;
            }
        }
        world.turn(turn, true);
    }
    assert!(seen[1..].iter().all(|seen| *seen > 100), "{seen:?}");
}

#[test]
fn servers_reach_those_who_are_gone() {
    let mut world = world();
    idle_vms(&mut world, 20, |world, vm| {
        world.write(vm, 59, vm as u8).unwrap();
        NEVER
    });
    for round in 0..3 {
        for vm in 1..=20 {
            assert!(world.deliver(vm, 55 + round, (vm + 100) as u8));
        }
    }
    let brought = world.ask_as(SWITCH, Request::Brought);
    assert!(matches!(brought, Some(Response::Brought(vms)) if !vms.is_empty()));
    for vm in 1..=20 {
        for page in 55..60 {
            world.act(vm, space::address(page) + 8, Act::Read).unwrap();
            world.read(vm, page).unwrap();
        }
    }
}

#[test]
fn what_a_server_on_another_processor_writes_while_a_vm_leaves_is_kept() {
    // So many that only some leave in one piece, the others to their own places.
    const PAGES: core::ops::Range<u32> = 60..220;
    let mut world = World::new(600, &[8192, 8192]);
    let image = world.define();
    for vm in 1..=6 {
        world.create(vm, image, 4 * MEMORY).unwrap();
        for page in PAGES {
            world.write(vm, page, vm as u8).unwrap();
        }
        world.idle(vm, NEVER);
        world.settle();
    }
    for round in 0..6 {
        // What is void must stay so when nobody meddles any more.
        world.model.meddles = round % 3 == 0;
        for vm in 1..=6 {
            for page in PAGES.map(|page| if round % 2 == 0 { page } else { 279 - page }) {
                world.read(vm, page).unwrap();
                world.act(vm, space::address(page) + 8, Act::Read).unwrap();
            }
            world.idle(vm, NEVER);
            world.settle();
        }
    }
    let meddled = world.written.keys().filter(|(_, address)| address % PAGE == 8).count();
    assert!(meddled > 100, "{meddled}");
}

#[test]
fn who_was_fetched_stays_until_it_was_given_what_it_was_fetched_for() {
    const VMS: u64 = 40;
    let mut world = World::new(160, &[4096, 4096]);
    idle_vms(&mut world, VMS, |world, vm| {
        world.write(vm, 60, vm as u8).unwrap();
        NEVER
    });
    // The one who fetches them all at once is slow, and each has to wait for the others' memory.
    const LAG: usize = 20;
    world.tick = 1_000_000;
    let mut since = BTreeMap::new();
    let mut waiting: Vec<u64> = (1..=VMS).filter(|vm| world.model.find(*vm).is_none()).collect();
    assert!(waiting.len() >= 10, "{waiting:?}");
    for vm in &waiting {
        let bring = Request::Bring { vm: *vm, address: SPACE_BASE, length: PAGE as u32, write: false };
        world.ask_as(SWITCH, bring);
    }
    for turn in 0..20_000 {
        waiting.retain(|vm| {
            let Some((_, domain)) = world.model.find(*vm) else {
                assert!(!since.contains_key(vm), "VM {vm} was fetched in vain");
                return true;
            };
            if domain.held || turn - *since.entry(*vm).or_insert(turn) < LAG {
                return true;
            }
            domain.switches += 1;
            false
        });
        world.turn(turn, true);
        if waiting.is_empty() {
            return;
        }
    }
    panic!("{waiting:?} never come");
}

#[test]
fn swap_space_is_promised_whole() {
    let mut world = World::new(300, &[300]);
    let image = world.define();
    let mut vms = 0;
    let refused = loop {
        match world.create(vms + 1, image, MEMORY) {
            Ok(_) => vms += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refused, Response::OutOfSwap);
    // 300 blocks are 18 units; a region of 64 pages has 4 for them and 5 for the VM suspended.
    assert_eq!(vms, 2);
    assert_eq!(world.ask(Request::Destroy(1)), Response::Done);
    assert!(world.create(3, image, MEMORY).is_ok());
}

#[test]
fn who_finds_no_swap_space_is_refused_though_memory_is_being_given_back() {
    // 20 regions of 9 units.
    let mut world = World::new(160, &[20 * 9 * 16]);
    let image = world.populate(20);
    let mut tries = 0;
    for page in 54..64 {
        for vm in 1..=20 {
            world.write(vm, page, vm as u8).unwrap();
            if world.model.under_way() > 0 {
                let request = World::creation(21, image, MEMORY);
                let outcome = world.with(|pager, model| pager.request(model, MANAGER, Some(LENT), request));
                assert_eq!(outcome, Some(Outcome::Now(Response::OutOfSwap)));
                tries += 1;
                if tries == 20 {
                    return;
                }
            }
        }
    }
    panic!("nothing was under way");
}

#[test]
fn a_changed_disk_stops_only_the_vm_concerned() {
    let mut world = world();
    world.populate(20);
    write_all(&mut world, 20);
    for vm in 1..=20 {
        world.idle(vm, NEVER);
    }
    world.settle();
    for disk in 0..2 {
        // Every byte of one half of the disk.
        let bytes = world.model.disk_bytes(disk);
        let half = bytes.len() / 8;
        bytes[..half].iter_mut().for_each(|byte| *byte ^= 0x40);
    }
    let mut alive = 0;
    for vm in 1..=20 {
        let lives = (54..64).all(|page| world.read(vm, page).is_some());
        alive += u32::from(lives);
        if !lives {
            let Stop::Pager(reason) = &world.stopped[&vm] else { panic!("{:?}", world.stopped[&vm]) };
            assert!(reason.contains("authentication failed"), "{reason}");
        }
    }
    assert!((1..20).contains(&alive), "{alive} live");
}

#[test]
fn a_changed_page_of_a_vm_that_is_in_memory_stops_it() {
    // Larger than memory, and too large to leave whole: its pages go one by one.
    const PAGES: u32 = 256;
    let mut world = world();
    let image = world.define();
    world.create(1, image, u64::from(PAGES) * PAGE).unwrap();
    for page in 54..PAGES {
        world.write(1, page, page as u8).unwrap();
    }
    world.settle();
    assert_eq!(world.pool()["suspended"], 0);
    for disk in 0..2 {
        world.model.disk_bytes(disk).iter_mut().for_each(|byte| *byte ^= 1);
    }
    assert!((54..PAGES).any(|page| world.read(1, page).is_none()));
    let Stop::Pager(reason) = &world.stopped[&1] else { panic!("{:?}", world.stopped[&1]) };
    assert!(reason.contains("authentication failed"), "{reason}");
}

#[test]
fn an_older_page_is_not_taken_for_the_newer() {
    let mut world = World::new(160, &[4096]);
    world.populate(20);
    write_all(&mut world, 20);
    let old = world.model.disk_bytes(0).clone();
    for vm in 1..=20 {
        for page in 54..64 {
            world.write(vm, page, (vm * 11) as u8 ^ page as u8).unwrap();
        }
    }
    *world.model.disk_bytes(0) = old;
    let mut stopped = 0;
    for vm in 1..=20 {
        stopped += u32::from((54..64).any(|page| world.read(vm, page).is_none()));
    }
    // What they read was always the newest: `read` compares.
    assert!(stopped > 0);
}

#[test]
fn a_disk_that_fails_stops_vms_with_a_reason() {
    let mut world = world();
    world.populate(20);
    write_all(&mut world, 20);
    // From here on nothing can be read or written.
    for turn in 0..3000 {
        let vm = turn % 20 + 1;
        let state = world.model.find(vm).map(|(_, domain)| (domain.state, domain.held));
        if state == Some((DomainState::Runs, false)) {
            let address = space::address(54 + (turn % 10) as u32);
            let (at, _) = world.model.find(vm).unwrap();
            if world.model.access(at, address, Access::empty()).is_none() {
                let (at, domain) = world.model.find(vm).unwrap();
                World::trap(domain, at, EventKind::PageFault, 0, address);
            }
        } else if state.is_none() && !world.stopped.contains_key(&vm) {
            world.ask_as(SWITCH, Request::Bring { vm, address: SPACE_BASE, length: 8, write: false });
        }
        world.turn(turn as usize, false);
    }
    assert!(!world.stopped.is_empty());
    for stop in world.stopped.values() {
        let Stop::Pager(reason) = stop else { panic!("{stop:?}") };
        assert!(reason.contains("input/output error"), "{reason}");
    }
    for vm in 1..=20 {
        assert_eq!(world.ask(Request::Destroy(vm)), Response::Done);
    }
    world.settle();
    assert_eq!((world.pager().in_use().1, world.pager().units_in_use()), (0, 0));
}

#[test]
fn nothing_of_a_vm_can_be_read_on_the_disk() {
    let mut world = world();
    world.populate(20);
    for vm in 1..=20 {
        for page in 54..64 {
            for offset in 0..32 {
                world
                    .act(
                        vm,
                        space::address(page) + offset,
                        Act::Write(b"the secret of a virtual machine!"[offset as usize]),
                    )
                    .unwrap();
            }
        }
        world.idle(vm, NEVER);
    }
    world.settle();
    assert!(world.pool()["page_outs"] > 0);
    for disk in 0..2 {
        let found = world.model.disk_bytes(disk).windows(16).any(|window| window == b"the secret of a ");
        assert!(!found);
    }
}

#[test]
fn block_sizes_read_that_much_at_once() {
    for block in [1, 4, 16] {
        let mut world = World::new(160, &[2048]);
        world.block = block;
        world.bury();
        world.populate(12);
        write_all(&mut world, 12);
        for vm in 1..=12 {
            for page in 54..64 {
                world.read(vm, page).unwrap();
            }
        }
    }
}

#[test]
fn many_that_start_at_once_all_get_done() {
    let mut world = World::new(400, &[16384]);
    world.tick = 100_000;
    start_at_once(&mut world, Work { rounds: 2, ..WORK }, |_| true);
}

#[test]
fn many_get_done_where_sealing_takes_longer_than_a_turn() {
    let mut world = World::new(400, &[16384]);
    // There is one processor, and VMs have it while the pager rests. This takes 26 seconds, nearly all of it for sealing and opening pages. It took 40 when
    // who waited got its memory page by page, and 124 when besides VMs were made to leave as soon as those who came back had been opened.
    (world.tick, world.model.sealing) = (0, 5_000_000);
    start_at_once(&mut world, Work { rounds: 4, slice: 1, ..WORK }, |world| {
        let rests = world.model.under_way() == 0 && world.pager().next_deadline() > world.model.now;
        world.model.now += if rests { 1_000_000 } else { 10_000 };
        rests
    });
    assert!(world.model.now < 35_000_000_000, "{} ns", world.model.now);
}

#[test]
fn many_large_ones_that_start_at_once_all_get_done() {
    // Each has more pages than the piece that it leaves in, and all together have five times the memory there is.
    let mut world = World::new(900, &[32768, 32768]);
    (world.tick, world.model.sealing) = (100_000, 50_000);
    start_at_once(&mut world, Work { vms: 30, pages: 150, rounds: 2, ..WORK }, |_| true);
    // They idle: all leave but for those that fit, and everything is still there.
    world.settle();
    let (total, suspended) = (world.pool()["total"], world.pool()["suspended"]);
    assert!((30 - total / 150..30).contains(&suspended), "{suspended} are suspended");
    for vm in 1..=30 {
        (40..190).for_each(|page| assert!(world.read(vm, page).is_some(), "{:?}", world.stopped));
    }
    // Not much more was written than there is: twice, as there were two rounds.
    let written = world.pool()["page_outs"];
    assert!(written < 30 * 150 * 4, "{written} pages were written");
}

/// What VMs do that all start at once.
#[derive(Clone, Copy)]
struct Work {
    vms: u64,
    /// Pages that each works over, and how many times.
    pages: u32,
    rounds: u32,
    /// Pages that it works over when it is its turn.
    slice: u32,
}

const WORK: Work = Work { vms: 60, pages: 24, rounds: 2, slice: u32::MAX };

/// Many VMs work over their pages, and then idle, whenever it is `their_turn`.
fn start_at_once(world: &mut World, work: Work, mut their_turn: impl FnMut(&mut World) -> bool) {
    let Work { vms, pages, rounds, slice } = work;
    let image = world.define();
    let mut done = vec![0; vms as usize + 1];
    for vm in 1..=vms {
        world.create(vm, image, u64::from(pages + 48) * PAGE).unwrap();
    }
    let mut turns = 0;
    while done[1..].iter().any(|done| *done < rounds * pages) {
        let last = if their_turn(world) { vms } else { 0 };
        for vm in 1..=last {
            let progress = &mut done[vm as usize];
            let until = progress.saturating_add(slice);
            while let Some((at, domain)) =
                world.model.find(vm).filter(|(_, domain)| domain.state == DomainState::Runs && !domain.held)
            {
                if *progress == until {
                    break;
                }
                if *progress == rounds * pages {
                    domain.state = DomainState::Idle(NEVER);
                    break;
                }
                domain.time += 20_000;
                domain.switches += 1;
                let page = 40 + *progress % pages;
                let need = if !(48..51).contains(&page) { Access::WRITE } else { Access::empty() };
                let address = space::address(page);
                let Some(byte) = world.model.access(at, address, need) else {
                    let (at, domain) = world.model.find(vm).unwrap();
                    let code = FAULT_WRITE * u32::from(!need.is_empty());
                    World::trap(domain, at, EventKind::PageFault, code, address);
                    break;
                };
                if !need.is_empty() {
                    *byte = vm as u8 | 1;
                    world.written.insert((vm, address), vm as u8 | 1);
                }
                *progress += 1;
            }
        }
        world.turn(turns, true);
        turns += 1;
        assert!(turns < 300_000, "{done:?}");
    }
}

#[test]
fn who_had_to_leave_in_the_middle_of_its_work_comes_back_after_the_pager_has_died() {
    let mut world = world();
    world.populate(20);
    for vm in 1..=20 {
        for page in 56..62 {
            world.write(vm, page, vm as u8).unwrap();
        }
    }
    // Somebody runs and is out of memory all the same.
    let gone = (1..=20).find(|vm| world.model.find(*vm).is_none()).unwrap();
    world.bury();
    for vm in (1..=20).filter(|vm| *vm != gone) {
        assert_eq!(world.ask(Request::Destroy(vm)), Response::Done);
    }
    world.settle();
    assert!(world.model.find(gone).is_some_and(|(_, domain)| domain.state == DomainState::Runs));
}

#[test]
fn a_vm_that_its_pager_has_stopped_stays_stopped_after_a_restart() {
    let mut world = world();
    let image = world.define();
    world.create(1, image, MEMORY).unwrap();
    world.write(1, 60, 1).unwrap();
    let status = protocol::service::block_driver::Status::Failed;
    world.with(|pager, model| pager.halt_for_test(model, 1, status));
    world.turn(0, true);
    assert!(world.stopped.contains_key(&1));
    world.bury();
    assert_eq!(world.ask(Request::Start(1)), Response::BadArgument);
    assert!(world.model.find(1).is_some_and(|(_, domain)| domain.state == DomainState::Stopped));
}
