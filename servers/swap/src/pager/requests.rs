//! What clients ask, and what they are told.

use super::{Client, Creation, Outcome, Pager};
use crate::{
    machine::Machine,
    record::{QUEUED, State, TOLD},
};
use alloc::{collections::VecDeque, vec::Vec};
use protocol::{
    abi::Target,
    service::{
        VmNumber,
        pager::{Request, Response, VmEntry},
    },
};

/// Most VMs in one answer to `List`: 32 entries of at most 80 bytes are well below a page.
const LIST_MAX: usize = 32;
/// Most positions that one `List` looks at.
const LIST_POSITIONS: u32 = 4096;
/// Most VMs in one answer to `Brought`.
const BROUGHT_MAX: usize = 256;
/// Most VMs that a client is told of and has not asked for; the oldest are forgotten then, as for a client that never asks.
const BROUGHT_KEPT: usize = 1 << 16;

impl Pager<'_> {
    /// Carries out a request of `client`; `lent` is the range that it lends.
    pub fn request(
        &mut self,
        machine: &mut impl Machine,
        client: Client,
        lent: Option<Target>,
        request: Request,
    ) -> Outcome {
        let open = matches!(request, Request::Usage(_) | Request::Pool | Request::Bring { .. } | Request::Brought);
        if !client.manager && !open {
            return Outcome::Now(Response::Denied);
        }
        self.clock.unblock();
        Outcome::Now(match request {
            Request::DefineImage { parts } => match lent {
                Some(lent) => self.define_image(machine, lent, &parts),
                None => Response::BadArgument,
            },
            Request::Clone { template, vms } => match lent {
                Some(lent) => self.make_clones(machine, lent, template, &vms),
                None => Response::BadArgument,
            },
            Request::MakeTemplate(vm) => self.make_template(machine, vm),
            Request::DropImage(image) => self.drop_image(image),
            Request::Create { vm, image, memory, entry, windows, start } => match lent {
                Some(lent) => {
                    let creation = Creation { lent, lent_at: 0, vm, image, memory, entry, windows, start };
                    match self.create_or_wait(machine, creation) {
                        Some(response) => response,
                        None => return Outcome::Later,
                    }
                }
                None => Response::BadArgument,
            },
            Request::Start(vm) => self.start(machine, vm),
            Request::Destroy(vm) => self.destroy(machine, vm),
            Request::NextStop => Response::Stopped(self.next_stop()),
            Request::List { from } => self.list(from),
            Request::Usage(vm) => self.usage(machine, vm),
            Request::Pool => self.pool(),
            Request::Bring { vm, address, length, write } => {
                self.bring(machine, client.number, vm, address, length, write)
            }
            Request::Brought => Response::Brought(self.take_brought(client.number)),
        })
    }

    /// A client has opened a session: what it had asked for it has forgotten.
    pub fn connected(&mut self, client: Client) {
        if let Some(brought) = client.number.and_then(|number| self.brought.get_mut(usize::from(number))) {
            brought.clear();
        }
        if client.manager {
            // Images that no VM uses were its own. Templates are made after what they are made of, and go before it.
            for number in (0..self.images.end()).chain(0..self.images.end()) {
                let _ = self.drop_image(number);
            }
            // It may have lost the interrupt too.
            self.ring |= !self.stops.is_empty();
        }
    }

    /// An answer to a creation that waited: who lent the range, and the answer.
    pub fn take_answer(&mut self) -> Option<(Target, Response)> {
        self.answers.pop_front()
    }

    /// True once after there were new stops for the loader to take.
    pub fn take_ring(&mut self) -> bool {
        core::mem::take(&mut self.ring)
    }

    /// The clients to be told that they may try again, a bit each; once.
    pub fn take_tell(&mut self) -> u8 {
        core::mem::take(&mut self.tell)
    }

    fn next_stop(&mut self) -> Option<(VmNumber, protocol::service::pager::Stop)> {
        while let Some(place) = self.stops.pop_front() {
            let Some(vm) = self.vms.get_mut(place) else { continue };
            vm.set(QUEUED, false);
            if let Some(cause) = self.causes.get(&place).filter(|_| vm.is_live())
                && !vm.set(TOLD, true)
            {
                return Some((vm.number, (*cause).into()));
            }
        }
        None
    }

    fn take_brought(&mut self, client: Option<u8>) -> Vec<VmNumber> {
        let queue = client.and_then(|number| self.brought.get_mut(usize::from(number)));
        queue.map_or_else(Vec::new, |queue| {
            let taken = queue.drain(..queue.len().min(BROUGHT_MAX)).collect();
            if queue.is_empty() {
                // All VMs may have stood in it: that room is not kept.
                *queue = VecDeque::new();
            }
            taken
        })
    }

    /// Tells the clients that wait for pages of a VM to try again.
    pub(super) fn notify(&mut self, place: u32) {
        let Some(vm) = self.vms.get_mut(place) else { return };
        let waiting = core::mem::take(&mut vm.waiting);
        for (number, brought) in self.brought.iter_mut().enumerate().filter(|(number, _)| waiting >> number & 1 != 0) {
            if brought.len() >= BROUGHT_KEPT {
                brought.pop_front();
            }
            brought.push_back(vm.number);
            self.tell |= 1 << number;
        }
    }

    fn list(&mut self, from: u32) -> Response {
        let end = self.vms.end().min(from.saturating_add(LIST_POSITIONS));
        let mut entries = Vec::new();
        for place in from..end {
            if entries.len() == LIST_MAX {
                return Response::Vms(entries, Some(place));
            }
            let Some(vm) = self.vms.get_mut(place).filter(|vm| vm.is_live()) else { continue };
            let stop = self.causes.get(&place).map(|cause| (*cause).into());
            vm.set(TOLD, stop.is_some());
            let started = vm.state() != State::Created;
            let clone = self.images.get(vm.image).is_some_and(|image| image.template.is_some());
            entries.push(VmEntry { vm: vm.number, at: vm.at(), image: vm.image, clone, started, stop });
        }
        Response::Vms(entries, (end < self.vms.end()).then_some(end))
    }

    fn usage(&mut self, machine: &mut impl Machine, vm: VmNumber) -> Response {
        let Some(vm) = self.vms.find(vm).and_then(|place| self.vms.get(place)) else { return Response::NotFound };
        Response::Usage {
            frames: u64::from(vm.frames.len()),
            swapped: u64::from(vm.swapped),
            faults: u64::from(vm.faults),
            cpu_time: vm.at().and_then(|at| machine.usage(at).ok()).map_or(0, |usage| usage.cpu_time),
        }
    }

    fn pool(&self) -> Response {
        let pages = |units: u32| u64::from(units) * u64::from(crate::region::UNIT_BLOCKS);
        Response::Pool {
            total: u64::from(self.frames.total()),
            free: self.available(),
            vms: u64::from(self.count),
            suspended: u64::from(self.suspended),
            waiting: u64::from(self.gate.len()) + self.stalled.len() as u64,
            swap_total: pages(self.stripes.units),
            swap_free: pages(self.regions.left()),
            page_ins: self.kept.page_ins,
            page_outs: self.kept.page_outs,
            own: u64::from(self.own.len()),
            most_reads: u64::from(self.underway.most_reads()),
        }
    }
}
