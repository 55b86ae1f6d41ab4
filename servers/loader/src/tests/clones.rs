//! VMs of one kind are clones of the first.

use super::*;
use crate::templates::{ALONE, PATIENCE};

/// So many VMs of an image that says `ready`.
fn fleet(count: u8) -> Vec<Vm> {
    let usual = |vm: Vm| Vm { mac: protocol::nic::usual_mac(vm.address), ..vm };
    (1..=count).map(|number| usual(vm(&format!("web-{number}"), "ready", number))).collect()
}

/// Starts what can be started now.
fn start_now(loader: &mut Loader, world: &mut World) {
    while loader.start_some(world).is_some_and(|at| at <= world.now) {}
}

fn say_ready(loader: &mut Loader, world: &mut World, vm: VmNumber) {
    world.stops.push_back((vm, Stop::Ready));
    while loader.take_stops(world) {}
}

#[test]
fn the_others_wait_for_the_first_and_are_its_clones() {
    let mut world = World::new();
    let mut loader = world.loader(fleet(4), 0);
    loader.start_all(&mut world);
    start_now(&mut loader, &mut world);
    assert_eq!(world.vms.keys().copied().collect::<Vec<_>>(), [1]);
    assert!(loader.starts_at() > world.now);
    world.vms.insert(1, false);
    say_ready(&mut loader, &mut world, 1);
    assert_eq!(world.templates, [1]);
    assert!(world.vms[&1], "it goes on when it says it again");
    start_now(&mut loader, &mut world);
    assert_eq!((world.vms.len(), loader.starts_at()), (2, 77 + ALONE), "the first clone has some time to itself");
    world.now = loader.starts_at();
    start_now(&mut loader, &mut world);
    assert_eq!(world.take_log(), ["4 VMs started, 0 refused, in 5 ms"]);
    let made: Vec<_> = world.made.iter().map(|(vm, image, generation)| (*vm, *image, *generation)).collect();
    assert_eq!(made, [(1, 0, 0), (2, 1, 1), (3, 1, 2), (4, 1, 3)]);
    assert!(world.vms.values().all(|started| *started) && world.ports.len() == 4 && world.consoles.len() == 4);
    let mut seeds = world.seeds.clone();
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), 4, "each has a seed of its own");
    // One that is started again is a clone too, of a generation that none had.
    assert_eq!(loader.request(&mut world, &Request::Stop("web-1")), Response::Done);
    assert_eq!(loader.request(&mut world, &Request::Start("web-1")), Response::Done);
    assert_eq!(world.made.last(), Some(&(1 << 24 | 1, 1, 4)));
}

#[test]
fn nobody_waits_for_ever() {
    let mut world = World::new();
    let mut loader = world.loader(fleet(3), 0);
    loader.start_all(&mut world);
    start_now(&mut loader, &mut world);
    world.now = loader.starts_at();
    assert_eq!(world.now, 77 + PATIENCE);
    start_now(&mut loader, &mut world);
    assert!(world.made.iter().all(|(_, image, generation)| (*image, *generation) == (0, 0)) && world.vms.len() == 3);
    // Late, but for those that come after.
    say_ready(&mut loader, &mut world, 1);
    assert_eq!(loader.request(&mut world, &Request::Stop("web-3")), Response::Done);
    assert_eq!(loader.request(&mut world, &Request::Start("web-3")), Response::Done);
    assert_eq!(world.made.last(), Some(&(1 << 24 | 3, 1, 1)));
}

#[test]
fn without_a_template_all_are_started_on_their_own() {
    let mut world = World { no_template: true, ..World::new() };
    let mut loader = world.loader(fleet(3), 0);
    loader.start_all(&mut world);
    start_now(&mut loader, &mut world);
    say_ready(&mut loader, &mut world, 1);
    start_now(&mut loader, &mut world);
    let log = world.take_log();
    assert!(log[0].starts_with("VMs like web-1 are not cloned: "), "{log:?}");
    assert_eq!(log[1], "3 VMs started, 0 refused, in 0 ms");
    say_ready(&mut loader, &mut world, 2);
    assert!(world.templates.is_empty() && world.made.iter().all(|(_, image, _)| *image == 0));
}

#[test]
fn one_that_ends_is_not_waited_for() {
    let mut world = World::new();
    let mut loader = world.loader(fleet(3), 0);
    loader.start_all(&mut world);
    start_now(&mut loader, &mut world);
    world.stops.push_back((1, Stop::Exit(1)));
    while loader.take_stops(&mut world) {}
    start_now(&mut loader, &mut world);
    assert_eq!(world.vms.keys().copied().collect::<Vec<_>>(), [2], "the next one is the first");
    say_ready(&mut loader, &mut world, 2);
    start_now(&mut loader, &mut world);
    assert_eq!(world.made.last(), Some(&(3, 1, 1)));
}

#[test]
fn a_template_that_the_pager_has_forgotten_is_made_again() {
    let mut world = World::new();
    let mut loader = world.loader(fleet(2), 0);
    loader.start_all(&mut world);
    start_now(&mut loader, &mut world);
    say_ready(&mut loader, &mut world, 1);
    start_now(&mut loader, &mut world);
    world.templates.clear();
    world.forgotten.push(1);
    for vm in ["web-1", "web-2"] {
        assert_eq!(loader.request(&mut world, &Request::Stop(vm)), Response::Done);
    }
    assert_eq!(loader.request(&mut world, &Request::Start("web-1")), Response::Done);
    let first = 1 << 24 | 1;
    assert_eq!(world.made.last(), Some(&(first, 0, 0)));
    say_ready(&mut loader, &mut world, first);
    assert_eq!(loader.request(&mut world, &Request::Start("web-2")), Response::Done);
    assert_eq!(world.made.last(), Some(&(1 << 24 | 2, 2, 3)));
}

#[test]
fn one_of_a_kind_is_no_template_and_neither_is_one_with_disks() {
    let mut world = World::new();
    world.disks.insert("content".into(), 50);
    let disk = Disk { name: "content".into(), read_only: true, blocks: 0 };
    let with_disk = |number| Vm { disks: vec![disk.clone()], ..vm(&format!("disk-{number}"), "ready", number) };
    let alone = |number, words: &str| Vm { arguments: words.into(), ..vm(words, "ready", number) };
    let vms = vec![with_disk(1), with_disk(2), alone(3, "a"), alone(4, "b"), vm("quiet", "quiet", 5)];
    let mut loader = world.loader(vms, 0);
    loader.start_all(&mut world);
    start_now(&mut loader, &mut world);
    for vm in [3, 4] {
        say_ready(&mut loader, &mut world, vm);
    }
    assert_eq!(world.take_log().last().unwrap(), "3 VMs started, 2 refused, in 0 ms", "web images have no disk window");
    assert!(world.templates.is_empty());
}

#[test]
fn a_restarted_loader_knows_templates_by_their_clones() {
    let mut world = World::new();
    let mut loader = world.loader(fleet(3), 0);
    start_all(&mut loader, &mut world);
    world.list = vec![
        VmEntry { vm: 1, at: Some(reference(9)), image: 0, clone: false, started: true, stop: None },
        VmEntry { vm: 2, at: Some(reference(10)), image: 1, clone: true, started: true, stop: None },
    ];
    (world.images, world.ports) = (2, BTreeMap::new());
    let mut loader = world.loader(fleet(3), 1);
    loader.adopt_all(&mut world);
    assert_eq!(loader.request(&mut world, &Request::Start("web-3")), Response::Done);
    assert_eq!(world.made.last(), Some(&(1 << 44 | 3, 1, (1 << 20) + 1)));
}

/// Two kinds of VMs, two of each, all running.
fn two_kinds() -> (World, Loader<'static>) {
    let mut world = World::new();
    let other = fleet(4).split_off(2).into_iter().map(|vm| Vm { name: format!("other-{}", vm.address[3]), ..vm });
    let vms = fleet(2).into_iter().chain(other.map(|vm| Vm { memory: MEMORY * 2, ..vm })).collect();
    let mut loader = world.loader(vms, 0);
    loader.start_all(&mut world);
    for first in [1, 3] {
        start_now(&mut loader, &mut world);
        say_ready(&mut loader, &mut world, first);
    }
    start_now(&mut loader, &mut world);
    assert_eq!(world.made, [(1, 0, 0), (2, 1, 1), (3, 0, 0), (4, 2, 1)]);
    (world, loader)
}

#[test]
fn after_a_restart_of_the_pager_a_number_may_mean_another_template() {
    for learned in [false, true] {
        let (mut world, mut loader) = two_kinds();
        for vm in ["web-1", "web-2", "other-4"] {
            assert_eq!(loader.request(&mut world, &Request::Stop(vm)), Response::Done);
        }
        // Templates 1 and 2 go; the next one made is that of the other kind.
        world.restart_pager();
        if learned {
            all_attached(&mut loader, &mut world);
        }
        assert_eq!(loader.request(&mut world, &Request::Start("other-4")), Response::Done);
        let other = 1 << 24 | 4;
        let image = world.image_of(other);
        say_ready(&mut loader, &mut world, other);
        let template = *world.templates.last().unwrap();
        assert!(template == 1 || image == 1, "the number of the template of `web`");
        assert_eq!(loader.request(&mut world, &Request::Start("web-1")), Response::Done);
        let web = 1 << 24 | 1;
        assert_eq!(world.made.last().unwrap().2, 0, "it is no clone of the other kind's");
        say_ready(&mut loader, &mut world, web);
        assert_eq!(loader.request(&mut world, &Request::Start("web-2")), Response::Done);
        let made = *world.made.last().unwrap();
        assert_eq!(made, (1 << 24 | 2, *world.templates.last().unwrap(), 2), "a generation that none had");
        assert_ne!(made.1, template);
    }
}

#[test]
fn after_a_restart_of_the_pager_templates_are_known_by_their_clones() {
    let (mut world, mut loader) = two_kinds();
    assert_eq!(loader.request(&mut world, &Request::Stop("web-1")), Response::Done);
    world.restart_pager();
    all_attached(&mut loader, &mut world);
    assert_eq!(loader.request(&mut world, &Request::Start("web-1")), Response::Done);
    assert_eq!(world.made.last(), Some(&(1 << 24 | 1, 1, 2)));
    let defined = world.defined.len();
    assert_eq!(loader.request(&mut world, &Request::Stop("other-3")), Response::Done);
    assert_eq!(loader.request(&mut world, &Request::Start("other-3")), Response::Done);
    assert_eq!((world.made.last(), world.defined.len()), (Some(&(1 << 24 | 3, 2, 2)), defined));
}

#[test]
fn a_template_of_which_no_clones_are_made_is_given_up() {
    let (mut world, mut loader) = two_kinds();
    world.refused.push(1);
    for vm in ["web-1", "web-2"] {
        assert_eq!(loader.request(&mut world, &Request::Stop(vm)), Response::Done);
        assert_eq!(loader.request(&mut world, &Request::Start(vm)), Response::Done);
    }
    let made: Vec<_> = world.made.iter().rev().take(2).map(|made| (made.1, made.2)).collect();
    assert_eq!(made, [(0, 0), (0, 0)]);
    let said = "clones are made no more of a template: the pager did not create it: it answered BadArgument";
    assert_eq!(world.take_log().iter().filter(|line| *line == said).count(), 1);
}

#[test]
fn clones_are_made_many_at_a_time() {
    let mut world = World::new();
    let mut loader = world.loader(fleet(80), 0);
    start_all(&mut loader, &mut world);
    // Nobody has said `ready` in time: all on their own.
    assert!(world.batches.is_empty() && world.vms.len() == 80);
    let mut world = World { memory: 60, ..World::new() };
    let mut loader = world.loader(fleet(80), 0);
    loader.start_all(&mut world);
    start_now(&mut loader, &mut world);
    say_ready(&mut loader, &mut world, 1);
    start_now(&mut loader, &mut world);
    assert_eq!((world.made.len(), world.batches.len()), (2, 0), "the first clone has some time to itself");
    world.now = loader.starts_at();
    start_now(&mut loader, &mut world);
    // Memory ends in the second batch, and each of the others is told so.
    assert_eq!((world.vms.len(), &world.batches[..2]), (60, &[32, 32][..]));
    let log = world.take_log();
    let refused = log.iter().filter(|line| line.ends_with("refused: not enough memory for its 256 KiB"));
    assert_eq!((refused.count(), log.last().unwrap().as_str()), (20, "60 VMs started, 20 refused, in 5 ms"));
    assert_eq!((world.ports.len(), world.consoles.len()), (60, 60), "nothing is left of those that were refused");
    let mut generations: Vec<_> = world.made.iter().map(|made| made.2).collect();
    generations.dedup();
    assert_eq!(generations.len(), 60);
    assert!(world.vms.values().all(|started| *started));
}
