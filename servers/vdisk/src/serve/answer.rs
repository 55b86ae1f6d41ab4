//! Answers: into the VMs' queue pages, then the interrupts.

use super::{ANSWER, ANSWERS, ANSWERS_AT, ATTEMPTS, INDICES_AT, Outcome, Server};
use crate::{
    machine::{Brought, Copy, Fate, Machine, Place},
    queue::{completion, entry_bit},
    vms::Session,
};
use alloc::vec::Vec;
use protocol::disk::{self, COMPLETED, COMPLETION_ENTRIES, Completion, ENTRIES};

impl<T: core::marker::Copy> Server<T> {
    /// Writes answers: first all answers, then the indices of the VMs whose answers are written, then the interrupts.
    pub(super) fn answers(&mut self, machine: &mut impl Machine) -> bool {
        let mut sessions: Vec<(Session, usize)> = Vec::new();
        let mut copies = Vec::new();
        while sessions.len() < ANSWERS
            && let Some(session) = self.answering.pop_front()
        {
            let Some(vm) = self.vms.get_mut(session) else { continue };
            vm.answering = false;
            let Some(own) = vm.own.filter(|_| !vm.parked && !vm.leaving) else { continue };
            let offset = ANSWERS_AT + sessions.len() * ANSWER;
            let count = vm.answers.len().min(ENTRIES);
            for (place, answer) in vm.answers[..count].iter().enumerate() {
                let at = offset + place * size_of::<Completion>();
                machine.scratch()[at..at + 4].copy_from_slice(&answer.index.to_le_bytes());
                machine.scratch()[at + 4..at + 8].copy_from_slice(&answer.status.to_le_bytes());
            }
            // In one piece, or in two where the ring begins anew.
            let before_end = (COMPLETION_ENTRIES - own.completed as usize % COMPLETION_ENTRIES).min(count);
            for (first, count) in [(0, before_end), (before_end, count - before_end)] {
                if count > 0 {
                    let address = vm.window.address + completion(own.completed.wrapping_add(first as u32)) as u64;
                    let from = Place::Scratch(offset + first * size_of::<Completion>());
                    let to = Place::Vm { vm: vm.at, address };
                    copies.push((session, Copy { from, to, length: count * size_of::<Completion>() }));
                }
            }
            sessions.push((session, count));
        }
        let failed = self.write_all(machine, &copies);
        copies.clear();
        for (place, (session, count)) in sessions.iter().enumerate() {
            let Some(vm) = self.vms.get_mut(*session).filter(|vm| !vm.parked && *count > 0) else { continue };
            let Some(own) = vm.own.filter(|_| !failed.contains(session)) else { continue };
            let offset = INDICES_AT + place * 4;
            let completed = own.completed.wrapping_add(*count as u32);
            machine.scratch()[offset..offset + 4].copy_from_slice(&completed.to_le_bytes());
            let to = Place::Vm { vm: vm.at, address: vm.window.address + COMPLETED as u64 };
            copies.push((*session, Copy { from: Place::Scratch(offset), to, length: 4 }));
        }
        let failed = [failed, self.write_all(machine, &copies)].concat();
        for (session, count) in sessions {
            let Some(vm) = self.vms.get_mut(session).filter(|vm| !vm.parked) else { continue };
            // Answers that cannot be written are lost: the VM has no such memory.
            if let Some(own) = &mut vm.own {
                own.completed = own.completed.wrapping_add(if failed.contains(&session) { 0 } else { count as u32 });
                for answer in vm.answers.drain(..count) {
                    own.open &= !entry_bit(answer.index);
                }
            }
            vm.raise |= count > 0;
            self.raise(machine, session);
            if self.vms.get(session).is_some_and(|vm| !vm.answers.is_empty()) {
                self.enqueue_answers(session);
            }
            if self.vms.get(session).is_some_and(|vm| vm.has_more()) {
                self.enqueue(session);
            }
        }
        !self.answering.is_empty()
    }

    /// Makes copies to VMs; those whose VM has no such memory are named.
    fn write_all(&mut self, machine: &mut impl Machine, copies: &[(Session, Copy)]) -> Vec<Session> {
        self.copies.clear();
        self.copies.extend(copies.iter().map(|(_, copy)| *copy));
        let mut fates = core::mem::take(&mut self.fates);
        fates.clear();
        machine.copy(&self.copies, &mut fates);
        let mut failed = Vec::new();
        for (place, (session, copy)) in copies.iter().enumerate() {
            let fate = fates.get(place).copied().unwrap_or(Fate::Failed);
            if self.persist(machine, *session, *copy, fate) == Outcome::Failed {
                failed.push(*session);
            }
        }
        self.fates = fates;
        failed
    }

    /// Tells a VM of its answers.
    fn raise(&mut self, machine: &mut impl Machine, session: Session) {
        let Some(vm) = self.vms.get_mut(session).filter(|vm| vm.raise) else { return };
        for _ in 0..ATTEMPTS {
            if machine.raise(vm.at) != Fate::Missing {
                vm.raise = false;
                return;
            }
            match machine.bring(vm.number, vm.window.address, disk::BLOCK as u32, false) {
                Brought::Here(at) => vm.at = at,
                Brought::Later => {
                    vm.parked = true;
                    return;
                }
                Brought::Unreachable => break,
                Brought::NotFound => {
                    vm.raise = false;
                    return;
                }
            }
        }
        vm.parked = true;
        self.retry = true;
    }
}
