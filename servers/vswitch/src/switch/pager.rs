//! Copies that meet what is not in memory, and VMs that come back.

use super::{Origin, Packet, Receiver, Switch, TURNS, Way, deliver::buffer_place};
use crate::{
    away::LOOK_EVERY,
    memory::{Answer, Copy, Fate, Memory, Need, Outcome, Place},
    ports::PortId,
};
use alloc::vec::Vec;
use protocol::{abi::NEVER, service::VmNumber};

/// Times that a copy is tried anew because the pager says that all is there now. Four pages can be missing, and each may be gone again.
const ATTEMPTS: usize = 6;

impl Switch {
    /// Makes the copies that were planned; what is not in memory is asked for.
    pub(super) fn copy(&mut self, memory: &mut impl Memory) {
        let mut copies = core::mem::take(&mut self.round.copies);
        let mut outcomes = core::mem::take(&mut self.round.outcomes);
        let mut fates = core::mem::take(&mut self.round.fates);
        outcomes.clear();
        fates.clear();
        if !copies.is_empty() {
            memory.copy(&copies, &mut outcomes);
        }
        for (index, copy) in copies.iter_mut().enumerate() {
            let outcome = outcomes.get(index).copied().unwrap_or(Outcome::Failed);
            fates.push(if outcome == Outcome::Done { Fate::Done } else { self.settle(memory, copy, outcome) });
        }
        copies.clear();
        (self.round.copies, self.round.outcomes, self.round.fates) = (copies, outcomes, fates);
    }

    /// Has a copy that could not be made made, if that can be now.
    fn settle(&mut self, memory: &mut impl Memory, copy: &mut Copy, mut outcome: Outcome) -> Fate {
        let mut again = Vec::with_capacity(1);
        for _ in 0..ATTEMPTS {
            let (source, destination) = match outcome {
                Outcome::Done => return Fate::Done,
                Outcome::SourceMissing => (true, false),
                Outcome::DestinationMissing => (false, true),
                // The kernel does not say which of the two.
                Outcome::Gone => (true, true),
                Outcome::Failed => break,
            };
            let sides = [
                (source, &mut copy.from, Fate::SourceAway, Fate::SourceFailed),
                (destination, &mut copy.to, Fate::DestinationAway, Fate::DestinationFailed),
            ];
            for (asked, place, away, failed) in sides {
                let Place::Vm { vm, at, address } = place else { continue };
                if asked {
                    let write = away == Fate::DestinationAway;
                    let need = Need { vm: *vm, address: *address, length: copy.length as u32, write };
                    match self.bring(memory, need) {
                        Answer::Here(now) => *at = now,
                        Answer::Later => {
                            self.wait_for(memory, need, !write);
                            return away;
                        }
                        Answer::Never => return failed,
                    }
                }
            }
            again.clear();
            memory.copy(core::slice::from_ref(copy), &mut again);
            outcome = again.first().copied().unwrap_or(Outcome::Failed);
        }
        match (outcome, copy.from, copy.to) {
            (Outcome::Done, ..) => Fate::Done,
            // What is brought is gone at once, again and again: some time later, perhaps.
            (Outcome::SourceMissing | Outcome::Gone, Place::Vm { vm, address, .. }, _) => {
                self.wait_for(memory, Need { vm, address, length: copy.length as u32, write: false }, true);
                Fate::SourceAway
            }
            (Outcome::DestinationMissing | Outcome::Gone, _, Place::Vm { vm, address, .. }) => {
                self.wait_for(memory, Need { vm, address, length: copy.length as u32, write: true }, false);
                Fate::DestinationAway
            }
            (_, Place::Vm { .. }, _) => Fate::SourceFailed,
            _ => Fate::DestinationFailed,
        }
    }

    /// Asks the pager, and notes where it says that the VM is.
    fn bring(&mut self, memory: &mut impl Memory, need: Need) -> Answer {
        let answer = memory.bring(need);
        if let Answer::Here(at) = answer
            && let Some(port) = self.ports.by_vm(need.vm).and_then(|id| self.ports.get_mut(id))
        {
            port.at = at;
        }
        answer
    }

    /// A VM waits for the pager from now on; `if_room`: unless too many do already.
    fn wait_for(&mut self, memory: &mut impl Memory, need: Need, if_room: bool) {
        let now = memory.now();
        if let Some(id) = self.ports.by_vm(need.vm) {
            if if_room && self.waits.room() == 0 && self.waits.get(id).is_none() {
                return;
            }
            self.waits.begin(id, need, now);
            self.look_at = self.look_at.min(now.saturating_add(LOOK_EVERY));
        }
    }

    /// Raises a VM's line: now, or when it is back.
    pub(super) fn tell(&mut self, memory: &mut impl Memory, id: PortId) {
        self.quiet.end(id);
        let (Some(port), Some(vm)) = (self.ports.get(id), self.ports.vm(id)) else { return };
        let need = Need { vm, address: port.window.address(), length: 1, write: false };
        let mut at = port.at;
        for _ in 0..ATTEMPTS {
            if memory.raise(at) {
                return;
            }
            match self.bring(memory, need) {
                Answer::Here(now) => at = now,
                Answer::Later => break,
                // A VM that is no more is told nothing.
                Answer::Never => return,
            }
        }
        self.wait_for(memory, need, false);
        if let Some(wait) = self.waits.get_mut(id) {
            wait.raise = true;
        }
    }

    /// The pager says that a VM is back, or some of its pages are.
    pub fn brought(&mut self, vm: VmNumber) {
        if let Some(id) = self.ports.by_vm(vm) {
            self.waits.brought(id);
        }
    }

    /// The pager was restarted and has forgotten what it was asked for: it is asked again.
    pub fn pager_restarted(&mut self) {
        self.waits.ask_all_again();
        if !self.waits.is_empty() {
            self.look_at = 0;
        }
    }

    /// When [`Switch::serve`] has to look at those that wait, in nanoseconds since kernel entry; never if nobody does.
    pub fn next_look(&mut self) -> u64 {
        self.look_at.min(self.quiet.due())
    }

    /// Tells VMs of what could wait, when it has waited for long enough.
    pub(super) fn tell_late(&mut self, memory: &mut impl Memory) {
        if self.quiet.due() == NEVER {
            return;
        }
        let now = memory.now();
        while let Some(id) = self.quiet.take(now) {
            self.tell(memory, id);
        }
    }

    /// Asks again for what was not brought for long, and drops what was held for too long.
    pub(super) fn look(&mut self, memory: &mut impl Memory) {
        if self.look_at == NEVER || memory.now() < self.look_at {
            return;
        }
        let now = memory.now();
        let (asks, old) = self.waits.overdue(now);
        for id in asks {
            let Some(need) = self.waits.get(id).and_then(|wait| wait.need) else {
                // It may have offered buffers without ringing.
                self.waits.brought(id);
                continue;
            };
            match self.bring(memory, need) {
                Answer::Here(_) => self.waits.brought(id),
                Answer::Later => self.wait_for(memory, need, false),
                Answer::Never => drop(self.waits.remove(id)),
            }
        }
        for id in old {
            while self.waits.is_overdue(id, now) {
                self.waits.release(id);
                self.drop_held(id);
            }
        }
        self.look_at = if self.waits.is_empty() { NEVER } else { now.saturating_add(LOOK_EVERY) };
    }

    /// A packet that was held is lost.
    fn drop_held(&mut self, id: PortId) {
        if let Some(wait) = self.waits.get_mut(id) {
            wait.drop_one();
        }
    }

    /// VMs that are back get what they missed. Returns whether there were any.
    pub(super) fn release(&mut self, memory: &mut impl Memory) -> bool {
        let mut back = core::mem::take(&mut self.round.back);
        while back.len() < TURNS
            && let Some(id) = self.waits.next_back()
        {
            back.push(id);
        }
        for id in &back {
            let Some(wait) = self.waits.get_mut(*id) else { continue };
            wait.deaf = false;
            self.round.lengths.extend(wait.lengths.drain(..).map(|(entry, length)| (*id, entry, length)));
            if core::mem::take(&mut wait.owes) || wait.raise {
                self.round.changed.push((*id, core::mem::take(&mut wait.raise)));
            }
            let receiver = self.round.receivers.len();
            for packet in &wait.held {
                let (from, length) = (buffer_place(packet.buffer), usize::from(packet.length));
                self.round.packets.push(Packet::new(Origin::Held, from, length, Way::Vm(receiver)));
            }
            self.round.receivers.push(Receiver::new(*id, false));
        }
        if !back.is_empty() {
            self.deliver(memory);
        }
        for id in &back {
            match self.waits.get_mut(*id) {
                // It has gone again, or is full; then it can still send.
                Some(wait) if !wait.back => {
                    if wait.is_full() && core::mem::take(&mut wait.sends) {
                        self.enqueue(*id);
                    }
                }
                // There was a gap.
                Some(wait) if !wait.held.is_empty() => self.waits.brought(*id),
                _ => {
                    if let Some(wait) = self.waits.remove(*id)
                        && wait.sends
                    {
                        self.enqueue(*id);
                    }
                }
            }
        }
        if self.waits.is_empty() {
            self.look_at = NEVER;
        }
        let any = !back.is_empty();
        back.clear();
        self.round.back = back;
        any
    }

    /// Where a port's VM was when it was last heard of.
    #[cfg(test)]
    pub(super) fn at(&self, vm: VmNumber) -> Option<protocol::service::VmRef> {
        Some(self.ports.get(self.ports.by_vm(vm)?)?.at)
    }
}
