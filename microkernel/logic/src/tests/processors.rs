//! Several processors, one step of one of them after the other. A processor between two steps is in ring 3, asleep, or was recalled and
//! waits for the lock.

use super::*;
use crate::{
    block::ControlBlock,
    model::ProcessorModel,
    paging::Entry,
    processors::{PROCESSORS, Processor},
    scheduler::SLICE,
};
use proptest::prelude::*;
use protocol::{abi::Target, domain::Control, memory::MapKind};

/// A world with `processors` of them, all but the first asleep.
fn world(processors: usize) -> World {
    let mut world = World::new();
    world.kernel.machine.processor(processors - 1);
    for processor in 1..processors {
        world.kernel.machine.here = processor;
        assert_eq!(world.kernel.join(), NO_FRAME);
    }
    world.at(0);
    world
}

impl World {
    /// Processor `processor` has taken the lock.
    fn at(&mut self, processor: usize) {
        let machine = &mut self.kernel.machine;
        machine.here = processor;
        let entered = machine.processor(processor);
        (entered.interrupted, entered.stopped, entered.trap) = (false, false, false);
        self.kernel.enter(processor);
    }

    fn record(&self, processor: usize) -> &Processor {
        self.kernel.processor(processor)
    }

    /// Lets this processor leave the kernel, and each that was interrupted or recalled come, until none is.
    fn settle(&mut self) {
        self.kernel.spurious_interrupt();
        while let Some(processor) = (0..self.kernel.online()).find(|processor| {
            let model = &self.kernel.machine.processors[*processor];
            model.interrupted || model.stopped
        }) {
            self.at(processor);
            self.kernel.spurious_interrupt();
        }
    }

    /// Moves the clock, and lets each processor whose timer has run out handle that.
    fn pass(&mut self, nanoseconds: u64) {
        self.kernel.machine.now += nanoseconds;
        for processor in 0..self.kernel.online() {
            if self.record(processor).armed <= self.kernel.machine.now {
                self.at(processor);
                self.kernel.timer_interrupt();
            }
        }
        self.settle();
    }

    fn runs(&self) -> std::vec::Vec<Frame> {
        (0..self.kernel.online()).map(|processor| self.record(processor).current).collect()
    }

    fn processor_time(&self, frame: Frame) -> u64 {
        let running = self.kernel.runs_on(frame).map_or(0, |processor| self.kernel.ticks_running(processor));
        self.kernel.machine.block(frame).cpu_ticks + running
    }
}

#[test]
fn who_wakes_goes_where_nobody_runs() {
    let mut world = world(3);
    let vms = [world.vm(), world.vm(), world.vm(), world.vm()];
    world.settle();
    // Boot starts them all on the first; the others were interrupted and came for theirs.
    let mut runs = world.runs();
    runs.sort_unstable();
    assert!(!runs.contains(&NO_FRAME) && runs.iter().all(|frame| vms.contains(frame)), "{runs:?}");
    // A server finds nobody idle, and takes the place of a VM: at the latest when the batch is over that those began that woke.
    let server = world.server();
    world.settle();
    world.pass(crate::scheduler::BATCH);
    assert!(world.runs().contains(&server));
}

#[test]
fn who_has_nothing_to_do_takes_over() {
    let mut world = world(2);
    let (one, two, three) = (world.vm(), world.vm(), world.vm());
    world.settle();
    let waiting = [one, two, three].into_iter().find(|vm| !world.runs().contains(vm)).unwrap();
    // Whichever processor it waits for, the other one's VM exits.
    let other = 1 - usize::from(world.kernel.machine.block(waiting).processor);
    let exits = world.record(other).current;
    world.at(other);
    world.kernel.machine.block_mut(exits).registers.rax = Request::new(Number::Exit).0;
    assert_eq!(world.kernel.system_call(), waiting);
    assert_eq!(usize::from(world.kernel.machine.block(waiting).processor), other);
}

#[test]
fn three_share_two_processors() {
    for (vms, processors) in [(3, 2), (5, 2), (5, 4), (7, 3)] {
        let mut world = world(processors);
        let vms: std::vec::Vec<_> = (0..vms).map(|_| world.vm()).collect();
        world.settle();
        let rounds = 600;
        for _ in 0..rounds {
            world.pass(SLICE / 4);
        }
        let total = rounds * (SLICE / 4) * processors as u64;
        let fair = total / vms.len() as u64;
        for vm in &vms {
            let time = world.processor_time(*vm);
            assert!(time > fair * 3 / 4 && time < fair * 5 / 4, "{} VMs, {processors}: {time} of {fair}", vms.len());
        }
    }
}

#[test]
fn a_vm_that_runs_elsewhere_is_told() {
    use core::mem::offset_of;
    use protocol::registers::RegisterPage;
    for handler in [0u64, 0x20_1000] {
        let mut world = world(2);
        let server = world.server();
        let vm = world.vm();
        world.connect(server, 1, vm, 0, 9);
        world.poke(vm, BASE + offset_of!(RegisterPage, handler) as u64, &handler.to_le_bytes());
        world.settle();
        let (here, there) = (world.kernel.runs_on(server).unwrap(), world.kernel.runs_on(vm).unwrap());
        assert_ne!(here, there);
        world.at(here);
        for _ in 0..2 {
            let registers = &mut world.kernel.machine.block_mut(server).registers;
            (registers.rax, registers.rdi) = (Request::new(Number::Raise).0, 1 << 60 | 1 << 48);
            world.kernel.system_call();
        }
        // One without a handler finds it where it looks; one with a handler comes into the kernel.
        let pending = |world: &World| world.peek_u64(vm, BASE + offset_of!(RegisterPage, pending) as u64);
        let told = if handler == 0 { 1 << 9 } else { 0 };
        assert_eq!((pending(&world), world.kernel.machine.processors[there].interrupted), (told, handler != 0));
        world.settle();
        assert_eq!(pending(&world), 1 << 9);
    }
}

#[test]
fn a_vm_that_installs_a_handler_just_then_is_interrupted() {
    use core::mem::offset_of;
    use protocol::registers::RegisterPage;
    let mut world = world(2);
    let server = world.server();
    let vm = world.vm();
    world.connect(server, 1, vm, 0, 9);
    for (field, value) in [(offset_of!(RegisterPage, mask), 1u64 << 9), (offset_of!(RegisterPage, enabled), 1)] {
        world.poke(vm, BASE + field as u64, &value.to_le_bytes());
    }
    world.settle();
    let (here, there) = (world.kernel.runs_on(server).unwrap(), world.kernel.runs_on(vm).unwrap());
    let root = world.kernel.machine.block(vm).root;
    let page = world.kernel.translate(root, BASE, true).unwrap();
    world.kernel.machine.meanwhile = Some((page + offset_of!(RegisterPage, handler) as u64, 0x20_1000));
    world.at(here);
    let registers = &mut world.kernel.machine.block_mut(server).registers;
    (registers.rax, registers.rdi) = (Request::new(Number::Raise).0, 1 << 60 | 1 << 48);
    world.kernel.system_call();
    assert!(world.kernel.machine.processors[there].interrupted, "it would look only when something else happens");
    world.settle();
    assert_eq!(world.peek_u64(vm, BASE + offset_of!(RegisterPage, delivered) as u64), 1);
}

#[test]
fn a_fault_that_is_over_is_not_reported() {
    let mut world = world(2);
    let vm = world.vm();
    world.settle();
    let there = world.kernel.runs_on(vm).unwrap();
    world.at(there);
    assert_eq!(world.kernel.exception(14, 0b110, BASE), vm, "a write to a page that is there by now");
    assert_eq!(world.kernel.exception(14, 0b10110, BASE), NO_FRAME, "a fetch from one that is not for that");
    assert_eq!(world.state(vm), State::Trapped);
    // What an emulator takes for an access of ring 0 faults for ever.
    let other = world.vm();
    world.settle();
    world.at(world.kernel.runs_on(other).unwrap());
    assert_eq!(world.kernel.exception(14, 0b1, BASE), NO_FRAME);
}

#[test]
fn an_exception_that_would_not_come_again_is_not_lost() {
    for trap in [false, true] {
        let mut world = world(2);
        let (server, vm) = (world.server(), world.vm());
        world.settle();
        let (here, there) = (world.kernel.runs_on(server).unwrap(), world.kernel.runs_on(vm).unwrap());
        assert_ne!(here, there);
        // The VM's processor enters while the server has the lock.
        world.kernel.machine.processor(there).trap = trap;
        let hold = |world: &mut World| {
            world.at(world.kernel.runs_on(server).unwrap());
            let target = Target::pool(ALL, vm, world.kernel.frames.generation(vm)).0;
            world.simple(server, Number::DomainControl, target, &[Control::Hold as u64, 0, 0, 0]).map(drop)
        };
        if !trap {
            // With a fault: the VM executes the instruction again when it goes on.
            assert_eq!((hold(&mut world), world.state(vm)), (Ok(()), State::Held));
            continue;
        }
        assert_eq!((hold(&mut world), world.state(vm)), (Err(Error::Busy), State::Runnable));
        world.at(there);
        world.kernel.exception(3, 0, 0);
        assert_eq!((world.state(vm), world.kernel.machine.block(vm).trap.code), (State::Trapped, 3));
        assert_eq!((hold(&mut world), world.state(vm)), (Ok(()), State::Held), "once it is noted");
    }
}

#[test]
fn deadlines_are_found_on_whichever_processor() {
    let mut world = world(2);
    let (one, two) = (world.vm(), world.vm());
    world.settle();
    for (vm, deadline) in [(one, 3000), (two, 2000)] {
        world.at(world.kernel.runs_on(vm).unwrap());
        let registers = &mut world.kernel.machine.block_mut(vm).registers;
        (registers.rax, registers.rdi) = (Request::new(Number::Idle).0, deadline);
        assert_eq!(world.kernel.system_call(), NO_FRAME);
    }
    world.pass(2500);
    assert_eq!((world.state(one), world.state(two)), (State::Idle, State::Runnable));
    world.pass(1000);
    assert_eq!(world.state(one), State::Runnable);
}

/// What a domain does.
#[derive(Clone, Debug)]
enum Action {
    /// Uses a page of its memory.
    Touch { page: u64, write: bool },
    /// Calls with any registers.
    Call { number: u8, rdi: u64, words: [u64; 8], r15: u64 },
    /// Changes the mapping of a page of another domain.
    Map { kind: MapKind, victim: usize, page: u64, write: bool },
    /// Scans another domain.
    Scan { victim: usize, action: u8 },
    /// Controls another domain.
    Control { victim: usize, control: u64 },
    /// Executes something forbidden.
    Fault,
    /// Is interrupted.
    Timer,
}

fn action() -> impl Strategy<Value = Action> {
    let victim = 0usize..6;
    prop_oneof![
        6 => (0..PAGES, any::<bool>()).prop_map(|(page, write)| Action::Touch { page, write }),
        2 => (0u8..32, super::fuzz::value(), prop::array::uniform8(super::fuzz::value()), super::fuzz::value())
            .prop_map(|(number, rdi, words, r15)| Action::Call { number, rdi, words, r15 }),
        3 => (prop_oneof![Just(MapKind::Map), Just(MapKind::Unmap), Just(MapKind::Protect)], victim.clone(), 0..PAGES, any::<bool>())
            .prop_map(|(kind, victim, page, write)| Action::Map { kind, victim, page, write }),
        2 => (victim.clone(), 0u8..4).prop_map(|(victim, action)| Action::Scan { victim, action }),
        3 => (victim, 0u64..9).prop_map(|(victim, control)| Action::Control { victim, control }),
        1 => Just(Action::Fault),
        2 => Just(Action::Timer),
    ]
}

/// Three servers that control everybody, and three VMs.
fn six(processors: usize) -> (World, [Frame; 6]) {
    let mut world = world(processors);
    let domains = [world.server(), world.server(), world.server(), world.vm(), world.vm(), world.vm()];
    for (index, domain) in domains.iter().enumerate() {
        world.connect(*domain, 0, domains[(index + 1) % 3], index as u64, 9);
        let generation = world.kernel.frames.generation(domains[0]);
        let service = crate::block::DomainRef { frame: domains[0], generation };
        world.kernel.machine.block_mut(*domain).services = [service; 4];
    }
    world.settle();
    (world, domains)
}

/// A domain that runs on `processor` uses one of its pages: by a translation that the processor has, or by one that it finds in the tables.
fn touch(world: &mut World, processor: usize, frame: Frame, page: u64, write: bool) {
    let (address, root) = (BASE + page * PAGE, world.kernel.machine.block(frame).root);
    let known = world.kernel.machine.processors[processor].translations.get(&address).copied();
    if known.is_some_and(|entry| !write || entry.is_writable() && entry.is_dirty()) {
        return;
    }
    let entry = world.kernel.entry(root, address);
    if entry.is_present() && (!write || entry.is_writable()) {
        let table = world.kernel.leaf_table(root, address).unwrap();
        let used = Entry(entry.0 | 1 << 5 | u64::from(write) << 6);
        world.kernel.set_entry(table, address, used);
        world.kernel.machine.processor(processor).translations.insert(address, used);
    } else {
        world.at(processor);
        let error = u64::from(entry.is_present()) | u64::from(write) << 1 | 1 << 2;
        world.kernel.exception(14, error, address);
    }
}

fn act(world: &mut World, domains: &[Frame; 6], processor: usize, action: &Action) {
    let model = &world.kernel.machine.processors[processor];
    let frame = world.record(processor).current;
    if model.stopped || model.interrupted && matches!(action, Action::Timer) {
        world.at(processor);
        world.kernel.spurious_interrupt();
        return;
    }
    let timer = |world: &mut World| {
        world.at(processor);
        world.kernel.timer_interrupt();
    };
    if frame == NO_FRAME {
        return timer(world);
    }
    let call = |world: &mut World, number: u8, rdi: u64, words: &[u64], r15: u64| {
        world.at(processor);
        let registers = &mut world.kernel.machine.block_mut(frame).registers;
        (registers.rax, registers.rdi, registers.r15) = (Request::TOP | u64::from(number), rdi, r15);
        registers.words[..words.len()].copy_from_slice(words);
        world.kernel.system_call();
    };
    let pool = |world: &World, victim: usize| {
        Target::pool(ALL, domains[victim], world.kernel.frames.generation(domains[victim])).0
    };
    match action {
        Action::Touch { page, write } => touch(world, processor, frame, *page, *write),
        Action::Call { number, rdi, words, r15 } => call(world, *number, *rdi, words, *r15),
        Action::Map { kind, victim, page, write } => {
            // In the model a server writes its own last page without looking whether it is there.
            let at = BASE + (PAGES - 1) * PAGE;
            if world.kernel.entry(world.kernel.machine.block(frame).root, at).is_writable() {
                let first = *kind as u64 | u64::from(*write) << 8 | u64::from(ALL) << 16 | 1 << 32;
                let operation = [first, BASE + page * PAGE, 400 + *victim as u64 % 3];
                world.poke(frame, at, &bytes(&operation));
            }
            let target = pool(world, *victim);
            call(world, Number::Map as u8, target, &[at, 1], 0);
        }
        Action::Scan { victim, action } => {
            let target = pool(world, *victim);
            call(world, Number::Scan as u8, target, &[BASE, PAGES, BASE + 2 * PAGE, u64::from(*action)], 0);
        }
        Action::Control { victim, control } => {
            let target = pool(world, *victim);
            call(world, Number::DomainControl as u8, target, &[*control, BASE, 0, 0], 0);
        }
        Action::Fault => {
            world.at(processor);
            world.kernel.exception(13, 0, 0);
        }
        Action::Timer => timer(world),
    }
}

/// The domains in the queues of a processor, by its own account and by their links.
fn queued(world: &World, processor: usize) -> std::vec::Vec<Frame> {
    let mut scheduler = world.record(processor).scheduler;
    let mut copy = Model::default();
    for frame in blocks(world) {
        *copy.block_mut(frame) = world.kernel.machine.block(frame).clone();
    }
    let length = scheduler.len();
    let drained: std::vec::Vec<_> = core::iter::from_fn(|| scheduler.take(&mut copy)).collect();
    assert_eq!(drained.len() as u32, length);
    drained
}

fn blocks(world: &World) -> std::vec::Vec<Frame> {
    (1..FRAMES).filter(|frame| world.kernel.frames.kind(*frame) == FrameKind::Block).collect()
}

/// Checks what must hold whenever nobody holds the lock.
fn check(world: &World) -> Result<(), TestCaseError> {
    let kernel = &world.kernel;
    let online = kernel.online();
    let mut placed: std::vec::Vec<(Frame, usize)> = vec![];
    for processor in 0..online {
        let (record, model) = (world.record(processor), &kernel.machine.processors[processor]);
        let ProcessorModel { loaded, translations, interrupted, stopped, trap: _ } = model;
        prop_assert_eq!(record.loaded, *loaded);
        // What is loaded runs here, and so nowhere else.
        let alone = online == 1 && record.current == NO_FRAME;
        let expected = if *stopped { NO_FRAME } else { record.current };
        prop_assert!(alone || *loaded == expected);
        prop_assert_eq!(record.kicked, *interrupted);
        let queue = queued(world, processor);
        if record.current != NO_FRAME {
            placed.push((record.current, processor));
            let band = kernel.machine.block(record.current).band;
            let comes = *interrupted || *stopped;
            prop_assert!(comes || !record.scheduler.any_in(band) || record.ends_slice(), "no end of slice");
            let root = kernel.machine.block(record.current).root;
            for (address, entry) in translations {
                let now = kernel.entry(root, *address);
                prop_assert!(now.is_present() && now.frame() == entry.frame(), "an old translation");
                prop_assert!(now.is_writable() || !entry.is_writable(), "an old right");
                prop_assert!(!entry.is_dirty() || now.is_dirty(), "writes that nobody sees");
            }
        } else {
            prop_assert!(queue.is_empty() || *interrupted || *stopped, "nobody comes for who waits");
            if queue.is_empty() && !*stopped && !*interrupted {
                let others = (0..online).filter(|other| world.record(*other).current != NO_FRAME);
                prop_assert!(
                    others.clone().all(|other| queued(world, other).is_empty()),
                    "one rests while others wait"
                );
            }
        }
        placed.extend(queue.into_iter().map(|frame| (frame, processor)));
    }
    placed.sort_unstable();
    let runnable = blocks(world).into_iter().filter(|frame| world.state(*frame) == State::Runnable);
    let runnable: std::vec::Vec<_> =
        runnable.map(|frame| (frame, usize::from(kernel.machine.block(frame).processor))).collect();
    prop_assert_eq!(placed, runnable);
    // Deadlines are each in one tree, which is that of the processor that the block names.
    let set = |block: &&ControlBlock| block.timers.iter().filter(|timer| timer.deadline != 0).count();
    let blocks = blocks(world).into_iter().map(|frame| kernel.machine.block(frame));
    let deadlines: usize = blocks.map(|block| set(&block)).sum();
    let counted: usize = (0..online).map(|processor| world.record(processor).timers.count(&kernel.machine)).sum();
    prop_assert_eq!(deadlines, counted);
    super::fuzz::check(world)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// One to four processors do anything in any order: no domain is in two places, none waits while a processor rests, and no processor
    /// uses a translation or a right that was taken away.
    #[test]
    fn any_order_breaks_nothing(
        processors in 1usize..5,
        steps in prop::collection::vec((0usize..4, action(), 0u64..4_000_000), 1..80),
    ) {
        let (mut world, domains) = six(processors);
        for (processor, action, time) in steps {
            world.kernel.machine.now += time;
            act(&mut world, &domains, processor % processors, &action);
            check(&world)?;
        }
    }
}

#[test]
fn there_is_room_for_all() {
    assert!(PROCESSORS <= u8::MAX as usize);
}
