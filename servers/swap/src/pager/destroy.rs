//! Destroying VMs: the kernel's steps and then the frames, a bounded piece at a time between other work.
//!
//! Frames are not cleaned when they are given back but when they are given out: every use of a frame begins by
//! setting all of it (zeros or a copy of a whole page by the pager, zeros by the kernel for page tables and control
//! blocks). So nothing that is left in a frame can reach anybody, whatever became of the VM that left it there.

use super::{Pager, Response};
use crate::{
    machine::Machine,
    vm::{Cause, State},
};
use protocol::{
    abi::Error,
    domain::Control,
    service::{VmRef, place},
};

/// Frames given back in one step: about as long as one step of the kernel.
const FRAMES: u32 = 256;

impl Pager<'_> {
    /// [`protocol::service::pager::Request::Destroy`]. Its name is void at once; the memory comes back by [`Pager::work`].
    pub(super) fn destroy(&mut self, machine: &mut impl Machine, vm: VmRef) -> Response {
        let Some(number) = self.find(vm) else { return Response::NotFound };
        if let Some(found) = self.vms.get_mut(number) {
            found.state = State::Dying;
            self.places.remove(&place(found.tag));
            self.dying.push_back(number);
        }
        // A fault that waits to be served is void too: it must not run meanwhile. It may be gone already.
        let _ = machine.control(vm, Control::Stop, [0; 3]);
        Response::Done
    }

    /// Whether [`Pager::work`] has something to do.
    pub fn has_work(&self) -> bool {
        !self.dying.is_empty() || !self.waiting.is_empty()
    }

    /// Goes on with what takes long, by one bounded step.
    pub fn work(&mut self, machine: &mut impl Machine) {
        if let Some(number) = self.dying.front().copied() {
            if !self.step(machine, number) {
                return;
            }
            self.dying.pop_front();
        }
        // There may be memory now for a creation that waits; if there still is not, it waits behind the others.
        if let Some(creation) = self.waiting.pop_front()
            && let Some(response) = self.create_or_wait(machine, creation)
        {
            self.answers.push_back((creation.lent, response));
        }
    }

    /// One step of destroying a VM; true when nothing of it is left.
    fn step(&mut self, machine: &mut impl Machine, number: u32) -> bool {
        let Some(vm) = self.vms.get_mut(number) else { return true };
        if vm.state == State::Dying {
            match machine.control(vm.reference, Control::Destroy, [0; 3]) {
                Ok(()) | Err(Error::Gone) => vm.state = State::Dead,
                Err(Error::Again) => {}
                // It still has its frames then: they must never be given to anybody, and are not.
                Err(_) => {
                    vm.stop = Some(Cause::Pager("the kernel refused to destroy it"));
                    return true;
                }
            }
            return false;
        }
        self.frames.release(&mut vm.frames, FRAMES);
        if !vm.frames.is_empty() {
            return false;
        }
        let (image, reserved) = (vm.image, u64::from(vm.reserved));
        self.vms.remove(number);
        self.promised -= reserved;
        if let Some(image) = self.images.get_mut(image) {
            image.users -= 1;
        }
        true
    }
}
