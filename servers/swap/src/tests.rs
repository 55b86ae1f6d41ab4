//! The pager on the model of the kernel: scenarios, and random lives of many VMs.

use crate::{
    frames::{FrameTable, Layout, Record},
    machine::Machine,
    model::{DomainState, Model},
    pager::{Outcome, Pager},
    space,
};
use core::sync::atomic::{AtomicU64, Ordering};
use proptest::prelude::*;
use protocol::{
    abi::Target,
    domain::{Event, EventKind, FAULT_EXECUTE, FAULT_WRITE},
    layout::{IMAGE_BASE, PAGE, SPACE_BASE},
    memory::Access,
    service::{
        VmNumber, VmRef,
        pager::{Part, Request, Response, Stop},
    },
};
use std::{boxed::Box, collections::BTreeMap, format, vec, vec::Vec};

const SLOT: u8 = 9;
const FIRST: u32 = 0x5000;
const LENT: Target = Target::caller(3, 17);
const NIC: u64 = Target::slot(20).0;
const CODE: u64 = IMAGE_BASE;
const DATA: u64 = IMAGE_BASE + 0x2_0000;
const CONSTANTS: u64 = IMAGE_BASE + 0x3_0000;
const MEMORY: u64 = 64 * PAGE;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    Read,
    Write(u8),
    Execute,
}

struct World {
    model: Model,
    pager: Pager<'static>,
    /// What each VM wrote.
    written: BTreeMap<(u32, u16, u64), u8>,
}

/// Twenty pages of code of which one is zero, data with a beginning and an end in the middle of a page and a tail of zeros, constants.
fn parts() -> Vec<Part> {
    let part = |address, length, data_offset, data_length| Part {
        address,
        length,
        data_offset,
        data_length,
        write: false,
        execute: false,
    };
    vec![
        Part { execute: true, ..part(CODE, 20 * PAGE, 0, 20 * PAGE) },
        Part { write: true, ..part(DATA + 0x123, 5 * PAGE, 20 * PAGE + 5, 2 * PAGE + 50) },
        part(CONSTANTS, 2 * PAGE, 23 * PAGE, PAGE + 7),
    ]
}

fn image_file() -> Vec<u8> {
    let mut file: Vec<u8> = (0..25 * PAGE).map(|at| (at % 251) as u8 | 1).collect();
    file[3 * PAGE as usize..4 * PAGE as usize].fill(0);
    file
}

/// What a VM finds at an address that it has not written.
fn initial(address: u64) -> u8 {
    let file = image_file();
    if address < IMAGE_BASE {
        return 0x77;
    }
    for part in parts() {
        if address >= part.address && address - part.address < part.data_length {
            return file[(part.data_offset + address - part.address) as usize];
        }
    }
    0
}

impl World {
    fn new(frames: usize) -> World {
        let layout = Layout::new(u64::from(FIRST), frames as u64).unwrap();
        let records = Box::leak(vec![Record::default(); frames].into_boxed_slice());
        let heads = Box::leak(vec![0; layout.heads as usize].into_boxed_slice());
        let table = FrameTable::new(FIRST, &layout, records, heads, 0x1234_5678_9abc_def1).unwrap();
        let mut model = Model::new(SLOT, FIRST, frames);
        let pager = Pager::new(SLOT, [NIC, 0, Target::slot(21).0], table, &mut model).unwrap();
        World { model, pager, written: BTreeMap::new() }
    }

    fn ask(&mut self, request: Request) -> Response {
        match self.pager.request(&mut self.model, true, Some(LENT), request) {
            Outcome::Now(response) => response,
            Outcome::Later => panic!("an answer was put off"),
        }
    }

    fn define(&mut self) -> u32 {
        self.model.lent = image_file();
        match self.ask(Request::DefineImage { parts: parts() }) {
            Response::Image(number) => number,
            other => panic!("{other:?}"),
        }
    }

    fn creation(image: u32, memory: u64) -> Request {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let vm = NEXT.fetch_add(1, Ordering::Relaxed);
        let windows = [(DATA & !4095, 2 * PAGE), (0, 0), (0, 0)];
        Request::Create { vm, image, memory, entry: CODE + 8, windows }
    }

    /// The number of a VM; 0 if it is no more.
    fn number(&self, vm: VmRef) -> VmNumber {
        let domain = self.model.domains.get(&vm.frame).filter(|domain| domain.generation == vm.generation);
        domain.map_or(0, |domain| domain.parameters.tag)
    }

    fn create(&mut self, image: u32, memory: u64) -> Result<VmRef, Response> {
        self.model.lent = vec![0x77; PAGE as usize];
        match self.ask(Self::creation(image, memory)) {
            Response::Created(vm) => {
                assert_eq!(self.ask(Request::Start(self.number(vm))), Response::Done);
                Ok(vm)
            }
            other => Err(other),
        }
    }

    fn trap(&mut self, vm: VmRef, kind: EventKind, code: u32, address: u64) -> Event {
        let tag = self.number(vm);
        self.model.domains.get_mut(&vm.frame).unwrap().state = DomainState::Trapped;
        let generation = u32::from(vm.generation);
        let kind = kind as u32;
        Event { frame: vm.frame, generation, tag, kind, code, address, instruction: CODE + 99, value: 13 }
    }

    /// The event if the VM cannot do that now.
    fn attempt(&mut self, vm: VmRef, address: u64, act: Act) -> Option<Event> {
        let (need, code) = match act {
            Act::Read => (Access::empty(), 0),
            Act::Write(_) => (Access::WRITE, FAULT_WRITE),
            Act::Execute => (Access::EXECUTE, FAULT_EXECUTE),
        };
        assert_eq!(self.model.domains[&vm.frame].state, DomainState::Runs);
        let Some(byte) = self.model.access(vm, address, need) else {
            return Some(self.trap(vm, EventKind::PageFault, code, address));
        };
        let name = (vm.frame, vm.generation, address);
        let expected = self.written.get(&name).copied().unwrap_or_else(|| initial(address));
        assert_eq!(*byte, expected, "at {address:#x} of {vm:?}");
        if let Act::Write(value) = act {
            *byte = value;
            self.written.insert(name, value);
        }
        None
    }

    /// Does it, with the faults it takes; how many, or why the VM stopped.
    fn touch(&mut self, vm: VmRef, address: u64, act: Act) -> Result<u32, Stop> {
        for faults in 0..3 {
            let Some(event) = self.attempt(vm, address, act) else { return Ok(faults) };
            self.pager.events(&mut self.model, &[event]);
            if let Response::Stopped(Some((stopped, stop))) = self.ask(Request::NextStop) {
                assert_eq!(stopped, self.number(vm));
                return Err(stop);
            }
        }
        panic!("the fault at {address:#x} is not served");
    }

    fn figures(&mut self, vm: VmRef) -> (u64, u64) {
        match self.ask(Request::Usage(self.number(vm))) {
            Response::Usage { frames, shared, .. } => (frames, shared),
            other => panic!("{other:?}"),
        }
    }

    fn free(&mut self) -> u64 {
        match self.ask(Request::Pool) {
            Response::Pool { total, free, .. } => {
                assert_eq!(total as usize, self.model.types.len());
                free
            }
            other => panic!("{other:?}"),
        }
    }

    fn finish_work(&mut self) {
        for _ in 0..10_000 {
            if !self.pager.has_work() {
                return;
            }
            self.pager.work(&mut self.model);
        }
        panic!("destroying does not end");
    }

    /// No frame in two private places.
    fn check(&self, vms: &[VmRef]) {
        let mut owners = BTreeMap::new();
        for vm in vms {
            for (page, (frame, access)) in &self.model.domains[&vm.frame].pages {
                let private = access.contains(Access::WRITE);
                if let Some((other, shared)) = owners.insert(*frame, (*vm, !private)) {
                    assert!(shared && !private, "frame {frame:#x} of {vm:?} page {page:#x} is also in {other:?}");
                }
            }
        }
    }
}

#[test]
fn a_vm_lives() {
    let mut world = World::new(1000);
    let image = world.define();
    let free = world.free();
    let vm = world.create(image, MEMORY).unwrap();
    let domain = &world.model.domains[&vm.frame];
    assert_eq!(domain.entry, [CODE + 8, SPACE_BASE + MEMORY, SPACE_BASE]);
    assert_eq!(domain.parameters.services, [NIC, 0, 0], "no service behind a device without a window");
    assert_eq!(domain.parameters.register_page, SPACE_BASE);
    // Control block, root, two tables, virtual register page.
    assert_eq!(world.figures(vm), (5, 0));
    assert_eq!(world.touch(vm, SPACE_BASE, Act::Write(1)), Ok(0));
    // Code: two pages, then the zero page alone, then a run of 15.
    assert_eq!(world.touch(vm, CODE + 8, Act::Execute), Ok(1));
    assert_eq!(world.figures(vm), (5, 3));
    assert_eq!(world.touch(vm, CODE + PAGE, Act::Read), Ok(0));
    assert_eq!(world.touch(vm, CODE + 3 * PAGE, Act::Execute), Ok(1));
    assert_eq!(world.figures(vm), (5, 4));
    assert_eq!(world.touch(vm, CODE + 4 * PAGE, Act::Execute), Ok(1));
    assert_eq!(world.figures(vm), (5, 20));
    // Data: read shared, then written.
    assert_eq!(world.touch(vm, DATA + 0x200, Act::Read), Ok(1));
    assert_eq!(world.figures(vm), (5, 21));
    assert_eq!(world.touch(vm, DATA + 0x200, Act::Write(9)), Ok(1));
    assert_eq!(world.figures(vm), (6, 20));
    assert_eq!(world.touch(vm, DATA + 0x200, Act::Read), Ok(0));
    // The end of the data and the zeros behind it, in one page; zeros alone; heap.
    for (address, frames) in [(DATA + 2 * PAGE + 0x180, 7), (DATA + 4 * PAGE, 8), (SPACE_BASE + MEMORY - 1, 9)] {
        assert_eq!(world.touch(vm, address, Act::Write(3)), Ok(1));
        assert_eq!(world.figures(vm), (frames, 20));
    }
    // The second VM sees nothing of the first.
    let other = world.create(image, MEMORY).unwrap();
    for address in [SPACE_BASE, CODE + 8, DATA + 0x200, DATA + 2 * PAGE + 0x180, SPACE_BASE + MEMORY - 1] {
        world.touch(other, address, Act::Read).unwrap();
    }
    world.check(&[vm, other]);
    for vm in [vm, other] {
        assert_eq!(world.ask(Request::DropImage(image)), Response::InUse);
        assert_eq!(world.ask(Request::Destroy(world.number(vm))), Response::Done);
        assert_eq!(world.ask(Request::Destroy(world.number(vm))), Response::NotFound);
        world.finish_work();
    }
    assert_eq!(world.free(), free);
    assert_eq!(world.ask(Request::DropImage(image)), Response::Done);
    assert_eq!(world.ask(Request::DropImage(image)), Response::NotFound);
    assert!(world.model.types.iter().all(|kind| *kind == crate::model::Type::Free));
}

#[test]
fn shared_runs_end_with_their_page_table() {
    let mut world = World::new(2000);
    world.model.lent = vec![5; 1100 * PAGE as usize];
    let length = 1100 * PAGE;
    let code = Part { address: CODE, length, data_offset: 0, data_length: length, write: false, execute: true };
    let Response::Image(image) = world.ask(Request::DefineImage { parts: vec![code] }) else { panic!() };
    let vm = world.create(image, 1200 * PAGE).unwrap();
    // Each run begins at another distance from the end of a page table.
    for start in (0..1100).step_by(7).chain(0..1100) {
        let event = world.trap(vm, EventKind::PageFault, FAULT_EXECUTE, CODE + start * PAGE);
        world.pager.events(&mut world.model, &[event]);
        assert_eq!(world.ask(Request::NextStop), Response::Stopped(None));
        assert!(world.model.access(vm, CODE + start * PAGE, Access::EXECUTE).is_some());
    }
    // Control block, root, directory, virtual register page, and three leaf tables.
    assert_eq!(world.figures(vm), (7, 1100));
}

#[test]
fn forbidden_accesses_stop_the_vm() {
    let end = SPACE_BASE + MEMORY;
    let cases = [
        (0, Act::Read),
        (SPACE_BASE - 1, Act::Write(0)),
        (end, Act::Read),
        (u64::MAX, Act::Write(1)),
        (0xffff_8000_0000_0000, Act::Execute),
        (CODE, Act::Write(1)),
        (CONSTANTS, Act::Write(1)),
        (CONSTANTS, Act::Execute),
        (DATA, Act::Execute),
        (SPACE_BASE, Act::Execute),
        (end - 1, Act::Execute),
    ];
    for (address, act) in cases {
        let mut world = World::new(1000);
        let image = world.define();
        let (vm, other) = (world.create(image, MEMORY).unwrap(), world.create(image, MEMORY).unwrap());
        let write = matches!(act, Act::Write(_));
        let stop = Stop::BadAccess { address, instruction: CODE + 99, write, execute: act == Act::Execute };
        assert_eq!(world.touch(vm, address, act), Err(stop));
        assert!(world.pager.take_ring());
        assert_eq!(world.model.domains[&vm.frame].state, DomainState::Trapped, "it does not run again");
        assert_eq!(world.ask(Request::Start(world.number(vm))), Response::BadArgument);
        assert_eq!(world.ask(Request::NextStop), Response::Stopped(None));
        assert_eq!(world.touch(other, DATA + 0x500, Act::Write(1)), Ok(1));
    }
}

#[test]
fn stops_are_told_once_and_listed() {
    let mut world = World::new(1000);
    let image = world.define();
    let vms: Vec<_> = (0..3).map(|_| world.create(image, MEMORY).unwrap()).collect();
    let events = [
        world.trap(vms[0], EventKind::Exit, 7, 0),
        world.trap(vms[1], EventKind::Exception, 6, 0),
        world.trap(vms[2], EventKind::Ready, 0, 0),
    ];
    world.pager.events(&mut world.model, &events);
    assert!(world.pager.take_ring() && !world.pager.take_ring());
    assert_eq!(
        world.ask(Request::Start(world.number(vms[2]))),
        Response::BadArgument,
        "the loader does not know yet that it is ready"
    );
    let exception = Stop::Exception { vector: 6, error: 13, instruction: CODE + 99 };
    let expected = [Stop::Exit(7), exception.clone(), Stop::Ready];
    for (vm, stop) in vms.iter().zip(expected) {
        assert_eq!(world.ask(Request::NextStop), Response::Stopped(Some((world.number(*vm), stop))));
    }
    assert_eq!(world.ask(Request::NextStop), Response::Stopped(None));
    assert_eq!(world.ask(Request::Start(world.number(vms[2]))), Response::Done);
    assert_eq!(world.model.domains[&vms[2].frame].state, DomainState::Runs);
    world.ask(Request::Destroy(world.number(vms[0])));
    let Response::Vms(list, None) = world.ask(Request::List { from: 0 }) else { panic!() };
    let list: Vec<_> = list.into_iter().map(|entry| (entry.at.unwrap(), entry.started, entry.stop)).collect();
    assert_eq!(list, [(vms[1], true, Some(exception)), (vms[2], true, None)]);
    // An event that was under way when its VM was destroyed.
    world.pager.events(&mut world.model, &events[..1]);
    assert!(!world.pager.take_ring());
}

#[test]
fn lists_go_on_where_they_stopped() {
    let mut world = World::new(20_000);
    let image = world.define();
    let vms: Vec<_> = (0..70).map(|_| world.create(image, MEMORY).unwrap()).collect();
    let (mut from, mut found) = (0, Vec::new());
    loop {
        let Response::Vms(list, more) = world.ask(Request::List { from }) else { panic!() };
        found.extend(list.into_iter().filter_map(|entry| entry.at));
        match more {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!(found, vms);
    assert_eq!(world.ask(Request::List { from: u32::MAX }), Response::Vms(vec![], None));
}

#[test]
fn bad_requests_are_refused() {
    let mut world = World::new(1000);
    let image = world.define();
    let free = world.free();
    let create = |change: fn(&mut Request)| {
        let mut request = World::creation(image, MEMORY);
        change(&mut request);
        request
    };
    let bad = [
        create(|r| {
            if let Request::Create { memory, .. } = r {
                *memory += 1
            }
        }),
        create(|r| {
            if let Request::Create { memory, .. } = r {
                *memory = 0
            }
        }),
        create(|r| {
            if let Request::Create { memory, .. } = r {
                *memory = !4095
            }
        }),
        create(|r| {
            if let Request::Create { memory, .. } = r {
                *memory = 16 * PAGE
            }
        }),
        create(|r| {
            if let Request::Create { entry, .. } = r {
                *entry = DATA + 0x200
            }
        }),
        create(|r| {
            if let Request::Create { entry, .. } = r {
                *entry = u64::MAX
            }
        }),
        create(|r| {
            if let Request::Create { windows, .. } = r {
                windows[0] = (SPACE_BASE, PAGE)
            }
        }),
        create(|r| {
            if let Request::Create { windows, .. } = r {
                windows[1] = (DATA & !4095, u64::MAX)
            }
        }),
        create(|r| {
            if let Request::Create { windows, .. } = r {
                windows[2] = (SPACE_BASE + MEMORY, PAGE)
            }
        }),
    ];
    world.model.lent = vec![0; PAGE as usize];
    for request in bad {
        assert_eq!(world.ask(request), Response::BadArgument);
    }
    assert_eq!(
        world.ask(create(|r| if let Request::Create { image, .. } = r {
            *image += 1
        })),
        Response::NotFound
    );
    world.model.lent = vec![0; 100];
    assert_eq!(world.ask(World::creation(image, MEMORY)), Response::BadArgument, "too little is lent");
    assert_eq!(world.ask(Request::DefineImage { parts: parts() }), Response::BadArgument, "too little is lent");
    for request in
        [Request::NextStop, Request::List { from: 0 }, Request::DropImage(image), World::creation(image, MEMORY)]
    {
        let outcome = world.pager.request(&mut world.model, false, Some(LENT), request);
        assert_eq!(outcome, Outcome::Now(Response::Denied));
    }
    assert_eq!(world.free(), free, "refusals cost nothing");
    let nobody = 0;
    for request in [Request::Start(nobody), Request::Destroy(nobody), Request::Usage(nobody)] {
        assert_eq!(world.ask(request), Response::NotFound);
    }
}

#[test]
fn memory_is_promised_whole_and_waited_for() {
    let mut world = World::new(300);
    let image = world.define();
    let free = world.free();
    // 64 pages less those of code and constants that hold data, two tables, control block, root.
    let cost = 64 - 22 + 4;
    let mut vms = Vec::new();
    while let Ok(vm) = world.create(image, MEMORY) {
        vms.push(vm);
    }
    assert_eq!(vms.len() as u64, free / cost);
    assert_eq!(world.create(image, MEMORY), Err(Response::OutOfMemory));
    assert_eq!(world.free(), free - cost * vms.len() as u64);
    // Every one of them can use all of it.
    for vm in &vms {
        for page in 0..64 {
            let act =
                if (1..21).contains(&page) || (49..51).contains(&page) { Act::Read } else { Act::Write(page as u8) };
            world.touch(*vm, space::address(page) + 0x600, act).unwrap();
        }
        assert_eq!(world.figures(*vm).0, cost);
    }
    world.check(&vms);
    // A creation while memory is on its way back waits for it.
    world.ask(Request::Destroy(world.number(vms[0])));
    world.model.lent = vec![0x77; PAGE as usize];
    let outcome = world.pager.request(&mut world.model, true, Some(LENT), World::creation(image, MEMORY));
    assert_eq!(outcome, Outcome::Later);
    assert_eq!(world.pager.take_answer(), None);
    world.finish_work();
    let Some((LENT, Response::Created(vm))) = world.pager.take_answer() else { panic!() };
    assert_eq!(world.ask(Request::Start(world.number(vm))), Response::Done);
    assert_eq!(world.touch(vm, SPACE_BASE + MEMORY - 1, Act::Read), Ok(1));
    // One that will never have enough is refused in the end.
    world.ask(Request::Destroy(world.number(vm)));
    world.model.lent = vec![0x77; PAGE as usize];
    let outcome = world.pager.request(&mut world.model, true, Some(LENT), World::creation(image, 512 * PAGE));
    assert_eq!(outcome, Outcome::Later);
    world.finish_work();
    assert_eq!(world.pager.take_answer(), Some((LENT, Response::OutOfMemory)));
}

#[test]
fn images_beyond_the_pool_are_refused() {
    let mut world = World::new(40);
    let free = world.free();
    world.model.lent = image_file();
    let mut images = 0;
    while matches!(world.ask(Request::DefineImage { parts: parts() }), Response::Image(_)) {
        images += 1;
    }
    assert_eq!(images, 1);
    // Nineteen pages of code, three of data, two of constants; the zero page is not stored.
    assert_eq!(world.free(), free - 24);
    world.pager.manager_connected();
    assert_eq!(world.free(), free, "a loader that starts anew has forgotten its images");
}

#[test]
fn servers_have_pages_brought() {
    let mut world = World::new(1000);
    let image = world.define();
    let vm = world.create(image, MEMORY).unwrap();
    let number = world.number(vm);
    let bring = |address, length, write| Request::Bring { vm: number, address, length, write };
    assert_eq!(world.ask(bring(DATA, 2 * PAGE as u32, false)), Response::Here(vm));
    assert_eq!(world.figures(vm), (5, 2));
    assert_eq!(world.ask(bring(DATA + 0xfff, 2, true)), Response::Here(vm));
    assert_eq!(world.figures(vm), (7, 0));
    assert_eq!(world.touch(vm, DATA + 0x200, Act::Write(4)), Ok(0));
    let end = SPACE_BASE + MEMORY;
    for request in [
        bring(end - PAGE, PAGE as u32 + 1, false),
        bring(0, 1, false),
        bring(u64::MAX, 5, true),
        bring(CODE, 1, true),
        bring(DATA, 64 * 1024 + 1, false),
    ] {
        assert_eq!(world.ask(request.clone()), Response::BadArgument, "{request:?}");
    }
    assert_eq!(world.ask(bring(end - PAGE, PAGE as u32, true)), Response::Here(vm));
    assert_eq!(world.ask(bring(SPACE_BASE + 30 * PAGE, 64 * 1024, true)), Response::Here(vm));
    // A fault that was on its way when its page was brought.
    let event = world.trap(vm, EventKind::PageFault, FAULT_WRITE, end - 1);
    world.pager.events(&mut world.model, &[event]);
    assert_eq!(world.model.domains[&vm.frame].state, DomainState::Runs);
}

#[test]
fn a_vm_that_turns_on_the_spot_is_stopped() {
    let mut world = World::new(1000);
    let image = world.define();
    let vm = world.create(image, MEMORY).unwrap();
    world.touch(vm, DATA, Act::Write(1)).unwrap();
    let fault = |world: &mut World, address| {
        let event = world.trap(vm, EventKind::PageFault, FAULT_WRITE, address);
        world.pager.events(&mut world.model, &[event]);
        world.ask(Request::NextStop)
    };
    // Faults that another processor's memory of the page explains: never many in one place.
    for round in 0..100 {
        assert_eq!(fault(&mut world, DATA + round % 2), Response::Stopped(None));
    }
    for _ in 0..15 {
        assert_eq!(fault(&mut world, DATA + 1), Response::Stopped(None));
    }
    assert_eq!(fault(&mut world, DATA + 8 * PAGE), Response::Stopped(None), "progress");
    for _ in 0..16 {
        assert_eq!(fault(&mut world, DATA + 1), Response::Stopped(None));
    }
    let Response::Stopped(Some((_, Stop::Pager(why)))) = fault(&mut world, DATA + 1) else { panic!() };
    assert!(why.contains("keeps faulting"), "{why}");
    assert_eq!(world.model.domains[&vm.frame].state, DomainState::Trapped, "it does not run again");
}

#[test]
fn a_fault_costs_few_calls() {
    let mut world = World::new(40_000);
    let image = world.define();
    let vms: Vec<_> = (0..64).map(|_| world.create(image, MEMORY).unwrap()).collect();
    let heap = SPACE_BASE + MEMORY - PAGE;
    let events: Vec<_> = vms.iter().map(|vm| world.trap(*vm, EventKind::PageFault, FAULT_WRITE, heap)).collect();
    world.model.calls = 0;
    world.pager.events(&mut world.model, &events);
    // Transfers together (five at a time in the model), a mapping and a resumption each.
    assert_eq!(world.model.calls, 64usize.div_ceil(5) + 64 + 64);
    for vm in vms {
        assert_eq!(world.touch(vm, heap, Act::Write(1)), Ok(0));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Create(u64),
    /// Many VMs fault at once, each at its own place.
    Touch(Vec<(usize, u32, u64, u8)>),
    Bring(usize, u32, u32, bool),
    End(usize),
    Destroy(usize),
    Work(usize),
}

fn steps() -> impl Strategy<Value = Step> {
    let touch = (0usize..8, 0u32..90, 0u64..4096, any::<u8>());
    prop_oneof![
        3 => (16u64..100).prop_map(|pages| Step::Create(pages * PAGE)),
        8 => proptest::collection::vec(touch, 1..6).prop_map(Step::Touch),
        2 => (0usize..8, 0u32..90, 0u32..66_000, any::<bool>()).prop_map(|(v, p, l, w)| Step::Bring(v, p, l, w)),
        1 => (0usize..8).prop_map(Step::End),
        1 => (0usize..8).prop_map(Step::Destroy),
        2 => (0usize..6).prop_map(Step::Work),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_shared_or_lost(steps in proptest::collection::vec(steps(), 1..80)) {
        let mut world = World::new(500);
        let before = world.free();
        let image = world.define();
        let free = world.free();
        let mut vms: Vec<VmRef> = Vec::new();
        for step in steps {
            match step {
                Step::Create(memory) => {
                    world.model.lent = vec![0x77; PAGE as usize];
                    let request = World::creation(image, memory);
                    match world.pager.request(&mut world.model, true, Some(LENT), request) {
                        Outcome::Now(Response::Created(vm)) => {
                            prop_assert_eq!(world.ask(Request::Start(world.number(vm))), Response::Done);
                            vms.push(vm);
                        }
                        Outcome::Now(Response::BadArgument) => prop_assert!(memory < 52 * PAGE),
                        Outcome::Now(Response::OutOfMemory) => prop_assert!(!vms.is_empty()),
                        Outcome::Later => {
                            world.finish_work();
                            match world.pager.take_answer() {
                                Some((LENT, Response::Created(vm))) => {
                                    world.ask(Request::Start(world.number(vm)));
                                    vms.push(vm);
                                }
                                Some((LENT, Response::OutOfMemory)) => {}
                                other => prop_assert!(false, "{:?}", other),
                            }
                        }
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                Step::Touch(touches) => {
                    let mut events = BTreeMap::new();
                    for (index, page, offset, value) in &touches {
                        let Some(vm) = vms.get(*index).copied() else { continue };
                        if events.contains_key(index) {
                            continue;
                        }
                        let act = match value % 4 {
                            0 => Act::Execute,
                            1 | 2 => Act::Write(*value),
                            _ => Act::Read,
                        };
                        let address = space::address(*page) + offset;
                        if let Some(event) = world.attempt(vm, address, act) {
                            events.insert(*index, event);
                        }
                    }
                    let list: Vec<_> = events.values().copied().collect();
                    world.pager.events(&mut world.model, &list);
                    while let Response::Stopped(Some((number, stop))) = world.ask(Request::NextStop) {
                        prop_assert!(matches!(stop, Stop::BadAccess { .. }), "{:?}", stop);
                        vms.retain(|other| world.number(*other) != number);
                        world.ask(Request::Destroy(number));
                    }
                    for vm in &vms {
                        prop_assert_eq!(world.model.domains[&vm.frame].state, DomainState::Runs);
                    }
                }
                Step::Bring(index, page, length, write) => {
                    let Some(vm) = vms.get(index).copied() else { continue };
                    let address = space::address(page) + 17;
                    let response = world.ask(Request::Bring { vm: world.number(vm), address, length, write });
                    prop_assert!(response == Response::Here(vm) || response == Response::BadArgument, "{:?}", response);
                    if response == Response::Here(vm) {
                        let need = if write { Access::WRITE } else { Access::empty() };
                        let last = address + u64::from(length.max(1)) - 1;
                        prop_assert!(world.model.access(vm, last, need).is_some());
                    }
                }
                Step::End(index) => {
                    let Some(vm) = vms.get(index).copied() else { continue };
                    let event = world.trap(vm, EventKind::Exit, 1, 0);
                    world.pager.events(&mut world.model, &[event]);
                    prop_assert_eq!(world.ask(Request::NextStop), Response::Stopped(Some((world.number(vm), Stop::Exit(1)))));
                    vms.remove(index);
                    world.ask(Request::Destroy(world.number(vm)));
                }
                Step::Destroy(index) if index < vms.len() => {
                    let vm = vms.remove(index);
                    prop_assert_eq!(world.ask(Request::Destroy(world.number(vm))), Response::Done);
                }
                Step::Destroy(_) => {}
                Step::Work(count) => (0..count).for_each(|_| world.pager.work(&mut world.model)),
            }
            world.check(&vms);
            for vm in &vms {
                let (frames, _) = world.figures(*vm);
                let mapped = world.model.domains[&vm.frame].pages.len() as u64;
                let (_, shared) = world.figures(*vm);
                // Private pages, tables (all lie under one directory), control block, root.
                prop_assert_eq!(frames, mapped - shared + 4, "{}", format!("{vm:?}"));
            }
        }
        for vm in vms {
            world.ask(Request::Destroy(world.number(vm)));
        }
        world.finish_work();
        prop_assert_eq!(world.free(), free);
        prop_assert_eq!(world.ask(Request::DropImage(image)), Response::Done);
        prop_assert_eq!(world.free(), before);
        prop_assert!(world.model.types.iter().all(|kind| *kind == crate::model::Type::Free));
        prop_assert!(world.model.domains.is_empty());
    }

    #[test]
    fn any_event_is_harmless(kind: u32, code: u32, address: u64, generation: u32, frame in 0u32..0x6000) {
        let mut world = World::new(500);
        let image = world.define();
        let vm = world.create(image, MEMORY).unwrap();
        let known = world.trap(vm, EventKind::PageFault, code, address);
        let unknown = Event { frame, generation, kind, ..known };
        world.pager.events(&mut world.model, &[unknown, Event { kind, ..known }, known]);
        let _ = world.model.cpu_time(vm);
    }
}
