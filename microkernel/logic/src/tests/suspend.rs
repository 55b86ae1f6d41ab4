//! Domains that are held, saved and restored; pages that are scanned.

use super::*;
use crate::block::DomainRef;
use proptest::prelude::*;
use protocol::{
    abi::{NEVER, Target},
    domain::{Control, Event, EventKind, SavedDomain, TRAP_QUEUE},
    memory::{PageState, Scan},
    registers::RegisterPage,
};

/// Where the pager keeps what it reads: behind what it hands to calls.
const BUFFER: u64 = BASE + PAGE;
const MASK: u64 = BASE + core::mem::offset_of!(RegisterPage, mask) as u64;

/// A pager and a VM that it handles.
fn pair() -> (World, Frame, Frame, Target) {
    let mut world = World::new();
    let (pager, vm) = (world.server(), world.vm());
    let generation = world.kernel.frames.generation(pager);
    world.kernel.machine.block_mut(vm).services = [DomainRef { frame: pager, generation }; 4];
    world.poke(vm, MASK, &u64::MAX.to_le_bytes());
    let target = Target::pool(ALL, vm, world.kernel.frames.generation(vm));
    (world, pager, vm, target)
}

fn control(world: &mut World, pager: Frame, target: Target, operation: Control) -> Result<(), Error> {
    world.simple(pager, Number::DomainControl, target.0, &[operation as u64]).map(drop)
}

fn save(world: &mut World, pager: Frame, target: Target) -> Result<(), Error> {
    world.simple(pager, Number::DomainSave, target.0, &[BUFFER]).map(drop)
}

/// A new, stopped VM with the pages of `old`, to which a saved state can be given.
fn successor(world: &mut World, old: Frame) -> (Frame, Target) {
    let (frame, root) = (world.frame(), world.frame());
    world.kernel.create_domain(frame, root, 2).unwrap();
    let old_root = world.kernel.machine.block(old).root;
    for page in 0..PAGES {
        let address = BASE + page * PAGE;
        let memory = world.kernel.entry(old_root, address).frame();
        while !world.kernel.map_at_boot(root, address, memory, Access::WRITE).unwrap() {
            let table = world.frame();
            world.kernel.add_table_at_boot(root, address, table).unwrap();
        }
    }
    let services = world.kernel.machine.block(old).services;
    let block = world.kernel.machine.block_mut(frame);
    (block.register_page, block.services) = (BASE, services);
    (frame, Target::pool(ALL, frame, world.kernel.frames.generation(frame)))
}

fn events(world: &mut World, pager: Frame) -> u64 {
    world.simple(pager, Number::Collect, u64::from(TRAP_QUEUE), &[BUFFER, 8]).unwrap().rdi
}

#[test]
fn an_idle_vm_goes_on_elsewhere() {
    let (mut world, pager, vm, target) = pair();
    world.kernel.machine.block_mut(vm).registers.rbx = 77;
    world.simple(vm, Number::SetTimer, 9000, &[]).unwrap();
    world.enter(vm, Request::new(Number::Idle), 5000, &[], 0);
    assert_eq!(world.state(vm), State::Idle);
    assert_eq!(save(&mut world, pager, target), Err(Error::Busy), "only what is held can be saved");
    control(&mut world, pager, target, Control::Hold).unwrap();
    assert_eq!(control(&mut world, pager, target, Control::Hold), Err(Error::Busy));
    save(&mut world, pager, target).unwrap();
    let (frame, successor) = successor(&mut world, vm);
    while control(&mut world, pager, target, Control::Destroy) == Err(Error::Again) {}
    assert_eq!(control(&mut world, pager, successor, Control::Release), Err(Error::BadArgument));
    world.simple(pager, Number::DomainRestore, successor.0, &[BUFFER]).unwrap();
    control(&mut world, pager, successor, Control::Release).unwrap();
    assert_eq!((world.state(frame), world.registers(frame).rbx), (State::Idle, 77));
    // Both its deadlines came along.
    world.kernel.machine.now = 5000;
    world.kernel.timer_interrupt();
    assert_eq!(world.state(frame), State::Runnable);
    world.kernel.machine.now = 9000;
    world.kernel.timer_interrupt();
    assert_eq!(world.kernel.machine.block(frame).pending | world.peek_u64(frame, BASE + 8), 1);
}

#[test]
fn a_line_raised_while_held_wakes_on_release() {
    let (mut world, pager, vm, target) = pair();
    world.enter(vm, Request::new(Number::Idle), NEVER, &[], 0);
    control(&mut world, pager, target, Control::Hold).unwrap();
    world.kernel.raise(vm, 9);
    assert_eq!(world.state(vm), State::Held);
    control(&mut world, pager, target, Control::Release).unwrap();
    assert_eq!(world.state(vm), State::Runnable);
    assert_eq!(control(&mut world, pager, target, Control::Release), Err(Error::BadArgument));
}

#[test]
fn a_trap_comes_again_on_release() {
    let (mut world, pager, vm, target) = pair();
    world.run(vm);
    world.kernel.exception(14, 2, BASE + 0x9000);
    assert_eq!(control(&mut world, pager, target, Control::Hold), Err(Error::Busy), "its trap was not taken yet");
    assert_eq!(events(&mut world, pager), 1);
    control(&mut world, pager, target, Control::Hold).unwrap();
    control(&mut world, pager, target, Control::Release).unwrap();
    assert_eq!(events(&mut world, pager), 1);
    let event = world.peek(pager, BUFFER, size_of::<Event>());
    assert_eq!(event[16..24], [1, 0, 0, 0, 2, 0, 0, 0], "the page fault, a write");
    // An end, too, comes again to a pager that has forgotten it.
    control(&mut world, pager, target, Control::Resume).unwrap();
    world.enter(vm, Request::new(Number::Exit), 7, &[], 0);
    assert_eq!(events(&mut world, pager), 1);
    control(&mut world, pager, target, Control::Release).unwrap();
    assert_eq!(events(&mut world, pager), 1);
    assert_eq!(world.peek(pager, BUFFER, 24)[16..24], [EventKind::Exit as u8, 0, 0, 0, 7, 0, 0, 0]);
}

#[test]
fn doorbells_are_taken_before_a_domain_is_held() {
    let (mut world, pager, vm, target) = pair();
    world.simple(vm, Number::Doorbell, 1, &[]).unwrap();
    assert_eq!(control(&mut world, pager, target, Control::Hold), Err(Error::Busy));
    world.simple(pager, Number::Collect, 1, &[BUFFER, 8]).unwrap();
    control(&mut world, pager, target, Control::Hold).unwrap();
}

#[test]
fn scans_tell_what_was_used() {
    let (mut world, pager, vm, target) = pair();
    let root = world.kernel.machine.block(vm).root;
    for page in 0..PAGES {
        let table = world.kernel.leaf_table(root, BASE + page * PAGE).unwrap();
        let frame = world.kernel.entry(root, BASE + page * PAGE).frame();
        world.kernel.set_entry(table, BASE + page * PAGE, crate::paging::Entry::page(frame, Access::WRITE, false));
    }
    let scan = |world: &mut World, pages: u64, action: Scan| {
        let words = [BASE, pages, BUFFER, 0, 0];
        let words = [words[0], words[1], words[2], u64::from(action.bits())];
        world.simple(pager, Number::Scan, target.0, &words)?;
        Ok::<_, Error>(world.peek(pager, BUFFER, pages as usize))
    };
    let here = (PageState::PRESENT | PageState::WRITABLE).bits();
    let used = here | PageState::ACCESSED.bits();
    let written = used | PageState::DIRTY.bits();
    assert_eq!(scan(&mut world, PAGES + 1, Scan::empty()).unwrap(), [here, here, here, here, 0]);
    // By transfers into the VM's memory and out of it.
    for (from, to) in [((0, BASE), (target.0, BASE + PAGE)), ((target.0, BASE + 2 * PAGE), (0, BASE))] {
        world.poke(pager, BASE + 2 * PAGE, &bytes(&[from.0, from.1, to.0, to.1, 8, 0]));
        world.simple(pager, Number::Transfer, BASE + 2 * PAGE, &[1]).unwrap();
        assert_eq!(world.peek_u64(pager, BASE + 2 * PAGE + 36) as u32, 0);
    }
    assert_eq!(scan(&mut world, PAGES, Scan::CLEAR_ACCESSED).unwrap(), [here, written, used, here]);
    let clean = here | PageState::DIRTY.bits();
    assert_eq!(scan(&mut world, PAGES, Scan::UNMAP).unwrap(), [here, clean, here, here]);
    assert_eq!(scan(&mut world, PAGES, Scan::empty()).unwrap(), [0; PAGES as usize]);
    assert_eq!(scan(&mut world, 513, Scan::empty()), Err(Error::BadArgument));
}

proptest! {
    /// A pager may give back anything: the domain is still a domain, and the floating-point state one that loads.
    #[test]
    fn what_is_restored_is_made_harmless(words in prop::collection::vec(any::<u64>(), size_of::<SavedDomain>() / 8), state in 0u64..6) {
        let (mut world, pager, vm, _) = pair();
        let (frame, target) = successor(&mut world, vm);
        let mut words = words;
        words[18] = words[18] & !0xffff_ffff | state;
        world.poke(pager, BUFFER, &bytes(&words));
        let restored = world.simple(pager, Number::DomainRestore, target.0, &[BUFFER]).is_ok();
        prop_assert_eq!(restored, matches!(state, 1 | 2 | 4) && words[16] < protocol::layout::SPACE_END);
        if restored {
            let block = world.kernel.machine.block(frame);
            prop_assert_eq!(block.registers.rflags & 0x0003_7200, 0x200, "no privileged flag, interrupts on");
            prop_assert_eq!(block.fpu.0[512] & !7, 0);
            prop_assert!(block.fpu.0[513..576].iter().all(|byte| *byte == 0) && block.fpu.0[26..28] == [0, 0]);
            prop_assert!(matches!(control(&mut world, pager, target, Control::Release), Ok(()) | Err(Error::Gone)));
        }
    }
}
