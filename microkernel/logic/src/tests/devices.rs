//! Hardware interrupts, ports and the debug line: only for those who hold them.

use super::*;
use protocol::{abi::PORT_WRITE, domain::InterruptSource};

const AUTHORITY: u8 = 10;
const LINE: InterruptSource = InterruptSource::Line { number: 4, level: true, low: true };

fn platform(world: &mut World) -> Frame {
    let platform = world.server();
    let slots = &mut world.kernel.machine.block_mut(platform).slots;
    slots[usize::from(AUTHORITY)] = Capability::new(Kind::InterruptAuthority, Rights::empty(), 0, 0);
    platform
}

/// Makes an interrupt in `slot` of `platform` and hands it to `driver`, in the same slot.
fn make(world: &mut World, platform: Frame, driver: Frame, slot: u8, source: InterruptSource) -> Registers {
    let authority = u64::from(AUTHORITY);
    let made =
        world.simple(platform, Number::InterruptCreate, authority, &[u64::from(slot), source.to_word()]).unwrap();
    let capability = world.kernel.machine.block(platform).slots[usize::from(slot)];
    world.kernel.machine.block_mut(driver).slots[usize::from(slot)] = capability;
    made
}

fn bind(world: &mut World, driver: Frame, slot: u8, line: u64) -> Result<Registers, Error> {
    world.simple(driver, Number::InterruptBind, u64::from(slot), &[line])
}

#[test]
fn a_level_interrupt_is_masked_until_acknowledged() {
    let mut world = World::new();
    let (platform, driver) = (platform(&mut world), world.server());
    make(&mut world, platform, driver, 20, LINE);
    let vector = world.kernel.machine.lines.last().unwrap().1;
    assert_eq!(world.kernel.machine.lines.last(), Some(&(4, vector, true)), "masked until somebody takes it");
    bind(&mut world, driver, 20, 33).unwrap();
    assert_eq!(world.kernel.machine.lines.last(), Some(&(4, vector, false)));
    world.kernel.hardware_interrupt(vector);
    assert_eq!(world.kernel.machine.block(driver).pending, 1 << 33);
    assert_eq!(world.kernel.machine.lines.last(), Some(&(4, vector, true)));
    world.simple(driver, Number::InterruptAcknowledge, 20, &[]).unwrap();
    assert_eq!(world.kernel.machine.lines.last(), Some(&(4, vector, false)));
}

#[test]
fn a_line_made_again_is_the_same_one() {
    let mut world = World::new();
    let (platform, driver) = (platform(&mut world), world.server());
    make(&mut world, platform, driver, 20, LINE);
    make(&mut world, platform, driver, 21, LINE);
    let slots = &world.kernel.machine.block(driver).slots;
    assert_eq!(slots[20].first, slots[21].first);
}

#[test]
fn a_restarted_driver_gives_up_its_old_messages() {
    let mut world = World::new();
    let (platform, driver) = (platform(&mut world), world.server());
    for _ in 0..1000 {
        world.kernel.machine.block_mut(platform).slots[20] = Capability::EMPTY;
        make(&mut world, platform, driver, 20, InterruptSource::Message);
        bind(&mut world, driver, 20, 40).unwrap();
    }
    // A capability to one that was given up is dead.
    let old = world.kernel.machine.block(driver).slots[20];
    world.kernel.machine.block_mut(driver).slots[22] = old;
    make(&mut world, platform, driver, 21, InterruptSource::Message);
    bind(&mut world, driver, 21, 40).unwrap();
    assert_eq!(bind(&mut world, driver, 22, 40).unwrap_err(), Error::Gone);
}

#[test]
fn an_interrupt_nobody_takes_stays_masked() {
    let mut world = World::new();
    let (platform, driver) = (platform(&mut world), world.server());
    make(&mut world, platform, driver, 20, InterruptSource::Line { number: 5, level: false, low: false });
    let vector = world.kernel.machine.lines.last().unwrap().1;
    world.kernel.hardware_interrupt(vector);
    assert_eq!(world.kernel.machine.lines.last(), Some(&(5, vector, true)));
    for vector in [48, 200, 239, 255] {
        world.kernel.hardware_interrupt(vector);
    }
}

#[test]
fn interrupts_and_ports_need_their_capabilities() {
    let mut world = World::new();
    let (platform, other) = (platform(&mut world), world.server());
    assert_eq!(world.simple(other, Number::InterruptCreate, 10, &[20, 1]).unwrap_err(), Error::NoCapability);
    assert_eq!(world.simple(other, Number::IoApicAdd, 10, &[0xfec0_0000, 0]).unwrap_err(), Error::NoCapability);
    assert_eq!(world.simple(platform, Number::IoApicAdd, 10, &[0x1001, 0]).unwrap_err(), Error::BadArgument);
    let lines = u64::from(AUTHORITY);
    assert_eq!(world.simple(platform, Number::InterruptCreate, lines, &[20, 99]).unwrap_err(), Error::BadArgument);
    world.kernel.machine.block_mut(other).slots[3] = Capability::new(Kind::Ports, Rights::empty(), 0x3f8, 8);
    let port = |world: &mut World, port: u64, how: u64| world.simple(other, Number::PortIo, 3, &[port, how, 0]);
    assert_eq!(port(&mut world, 0x3f8, 1).unwrap().rdi, 0x3f8 << 8 | 1);
    assert!(port(&mut world, 0x3fc, 4 | PORT_WRITE).is_ok());
    for (number, how) in [(0x3f7, 1), (0x3ff, 2), (0x3fd, 4), (0x400, 1), (u64::MAX, 1), (0x1_03f8, 1)] {
        assert_eq!(port(&mut world, number, how).unwrap_err(), Error::Denied, "{number:#x}");
    }
    for how in [0, 3, 8, u64::MAX] {
        assert_eq!(port(&mut world, 0x3f8, how).unwrap_err(), Error::BadArgument);
    }
}

#[test]
fn the_debug_line_needs_its_capability() {
    let mut world = World::new();
    let server = world.server();
    world.poke(server, BASE, b"hello");
    assert_eq!(world.simple(server, Number::DebugWrite, BASE, &[5, 3]).unwrap_err(), Error::NoCapability);
    world.kernel.machine.block_mut(server).slots[3] = Capability::new(Kind::Debug, Rights::empty(), 0, 0);
    world.simple(server, Number::DebugWrite, BASE, &[5, 3]).unwrap();
    assert_eq!(world.kernel.machine.debug, b"hello");
    assert_eq!(world.simple(server, Number::DebugWrite, BASE, &[257, 3]).unwrap_err(), Error::TooLong);
    assert_eq!(world.simple(server, Number::DebugWrite, u64::MAX - 2, &[5, 3]).unwrap_err(), Error::BadAddress);
}
