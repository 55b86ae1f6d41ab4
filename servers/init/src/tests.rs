//! Tests of the whole: a system on a model of the kernel.

use crate::{
    extents::{Extents, Place},
    machine::Capability,
    model::{Model, holdings, manifest},
    system::System,
};
use protocol::{
    abi::{NEVER, Target},
    boot,
    capability::Rights,
    domain::{Event, EventKind, line},
    layout::{HEAP, IMAGE_BASE, MAPPINGS, PAGE, STACK_SIZE, STACK_TOP, STARTUP},
    manifest::{Manifest, NO_DEVICE, Program, Resource, Restart},
    memory::Access,
    service::init::{Request, Response, State},
};

const MILLISECOND: u64 = 1_000_000;

/// A program of one executable segment with these bytes.
fn program(code: &[u8]) -> Vec<u8> {
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend((IMAGE_BASE + 120).to_le_bytes());
    elf.extend(64u64.to_le_bytes());
    elf.extend(0u64.to_le_bytes());
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let length = 120 + code.len() as u64;
    for word in [0, IMAGE_BASE, IMAGE_BASE, length, length + 0x2000, PAGE] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

fn bundle(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, data) in files.iter().chain([&("TRAILER!!!", &[][..])]) {
        let zeros = "0".repeat(8);
        let length = name.len() + 1;
        out.extend(
            format!("070701{}{:08x}{}{:08x}{zeros}", zeros.repeat(6), data.len(), zeros.repeat(4), length).as_bytes(),
        );
        out.extend(name.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(*data);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

fn bundle_of(manifest: &Manifest) -> Vec<u8> {
    bundle(&[("init", b""), ("manifest", &postcard::to_allocvec(manifest).unwrap()), ("program", &program(b"code"))])
}

fn extents() -> Extents {
    let large = Place { slot: boot::slot::MEMORY, first: 0x8000, count: 0x4000 };
    let small = Place { slot: boot::slot::MORE_MEMORY, first: 0x400, count: 0x2000 };
    Extents::new([large, small])
}

fn plan(bundle: &[u8]) -> Result<System<'_, Model>, String> {
    let holdings = crate::grants::Holdings { shared: Default::default(), pool: Vec::new(), ..holdings() };
    System::plan(Model::default(), bundle, extents(), holdings)
}

fn started(bundle: &[u8]) -> System<'_, Model> {
    let mut system = plan(bundle).unwrap();
    system.machine().now = 5 * MILLISECOND;
    system.start_all().unwrap();
    system
}

fn fault(tag: u64) -> Event {
    Event { tag, kind: EventKind::PageFault as u32, code: 2, address: 0x10, instruction: 0x20_1234, ..Event::default() }
}

/// A system in which the server with this index has just died.
fn dead(bundle: &[u8], index: u64) -> System<'_, Model> {
    let mut system = started(bundle);
    system.machine().events.push(fault(index));
    system.machine().lines.clear();
    system.traps();
    system
}

fn states(system: &mut System<Model>) -> Vec<(State, u32)> {
    let Response::Servers(list) = system.request(&Request::List) else { panic!("a list") };
    list.into_iter().map(|info| (info.state, info.restarts)).collect()
}

#[test]
fn all_servers_are_started_with_what_the_manifest_says() {
    let bundle = bundle_of(&manifest());
    let mut system = started(&bundle);
    assert_eq!(states(&mut system), [(State::Running, 0); 4]);
    let machine = system.machine();
    assert_eq!(machine.lines.last().unwrap(), "4 servers started, 5000 us after kernel entry");
    for tag in 0..4 {
        let startup = machine.startup(tag);
        let domain = machine.tagged(tag);
        assert_eq!(domain.started, Some([IMAGE_BASE + 120, STACK_TOP, startup.heap]));
        assert_eq!(domain.parameters.handler, Target::OWN.0);
        // Program: readable and executable; stack and heap writable; guard page below the stack.
        assert_eq!(domain.pages[&IMAGE_BASE].1, Access::EXECUTE);
        assert_eq!(domain.pages[&STARTUP].1, Access::empty());
        for address in [HEAP, HEAP + startup.heap - PAGE, STACK_TOP - PAGE, STACK_TOP - STACK_SIZE] {
            assert_eq!(domain.pages[&address].1, Access::WRITE, "{address:#x}");
        }
        assert!(!domain.pages.contains_key(&(STACK_TOP - STACK_SIZE - PAGE)));
        assert!(!domain.pages.contains_key(&(HEAP + startup.heap)));
        assert_eq!((startup.name.as_str(), startup.incarnation), (manifest().servers[tag as usize].name.as_str(), 0));
        assert_eq!(startup.option("key"), Some("value"));
        // No frame that is mapped or a table is said to be free.
        let free = startup.own_free_first..startup.own_free_first + startup.own_free_count;
        assert!(free.end - free.start >= 16);
        let frames: Vec<u64> =
            domain.pages.values().map(|(frame, _)| *frame).chain(domain.tables.values().copied()).collect();
        assert!(frames.iter().all(|frame| !free.contains(frame)));
        let own = domain.slots[&startup.own_slot].1.unwrap();
        assert!((own.first..own.first + u64::from(own.count)).contains(&free.start));
        assert_eq!(Rights::from_bits(own.rights).unwrap() & (Rights::CONTROL | Rights::EXECUTE), Rights::empty());
        // The program was copied whole, and what lies behind its data is zero.
        let frame = domain.pages[&IMAGE_BASE].0;
        let behind = domain.pages[&(IMAGE_BASE + PAGE)].0;
        assert_eq!(&machine.memory[&frame][120..126], b"code\0\0");
        assert!(machine.memory[&behind].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn no_frame_belongs_to_two() {
    let bundle = bundle_of(&manifest());
    let mut system = started(&bundle);
    let pool = system.holdings().pool.clone();
    let mut owners = std::collections::BTreeMap::new();
    // The servers are small enough for the smaller extent; the rest of both is the pool.
    assert_eq!(pool.iter().map(|place| place.slot).collect::<Vec<_>>(), [boot::slot::MEMORY, boot::slot::MORE_MEMORY]);
    for place in pool {
        for frame in place.first..place.first + place.count {
            assert_eq!(owners.insert(frame, 77), None);
        }
    }
    let shared = system.holdings().shared["net0"];
    for tag in 0..4 {
        let own = {
            let slot = system.machine().startup(tag).own_slot;
            system.machine().tagged(tag).slots[&slot].1.unwrap()
        };
        for frame in own.first..own.first + u64::from(own.count) {
            assert_eq!(owners.insert(frame, tag), None);
        }
    }
    for frame in shared.first..shared.first + shared.count {
        assert_eq!(owners.insert(frame, 78), None);
        assert!(system.machine().memory[&frame].iter().all(|byte| *byte == 0), "shared memory begins as zeros");
    }
}

#[test]
fn foreign_memory_is_mapped_where_the_startup_page_says() {
    let bundle = bundle_of(&manifest());
    let mut system = started(&bundle);
    let shared = system.holdings().shared["net0"];
    let startup = system.machine().startup(1);
    let resource = startup.resources.iter().find(|r| matches!(r.resource, Resource::Shared { .. })).unwrap();
    assert_eq!((resource.address, resource.first, resource.count), (MAPPINGS, shared.first, 3));
    let pages = &system.machine().tagged(1).pages;
    assert_eq!(pages[&(MAPPINGS + 2 * PAGE)], (shared.first + 2, Access::WRITE));
    let startup = system.machine().startup(2);
    let resource = startup.resources.iter().find(|r| r.resource == Resource::Bundle).unwrap();
    assert_eq!((resource.address, resource.length), (MAPPINGS, holdings().bundle_length));
    assert_eq!(system.machine().tagged(2).pages[&MAPPINGS], (0x9000, Access::empty()));
}

#[test]
fn a_server_that_dies_is_restarted_in_place_and_its_peers_are_told() {
    let bundle = bundle_of(&manifest());
    let mut system = started(&bundle);
    let before = system.machine().startup(1);
    system.machine().tagged(1).steps = 3;
    system.machine().events.push(fault(1));
    system.machine().lines.clear();
    system.traps();
    assert_eq!(
        system.machine().lines,
        [
            "server driver died: page fault at 0x10 (write) by instruction 0x201234",
            "server driver is restarted in 10 ms"
        ]
    );
    assert_eq!(states(&mut system)[1], (State::Restarting, 0));
    assert_eq!(system.machine().tagged(1).started, None);
    assert_eq!(system.next_restart(), 15 * MILLISECOND);
    system.restarts();
    assert_eq!(states(&mut system)[1].0, State::Restarting, "not before its time");
    system.machine().now = 15 * MILLISECOND;
    system.restarts();
    assert_eq!((states(&mut system)[1], system.next_restart()), ((State::Running, 1), NEVER));
    let after = system.machine().startup(1);
    assert_eq!(after, protocol::manifest::Startup { incarnation: 1, ..before });
    // Platform (called by it) and swap (its client) are told; the supervisor has nothing to do with it.
    let raised: Vec<_> = (0..4).map(|tag| system.machine().tagged(tag).raised.clone()).collect();
    assert_eq!(raised, [vec![line::PEER_RESTARTED], vec![], vec![line::PEER_RESTARTED], vec![]]);
}

#[test]
fn a_server_that_keeps_dying_is_given_up_and_the_operator_can_start_it() {
    let bundle = bundle_of(&manifest());
    let mut system = dead(&bundle, 1);
    for _ in 0..2 {
        system.machine().now = system.next_restart();
        system.restarts();
        system.machine().events.push(fault(1));
        system.traps();
    }
    assert_eq!(system.machine().lines.last().unwrap(), "server driver given up after 3 deaths");
    assert_eq!((states(&mut system)[1], system.next_restart()), ((State::GivenUp, 2), NEVER));
    assert_eq!(system.machine().domains.len(), 3, "its callers get an error, not silence");
    assert_eq!(system.request(&Request::Kill("driver")), Response::WrongState);

    // A peer that is restarted meanwhile does without it.
    assert_eq!(system.request(&Request::Kill("swap")), Response::Done);
    system.machine().now = system.next_restart();
    system.restarts();
    let slot = system.machine().startup(2).channel("driver").unwrap().slot;
    assert!(!system.machine().tagged(2).slots.contains_key(&slot));

    assert_eq!(system.request(&Request::Start("driver")), Response::Done);
    assert_eq!(states(&mut system)[1], (State::Running, 3));
    let (target, _) = system.machine().domains.iter().find(|(_, d)| d.parameters.tag == 1).unwrap();
    let target = Target(*target);
    let (capability, narrow) = system.machine().tagged(2).slots[&slot];
    assert_eq!(capability, Capability::Domain(target), "its client reaches the new one");
    assert_eq!(narrow.unwrap().badge, 2);
    let client = system.machine().startup(0).clients.iter().find(|c| c.name == "driver").unwrap().slot;
    assert_eq!(system.machine().tagged(0).slots[&client].0, Capability::Domain(target));
    assert_eq!(system.request(&Request::Start("driver")), Response::WrongState);
}

#[test]
fn a_policy_of_never_is_kept() {
    let mut manifest = manifest();
    manifest.servers[1].restart = Restart::Never;
    let bundle = bundle_of(&manifest);
    let mut system = dead(&bundle, 1);
    assert_eq!(system.machine().lines.last().unwrap(), "server driver given up after 1 death");
    assert_eq!(system.next_restart(), NEVER);
}

#[test]
fn a_server_whose_program_finds_no_device_gets_its_next() {
    let mut manifest = manifest();
    let first = manifest.servers[1].programs[0].clone();
    manifest.servers[1].programs.push(Program { file: "other".into(), ..first });
    let bundle = bundle(&[
        ("init", b""),
        ("manifest", &postcard::to_allocvec(&manifest).unwrap()),
        ("program", &program(b"code")),
        ("other", &program(b"more")),
    ]);
    let mut system = started(&bundle);
    let none = Event { tag: 1, kind: EventKind::Exit as u32, code: NO_DEVICE, ..Event::default() };
    let startup = system.machine().startup(1);
    assert_eq!((startup.program, startup.more_programs), (0, true));
    system.machine().lines.clear();
    system.machine().events.push(none);
    system.traps();
    assert_eq!(system.machine().lines, ["server driver: no device for program; trying other"]);
    assert_eq!(states(&mut system)[1], (State::Running, 0), "it did not die");
    let startup = system.machine().startup(1);
    assert_eq!((startup.program, startup.more_programs), (1, false));
    let frame = system.machine().tagged(1).pages[&IMAGE_BASE].0;
    assert_eq!(&system.machine().memory[&frame][120..124], b"more");
    assert_eq!(system.machine().tagged(2).raised, [line::PEER_RESTARTED], "who called the first opens a new session");

    // With the last one it is a death like any other, and that program is started again.
    system.machine().events.push(none);
    system.traps();
    assert!(system.machine().lines.contains(&"server driver died: exit with code 2".to_string()));
    system.machine().now = system.next_restart();
    system.restarts();
    assert_eq!(states(&mut system)[1], (State::Running, 1));
    assert_eq!(system.machine().startup(1).program, 1);
}

#[test]
fn a_restart_that_fails_counts_as_a_death() {
    let bundle = bundle_of(&manifest());
    let mut system = dead(&bundle, 1);
    system.machine().refuse_start = true;
    system.machine().now = system.next_restart();
    system.restarts();
    assert!(system.machine().lines.iter().any(|line| line.contains("its start: ")));
    assert_eq!(states(&mut system)[1].0, State::Restarting);
    system.machine().now = system.next_restart();
    system.restarts();
    assert_eq!(states(&mut system)[1], (State::Running, 2));
}

#[test]
fn the_operator_names_servers() {
    let bundle = bundle_of(&manifest());
    let mut system = started(&bundle);
    assert_eq!(system.request(&Request::Kill("nobody")), Response::Unknown);
    assert_eq!(system.request(&Request::Start("nobody")), Response::Unknown);
    assert_eq!(system.request(&Request::Start("swap")), Response::WrongState);
    assert_eq!(system.request(&Request::Kill("swap")), Response::Done);
    assert_eq!(states(&mut system)[2].0, State::Restarting);
    assert!(system.machine().lines.contains(&"server swap died: killed".to_string()));
    assert_eq!(system.request(&Request::Kill("swap")), Response::WrongState);
}

#[test]
fn events_of_nobody_and_of_the_dead_are_passed_over() {
    let bundle = bundle_of(&manifest());
    let mut system = dead(&bundle, 1);
    system.machine().events.extend([fault(1), fault(4), fault(u64::MAX)]);
    system.traps();
    assert_eq!(system.machine().lines.len(), 2);
    // A server that says `ready` goes on.
    system.machine().events.push(Event { tag: 0, kind: EventKind::Ready as u32, ..Event::default() });
    system.traps();
    assert_eq!(states(&mut system)[0].0, State::Running);
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    let refused = |bundle: &[u8]| plan(bundle).map(drop).unwrap_err();
    let change = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = manifest();
        change(&mut manifest);
        refused(&bundle_of(&manifest))
    };
    assert!(refused(b"").contains("manifest refused: the bundle has no end mark"));
    assert!(refused(&bundle(&[("init", b"")])).contains("has no file \"manifest\""));
    assert!(refused(&bundle(&[("manifest", b"\xff\xff\xff\xff\xff\xff")])).contains("manifest refused: it is damaged"));
    assert!(change(&|m| m.servers[0].memory += 1).contains("multiple of 4096"));
    assert!(
        change(&|m| m.servers[0].programs[0].file = "x".into())
            .contains("server \"platform\" refused: the bundle has no file")
    );
    assert!(
        change(&|m| m.servers[0].programs[0].file = "manifest".into())
            .contains("program \"manifest\": not an ELF file")
    );
    assert!(change(&|m| m.servers[0].memory = PAGE).contains("KiB of memory, and the server has 4 KiB"));
    assert!(change(&|m| m.servers[0].memory = 1 << 40).contains("no memory for server \"platform\""));
    let huge = Resource::Shared { name: "huge".into(), bytes: 1 << 40 };
    assert!(change(&|m| m.servers[0].resources.push(huge.clone())).contains("no memory for shared memory"));
    let long = ("k".into(), "v".repeat(5000));
    let mut manifest = manifest();
    manifest.servers[0].options.push(long);
    let bundle = bundle_of(&manifest);
    let reason = plan(&bundle).unwrap().start_all().unwrap_err();
    assert!(reason.contains("too many options"), "{reason}");
}
