//! Without swap space: everything is promised, and stays in memory.

use super::*;

fn world() -> World {
    World::new(600, &[])
}

#[test]
fn a_vm_sees_its_image_and_zeros() {
    let mut world = world();
    let image = world.define();
    world.create(1, image, MEMORY).unwrap();
    for address in
        [CODE, CODE + 3 * PAGE + 7, CODE + 19 * PAGE, CONSTANTS + PAGE + 6, CONSTANTS + PAGE + 7, DATA + 0x123]
    {
        world.act(1, address, Act::Read).unwrap();
    }
    assert!(world.act(1, CODE + 5, Act::Execute).is_some());
    for address in [DATA + 0x123, DATA + 5 * PAGE, SPACE_BASE + 60 * PAGE, SPACE_BASE + 8] {
        world.act(1, address, Act::Read).unwrap();
        world.act(1, address, Act::Write(0x42)).unwrap();
        world.act(1, address, Act::Read).unwrap();
    }
    // Another VM of the image sees nothing of that.
    world.create(2, image, MEMORY).unwrap();
    for address in [DATA + 0x123, DATA + 5 * PAGE, SPACE_BASE + 60 * PAGE] {
        world.act(2, address, Act::Read).unwrap();
    }
}

#[test]
fn what_is_forbidden_stops_the_vm_alone() {
    let mut world = world();
    let image = world.define();
    let bad = [
        (CODE, Act::Write(1)),
        (CONSTANTS, Act::Write(1)),
        (DATA, Act::Execute),
        (SPACE_BASE + MEMORY, Act::Read),
        (0, Act::Read),
        (SPACE_BASE + 60 * PAGE, Act::Execute),
    ];
    world.create(99, image, MEMORY).unwrap();
    for (vm, (address, act)) in (1..).zip(bad) {
        world.create(vm, image, MEMORY).unwrap();
        assert_eq!(world.act(vm, address, act), None, "{act:?} at {address:#x}");
        let Stop::BadAccess { address: at, write, execute, .. } = world.stopped[&vm] else { panic!("a bad access") };
        assert_eq!((at, write, execute), (address, matches!(act, Act::Write(_)), act == Act::Execute));
    }
    world.act(99, DATA + 0x200, Act::Read).unwrap();
}

#[test]
fn memory_is_promised_and_comes_back() {
    let mut world = world();
    let image = world.define();
    // The table of VMs grows, and stays.
    world.create(1, image, MEMORY).unwrap();
    assert_eq!(world.ask(Request::Destroy(1)), Response::Done);
    world.settle();
    let free = world.pager().available();
    let mut vms = 0;
    let refused = loop {
        match world.create(vms + 1, image, MEMORY) {
            Ok(_) => vms += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refused, Response::OutOfMemory);
    // Every VM can have all that it was promised.
    for vm in 1..=vms {
        for page in (0..64).filter(|page| !(1..55).contains(page)) {
            world.write(vm, page, vm as u8).unwrap();
        }
    }
    for vm in 1..=vms {
        assert_eq!(world.ask(Request::Destroy(vm)), Response::Done);
    }
    // A creation waits for what is being given back.
    assert!(world.create(1, image, MEMORY).is_ok());
    assert_eq!(world.ask(Request::Destroy(1)), Response::Done);
    world.settle();
    assert_eq!(world.pager().available(), free);
    assert_eq!(world.ask(Request::DropImage(image)), Response::Done);
    assert_eq!(world.pager().in_use(), (0, 0));
}

#[test]
fn requests_are_checked() {
    let mut world = world();
    let image = world.define();
    let nobody = Client { manager: false, number: None };
    assert_eq!(world.ask_as(nobody, Request::Destroy(1)), Some(Response::Denied));
    assert_eq!(world.ask(Request::Start(5)), Response::NotFound);
    world.model.lent = vec![0; PAGE as usize];
    for request in [
        World::creation(0, image, MEMORY),
        World::creation(1, image, MEMORY + 1),
        World::creation(1, image, 1 << 60),
        Request::Create { vm: 1, image, memory: MEMORY, entry: DATA, windows: [(0, 0); 3], start: false },
        Request::Create {
            vm: 1,
            image,
            memory: MEMORY,
            entry: CODE,
            windows: [(SPACE_BASE, PAGE), (0, 0), (0, 0)],
            start: false,
        },
    ] {
        assert_eq!(world.ask(request), Response::BadArgument);
    }
    assert_eq!(world.ask(World::creation(1, image + 1, MEMORY)), Response::NotFound);
    world.create(1, image, MEMORY).unwrap();
    // The place of a VM is its own; another number at the same place is another VM.
    let other = 1 | 1 << protocol::service::PLACE_BITS;
    assert_eq!(world.ask(World::creation(other, image, MEMORY)), Response::InUse);
    assert_eq!(world.ask(Request::Usage(other)), Response::NotFound);
    assert_eq!(world.ask(Request::DropImage(image)), Response::InUse);
    let bring = |address, length| Request::Bring { vm: 1, address, length, write: true };
    assert_eq!(world.ask_as(SWITCH, bring(CODE, 8)), Some(Response::BadArgument));
    assert_eq!(world.ask_as(SWITCH, bring(DATA, 1 << 20)), Some(Response::BadArgument));
    assert_eq!(world.ask_as(SWITCH, bring(u64::MAX, 8)), Some(Response::BadArgument));
    assert!(matches!(world.ask_as(SWITCH, bring(DATA, 8)), Some(Response::Here(_))));
}

#[test]
fn ends_are_told_once_and_again_after_a_list() {
    let mut world = world();
    let image = world.define();
    world.create(1, image, MEMORY).unwrap();
    let (at, domain) = world.model.find(1).unwrap();
    World::trap(domain, at, EventKind::Ready, 0, 0);
    world.settle();
    assert_eq!(world.stopped.remove(&1), Some(Stop::Ready));
    assert_eq!(world.ask(Request::Start(1)), Response::Done);
    let (at, domain) = world.model.find(1).unwrap();
    World::trap(domain, at, EventKind::Exit, 5, 0);
    world.settle();
    assert_eq!(world.stopped[&1], Stop::Exit(5));
    assert_eq!(world.ask(Request::NextStop), Response::Stopped(None));
    let Response::Vms(vms, None) = world.ask(Request::List { from: 0 }) else { panic!("a list") };
    assert_eq!((vms.len(), vms[0].vm, &vms[0].stop), (1, 1, &Some(Stop::Exit(5))));
}

#[test]
fn an_instruction_that_faults_for_ever_ends_its_vm() {
    let mut world = world();
    let image = world.define();
    world.create(1, image, MEMORY).unwrap();
    world.read(1, 60);
    for _ in 0..40 {
        if let Some((at, domain)) = world.model.find(1).filter(|(_, domain)| domain.state == DomainState::Runs) {
            World::trap(domain, at, EventKind::PageFault, 0, space::address(60));
        }
        world.turn(0, true);
    }
    assert!(matches!(world.stopped[&1], Stop::Pager(_)));
}
