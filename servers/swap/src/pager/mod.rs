//! The pager: VMs, images, memory and swap space.
//!
//! | file | what |
//! |---|---|
//! | `create`, `destroy`, `images` | VMs and images come and go |
//! | `fault` | faults in batches, and pages that servers ask for |
//! | `pages` | the page map of a VM, and its resident pages in runs |
//! | `reading`, `writing` | pages from and to swap space, many under way |
//! | `clock` | who gives memory back: WSClock |
//! | `suspend`, `resume` | whole VMs leave memory and come back |
//! | `gate` | who may come back, and when: the gatekeeper |
//! | `templates` | VMs that said `ready` are kept as images, and clones are made |
//! | `requests` | what clients ask, and what they are told |
//! | `recover` | a restarted pager finds all of it again |
//!
//! Nothing waits: what takes a disk is an operation under way, noted in `underway`, and goes on in [`Pager::completed`].

pub mod clock;
mod create;
mod destroy;
mod fault;
mod gate;
mod images;
mod pages;
mod reading;
mod recover;
mod requests;
mod resume;
mod suspend;
mod templates;
mod underway;
mod writing;

use crate::{
    crypt::{Cipher, KEY},
    frames::{Frame, FrameTable, List, Usage},
    image::Image,
    machine::Machine,
    queue::Queue,
    record::{Cause, QUEUED, State, TOLD, VmRecord, VmTable},
    region::{Regions, Stripes},
    slab::Slab,
};
use alloc::{
    boxed::Box,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    vec::Vec,
};
use core::cmp::Reverse;
use create::First;
use protocol::{
    abi::{NEVER, Target},
    domain::Control,
    layout::{PAGE, SPACE_BASE},
    memory::TransferOperation,
    service::{VmNumber, pager::Response},
};

pub use fault::BATCH;

/// Most clients' creations that wait for memory at once. A client waits for its answer, so this many clients.
const WAITING_MAX: usize = 16;
/// Most clients that can wait for pages.
pub const CLIENTS: usize = 8;
/// Writes counted at once in the part of the state that survives.
const COUNTERS: u64 = 1 << 32;
/// Owner of the frames of an image in the frame table: beyond all places of VMs.
const IMAGES: u32 = 1 << protocol::service::PLACE_BITS;
/// Owner of the pager's own frames.
const SELF: u32 = u32::MAX;

/// What a request comes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The answer.
    Now(Response),
    /// The answer comes from [`Pager::take_answer`].
    Later,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Client {
    /// Whether it may manage images and VMs.
    pub manager: bool,
    /// Its number among the clients that can wait for pages; `None`: it cannot.
    pub number: Option<u8>,
}

/// A creation: [`Request::Create`] with the range that holds the virtual register page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Creation {
    /// The lent range.
    pub lent: Target,
    /// Where in it the page is.
    pub lent_at: u64,
    /// The VM's number.
    pub vm: VmNumber,
    /// Image.
    pub image: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// First instruction.
    pub entry: u64,
    /// Windows.
    pub windows: [(u64, u64); 3],
    /// Whether it is started at once.
    pub start: bool,
}

/// The part of the pager's state that is neither in the frame table nor in the records of VMs, and survives a restart. It lies in a frame
/// of the pool.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Kept {
    /// [`Kept::MAGIC`] once all else is set.
    pub magic: u64,
    /// All writes to swap space that were counted are below.
    pub counters: u64,
    /// The key of swap space.
    pub key: [u8; KEY],
    /// Units of swap space, and disks: a restarted pager must find the same.
    pub units: u32,
    /// Disks.
    pub disks: u32,
    /// The disks' partitions.
    pub partitions: [[u8; 16]; DISKS_MAX],
    /// Pages read from swap space.
    pub page_ins: u64,
    /// Pages written to swap space.
    pub page_outs: u64,
}

impl Kept {
    /// Says that the rest is valid, and of this layout.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"swapkep1");
}

/// Most swap disks.
pub const DISKS_MAX: usize = 8;

/// What a pager is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Services behind the doorbells of VMs: [`Target`]s.
    pub services: [u64; 3],
    /// The frame table.
    pub frames: FrameTable<'a>,
    /// What survives.
    pub kept: &'a mut Kept,
    /// How swap space lies on the disks; no units: there is none.
    pub stripes: Stripes,
    /// Pages that are read and written together, a power of two from 1 to 16.
    pub block: u32,
}

/// The pager.
#[derive(Debug)]
pub struct Pager<'a> {
    services: [u64; 3],
    frames: FrameTable<'a>,
    kept: &'a mut Kept,
    vms: VmTable,
    images: Slab<Image>,
    /// Templates of which a clone is watched.
    watched: Vec<u32>,
    /// The frame of zeros that read-only parts share.
    zero: Frame,
    /// Frames of no VM and no image.
    own: List,
    /// Frames that are never used again.
    lost: List,
    /// Frames promised to VMs, if there is no swap space.
    promised: u64,
    /// Frames of images.
    image_frames: u64,
    /// VMs that are there, and those of them that are suspended.
    count: u32,
    suspended: u32,

    stripes: Stripes,
    regions: Regions,
    cipher: Cipher,
    /// Next number of a write.
    counter: u64,
    block: u32,
    underway: underway::Underway,
    clock: clock::Clock,

    /// Why VMs stopped.
    causes: BTreeMap<u32, Cause>,
    /// VMs whose stop the loader was not told yet, by place.
    stops: VecDeque<u32>,
    /// Whether the loader is to be told that there are stops.
    ring: bool,
    /// VMs being destroyed, by place.
    dying: Queue,
    /// Suspended VMs whose memory is still being given back, by place.
    leaving: Queue,
    /// VMs with a fault, or a client, that waits for a frame or a slot, first come first served.
    stalled: VecDeque<u32>,
    /// The gatekeeper's queue: suspended VMs that are to come back, first come first served.
    gate: Queue,
    /// When suspended VMs are to be woken.
    wakes: BinaryHeap<Reverse<gate::Wake>>,
    /// What the VM that was made last began with.
    first: First,
    /// Creations that wait for memory.
    waiting: VecDeque<Creation>,
    /// Answers to creations that waited.
    answers: VecDeque<(Target, Response)>,
    /// What clients have asked for and may try again.
    brought: [VecDeque<VmNumber>; CLIENTS],
    /// Clients to be told of it, a bit each.
    tell: u8,
    batch: fault::Batch,
    /// A page on its way.
    page: Box<[u8; PAGE as usize]>,
    /// A segment on its way.
    segment: Box<[u8]>,
}

impl<'a> Pager<'a> {
    /// A pager for a pool that nobody has used since boot, whose key is in `kept`. `None` if the pool is too small.
    pub fn new(parts: Parts<'a>, machine: &mut impl Machine) -> Option<Pager<'a>> {
        let (units, disks) = (parts.stripes.units, parts.stripes.disks);
        let mut pager = Pager::of(parts);
        pager.zero = pager.frames.take(&mut pager.own, SELF, Usage::Own)?;
        machine.write_frame(pager.zero, 0, &[0; PAGE as usize]).ok()?;
        (pager.kept.units, pager.kept.disks) = (units, disks);
        pager.kept.magic = Kept::MAGIC;
        Some(pager)
    }

    /// One without VMs.
    fn of(parts: Parts<'a>) -> Pager<'a> {
        let Parts { services, frames, kept, stripes, block } = parts;
        let counter = kept.counters.max(1);
        kept.counters = counter + COUNTERS;
        let cipher = Cipher::new(&kept.key);
        let clock = clock::Clock::new(frames.total());
        Pager {
            services,
            frames,
            kept,
            vms: VmTable::default(),
            images: Slab::new(),
            watched: Vec::new(),
            zero: 0,
            own: List::default(),
            lost: List::default(),
            promised: 0,
            image_frames: 0,
            count: 0,
            suspended: 0,
            stripes,
            regions: Regions::new(stripes.units),
            cipher,
            counter,
            block: block.clamp(1, crate::region::UNIT_BLOCKS).next_power_of_two(),
            underway: underway::Underway::default(),
            clock,
            causes: BTreeMap::new(),
            stops: VecDeque::new(),
            ring: false,
            dying: Queue::default(),
            leaving: Queue::default(),
            stalled: VecDeque::new(),
            gate: Queue::default(),
            wakes: BinaryHeap::new(),
            first: First::default(),
            waiting: VecDeque::with_capacity(WAITING_MAX),
            answers: VecDeque::with_capacity(WAITING_MAX),
            brought: Default::default(),
            tell: 0,
            batch: fault::Batch::new(),
            page: Box::new([0; PAGE as usize]),
            segment: alloc::vec![0; crate::suspended::SEGMENT_CHUNKS as usize * PAGE as usize].into_boxed_slice(),
        }
    }

    /// What is left of it when its server dies.
    #[cfg(test)]
    pub fn abandon(self) -> (FrameTable<'a>, &'a mut Kept, VmTable) {
        (self.frames, self.kept, self.vms)
    }

    /// Frames that VMs and images have, and VMs on their way.
    #[cfg(test)]
    pub fn in_use(&self) -> (u32, usize) {
        (self.frames.used() - self.frames.reserved() - self.own.len() - self.lost.len(), self.underway.moves())
    }

    /// Stops a VM as when its region cannot be written.
    #[cfg(test)]
    pub fn halt_for_test(
        &mut self,
        machine: &mut impl Machine,
        place: u32,
        status: protocol::service::block_driver::Status,
    ) {
        self.halt(machine, place, Cause::Swap("its memory cannot be written to swap space", status));
    }

    /// Frames that are to become free, and free ones that are spoken for.
    #[cfg(test)]
    pub fn spoken_for(&self) -> (u32, u32) {
        (self.underway.freeing, self.underway.promised)
    }

    /// Units of swap space that VMs have.
    #[cfg(test)]
    pub fn units_in_use(&self) -> u32 {
        self.stripes.units - self.regions.left()
    }

    /// Whether there is swap space.
    pub const fn has_swap(&self) -> bool {
        self.stripes.units > 0
    }

    /// Frames of the pool that it manages.
    pub fn frames(&self) -> u32 {
        self.frames.total()
    }

    /// VMs that are there.
    pub const fn vms(&self) -> u32 {
        self.count
    }

    /// Frames that new VMs and images can get: those neither in use by the pager or images nor promised to VMs, or with swap space those that nobody
    /// has.
    pub fn available(&self) -> u64 {
        if self.has_swap() {
            return u64::from(self.spare());
        }
        let own = u64::from(self.frames.reserved()) + u64::from(self.own.len()) + u64::from(self.lost.len());
        u64::from(self.frames.total()).saturating_sub(own + self.image_frames + self.promised)
    }

    /// When there is something to do though nothing happens, in nanoseconds since kernel entry; 0: now.
    pub fn next_deadline(&self) -> u64 {
        if self.has_work() {
            return 0;
        }
        let wake = self.wakes.peek().map_or(NEVER, |Reverse(note)| note.time());
        self.clock.next_turn().map_or(wake, |turn| turn.min(wake))
    }

    /// A number for a write to swap space, never used before.
    fn next_counters(&mut self, count: u64) -> u64 {
        let first = self.counter;
        self.counter += count;
        if self.counter > self.kept.counters {
            self.kept.counters = self.counter + COUNTERS;
        }
        first
    }

    /// Takes a frame for a VM.
    fn take(&mut self, place: u32, usage: Usage) -> Option<Frame> {
        let vm = self.vms.get_mut(place)?;
        if vm.promised != 0 && vm.frames.len() >= vm.promised {
            return None;
        }
        let frame = self.frames.take(&mut vm.frames, place, usage)?;
        if vm.grace > 0 {
            vm.grace -= 1;
            self.underway.promised -= 1;
        }
        Some(frame)
    }

    /// Frames that were kept for a VM are kept no longer.
    fn end_grace(&mut self, place: u32) {
        if let Some(vm) = self.vms.get_mut(place) {
            self.underway.promised -= u32::from(core::mem::take(&mut vm.grace));
        }
    }

    /// Stops a VM that may be running.
    fn halt(&mut self, machine: &mut impl Machine, place: u32, cause: Cause) {
        if let Some(at) = self.vms.get(place).and_then(VmRecord::at) {
            let _ = machine.control(at, Control::Stop, [0; 3]);
        }
        self.stop(place, cause);
    }

    /// Gives a frame of a VM back.
    fn give(&mut self, place: u32, frame: Frame) {
        if let Some(vm) = self.vms.get_mut(place) {
            self.frames.give(&mut vm.frames, frame);
        }
    }

    pub(super) fn start(&mut self, machine: &mut impl Machine, vm: VmNumber) -> Response {
        let Some(place) = self.vms.find(vm) else { return Response::NotFound };
        let is_clone = self.template_of(place).is_some();
        let Some(found) = self.vms.get_mut(place) else { return Response::NotFound };
        let (control, arguments) = match found.state() {
            State::Created if is_clone => (Control::Release, [0; 3]),
            // The stack pointer is the end of memory; `rdi` names the virtual register page.
            State::Created => (Control::Start, [found.entry, found.space().end(), SPACE_BASE]),
            State::Ready if found.is(TOLD) => (Control::Resume, [0; 3]),
            _ => return Response::BadArgument,
        };
        found.set_state(State::Running);
        found.set(TOLD, false);
        self.causes.remove(&place);
        let done = found.at().is_some_and(|at| machine.control(at, control, arguments).is_ok());
        if !done {
            self.stop(place, Cause::Pager("the kernel refused to start it"));
        }
        Response::Done
    }

    /// Notes that a VM stopped, and why.
    fn stop(&mut self, place: u32, cause: Cause) {
        let Some(vm) = self.vms.get_mut(place).filter(|vm| vm.is_live()) else { return };
        vm.set_state(if cause == Cause::Ready { State::Ready } else { State::Stopped });
        vm.set_fault(None);
        vm.set(TOLD, false);
        let queued = vm.set(QUEUED, true);
        self.causes.insert(place, cause);
        if !queued {
            self.stops.push_back(place);
        }
        self.ring = true;
        self.notify(place);
    }

    /// Fills the frame `to` from another frame, or with zeros.
    fn fill(&self, from: Option<Frame>, to: Frame) -> TransferOperation {
        let slot = |frame| Target::slot(self.frames.slot(frame)).0;
        TransferOperation {
            from: from.map_or(Target::ZERO.0, slot),
            from_address: from.map_or(0, |frame| u64::from(frame) * PAGE),
            to: slot(to),
            to_address: u64::from(to) * PAGE,
            length: PAGE as u32,
            ..TransferOperation::default()
        }
    }

    /// The image that a VM was made from.
    fn image_of(&self, vm: &VmRecord) -> Option<&Image> {
        self.images.get(vm.image)
    }
}
