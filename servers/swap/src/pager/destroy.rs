//! Destroying VMs: the kernel's steps and then the frames, a bounded piece at a time between other work. A VM that was suspended leaves memory by
//! the same steps.
//!
//! Frames are not cleaned when they are given back but when they are given out: every use of a frame begins by
//! setting all of it (zeros or a copy of a whole page by the pager, zeros by the kernel for page tables and control
//! blocks). So nothing that is left in a frame can reach anybody, whatever became of the VM that left it there. Nor does what is left
//! in a region: nobody has the counters and tags that belong to it.

use super::{Pager, Response};
use crate::{
    machine::Machine,
    record::{AT_GATE, Cause, LEAVING, MOVING, State, WANTED},
    region,
};
use protocol::{abi::Error, domain::Control, service::VmNumber};

/// Frames given back in one step: about as long as one step of the kernel.
const FRAMES: u32 = 256;

impl Pager<'_> {
    /// [`protocol::service::pager::Request::Destroy`]. Its name is void at once; the memory comes back by [`Pager::work`].
    pub(super) fn destroy(&mut self, machine: &mut impl Machine, vm: VmNumber) -> Response {
        let Some(place) = self.vms.find(vm) else { return Response::NotFound };
        self.end_move(machine, place);
        self.end_grace(place);
        let Some(vm) = self.vms.get_mut(place) else { return Response::NotFound };
        let (was, at) = (vm.state(), vm.at());
        vm.set_state(State::Dying);
        self.suspended -= u32::from(was == State::Suspended);
        self.count -= 1;
        self.causes.remove(&place);
        self.notify(place);
        self.dying.push_back(&mut self.vms, place);
        // A fault that waits to be served is void too: it must not run meanwhile. It may be gone already.
        if let Some(at) = at {
            let _ = machine.control(at, Control::Stop, [0; 3]);
        }
        Response::Done
    }

    /// One step of giving a VM's memory back; true when nothing of it is left. `None`: it cannot go on now.
    fn step(&mut self, machine: &mut impl Machine, place: u32) -> Option<bool> {
        let Some(vm) = self.vms.get_mut(place) else { return Some(true) };
        if vm.under_way > 0 {
            // Its frames and its region are still being read and written.
            return None;
        }
        if let Some(at) = vm.at() {
            match machine.control(at, Control::Destroy, [0; 3]) {
                Ok(()) | Err(Error::Gone) => vm.set_at(None),
                Err(Error::Again) => {}
                // It still has its frames then: they must never be given to anybody, and are not.
                Err(_) => {
                    self.causes.insert(place, Cause::Pager("the kernel refused to destroy it"));
                    vm.set_at(None);
                    return Some(true);
                }
            }
            return Some(false);
        }
        self.frames.release(&mut vm.frames, FRAMES);
        Some(vm.frames.is_empty())
    }

    /// Goes on with the VM that is being destroyed; whether anything was done.
    pub(super) fn work_dying(&mut self, machine: &mut impl Machine) -> bool {
        let Some(place) = self.dying.pop_front(&mut self.vms) else { return false };
        match self.step(machine, place) {
            Some(true) => self.vanish(place),
            Some(false) => self.dying.push_front(&mut self.vms, place),
            None => {
                self.dying.push_back(&mut self.vms, place);
                self.clock.dying_blocked += 1;
                return false;
            }
        }
        true
    }

    /// The last of a VM: its place and its region are free.
    fn vanish(&mut self, place: u32) {
        let Some(vm) = self.vms.get_mut(place) else { return };
        let (image, promised, first, space) = (vm.image, u64::from(vm.promised), vm.region, vm.space());
        vm.number = 0;
        vm.set_state(State::Free);
        self.promised -= promised.min(self.promised);
        if let Some(first) = first.checked_sub(1) {
            self.regions.release(first, region::units(space));
        }
        if let Some(image) = self.images.get_mut(image) {
            image.users = image.users.saturating_sub(1);
        }
    }

    /// Goes on with the VM that is leaving memory; whether anything was done.
    pub(super) fn work_leaving(&mut self, machine: &mut impl Machine) -> bool {
        let Some(place) = self.leaving.pop_front(&mut self.vms) else { return false };
        match self.step(machine, place) {
            Some(true) => {
                let wanted = self.vms.get_mut(place).is_some_and(|vm| {
                    vm.set(LEAVING, false);
                    vm.is(WANTED)
                });
                if wanted {
                    self.want(place);
                }
            }
            Some(false) => self.leaving.push_front(&mut self.vms, place),
            None => {
                self.leaving.push_back(&mut self.vms, place);
                return false;
            }
        }
        true
    }

    /// Gives up a move in or out of memory that is under way, and takes the VM out of where it stands: it is destroyed.
    fn end_move(&mut self, machine: &mut impl Machine, place: u32) {
        self.underway.forget_move(machine, place);
        let Some(vm) = self.vms.get_mut(place) else { return };
        let (at_gate, leaving) = (vm.is(AT_GATE), vm.is(LEAVING));
        vm.set(MOVING | WANTED | AT_GATE | LEAVING, false);
        if at_gate {
            self.gate.remove(&mut self.vms, place);
        } else if leaving {
            self.leaving.remove(&mut self.vms, place);
        } else {
            self.leave_ring(place);
        }
    }
}
