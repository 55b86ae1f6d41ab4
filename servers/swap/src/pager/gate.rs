//! The gatekeeper: which VMs may be in memory.
//!
//! A suspended VM that is wanted, because a server asked for it or its deadline has come, stands in a queue, and is let in when so many frames are
//! free that it can do something with them: first come, first served. While VMs wait here memory is taken back for the first of them. A VM in memory that waits for
//! a frame or a slot stands in a queue of its own, likewise in order. If VMs that run have all memory and nothing of it can be spared, one after the other
//! is made to leave and stands in this queue too: so everybody gets its turn.

use super::{
    Pager,
    clock::TICK,
    suspend::MOVES_MAX,
    underway::{Move, Way},
};
use crate::{
    machine::Machine,
    record::{AT_GATE, LEAVING, MOVING, ROOM_UNIT, STALLED, State, VmRecord, WANTED},
    suspended::SEGMENT_CHUNKS,
};
use core::cmp::Reverse;
use protocol::abi::NEVER;

/// Notes of when VMs are to be woken that are kept at least.
const WAKES_KEPT: usize = 64;
/// Frames that a VM gets on top of what it brings along: page tables, control block, and the first pages that it touches.
const FRAMES: u32 = 10;

/// Bits of a VM's place.
const PLACE_BITS: u32 = 24;

/// A note of when a suspended VM is to be woken, in 8 bytes: the time in ticks, rounded up, and the VM's place. Earlier notes are less.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Wake(u64);

impl Wake {
    /// For a time in nanoseconds.
    const fn new(time: u64, place: u32) -> Wake {
        let latest = u64::MAX >> PLACE_BITS;
        let tick = if time >> TICK < latest { (time >> TICK) + 1 } else { latest };
        Wake(tick << PLACE_BITS | (place as u64 & ((1 << PLACE_BITS) - 1)))
    }

    /// When, in nanoseconds: not before the time asked for, and at most a tick after it. What is more than 36 years away comes after 36 years.
    pub(super) const fn time(self) -> u64 {
        (self.0 >> PLACE_BITS) << TICK
    }

    const fn place(self) -> u32 {
        (self.0 & ((1 << PLACE_BITS) - 1)) as u32
    }
}

impl Pager<'_> {
    /// A suspended VM is wanted.
    pub(super) fn want(&mut self, place: u32) {
        let Some(vm) = self.vms.get_mut(place) else { return };
        vm.set(WANTED, true);
        if vm.state() == State::Suspended && !vm.is(LEAVING) && !vm.is(MOVING) && !vm.set(AT_GATE, true) {
            self.gate.push_back(&mut self.vms, place);
        }
    }

    /// Free frames that are not spoken for.
    pub(super) fn spare(&self) -> u32 {
        self.frames.free().saturating_sub(self.underway.promised)
    }

    /// Frames that must be free for the first in the queue.
    pub(super) fn gate_needs(&self) -> u32 {
        let first = self.gate.front().and_then(|place| self.vms.get(place));
        let chunks = |vm: &VmRecord| (u32::from(vm.segments).saturating_sub(1)) * SEGMENT_CHUNKS + u32::from(vm.last);
        first.map_or(0, |vm| chunks(vm).max(self.room(vm)) + FRAMES + self.clock.floor())
    }

    /// Frames that a VM is to find free. However much it may need, it must come in one day.
    fn room(&self, vm: &VmRecord) -> u32 {
        (u32::from(vm.room) * ROOM_UNIT).min(self.frames.total() / 8)
    }

    /// Frames that the first of those who wait for one is to get.
    fn first_stalled_gets(&self) -> u32 {
        let first = self.stalled.front().and_then(|place| self.vms.get(*place));
        first.filter(|vm| vm.fault().is_some() && vm.grace == 0).map_or(0, |vm| self.room(vm))
    }

    /// Frames that must be free for the first of those who wait for one.
    pub(super) fn stalled_needs(&self) -> u32 {
        if self.stalled.is_empty() { 0 } else { self.clock.floor() + 1 + self.first_stalled_gets() }
    }

    /// Whether the first in the queue may come in now.
    fn is_open(&self) -> bool {
        let room = self.underway.moves() < MOVES_MAX && self.spare() >= self.gate_needs();
        // Those who are in and wait come first.
        !self.gate.is_empty() && room && self.stalled.is_empty()
    }

    /// Lets VMs in; whether any was.
    fn admit(&mut self, machine: &mut impl Machine) -> bool {
        if !self.is_open() {
            return false;
        }
        let needs = self.gate_needs() - self.clock.floor();
        let Some(place) = self.gate.pop_front(&mut self.vms) else { return false };
        let Some(vm) = self.vms.get_mut(place) else { return true };
        vm.set(AT_GATE, false);
        if vm.state() == State::Suspended && !vm.is(LEAVING) && !vm.is(MOVING) {
            self.resume(machine, place, needs);
        }
        true
    }

    /// Notes when a suspended VM is to be woken.
    pub(super) fn wake_at(&mut self, time: u64, place: u32) {
        if time == NEVER {
            return;
        }
        // A VM that comes back before its time leaves its note behind. They are cleared away before they are more than the others.
        if self.wakes.len() > 2 * self.suspended as usize + WAKES_KEPT {
            let mut notes = core::mem::take(&mut self.wakes).into_vec();
            notes.sort_unstable();
            notes.dedup();
            notes.retain(|Reverse(note)| self.is_to_wake(*note));
            self.wakes = notes.into();
        }
        // There are as many notes as VMs, and most of them wait: twice the room would be a waste.
        if self.wakes.len() == self.wakes.capacity() {
            self.wakes.reserve_exact(self.wakes.len() / 8 + WAKES_KEPT);
        }
        self.wakes.push(Reverse(Wake::new(time, place)));
    }

    fn is_to_wake(&self, note: Wake) -> bool {
        let vm = self.vms.get(note.place());
        vm.is_some_and(|vm| vm.state() == State::Suspended && Wake::new(vm.wake, note.place()) == note)
    }

    /// Wakes VMs whose deadline has come.
    fn wake(&mut self, now: u64) {
        while let Some(Reverse(note)) = self.wakes.peek().copied().filter(|Reverse(note)| note.time() <= now) {
            self.wakes.pop();
            if self.is_to_wake(note) {
                self.want(note.place());
            }
        }
    }

    /// A VM waits for a frame or a slot.
    pub(super) fn stall(&mut self, place: u32) {
        if let Some(vm) = self.vms.get_mut(place)
            && !vm.set(STALLED, true)
        {
            self.stalled.push_back(place);
        }
    }

    /// Whether the first that waits for a frame or a slot may try again.
    fn can_retry(&self) -> bool {
        // What it is to get may not be there to be had: then it gets what is.
        let nothing_comes = self.clock.is_blocked() && self.underway.count() == 0 && self.underway.moves() == 0;
        let needs = if nothing_comes { self.clock.floor() + 1 } else { self.stalled_needs() };
        !self.stalled.is_empty() && self.spare() >= needs
    }

    /// Keeps frames for a VM that has waited for one, if there are few. Each time they are more: else all VMs would get their memory page by page, and
    /// none of them ever all that it needs.
    fn give_room(&mut self, place: u32) {
        let (spare, few) = (self.spare().saturating_sub(self.clock.floor()), self.spare() < self.clock.high());
        let Some(room) = self.vms.get(place).filter(|vm| few && vm.grace == 0).map(|vm| self.room(vm)) else { return };
        if let Some(vm) = self.vms.get_mut(place) {
            vm.grace = room.min(spare).min(u16::MAX.into()) as u16;
            vm.more_room();
            self.underway.promised += u32::from(vm.grace);
        }
    }

    /// Lets VMs that waited for a frame or a slot try again, until one has to wait once more.
    fn retry(&mut self, machine: &mut impl Machine) {
        for _ in 0..self.stalled.len() {
            if !self.can_retry() || self.clock.retry_blocked {
                break;
            }
            let Some(place) = self.stalled.pop_front() else { break };
            let Some(vm) = self.vms.get_mut(place) else { continue };
            vm.set(STALLED, false);
            let running = vm.state() == State::Running;
            if running && vm.fault().is_some() && !vm.is(MOVING) {
                self.give_room(place);
                self.retry_fault(machine, place);
            }
            let again = self.vms.get_mut(place).is_some_and(|vm| vm.is(STALLED));
            if again {
                // It was put behind the others: it was the first.
                self.stalled.pop_back();
                self.stalled.push_front(place);
                self.clock.retry_blocked = true;
                break;
            }
            self.notify(place);
        }
    }

    /// Whether [`Pager::work`] has something to do now.
    pub fn has_work(&self) -> bool {
        let dying = self.clock.dying_blocked < self.dying.len();
        let refuse = !self.waiting.is_empty() && !self.gives_back();
        let retry = self.can_retry() && !self.clock.retry_blocked;
        let moves = self.underway.has_more() || !self.leaving.is_empty();
        dying || refuse || retry || moves || self.reclaims() || self.is_open()
    }

    /// Goes on with what takes long, by a bounded step.
    pub fn work(&mut self, machine: &mut impl Machine) {
        let now = machine.now();
        self.wake(now);
        self.clock.end_turn(now);
        self.learn(machine);
        if self.work_dying(machine) | self.work_leaving(machine) {
            self.clock.unblock();
        }
        self.underway.new_turn();
        // VMs on their way that waited for slots, or for pages to be written. Who is not there yet stands behind the others again.
        for _ in 0..self.underway.moves() {
            match self.underway.next_move() {
                Some(Move { place, way: Way::Out(leave) }) => self.go_out(machine, place, leave),
                Some(Move { place, way: Way::In(arrive) }) => self.read_segments(machine, place, arrive),
                None => {}
            }
        }
        if self.reclaims() {
            self.reclaim(machine);
        }
        while self.admit(machine) {}
        self.retry(machine);
        self.retry_creation(machine);
    }

    /// A creation that waited tries again: there may be memory now; if there still is not, it waits behind the others, or is refused if nothing more
    /// will come.
    fn retry_creation(&mut self, machine: &mut impl Machine) {
        if let Some(creation) = self.waiting.pop_front()
            && let Some(response) = self.create_or_wait(machine, creation)
        {
            self.answers.push_back((creation.lent, response));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_in_order_of_time_and_never_early() {
        let tick = 1 << TICK;
        for time in [0, 1, tick - 1, tick, tick + 1, 77 * tick, 1 << 59, (1 << 60) + 5, 1 << 63, NEVER - 1] {
            let note = Wake::new(time, 0xff_fffe);
            assert_eq!(note.place(), 0xff_fffe);
            assert!(note.time() >= time.min((1 << 60) - tick), "{time}");
            assert!(note.time() <= time.saturating_add(tick), "{time}");
            assert!(note < Wake::new(time.saturating_add(tick), 0) || time >= 1 << 60);
        }
    }
}
