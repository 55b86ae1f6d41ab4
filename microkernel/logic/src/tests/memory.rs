//! `map` and `transfer`: what they do, and what they refuse.

use super::*;
use protocol::{
    abi::{Lend, NEVER, Target},
    layout::SPACE_END,
    memory::MapKind,
};

/// The bytes of a map operation.
fn operation(kind: MapKind, access: u8, count: u32, address: u64, frame: u64) -> std::vec::Vec<u8> {
    let first = kind as u64 | u64::from(access) << 8 | u64::from(ALL) << 16 | u64::from(count) << 32;
    bytes(&[first, address, frame])
}

fn map(world: &mut World, server: Frame, target: Target, operations: &[std::vec::Vec<u8>]) -> Result<(), Error> {
    world.poke(server, BASE, &operations.concat());
    world.simple(server, Number::Map, target.0, &[BASE, operations.len() as u64]).map(drop)
}

fn transfer(world: &mut World, server: Frame, from: (Target, u64), to: (Target, u64), length: u32) -> (u32, u32) {
    world.poke(server, BASE, &bytes(&[from.0.0, from.1, to.0.0, to.1, u64::from(length), 0]));
    world.simple(server, Number::Transfer, BASE, &[1]).unwrap();
    let result = world.peek_u64(server, BASE + 36);
    (result as u32, (result >> 32) as u32)
}

#[test]
fn map_unmap_and_what_is_refused() {
    let mut world = World::new();
    let server = world.server();
    let frame = u64::from(world.frame());
    let table = u64::from(world.frame());
    let own = Target::OWN;
    let at = BASE + (1 << 21);
    let page = |address, frame| operation(MapKind::Map, 1, 1, address, frame);
    assert_eq!(map(&mut world, server, own, &[page(at, frame)]), Err(Error::NoTable));
    assert_eq!(map(&mut world, server, own, &[operation(MapKind::Table, 0, 1, at, table), page(at, frame)]), Ok(()));
    assert_eq!(map(&mut world, server, own, &[page(at, frame)]), Err(Error::Occupied));
    assert_eq!(world.kernel.frames.count(frame as Frame), 1);
    // A page table, a control block and a mapped frame cannot become something else.
    let other = at + PAGE;
    assert_eq!(map(&mut world, server, own, &[page(other, table)]), Err(Error::Occupied));
    assert_eq!(map(&mut world, server, own, &[page(other, u64::from(server))]), Err(Error::Occupied));
    let far = operation(MapKind::Table, 0, 1, at + (1 << 30), frame);
    assert_eq!(map(&mut world, server, own, &[far]), Err(Error::Occupied));
    for address in [0, SPACE_END, SPACE_END - PAGE + 1, u64::MAX - 4095, 0xffff_8000_0000_0000, at + 8] {
        assert_eq!(map(&mut world, server, own, &[page(address, frame)]), Err(Error::BadArgument), "{address:#x}");
    }
    let huge = operation(MapKind::Unmap, 0, u32::MAX, at, 0);
    assert_eq!(map(&mut world, server, own, &[huge]), Err(Error::BadArgument));
    let last = operation(MapKind::Unmap, 0, 1, SPACE_END - PAGE, 0);
    assert_eq!(map(&mut world, server, own, &[last, operation(MapKind::Unmap, 0, 1, at, 0)]), Ok(()));
    assert_eq!(world.kernel.frames.kind(frame as Frame), FrameKind::Free);
}

#[test]
fn only_devices_combine_writes() {
    let mut world = World::new();
    let server = world.server();
    let (frame, table) = (u64::from(world.frame()), u64::from(world.frame()));
    let at = BASE + (1 << 21);
    let combined = |frame| operation(MapKind::Map, (Access::WRITE | Access::COMBINE).bits(), 1, at, frame);
    let operations = [operation(MapKind::Table, 0, 1, at, table), combined(frame)];
    assert_eq!(map(&mut world, server, Target::OWN, &operations), Err(Error::Denied));
    let devices =
        Capability::new(Kind::Memory, Rights::READ | Rights::WRITE | Rights::MAP | Rights::DEVICE, 0, u32::MAX);
    world.kernel.machine.block_mut(server).slots[usize::from(ALL)] = devices;
    assert_eq!(map(&mut world, server, Target::OWN, &[combined(u64::from(FRAMES))]), Ok(()));
    let root = world.kernel.machine.block(server).root;
    assert!(world.kernel.entry(root, at).is_device() && world.kernel.entry(root, at).is_writable());
}

#[test]
fn long_work_is_cut_into_parts() {
    let mut world = World::new();
    let server = world.server();
    let result = map(&mut world, server, Target::OWN, &[operation(MapKind::Unmap, 0, 1000, 0x4000_0000, 0)]);
    assert_eq!(result, Err(Error::Again));
    let registers = world.registers(server);
    assert_eq!((registers.rdi, registers.words[0]), (0, u64::from(protocol::memory::MAP_PAGES)));
}

#[test]
fn a_vm_may_not_map_or_transfer() {
    let mut world = World::new();
    let vm = world.vm();
    assert_eq!(world.simple(vm, Number::Map, 0, &[BASE, 1]).unwrap_err(), Error::Denied);
    assert_eq!(world.simple(vm, Number::Transfer, BASE, &[1]).unwrap_err(), Error::Denied);
}

#[test]
fn transfers_between_windows_extents_and_zero() {
    let mut world = World::new();
    let (server, vm) = (world.server(), world.vm());
    world.connect(server, 1, vm, 0, 0);
    world.poke(vm, BASE + PAGE + 10, b"from the VM");
    let (own, domain, extent) = (Target::OWN, Target::slot(1), Target::slot(ALL));
    assert_eq!(transfer(&mut world, server, (domain, BASE + PAGE + 10), (own, BASE + 200), 11), (0, 11));
    assert_eq!(world.peek(server, BASE + 200, 11), b"from the VM");
    let frame = world.frame();
    let physical = u64::from(frame) * PAGE + 5;
    assert_eq!(transfer(&mut world, server, (own, BASE + 200), (extent, physical), 11), (0, 11));
    assert_eq!(transfer(&mut world, server, (extent, physical), (domain, BASE + 2 * PAGE - 4), 11), (0, 11));
    assert_eq!(world.peek(vm, BASE + 2 * PAGE - 4, 11), b"from the VM");
    assert_eq!(transfer(&mut world, server, (Target::ZERO, 0), (domain, BASE + 2 * PAGE - 4), 11), (0, 11));
    assert_eq!(world.peek(vm, BASE + 2 * PAGE - 4, 11), [0; 11]);
}

#[test]
fn transfers_that_are_refused() {
    let mut world = World::new();
    let (server, vm) = (world.server(), world.vm());
    world.connect(server, 1, vm, 0, 0);
    let (own, domain, extent) = (Target::OWN, Target::slot(1), Target::slot(ALL));
    let here = (own, BASE + 300);
    let code = |error: Error| error as u32;
    let missing = BASE + PAGES * PAGE;
    assert_eq!(transfer(&mut world, server, (domain, missing - 4), here, 8), (code(Error::NotPresent), 4));
    let there = (domain, missing);
    assert_eq!(
        transfer(&mut world, server, here, there, 8),
        (code(Error::NotPresent), protocol::memory::DESTINATION_MISSING)
    );
    assert_eq!(transfer(&mut world, server, (own, missing), here, 8).0, code(Error::BadAddress));
    for address in [u64::MAX, SPACE_END, 0xffff_8000_0000_0000] {
        assert_eq!(transfer(&mut world, server, (domain, address), here, 8).0, code(Error::BadAddress));
        assert_eq!(transfer(&mut world, server, here, (own, address), 8).0, code(Error::BadAddress));
    }
    // A page table or control block is nobody's bytes, though the extent holds the frame.
    assert_eq!(transfer(&mut world, server, (extent, u64::from(server) * PAGE), here, 8).0, code(Error::Occupied));
    assert_eq!(transfer(&mut world, server, here, (extent, u64::from(vm + 1) * PAGE), 8).0, code(Error::Occupied));
    assert_eq!(transfer(&mut world, server, here, (extent, u64::from(FRAMES) * PAGE - 4), 8).0, code(Error::Denied));
    assert_eq!(transfer(&mut world, server, here, (Target::ZERO, 0), 8).0, code(Error::BadArgument));
    assert_eq!(transfer(&mut world, server, here, here, 64 * 1024 + 1).0, code(Error::BadArgument));
}

#[test]
fn a_window_is_all_that_a_service_reaches() {
    let mut world = World::new();
    let (server, vm) = (world.server(), world.vm());
    world.connect(server, 1, vm, 0, 0);
    let block = world.kernel.machine.block_mut(server);
    let narrow = protocol::capability::Narrow { rights: Rights::WINDOW.bits(), window: 1, ..Default::default() };
    block.slots[2] = block.slots[1].narrowed(&narrow).unwrap();
    world.kernel.machine.block_mut(vm).windows[0] = protocol::domain::Window { address: BASE + PAGE, length: PAGE };
    let here = (Target::OWN, BASE + 300);
    let window = Target::slot(2);
    assert_eq!(transfer(&mut world, server, (window, BASE + PAGE), here, 16).0, 0);
    for address in [BASE + PAGE - 1, BASE + 2 * PAGE - 15, BASE, u64::MAX - 8] {
        assert_ne!(transfer(&mut world, server, (window, address), here, 16).0, 0, "{address:#x}");
    }
}

#[test]
fn a_lent_range_is_open_until_the_reply() {
    let mut world = World::new();
    let (client, server) = (world.server(), world.server());
    world.connect(client, 0, server, 0, 0);
    world.enter(server, Request::message(Number::ReplyWait, 0, 0), 0, &[], NEVER);
    world.poke(client, BASE + PAGE + 16, b"lent");
    let lend = Lend::new(BASE + PAGE, 1).unwrap();
    world.enter(client, Request::message(Number::Call, 0, 0), 0, &[], lend.0);
    let token = Target(world.registers(server).rdi);
    let here = (Target::OWN, BASE + 300);
    assert_eq!(transfer(&mut world, server, (token, 16), here, 4), (0, 4));
    assert_eq!(world.peek(server, BASE + 300, 4), b"lent");
    assert_eq!(transfer(&mut world, server, (token, PAGE - 2), here, 4).0, Error::Denied as u32);
    world.simple(server, Number::Reply, token.0, &[]).unwrap();
    assert_eq!(transfer(&mut world, server, (token, 16), here, 4).0, Error::Gone as u32);
}

#[test]
fn records_may_lie_across_pages() {
    const COUNT: u64 = 3;
    // The first two pages of a server do not lie behind each other in memory.
    for start in (BASE + PAGE - 144..=BASE + PAGE).step_by(8) {
        let mut world = World::new();
        let server = world.server();
        let (from, to) = (BASE + 2 * PAGE, BASE + 3 * PAGE);
        world.poke(server, from, &bytes(&[11, 22, 33]));
        let (own, wrong) = (Target::OWN.0, 0xeeee);
        let copy = |index: u64| [own, from + index * 8, own, to + index * 8, 8 | wrong << 32, wrong];
        world.poke(server, start, &(0..COUNT).flat_map(|index| bytes(&copy(index))).collect::<std::vec::Vec<_>>());
        let done = world.simple(server, Number::Transfer, start, &[COUNT]).unwrap().rdi;
        let results: std::vec::Vec<_> =
            (0..COUNT).map(|index| world.peek_u64(server, start + index * 48 + 36)).collect();
        assert_eq!((done, results), (COUNT, std::vec![8 << 32; COUNT as usize]), "{start:#x}");
        assert_eq!(world.peek(server, to, 24), bytes(&[11, 22, 33]));

        let frames = [(); COUNT as usize].map(|()| world.frame());
        let at = |index: u64| BASE + (PAGES + index) * PAGE;
        let map = |index: u64| operation(MapKind::Map, 1, 1, at(index), u64::from(frames[index as usize]));
        world.poke(server, start, &(0..COUNT).flat_map(map).collect::<std::vec::Vec<_>>());
        world.simple(server, Number::Map, Target::OWN.0, &[start, COUNT]).unwrap();
        let root = world.kernel.machine.block(server).root;
        assert_eq!([0, 1, 2].map(|index| world.kernel.entry(root, at(index)).frame()), frames);
    }
}

#[test]
fn records_are_not_read_where_they_are_no_more() {
    let mut world = World::new();
    let (server, frame) = (world.server(), world.frame());
    let records = BASE + 3 * PAGE;
    let unmap = operation(MapKind::Unmap, 0, 1, records, 0);
    let map = operation(MapKind::Map, 1, 1, BASE + PAGES * PAGE, u64::from(frame));
    world.poke(server, records, &[unmap, map].concat());
    assert_eq!(world.simple(server, Number::Map, Target::OWN.0, &[records, 2]), Err(Error::BadAddress));
    assert_eq!(world.registers(server).rdi, 1, "the first was done");
    assert_eq!(world.kernel.frames.kind(frame), FrameKind::Free);
}
