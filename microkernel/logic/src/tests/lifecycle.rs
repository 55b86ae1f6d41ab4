//! Creation, reset and destruction of domains: everything comes back.

use super::*;
use protocol::{
    abi::Target,
    domain::{Control, DomainParameters},
};

/// Creates a domain by system call; returns its target.
fn create(world: &mut World, server: Frame, frame: Frame, root: Frame, band: u64) -> Result<Target, Error> {
    create_of(world, server, frame, (ALL, root), band)
}

/// Creates a domain whose root page table is in the extent in another slot.
fn create_of(
    world: &mut World,
    server: Frame,
    frame: Frame,
    (slot, root): (u8, Frame),
    band: u64,
) -> Result<Target, Error> {
    let mut words = [0u64; size_of::<DomainParameters>() / 8];
    (words[0], words[1], words[2], words[4]) = (u64::from(root), slot.into(), 77, band);
    world.poke(server, BASE, &bytes(&words));
    world.simple(server, Number::DomainCreate, u64::from(ALL), &[u64::from(frame), BASE]).map(|got| Target(got.rdi))
}

fn control(
    world: &mut World,
    server: Frame,
    target: Target,
    control: Control,
    arguments: [u64; 3],
) -> Result<(), Error> {
    let [a, b, c] = arguments;
    world.simple(server, Number::DomainControl, target.0, &[control as u64, a, b, c]).map(drop)
}

fn used(world: &World) -> usize {
    (0..FRAMES)
        .filter(|frame| {
            matches!(world.kernel.frames.kind(*frame), FrameKind::User | FrameKind::Table | FrameKind::Block)
        })
        .count()
}

#[test]
fn all_frames_come_back_on_destroy() {
    let mut world = World::new();
    let server = world.server();
    let before = used(&world);
    let (frame, root) = (world.frame(), world.frame());
    let target = create(&mut world, server, frame, root, 2).unwrap();
    let pages: std::vec::Vec<u64> = (0..3).map(|_| u64::from(world.frame())).collect();
    let slot = u64::from(ALL) << 16;
    for (kind, address, frame) in [(1, BASE, pages[0]), (1, BASE, pages[1]), (0, BASE, pages[2])] {
        world.poke(server, BASE, &bytes(&[kind | slot | 1 << 32, address, frame]));
        world.simple(server, Number::Map, target.0, &[BASE, 1]).unwrap();
    }
    assert_eq!(used(&world), before + 5);
    control(&mut world, server, target, Control::Start, [BASE, 0, 0]).unwrap();
    while control(&mut world, server, target, Control::Destroy, [0; 3]) == Err(Error::Again) {}
    assert_eq!(used(&world), before);
    assert_eq!(control(&mut world, server, target, Control::Start, [BASE, 0, 0]), Err(Error::Gone));
    // The frames serve again, under another generation.
    let again = create(&mut world, server, frame, root, 2).unwrap();
    assert_ne!(again, target);
}

#[test]
fn capabilities_to_a_destroyed_domain_are_dead() {
    let mut world = World::new();
    let (server, client) = (world.server(), world.server());
    let (frame, root) = (world.frame(), world.frame());
    let target = create(&mut world, server, frame, root, 1).unwrap();
    world.connect(client, 9, frame, 0, 3);
    while control(&mut world, server, target, Control::Destroy, [0; 3]) == Err(Error::Again) {}
    create(&mut world, server, frame, root, 1).unwrap();
    let call = Request::message(Number::Call, 0, 0);
    assert_eq!(Reply(world.enter(client, call, 9, &[], 0).rax).result(), Err(Error::Gone));
    assert_eq!(world.simple(client, Number::Raise, Target::slot(9).0, &[]).unwrap_err(), Error::Gone);
}

#[test]
fn creation_is_checked() {
    let mut world = World::new();
    let server = world.server();
    let (frame, root) = (world.frame(), world.frame());
    assert_eq!(create(&mut world, server, frame, frame, 2), Err(Error::BadArgument));
    assert_eq!(create(&mut world, server, server, root, 2), Err(Error::Occupied));
    assert_eq!(create(&mut world, server, frame, server, 2), Err(Error::Occupied));
    assert_eq!(world.kernel.frames.kind(frame), FrameKind::Free, "a creation that fails leaves nothing");
    assert_eq!(create(&mut world, server, FRAMES, root, 2), Err(Error::Denied));
    assert_eq!(create(&mut world, server, frame, root, 0), Err(Error::BadArgument), "a better band than the creator's");
    assert_eq!(create(&mut world, server, frame, root, 3), Err(Error::BadArgument));
    // The root page table may come from another extent, but from one that holds it.
    let mut other = Capability::new(Kind::Memory, Rights::all().difference(Rights::DEVICE | Rights::CREATE), root, 1);
    world.kernel.machine.block_mut(server).slots[5] = other;
    let with_root = |world: &mut World, slot, root| create_of(world, server, frame, (slot, root), 2);
    assert_eq!(with_root(&mut world, 5, root), Err(Error::Denied));
    assert_eq!(with_root(&mut world, 6, root), Err(Error::NoCapability));
    assert_eq!(with_root(&mut world, 200, root), Err(Error::NoCapability));
    other = Capability::new(Kind::Memory, Rights::CREATE, root, 1);
    world.kernel.machine.block_mut(server).slots[5] = other;
    assert_eq!(with_root(&mut world, 5, root + 1), Err(Error::Denied));
    let target = with_root(&mut world, 5, root).unwrap();
    assert_eq!(target, Target::pool(ALL, frame, world.kernel.frames.generation(frame)));
    assert_eq!(control(&mut world, server, target, Control::Start, [1 << 39, 0, 0]), Err(Error::BadArgument));
    assert_eq!(control(&mut world, server, Target::slot(ALL), Control::Start, [BASE, 0, 0]), Err(Error::NoCapability));
}

#[test]
fn a_reset_domain_starts_as_new() {
    let mut world = World::new();
    let (init, server) = (world.server(), world.server());
    world.connect(init, 0, server, 0, 0);
    let target = Target::slot(0);
    world.kernel.raise(server, 9);
    while control(&mut world, init, target, Control::Reset, [0; 3]) == Err(Error::Again) {}
    let block = world.kernel.machine.block(server);
    assert_eq!((block.state(), block.incarnation, block.pending), (State::Stopped, 1, 0));
    assert!(block.slots.iter().all(|slot| *slot == Capability::EMPTY));
    control(&mut world, init, target, Control::Start, [BASE, 0x7000, 5]).unwrap();
    let registers = world.registers(server);
    assert_eq!((registers.rip, registers.rsp, registers.rdi), (BASE, 0x7000, 5));
    assert_eq!(control(&mut world, init, target, Control::Start, [BASE, 0, 0]), Err(Error::BadArgument));
}

#[test]
fn nobody_controls_itself() {
    let mut world = World::new();
    let server = world.server();
    world.connect(server, 0, server, 0, 0);
    for operation in [Control::Reset, Control::Destroy, Control::Stop, Control::Start] {
        assert_eq!(control(&mut world, server, Target::slot(0), operation, [BASE, 0, 0]), Err(Error::BadArgument));
    }
}
