//! Templates and clones.

use super::*;
use protocol::domain::line;

const HEAP: u32 = 60;

fn world() -> World {
    World::new(400, &[])
}

/// A world with VM 1 that has written data and heap and became a template; its number.
fn with_template(world: &mut World) -> u32 {
    let image = world.define();
    world.create(1, image, MEMORY).unwrap();
    world.write(1, 35, 11).unwrap();
    world.write(1, HEAP, 22).unwrap();
    world.write(1, HEAP + 2, 33).unwrap();
    world.idle(1, 5);
    world.say_ready(1);
    world.settle();
    assert_eq!(world.templates.len(), 1);
    world.templates[0].0
}

fn clone(world: &mut World, vm: u64, template: u32) {
    world.model.lent = vec![0x77; PAGE as usize];
    let answer = world.ask(World::creation(vm, template, MEMORY));
    assert!(matches!(answer, Response::Created(_)), "{answer:?}");
    world.inherit(vm, 0);
    let domain = world.model.find(vm).unwrap().1;
    assert!(domain.held, "it does not run before it is started");
    assert_eq!(world.ask(Request::Start(vm)), Response::Done);
}

#[test]
fn a_clone_goes_on_where_the_template_was_and_only_it_changes() {
    let mut world = world();
    let template = with_template(&mut world);
    clone(&mut world, 2, template);
    let domain = world.model.find(2).unwrap().1;
    assert_eq!((domain.state, domain.held, domain.register), (DomainState::Runs, false, 3));
    assert_eq!((domain.pending, domain.trap, domain.time), (1 << line::CLONE, None, 0));
    for (page, seen) in [(35, 11), (HEAP, 22), (HEAP + 1, 0), (HEAP + 2, 33)] {
        assert_eq!(world.read(2, page), Some(seen));
    }
    // Neither sees what the other writes, nor does the next.
    world.write(1, HEAP, 44).unwrap();
    world.write(2, HEAP, 55).unwrap();
    clone(&mut world, 3, template);
    assert_eq!([1, 2, 3].map(|vm| world.read(vm, HEAP)), [Some(44), Some(55), Some(22)]);
    assert!(world.read(2, 0).is_some() && world.act(2, SPACE_BASE + 200, Act::Read) == Some(0x77));
}

#[test]
fn a_clone_costs_what_it_changes() {
    let mut world = world();
    let template = with_template(&mut world);
    clone(&mut world, 2, template);
    for page in [35, HEAP, HEAP + 2] {
        world.read(2, page).unwrap();
    }
    // Control block, root, directory, leaf, register page.
    let frames = |world: &mut World| match world.ask(Request::Usage(2)) {
        Response::Usage { frames, .. } => frames,
        other => panic!("{other:?}"),
    };
    assert_eq!(frames(&mut world), 5);
    world.write(2, HEAP, 1).unwrap();
    assert_eq!(frames(&mut world), 6);
}

#[test]
fn what_the_first_clone_touches_the_next_one_has() {
    let mut world = world();
    let template = with_template(&mut world);
    clone(&mut world, 2, template);
    world.write(2, HEAP, 5).unwrap();
    world.read(2, 35).unwrap();
    world.idle(2, u64::MAX);
    world.turn(0, true);
    // That is not among it any more.
    world.write(2, HEAP + 3, 6).unwrap();
    clone(&mut world, 3, template);
    let (_, domain) = world.model.find(3).unwrap();
    let mapped = |page: u32| domain.pages.get(&(space::address(page) / PAGE)).map(|mapped| mapped.access);
    assert_eq!(mapped(HEAP), Some(Access::WRITE));
    assert_eq!(mapped(35), Some(Access::empty()));
    assert_eq!((mapped(HEAP + 2), mapped(HEAP + 3)), (None, None));
    for (page, seen) in [(35, 11), (HEAP, 22), (HEAP + 2, 33), (HEAP + 3, 0)] {
        assert_eq!(world.read(3, page), Some(seen));
    }
    world.write(3, 35, 9).unwrap();
    assert_eq!(world.read(2, 35), Some(11));
}

#[test]
fn what_the_first_clone_needs_then_the_next_one_gets_with_the_first_fault() {
    let mut world = world();
    let template = with_template(&mut world);
    clone(&mut world, 2, template);
    world.read(2, 35).unwrap();
    world.idle(2, u64::MAX);
    world.turn(0, true);
    // Of the data page that it has read it makes one of its own; the others it has not touched yet.
    for page in [35, HEAP] {
        world.write(2, page, 6).unwrap();
    }
    for page in [1, 2, 4, 5] {
        world.act(2, space::address(page), Act::Execute).unwrap();
    }
    // It waits for its client's next packet, and the pager sees it waiting: that is not all.
    for _ in 0..3 {
        world.idle(2, u64::MAX);
        world.model.now += 4_000_000;
        world.turn(0, true);
        world.wake(2);
    }
    for page in [HEAP + 1, HEAP + 3] {
        world.write(2, page, 6).unwrap();
    }
    world.read(2, HEAP + 2).unwrap();
    world.idle(2, u64::MAX);
    for _ in 0..2 {
        world.turn(0, true);
        world.model.now += 10_000_000;
    }
    world.turn(0, true);
    clone(&mut world, 3, template);
    let mapped = |world: &mut World, page: u32| {
        let (_, domain) = world.model.find(3).unwrap();
        domain.pages.get(&(space::address(page) / PAGE)).map(|mapped| mapped.access)
    };
    assert_eq!([35, HEAP].map(|page| mapped(&mut world, page)), [Some(Access::empty()), None]);
    assert!(world.deliver(3, HEAP + 3, 9));
    let own = [35, HEAP, HEAP + 1, HEAP + 3].map(|page| mapped(&mut world, page));
    assert_eq!(own, [Some(Access::WRITE); 4]);
    assert_eq!([1, 2, 4].map(|page| mapped(&mut world, page)), [Some(Access::EXECUTE); 3]);
    assert_eq!(mapped(&mut world, HEAP + 2), Some(Access::empty()));
    for (page, seen) in [(35, 11), (HEAP, 22), (HEAP + 1, 0), (HEAP + 2, 33), (HEAP + 3, 0)] {
        assert_eq!(world.read(3, page), Some(seen));
    }
}

#[test]
fn only_a_vm_that_waits_with_ready_becomes_a_template() {
    let mut world = world();
    let template = with_template(&mut world);
    assert_eq!(world.ask(Request::MakeTemplate(1)), Response::BadArgument, "it runs");
    assert_eq!(world.ask(Request::MakeTemplate(7)), Response::NotFound);
    let nobody = Client { manager: false, number: Some(1) };
    assert_eq!(world.ask_as(nobody, Request::MakeTemplate(1)), Some(Response::Denied));
    clone(&mut world, 2, template);
    world.say_ready(2);
    world.settle();
    assert_eq!(world.templates.len(), 1, "a clone does not become one");
    assert!(world.read(2, HEAP).is_some(), "and goes on all the same");
}

#[test]
fn a_clone_is_like_its_template_or_refused() {
    let mut world = world();
    let template = with_template(&mut world);
    world.model.lent = vec![0x77; PAGE as usize];
    let windows = [(DATA & !4095, 2 * PAGE), (0, 0), (0, 0)];
    let other =
        Request::Create { vm: 9, image: template, memory: MEMORY + PAGE, entry: CODE + 8, windows, start: false };
    assert_eq!(world.ask(other), Response::BadArgument);
    let other =
        Request::Create { vm: 9, image: template, memory: MEMORY, entry: CODE + 8, windows: [(0, 0); 3], start: false };
    assert_eq!(world.ask(other), Response::BadArgument);
}

#[test]
fn a_template_and_what_it_is_made_of_live_as_long_as_they_are_used() {
    let mut world = world();
    let template = with_template(&mut world);
    let image = template - 1;
    clone(&mut world, 2, template);
    assert_eq!(world.ask(Request::Destroy(1)), Response::Done);
    world.settle();
    assert_eq!(world.ask(Request::DropImage(image)), Response::InUse);
    assert_eq!(world.ask(Request::DropImage(template)), Response::InUse);
    assert_eq!(world.read(2, HEAP), Some(22));
    assert_eq!(world.ask(Request::Destroy(2)), Response::Done);
    world.settle();
    // A manager that comes anew knows of neither.
    world.with(|pager, _| pager.connected(MANAGER));
    assert_eq!(world.pager().in_use(), (0, 0));
}

#[test]
fn a_restarted_pager_knows_templates_and_clones() {
    let mut world = world();
    let template = with_template(&mut world);
    clone(&mut world, 2, template);
    world.write(2, HEAP + 2, 77).unwrap();
    world.bury();
    world.settle();
    let Response::Vms(vms, None) = world.ask(Request::List { from: 0 }) else { panic!("a list") };
    let of: Vec<_> = vms.iter().map(|vm| (vm.vm, vm.image, vm.clone)).collect();
    assert_eq!(of, [(1, template - 1, false), (2, template, true)]);
    clone(&mut world, 3, template);
    for (vm, page, seen) in [(2, HEAP + 2, 77), (2, HEAP, 22), (3, HEAP + 2, 33), (3, 35, 11), (3, HEAP + 1, 0)] {
        assert_eq!(world.read(vm, page), Some(seen));
    }
}

#[test]
fn clones_are_made_many_at_a_time() {
    let mut world = world();
    let template = with_template(&mut world);
    let pages = |count: usize| (0..count).flat_map(|number| vec![number as u8 + 1; PAGE as usize]).collect::<Vec<u8>>();
    world.model.lent = pages(3);
    assert_eq!(world.ask(Request::Clone { template, vms: vec![2, 3, 4] }), Response::Cloned(3));
    for (vm, byte) in [(2, 1), (3, 2), (4, 3)] {
        world.inherit(vm, 0);
        let domain = world.model.find(vm).unwrap().1;
        assert!(!domain.held && domain.state == DomainState::Runs, "it runs");
        assert_eq!(world.read(vm, 35), Some(11));
        // What follows the kernel's part of its register page is what was lent for it.
        let (at, _) = world.model.find(vm).unwrap();
        assert_eq!(world.model.access(at, SPACE_BASE + 2000, Access::empty()), Some(&mut { byte }));
    }
    // A place that is taken ends it; a page that is not lent, too; an image that is no template is none.
    world.model.lent = pages(3);
    assert_eq!(world.ask(Request::Clone { template, vms: vec![5, 3, 6] }), Response::Cloned(1));
    assert!(world.model.find(6).is_none());
    world.model.lent = pages(1);
    assert_eq!(world.ask(Request::Clone { template, vms: vec![7, 8] }), Response::Cloned(1));
    assert_eq!(world.ask(Request::Clone { template: 0, vms: vec![9] }), Response::NotFound);
    assert_eq!(world.ask(Request::Clone { template: 77, vms: vec![9] }), Response::NotFound);
    assert_eq!(world.ask(Request::Clone { template, vms: vec![] }), Response::Cloned(0));
}
