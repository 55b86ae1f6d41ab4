//! The pager on models of the kernel and of disks.

mod incore;
mod lives;
mod swapping;
mod templates;

use crate::{
    frames::{FrameTable, Layout, Pool, Record, Usage},
    machine::Completed,
    model::{Died, DomainState, Model},
    pager::{Client, Kept, Outcome, Pager, Parts},
    region::Stripes,
    space,
};
use protocol::{
    abi::Target,
    domain::{Event, EventKind, FAULT_EXECUTE, FAULT_WRITE},
    layout::{IMAGE_BASE, PAGE, SPACE_BASE},
    memory::Access,
    service::{
        VmRef,
        pager::{Part, Request, Response, Stop},
    },
};
use std::{boxed::Box, collections::BTreeMap, string::String, vec, vec::Vec};

/// The pool is of two extents, each with half of the frames.
const SLOTS: [u8; 2] = [9, 11];
const FIRSTS: [u64; 2] = [0x5000, 0x1000];
const LENT: Target = Target::caller(3, 17);
const NIC: u64 = Target::slot(20).0;
const CODE: u64 = IMAGE_BASE;
const DATA: u64 = IMAGE_BASE + 0x2_0000;
const CONSTANTS: u64 = IMAGE_BASE + 0x3_0000;
const MEMORY: u64 = 64 * PAGE;
const MANAGER: Client = Client { manager: true, number: Some(0) };
const SWITCH: Client = Client { manager: false, number: Some(1) };

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    Read,
    Write(u8),
    Execute,
}

struct World {
    model: Model,
    pager: Option<Pager<'static>>,
    block: u32,
    layout: Layout,
    blocks: Vec<u64>,
    /// What was written to memory, by VM and address.
    written: BTreeMap<(u64, u64), u8>,
    /// VMs of which the loader was told that they stopped.
    stopped: BTreeMap<u64, Stop>,
    deaths: usize,
    /// VMs that say `ready`, and whether a template is to be made of them before they go on.
    ready: BTreeMap<u64, bool>,
    /// Templates, and what was written in them.
    templates: Vec<(u32, BTreeMap<u64, u8>)>,
    /// Nanoseconds that a turn takes.
    tick: u64,
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

/// What a VM finds at an address that nobody has written.
fn initial(address: u64) -> u8 {
    if address < IMAGE_BASE {
        return 0x77;
    }
    for part in parts() {
        if address >= part.address && address - part.address < part.data_length {
            return image_file()[(part.data_offset + address - part.address) as usize];
        }
    }
    0
}

impl World {
    /// A pool of so many frames, and swap disks of so many blocks.
    fn new(frames: usize, blocks: &[u64]) -> World {
        let counts = [frames - frames / 2, frames / 2];
        let pool = Pool::new([0, 1].map(|part| (SLOTS[part], FIRSTS[part], counts[part] as u64)));
        let layout = Layout::new(&pool).unwrap();
        let mut model = Model::new(pool, blocks);
        let records = Box::leak((0..frames).map(|_| Record::default()).collect::<Vec<_>>().into_boxed_slice());
        let heads = Box::leak(vec![0; layout.heads as usize].into_boxed_slice());
        let kept = Box::leak(Box::new(Kept { key: [9; 32], ..Kept::default() }));
        let table = FrameTable::new(pool, &layout, records, heads, 0x1234_5678_9abc_def1).unwrap();
        let parts = Self::parts(table, kept, blocks, 16);
        let pager = Pager::new(parts, &mut model);
        let blocks = blocks.to_vec();
        let (written, stopped) = (BTreeMap::new(), BTreeMap::new());
        let (ready, templates) = (BTreeMap::new(), Vec::new());
        World {
            model,
            pager,
            block: 16,
            layout,
            blocks,
            written,
            stopped,
            deaths: 0,
            ready,
            templates,
            tick: 25_000_000,
        }
    }

    fn parts(frames: FrameTable<'static>, kept: &'static mut Kept, blocks: &[u64], block: u32) -> Parts<'static> {
        let services = [NIC, 0, Target::slot(21).0];
        Parts { services, frames, kept, stripes: Stripes::new(blocks), block }
    }

    fn pager(&mut self) -> &mut Pager<'static> {
        self.pager.as_mut().unwrap()
    }

    /// Lets the pager do something. If it dies in the middle of it, another one takes over.
    fn with<T>(&mut self, work: impl FnOnce(&mut Pager<'static>, &mut Model) -> T) -> Option<T> {
        let (pager, model) = (self.pager.as_mut().unwrap(), &mut self.model);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(pager, model)));
        match result {
            Ok(value) => Some(value),
            Err(reason) if reason.is::<Died>() => {
                self.bury();
                None
            }
            Err(reason) => std::panic::resume_unwind(reason),
        }
    }

    /// The pager is dead: its heap is gone, what lies in the pool is not.
    fn bury(&mut self) {
        self.deaths += 1;
        let (frames, kept, vms) = self.pager.take().unwrap().abandon();
        let mut places = BTreeMap::new();
        frames.each(|frame, _, usage| {
            if let Usage::Records(part) = usage {
                places.insert(part, frame);
            }
        });
        for (part, records) in vms.abandon() {
            self.model.left.insert(places[&part], records);
        }
        self.model.mourn();
        let (records, heads) = frames.abandon();
        let table = FrameTable::new(self.model.pool, &self.layout, records, heads, 0x9999_8888_7777).unwrap();
        let parts = Self::parts(table, kept, &self.blocks, self.block);
        self.pager = Some(Pager::recover(parts, &mut self.model).expect("another pager takes over"));
    }

    fn ask_as(&mut self, client: Client, request: Request) -> Option<Response> {
        let outcome = self.with(|pager, model| pager.request(model, client, Some(LENT), request))?;
        match outcome {
            Outcome::Now(response) => Some(response),
            Outcome::Later => {
                let deaths = self.deaths;
                for _ in 0..10_000 {
                    let answer = self.with(|pager, _| pager.take_answer())?;
                    if let Some((to, response)) = answer {
                        assert_eq!(to, LENT);
                        return Some(response);
                    }
                    self.turn(0, true);
                    if self.deaths != deaths {
                        return None;
                    }
                }
                panic!("an answer never came");
            }
        }
    }

    fn ask(&mut self, request: Request) -> Response {
        self.ask_as(MANAGER, request).expect("the pager lives")
    }

    fn define(&mut self) -> u32 {
        self.model.lent = image_file();
        match self.ask(Request::DefineImage { parts: parts() }) {
            Response::Image(number) => number,
            other => panic!("{other:?}"),
        }
    }

    fn creation(vm: u64, image: u32, memory: u64) -> Request {
        let windows = [(DATA & !4095, 2 * PAGE), (0, 0), (0, 0)];
        Request::Create { vm, image, memory, entry: CODE + 8, windows, start: false }
    }

    fn create(&mut self, vm: u64, image: u32, memory: u64) -> Result<VmRef, Response> {
        self.model.lent = vec![0x77; PAGE as usize];
        match self.ask(Self::creation(vm, image, memory)) {
            Response::Created(at) => {
                assert_eq!(self.ask(Request::Start(vm)), Response::Done);
                Ok(at)
            }
            other => Err(other),
        }
    }

    /// Makes so many VMs, with the numbers from 1 on, all of one image: its number.
    fn populate(&mut self, count: u64) -> u32 {
        let image = self.define();
        for vm in 1..=count {
            self.create(vm, image, MEMORY).unwrap();
        }
        image
    }

    /// The pager gets the processor: events, then what is left to do; and a disk answers one request.
    fn turn(&mut self, which: usize, good: bool) {
        self.model.now += self.tick;
        let events = self.model.collect(3);
        if !events.is_empty() {
            self.with(|pager, model| pager.events(model, &events));
        }
        for disk in 0..self.model.disks() {
            if let Some((disk, slot, status)) = self.model.answer((disk + which) % self.model.disks(), which, good) {
                self.with(|pager, model| pager.completed(model, Completed { disk, slot, status }));
                break;
            }
        }
        self.with(|pager, model| pager.work(model));
        self.written.extend(self.model.meddled.drain(..).map(|(vm, address, byte)| ((vm, address), byte)));
        self.take_stops();
    }

    fn take_stops(&mut self) {
        while let Some(Response::Stopped(Some((vm, stop)))) = self.ask_as(MANAGER, Request::NextStop) {
            match self.ready.get(&vm).copied().filter(|_| stop == Stop::Ready) {
                Some(true) => self.make_template(vm),
                Some(false) => {
                    self.ready.remove(&vm);
                    // If the pager dies in the middle of it, it says `ready` again, or goes on.
                    if self.ask_as(MANAGER, Request::Start(vm)).is_none() {
                        self.ready.insert(vm, false);
                    }
                }
                None => {
                    self.stopped.insert(vm, stop);
                }
            }
        }
    }

    /// A VM says `ready`, and a template is made of it.
    fn say_ready(&mut self, vm: u64) {
        if self.wake(vm)
            && let Some((at, domain)) = self.model.find(vm)
        {
            Self::trap(domain, at, EventKind::Ready, 0, 0);
            self.ready.insert(vm, true);
        }
    }

    fn make_template(&mut self, vm: u64) {
        self.ready.insert(vm, false);
        match self.ask_as(MANAGER, Request::MakeTemplate(vm)) {
            Some(Response::Image(number)) => {
                let of_it = self.written.range((vm, 0)..=(vm, u64::MAX));
                let mut written: BTreeMap<u64, u8> = of_it.map(|((_, address), byte)| (*address, *byte)).collect();
                // Of the register page the kernel's part is the template's, but nothing is pending.
                written.insert(SPACE_BASE + 8, 0);
                self.templates.push((number, written));
            }
            Some(Response::NotWhole | Response::OutOfMemory) | None => {}
            other => panic!("{other:?}"),
        }
    }

    /// A VM was made from a template: what it finds.
    fn inherit(&mut self, vm: u64, template: usize) {
        let written = self.templates[template].1.clone();
        self.written.extend(written.into_iter().map(|(address, byte)| ((vm, address), byte)));
    }

    /// Turns until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..20_000 {
            let quiet = self.model.under_way() == 0 && !self.model.domains.values().any(|domain| domain.queued);
            if quiet && self.pager().next_deadline() > self.model.now {
                return;
            }
            self.turn(0, true);
        }
        panic!("it never comes to rest");
    }

    fn trap(domain: &mut crate::model::Domain, at: VmRef, kind: EventKind, code: u32, address: u64) {
        let generation = at.generation;
        let tag = domain.parameters.tag;
        let kind = kind as u32;
        let event = Event { frame: at.frame, generation, tag, kind, code, address, instruction: CODE + 99, value: 13 };
        domain.state = if kind == EventKind::Exit as u32 { DomainState::Stopped } else { DomainState::Trapped };
        (domain.trap, domain.queued) = (Some(event), true);
    }

    /// Has a VM in memory and running; `false`: it stopped for good.
    fn wake(&mut self, vm: u64) -> bool {
        for turn in 0..20_000 {
            if self.stopped.contains_key(&vm) {
                return false;
            }
            match self.model.find(vm) {
                Some((_, domain)) if !domain.held => match domain.state {
                    DomainState::Runs => return true,
                    DomainState::Idle(_) => {
                        domain.state = DomainState::Runs;
                        continue;
                    }
                    _ => {}
                },
                Some(_) => {}
                None => {
                    let length = PAGE as u32;
                    self.ask_as(SWITCH, Request::Bring { vm, address: SPACE_BASE, length, write: false });
                }
            }
            self.turn(turn, true);
        }
        panic!("VM {vm} does not come back: {:?}", self.model.find(vm));
    }

    /// A VM touches memory until it succeeds. The byte that it sees; `None`: it was stopped.
    fn act(&mut self, vm: u64, address: u64, act: Act) -> Option<u8> {
        let (need, code) = match act {
            Act::Read => (Access::empty(), 0),
            Act::Write(_) => (Access::WRITE, FAULT_WRITE),
            Act::Execute => (Access::EXECUTE, FAULT_EXECUTE),
        };
        for _ in 0..200 {
            if !self.wake(vm) {
                return None;
            }
            let (at, domain) = self.model.find(vm).unwrap();
            domain.time += 1 << 18;
            domain.switches += 1;
            let Some(byte) = self.model.access(at, address, need) else {
                let (at, domain) = self.model.find(vm).unwrap();
                Self::trap(domain, at, EventKind::PageFault, code, address);
                continue;
            };
            if let Act::Write(value) = act {
                *byte = value;
                self.written.insert((vm, address), value);
                return Some(value);
            }
            let seen = *byte;
            let wanted = self.written.get(&(vm, address)).copied().unwrap_or_else(|| initial(address));
            assert_eq!(seen, wanted, "VM {vm} reads {address:#x}");
            return Some(seen);
        }
        panic!("VM {vm} makes no progress at {address:#x}");
    }

    fn read(&mut self, vm: u64, page: u32) -> Option<u8> {
        self.act(vm, space::address(page), Act::Read)
    }

    fn write(&mut self, vm: u64, page: u32, value: u8) -> Option<u8> {
        self.act(vm, space::address(page), Act::Write(value))
    }

    /// A server writes into a VM's memory, asking the pager until it can.
    fn deliver(&mut self, vm: u64, page: u32, value: u8) -> bool {
        let address = space::address(page) + 8;
        for turn in 0..20_000 {
            let bring = Request::Bring { vm, address, length: 16, write: true };
            match self.ask_as(SWITCH, bring) {
                Some(Response::Here(at)) => {
                    if let Some(byte) = self.model.access(at, address, Access::WRITE) {
                        *byte = value;
                        self.written.insert((vm, address), value);
                        return true;
                    }
                }
                Some(Response::NotFound | Response::BadArgument) => return false,
                Some(Response::Later) | None => {}
                other => panic!("{other:?}"),
            }
            self.turn(turn, true);
        }
        panic!("VM {vm} is never brought");
    }

    /// A VM goes idle until a time.
    fn idle(&mut self, vm: u64, deadline: u64) {
        if self.wake(vm)
            && let Some((_, domain)) = self.model.find(vm)
        {
            (domain.state, domain.register) = (DomainState::Idle(deadline), vm * 3);
            domain.switches += 1;
        }
    }

    fn pool(&mut self) -> BTreeMap<String, u64> {
        let Response::Pool { free, vms, suspended, swap_free, swap_total, waiting, page_ins, page_outs, total, .. } =
            self.ask(Request::Pool)
        else {
            panic!("figures of the pool");
        };
        let names =
            ["free", "vms", "suspended", "swap_free", "swap_total", "waiting", "page_ins", "page_outs", "total"];
        let values = [free, vms, suspended, swap_free, swap_total, waiting, page_ins, page_outs, total];
        names.map(String::from).into_iter().zip(values).collect()
    }
}
