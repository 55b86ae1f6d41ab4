//! Copies between VMs and the device's buffers, and what becomes of those that meet missing memory.

use super::{ATTEMPTS, Outcome, Server};
use crate::{
    flight::FlightId,
    machine::{Brought, Copy, Fate, Machine, Place},
    vms::Session,
};
use alloc::vec::Vec;
use protocol::{disk::Status, service::block_driver::Operation};

impl<T: core::marker::Copy> Server<T> {
    /// Makes the copies of flights: into the device's buffers, which are submitted then, and out of them.
    pub(crate) fn transfer(&mut self, machine: &mut impl Machine) {
        // What goes on after a copy may have another piece to copy.
        while !self.load.is_empty() || !self.deliver.is_empty() {
            let load = core::mem::take(&mut self.load);
            let deliver = core::mem::take(&mut self.deliver);
            let (mut flights, mut copies) = (Vec::new(), Vec::new());
            for (id, out) in load.into_iter().map(|id| (id, false)).chain(deliver.into_iter().map(|id| (id, true))) {
                let Some((session, slot, memory)) =
                    self.flights.get(id).and_then(|flight| Some((flight.session, flight.slot?, flight.memory())))
                else {
                    continue;
                };
                match self.vms.get(session) {
                    Some(vm) if vm.parked => self.park_flight(machine, id, session, out),
                    Some(vm) if !vm.leaving => {
                        let place = Place::Vm { vm: vm.at, address: memory.0 };
                        let buffer = Place::Buffer(slot, 0);
                        let (from, to) = if out { (buffer, place) } else { (place, buffer) };
                        copies.push(Copy { from, to, length: memory.1 });
                        flights.push((id, session, out));
                    }
                    // A write that has not begun, or blocks for nobody.
                    _ => self.finish(machine, id, Status::Failed),
                }
            }
            let mut fates = core::mem::take(&mut self.fates);
            fates.clear();
            machine.copy(&copies, &mut fates);
            for (place, (id, session, out)) in flights.into_iter().enumerate() {
                let fate = fates.get(place).copied().unwrap_or(Fate::Failed);
                match self.persist(machine, session, copies[place], fate) {
                    Outcome::Done if out => self.go_on(machine, id),
                    Outcome::Done => self.submit(machine, id, Operation::Write),
                    Outcome::Parked => self.park_flight(machine, id, session, out),
                    Outcome::Failed => self.finish(machine, id, Status::BadRequest),
                }
            }
            self.fates = fates;
        }
    }

    /// A flight of a parked VM: what was read is held, if there is room for that; all else begins anew when the VM is back.
    fn park_flight(&mut self, machine: &mut impl Machine, id: FlightId, session: Session, out: bool) {
        if out
            && self.held < machine.slots() / 4
            && let Some(vm) = self.vms.get_mut(session)
        {
            vm.held.push(id);
            self.held += 1;
        } else {
            self.put_back(machine, id);
        }
    }

    /// Sees a copy through that met missing memory.
    pub(super) fn persist(
        &mut self,
        machine: &mut impl Machine,
        session: Session,
        mut copy: Copy,
        mut fate: Fate,
    ) -> Outcome {
        for _ in 0..ATTEMPTS {
            match fate {
                Fate::Done => return Outcome::Done,
                Fate::Failed => return Outcome::Failed,
                Fate::Missing => {}
            }
            let (Some((address, write)), Some(vm)) = (copy.vm_side(), self.vms.get_mut(session)) else {
                return Outcome::Failed;
            };
            match machine.bring(vm.number, address, copy.length as u32, write) {
                Brought::Here(at) => {
                    vm.at = at;
                    copy = copy.with_vm(at);
                    let mut fates = Vec::new();
                    machine.copy(&[copy], &mut fates);
                    fate = fates.first().copied().unwrap_or(Fate::Failed);
                }
                Brought::Later => {
                    vm.parked = true;
                    return Outcome::Parked;
                }
                Brought::Unreachable => break,
                Brought::NotFound => return Outcome::Failed,
            }
        }
        match fate {
            Fate::Done => Outcome::Done,
            Fate::Failed => Outcome::Failed,
            Fate::Missing => {
                self.retry = true;
                if let Some(vm) = self.vms.get_mut(session) {
                    vm.parked = true;
                }
                Outcome::Parked
            }
        }
    }
}
