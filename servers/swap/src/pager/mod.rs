//! The pager: VMs, images, and the promises of memory that hold them together.
//!
//! * [`Pager::request`] carries out what clients ask ([`create`](self), images, figures).
//! * [`Pager::events`] takes what happened to VMs and serves their faults, in batches.
//! * [`Pager::work`] goes on with destroying VMs, a bounded step at a time.

mod create;
mod destroy;
mod fault;
mod images;

use crate::{
    frames::{Frame, FrameTable, List, Usage},
    image::Image,
    machine::Machine,
    slab::Slab,
    vm::{Cause, State, Vm},
};
use alloc::{
    boxed::Box,
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};
use protocol::{
    abi::Target,
    domain::Control,
    layout::{PAGE, SPACE_BASE},
    memory::TransferOperation,
    service::{
        VmNumber, VmRef,
        pager::{Request, Response, VmEntry},
        place,
    },
};

pub use fault::BATCH;

/// Most clients' creations that wait for memory at once. A client waits for its answer, so this many clients.
const WAITING_MAX: usize = 16;
/// Most VMs in one answer to `List`: 32 entries of at most 80 bytes are well below a page.
const LIST_MAX: usize = 32;
/// Most positions that one `List` looks at.
const LIST_POSITIONS: u32 = 4096;

/// What a request comes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The answer.
    Now(Response),
    /// The answer comes from [`Pager::take_answer`].
    Later,
}

/// A creation: [`Request::Create`] with the range that holds the virtual register page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Creation {
    /// The lent range.
    pub lent: Target,
    /// Image.
    pub image: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// First instruction.
    pub entry: u64,
    /// Number.
    pub number: VmNumber,
    /// Windows.
    pub windows: [(u64, u64); 3],
}

/// The pager.
#[derive(Debug)]
pub struct Pager<'a> {
    /// Slot of the pool's extent.
    slot: u8,
    /// Services behind the doorbells of VMs: [`Target`]s.
    services: [u64; 3],
    frames: FrameTable<'a>,
    vms: Slab<Vm>,
    /// Live VMs by place.
    places: BTreeMap<u32, VmRef>,
    images: Slab<Image>,
    /// The frame of zeros that read-only parts share.
    zero: Frame,
    /// Frames of no VM and no image.
    own: List,
    /// Frames promised to VMs.
    promised: u64,
    /// Frames of images.
    image_frames: u64,
    /// VMs whose stop the loader was not told yet. Every VM has room in it from its creation.
    stops: VecDeque<VmRef>,
    /// Whether the loader is to be told that there are stops.
    ring: bool,
    /// VMs being destroyed. Every VM has room in it from its creation.
    dying: VecDeque<u32>,
    /// Creations that wait until VMs being destroyed have given back their memory.
    waiting: VecDeque<Creation>,
    /// Answers to creations that waited.
    answers: VecDeque<(Target, Response)>,
    batch: fault::Batch,
    /// A page of an image on its way.
    page: Box<[u8; PAGE as usize]>,
}

impl<'a> Pager<'a> {
    /// A pager for the pool behind `slot`, with `services` behind the doorbells of its VMs. `None` if the pool is too small.
    pub fn new(
        slot: u8,
        services: [u64; 3],
        mut frames: FrameTable<'a>,
        machine: &mut impl Machine,
    ) -> Option<Pager<'a>> {
        let mut own = List::default();
        let zero = frames.take(&mut own, 0, Usage::Image)?;
        machine.write_frame(zero, &[0; PAGE as usize]).ok()?;
        Some(Pager {
            slot,
            services,
            frames,
            vms: Slab::new(),
            places: BTreeMap::new(),
            images: Slab::new(),
            zero,
            own,
            promised: 0,
            image_frames: 0,
            stops: VecDeque::new(),
            ring: false,
            dying: VecDeque::new(),
            waiting: VecDeque::with_capacity(WAITING_MAX),
            answers: VecDeque::with_capacity(WAITING_MAX),
            batch: fault::Batch::new(),
            page: Box::new([0; PAGE as usize]),
        })
    }

    /// Carries out a request. `manager`: whether the client may manage images and VMs. `lent`: the range that it lends.
    pub fn request(
        &mut self,
        machine: &mut impl Machine,
        manager: bool,
        lent: Option<Target>,
        request: Request,
    ) -> Outcome {
        let open = matches!(request, Request::Usage(_) | Request::Pool | Request::Bring { .. } | Request::Brought);
        if !manager && !open {
            return Outcome::Now(Response::Denied);
        }
        Outcome::Now(match request {
            Request::DefineImage { parts } => match lent {
                Some(lent) => self.define_image(machine, lent, &parts),
                None => Response::BadArgument,
            },
            Request::DropImage(image) => self.drop_image(image),
            Request::Create { vm, image, memory, entry, windows } => match lent {
                Some(lent) => {
                    let creation = Creation { lent, number: vm, image, memory, entry, windows };
                    match self.create_or_wait(machine, creation) {
                        Some(response) => response,
                        None => return Outcome::Later,
                    }
                }
                None => Response::BadArgument,
            },
            Request::Start(vm) => self.at(vm).map_or(Response::NotFound, |at| self.start(machine, at)),
            Request::Destroy(vm) => self.at(vm).map_or(Response::NotFound, |at| self.destroy(machine, at)),
            Request::NextStop => Response::Stopped(self.next_stop()),
            Request::List { from } => self.list(from),
            Request::Usage(vm) => self.at(vm).map_or(Response::NotFound, |at| self.usage(machine, at)),
            Request::Pool => Response::Pool {
                total: u64::from(self.frames.total()),
                free: self.available(),
                vms: u64::from(self.vms.len()),
                suspended: 0,
                waiting: 0,
                swap_total: 0,
                swap_free: 0,
                page_ins: 0,
                page_outs: 0,
            },
            Request::Bring { vm, address, length, write } => match self.at(vm) {
                Some(at) => self.bring(machine, at, address, length, write),
                None => Response::NotFound,
            },
            // Nothing leaves memory, so nothing is answered `Later`.
            Request::Brought => Response::Brought(Vec::new()),
        })
    }

    /// An answer to a creation that waited: who lent the range, and the answer.
    pub fn take_answer(&mut self) -> Option<(Target, Response)> {
        self.answers.pop_front()
    }

    /// True once after there were new stops for the loader to take.
    pub fn take_ring(&mut self) -> bool {
        core::mem::take(&mut self.ring)
    }

    /// The manager has opened a session: images that no VM uses were its own, and it has forgotten them.
    pub fn manager_connected(&mut self) {
        for number in 0..self.images.end() {
            let _ = self.drop_image(number);
        }
        // It may have lost the interrupt too.
        self.ring |= !self.stops.is_empty();
    }

    /// Frames of the pool that it manages.
    pub fn frames(&self) -> u32 {
        self.frames.total()
    }

    /// Frames that are neither in use by the pager or images nor promised to VMs.
    pub fn available(&self) -> u64 {
        let own = u64::from(self.frames.reserved()) + u64::from(self.own.len());
        u64::from(self.frames.total()).saturating_sub(own + self.image_frames + self.promised)
    }

    /// Where the VM with this number is.
    fn at(&self, vm: VmNumber) -> Option<VmRef> {
        let at = *self.places.get(&place(vm))?;
        let found = self.vms.get(self.find(at)?)?;
        (found.tag == vm).then_some(at)
    }

    /// The position of a VM that is there.
    fn find(&self, vm: VmRef) -> Option<u32> {
        let number = self.frames.control_owner(vm.frame)?;
        let found = self.vms.get(number)?;
        (found.reference == vm && found.is_live()).then_some(number)
    }

    fn start(&mut self, machine: &mut impl Machine, vm: VmRef) -> Response {
        let Some(found) = self.find(vm).and_then(|number| self.vms.get_mut(number)) else { return Response::NotFound };
        let (control, arguments) = match found.state {
            // The stack pointer is the end of memory; `rdi` names the virtual register page.
            State::Created => (Control::Start, [found.entry, found.space.end(), SPACE_BASE]),
            State::Ready if found.told => (Control::Resume, [0; 3]),
            _ => return Response::BadArgument,
        };
        found.state = State::Running;
        found.stop = None;
        found.told = false;
        if machine.control(vm, control, arguments).is_err() {
            self.stop(vm, Cause::Pager("the kernel refused to start it"));
        }
        Response::Done
    }

    /// Notes that a VM stopped, and why.
    fn stop(&mut self, vm: VmRef, cause: Cause) {
        let Some(found) = self.find(vm).and_then(|number| self.vms.get_mut(number)) else { return };
        found.state = if cause == Cause::Ready { State::Ready } else { State::Stopped };
        found.stop = Some(cause);
        found.told = false;
        if !core::mem::replace(&mut found.queued, true) {
            self.stops.push_back(vm);
        }
        self.ring = true;
    }

    fn next_stop(&mut self) -> Option<(VmNumber, protocol::service::pager::Stop)> {
        while let Some(vm) = self.stops.pop_front() {
            let Some(found) = self.find(vm).and_then(|number| self.vms.get_mut(number)) else { continue };
            found.queued = false;
            if let Some(cause) = found.stop
                && !core::mem::replace(&mut found.told, true)
            {
                return Some((found.tag, cause.into()));
            }
        }
        None
    }

    fn list(&mut self, from: u32) -> Response {
        let end = self.vms.end().min(from.saturating_add(LIST_POSITIONS));
        let mut entries = Vec::new();
        for number in from..end {
            if entries.len() == LIST_MAX {
                return Response::Vms(entries, Some(number));
            }
            let Some(vm) = self.vms.get_mut(number) else { continue };
            if vm.is_live() {
                vm.told = vm.stop.is_some();
                let started = vm.state != State::Created;
                let stop = vm.stop.map(Into::into);
                entries.push(VmEntry { vm: vm.tag, at: Some(vm.reference), image: vm.image, started, stop });
            }
        }
        Response::Vms(entries, (end < self.vms.end()).then_some(end))
    }

    fn usage(&mut self, machine: &mut impl Machine, vm: VmRef) -> Response {
        match self.find(vm).and_then(|number| self.vms.get(number)) {
            Some(found) => Response::Usage {
                frames: u64::from(found.frames.len()),
                swapped: 0,
                shared: u64::from(found.shared_count),
                faults: found.faults,
                cpu_time: machine.cpu_time(vm),
            },
            None => Response::NotFound,
        }
    }

    /// Fills the frame `to` from another frame, or with zeros.
    fn fill(&self, from: Option<Frame>, to: Frame) -> TransferOperation {
        let pool = Target::slot(self.slot).0;
        TransferOperation {
            from: from.map_or(Target::ZERO.0, |_| pool),
            from_address: from.map_or(0, |frame| u64::from(frame) * PAGE),
            to: pool,
            to_address: u64::from(to) * PAGE,
            length: PAGE as u32,
            ..TransferOperation::default()
        }
    }
}
