//! Random lives of many VMs, with disks that answer in any order and fail, and a pager that dies at any moment.

use super::*;
use proptest::prelude::*;
use protocol::abi::NEVER;

const VMS: u64 = 12;
/// Pages of a large VM.
const LARGE: u64 = 200;

#[derive(Clone, Debug)]
enum Step {
    Create(u64),
    Destroy(u64),
    Read(u64, u32),
    Write(u64, u32, u8),
    /// More pages than the piece of a suspended VM has room for, of a large VM.
    Fill(u64, u8),
    Deliver(u64, u32, u8),
    Idle(u64, Option<u16>),
    /// It says `ready`, and becomes a template.
    Ready(u64),
    Pass(u16),
    Turn(usize, bool),
    /// The pager dies so many calls from here.
    Die(usize),
}

fn step(failures: bool) -> impl Strategy<Value = Step> {
    let vm = 1..=VMS;
    // The register page, data, constants, and heap.
    let page = prop_oneof![Just(0u32), 33u32..39, 49u32..51, 52u32..64];
    let writable = prop_oneof![Just(0u32), 34u32..38, 52u32..64];
    prop_oneof![
        3 => vm.clone().prop_map(Step::Create),
        1 => vm.clone().prop_map(Step::Destroy),
        8 => (vm.clone(), page).prop_map(|(vm, page)| Step::Read(vm, page)),
        12 => (vm.clone(), writable.clone(), any::<u8>()).prop_map(|(vm, page, value)| Step::Write(vm, page, value)),
        2 => (vm.clone(), any::<u8>()).prop_map(|(vm, value)| Step::Fill(vm, value)),
        4 => (vm.clone(), writable, any::<u8>()).prop_map(|(vm, page, value)| Step::Deliver(vm, page, value)),
        1 => vm.clone().prop_map(Step::Ready),
        6 => (vm, proptest::option::of(any::<u16>())).prop_map(|(vm, deadline)| Step::Idle(vm, deadline)),
        2 => any::<u16>().prop_map(Step::Pass),
        8 => (0usize..8, prop::bool::weighted(if failures { 0.8 } else { 1.0 })).prop_map(|(which, good)| Step::Turn(which, good)),
        2 => (1usize..60).prop_map(Step::Die),
    ]
}

fn live(steps: Vec<Step>, dies: bool, large: bool) {
    let (memory, mut world) = match large {
        true => (LARGE * PAGE, World::new(260, &[1700, 1700])),
        false => (MEMORY, World::new(130, &[700, 700])),
    };
    let image = world.define();
    let mut vms: Vec<u64> = Vec::new();
    let mut uses = 0;
    for step in steps {
        let named = |vms: &Vec<u64>, vm: u64| vms.iter().copied().find(|number| number & 0xff == vm);
        match step {
            Step::Create(vm) if named(&vms, vm).is_none() => {
                uses += 1;
                let number = vm | uses << protocol::service::PLACE_BITS;
                world.model.lent = vec![0x77; PAGE as usize];
                let template = world.templates.len().checked_sub(1).filter(|_| uses % 2 == 0);
                let image = template.map_or(image, |template| world.templates[template].0);
                match world.ask_as(MANAGER, World::creation(number, image, memory)) {
                    Some(Response::Created(_)) => {
                        vms.push(number);
                        if let Some(template) = template {
                            world.inherit(number, template);
                        }
                        // A pager that dies in the middle of it may have started it or not.
                        while !matches!(
                            world.ask_as(MANAGER, Request::Start(number)),
                            Some(Response::Done | Response::BadArgument)
                        ) {}
                    }
                    Some(Response::OutOfSwap | Response::OutOfMemory | Response::InUse) => {}
                    // The pager died: whether it is there, the list says; here it is given up.
                    None => while world.ask_as(MANAGER, Request::Destroy(number)).is_none() {},
                    other => panic!("{other:?}"),
                }
            }
            Step::Destroy(vm) => {
                if let Some(number) = named(&vms, vm) {
                    while world.ask_as(MANAGER, Request::Destroy(number)).is_none() {}
                    vms.retain(|other| *other != number);
                    world.stopped.remove(&number);
                    world.ready.remove(&number);
                }
            }
            Step::Read(vm, page) => {
                if let Some(number) = named(&vms, vm) {
                    world.read(number, page);
                }
            }
            Step::Write(vm, page, value) => {
                if let Some(number) = named(&vms, vm) {
                    world.write(number, page, value);
                }
            }
            Step::Fill(vm, value) => {
                if let Some(number) = named(&vms, vm).filter(|_| large) {
                    for page in 64..64 + 110 {
                        world.write(number, page, value ^ page as u8);
                    }
                }
            }
            Step::Deliver(vm, page, value) => {
                if let Some(number) = named(&vms, vm) {
                    world.deliver(number, page, value);
                }
            }
            Step::Idle(vm, deadline) => {
                if let Some(number) = named(&vms, vm) {
                    let deadline = deadline.map_or(NEVER, |after| world.model.now + u64::from(after));
                    world.idle(number, deadline);
                }
            }
            Step::Ready(vm) => {
                if let Some(number) = named(&vms, vm).filter(|_| world.templates.len() < 3) {
                    world.say_ready(number);
                }
            }
            Step::Pass(time) => world.model.now += u64::from(time),
            Step::Turn(which, good) => world.turn(which, good),
            Step::Die(after) if dies => world.model.dies_at = Some(world.model.calls + after),
            _ => {}
        }
    }
    world.model.dies_at = None;
    // Whoever was not stopped by a disk that failed has all that it wrote.
    let written: Vec<(u64, u64)> = world.written.keys().copied().collect();
    for (vm, address) in written.into_iter().filter(|(vm, _)| vms.contains(vm)) {
        world.act(vm, address, Act::Read);
    }
    for stop in world.stopped.values() {
        assert!(matches!(stop, Stop::Pager(reason) if reason.contains("input/output error")), "{stop:?}");
    }
    for vm in vms {
        assert_eq!(world.ask(Request::Destroy(vm)), Response::Done);
    }
    world.settle();
    // Templates that it had made when it died nobody knows of: they go when its manager comes anew.
    world.with(|pager, _| pager.connected(MANAGER));
    assert_eq!(world.ask(Request::DropImage(image)), Response::NotFound);
    assert_eq!((world.pager().in_use(), world.pager().units_in_use()), ((0, 0), 0));
    assert_eq!((world.model.taken_slots(), world.pager().spoken_for()), (0, (0, 0)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_is_lost(steps in prop::collection::vec(step(false), 1..160)) {
        live(steps, false, false);
    }

    #[test]
    fn nothing_is_lost_when_disks_fail(steps in prop::collection::vec(step(true), 1..160)) {
        live(steps, false, false);
    }

    #[test]
    fn nothing_is_lost_when_the_pager_dies(steps in prop::collection::vec(step(false), 1..160)) {
        live(steps, true, false);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn nothing_is_lost_of_large_vms(steps in prop::collection::vec(step(true), 1..160)) {
        live(steps, false, true);
    }

    #[test]
    fn nothing_is_lost_of_large_vms_when_the_pager_dies(steps in prop::collection::vec(step(false), 1..160)) {
        live(steps, true, true);
    }
}
