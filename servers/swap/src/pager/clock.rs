//! Who gives memory back: WSClock (Carr and Hennessy 1981), as the original had it.
//!
//! The hand goes round the VMs that are in memory, VM by VM, so that what leaves together lay together. A page that was used since the hand last
//! came by gets its VM's *virtual time*, the processor time the VM has used; one that was not, and whose time stamp is older than a
//! window, is not in the working set and leaves. A VM that did nothing at all for a whole lap leaves whole ([`super::suspend`]), which makes
//! an idle VM cheap and its return one sequential read. So does, in its turn, a VM of which nothing can be taken but its working set: with more
//! working sets than memory some must wait (the paper's gatekeeper). Only if that is not possible either, with VMs too large to leave whole, the window
//! is halved with each lap, and at last one VM after the other made to give up all its pages.

use super::{Pager, pages, suspend::Begun, writing::Freed};
use crate::{
    frames::Frame,
    machine::Machine,
    record::{LEAVING, MOVING, STALLED, State},
};
use alloc::vec::Vec;
use protocol::{
    domain::Usage,
    memory::{PageState, Scan},
};

/// Nanoseconds of a tick, as a power of two: about a millisecond. 32 bits of them are 52 days, and one turn is lost then.
pub const TICK: u32 = 20;
/// Ticks for which an unused page stays in the working set, if memory allows.
const WINDOW: u32 = 100;
/// Frames of a VM that one visit looks at.
const LOOK: u32 = 1024;
/// Visits between other work.
const VISITS: u32 = 16;
/// Nanoseconds of processor time that a VM may use in memory when others wait for it, unless it waits itself: its turn. So each can do something with its
/// memory before it is the next one's. Also the nanoseconds between two large VMs that are made to give up all they have.
const TURN: u64 = 100_000_000;
/// Nanoseconds that a turn lasts at most, for each VM that is in memory, on top of [`TURN`]: so far it may take until it had the processor.
const TURN_EACH: u64 = 10_000_000;
/// Nanoseconds between laps while nothing can be freed before a turn ends.
const PAUSE: u64 = 5_000_000;
/// Nanoseconds that VMs have between two of them that leave in the middle of their work, for each that it took to seal one, or to open one that came back
/// (the disk takes the rest). Where sealing is slow it would otherwise take all time there is, and every VM's turn would be over before it has done
/// anything.
const SHARE: u64 = 1;
/// Nanoseconds without laps, for each that a lap took which freed nothing; and without looking at working sets, for each that it took to find next to
/// nothing there. So the clock takes a small part of all time, however much memory there is.
const REST: u64 = 8;
/// Of so many pages that were looked at one must have been old, or it was next to nothing.
const YIELD: u32 = 32;
/// Laps in which a VM must do nothing before it leaves whole.
const QUIET: u8 = 1;
/// In place of a number of laps: a VM that has not run since it came. Somebody has fetched it to give it something, which takes a while: it stays for a
/// turn, or it would come and go and never do what it was fetched for.
const FRESH: u8 = u8::MAX;

/// A VM's virtual time, in ticks.
pub(super) fn virtual_time(usage: &Usage) -> u32 {
    (usage.cpu_time >> TICK) as u32
}

/// What became of a lap.
#[derive(Clone, Copy, Debug, Default)]
struct Lap {
    /// Frames freed.
    freed: u32,
    /// Pages of working sets looked at, those of them that were old, and the nanoseconds that it took.
    looked_at: u32,
    old: u32,
    looking: u64,
    /// Nanoseconds of visits that freed nothing.
    cost: u64,
    /// When the turn of a VM that could leave ends: the earliest found.
    turn_ends: Option<u64>,
}

/// The hand, and how much memory is to be free.
#[derive(Debug)]
pub(super) struct Clock {
    /// Place + 1 of the VM at which the hand is; 0: there is none.
    hand: u32,
    /// VMs in the ring, and those of them that were visited in this lap.
    length: u32,
    visited: u32,
    /// Where in a VM with many frames the hand is.
    cursor: Option<Frame>,
    /// The window, in ticks.
    window: u32,
    /// What became of this lap so far.
    lap: Lap,
    /// Laps in a row that freed nothing with a window of no length.
    fruitless: u32,
    /// When working sets are looked at again.
    next_look: u64,
    /// When memory is to be taken back again, if nothing can be done before.
    next_turn: Option<u64>,
    /// When the next VM may be made to leave in the middle of its work.
    next_park: u64,
    /// When a large VM was last made to give up all it has.
    forced: u64,
    /// Nothing can be freed until something happens.
    blocked: bool,
    /// The first VM that waits for a frame or a slot cannot be served until something happens.
    pub retry_blocked: bool,
    /// VMs being destroyed that were found in the middle of reads and writes, one after the other.
    pub dying_blocked: u32,
    low: u32,
    high: u32,
    floor: u32,
}

impl Clock {
    /// For a pool of so many frames.
    pub fn new(frames: u32) -> Clock {
        let low = (frames / 32).clamp(24, 4096);
        Clock {
            hand: 0,
            length: 0,
            visited: 0,
            cursor: None,
            window: WINDOW,
            lap: Lap::default(),
            fruitless: 0,
            next_look: 0,
            next_turn: None,
            next_park: 0,
            forced: 0,
            blocked: false,
            retry_blocked: false,
            dying_blocked: 0,
            low,
            high: low + low / 2,
            floor: (low / 4).max(8),
        }
    }

    /// VMs in memory.
    pub const fn length(&self) -> u32 {
        self.length
    }

    /// Nothing can be freed until something happens, or for a while.
    pub const fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// So many frames are to be free when VMs wait for some.
    pub const fn high(&self) -> u32 {
        self.high
    }

    /// With fewer free frames memory is taken back.
    pub const fn low(&self) -> u32 {
        self.low
    }

    /// Free frames that a fault leaves for what must go on: page tables, page maps, VMs that have begun to come back.
    pub const fn floor(&self) -> u32 {
        self.floor
    }

    /// When memory is to be taken back again though nothing happens.
    pub const fn next_turn(&self) -> Option<u64> {
        self.next_turn
    }

    /// Nothing can be freed now: until this time, or until something happens.
    fn pause(&mut self, until: Option<u64>) {
        (self.blocked, self.next_turn) = (true, until);
    }

    /// VMs that leave and come back have taken the processor from the others, from one time to another.
    pub fn charge(&mut self, begun: u64, now: u64) {
        let took = now.saturating_sub(begun);
        self.next_park = self.next_park.max(begun).saturating_add(took.saturating_mul(1 + SHARE));
    }

    /// How long a VM's turn lasts at most.
    fn longest_turn(&self) -> u64 {
        TURN + u64::from(self.length) * TURN_EACH
    }

    /// The time for it has come.
    pub fn end_turn(&mut self, now: u64) {
        if self.next_turn.is_some_and(|turn| turn <= now) {
            (self.blocked, self.next_turn) = (false, None);
        }
    }

    /// Something happened: there may be something to free.
    pub fn unblock(&mut self) {
        // What happens to one VM does not end the turn of another.
        self.blocked = self.next_turn.is_some();
        (self.retry_blocked, self.dying_blocked) = (false, 0);
    }
}

impl Pager<'_> {
    /// Puts a VM into the ring, before the hand: it is visited last.
    pub(super) fn enter_ring(&mut self, machine: &mut impl Machine, place: u32) {
        let now = machine.now();
        let usage = self.vms.get(place).and_then(|vm| vm.at()).and_then(|at| machine.usage(at).ok());
        let link = place + 1;
        let hand = self.clock.hand;
        let before = hand.checked_sub(1).and_then(|hand| self.vms.get(hand)).map_or(link, |vm| vm.ring[0]);
        let after = if hand == 0 { link } else { hand };
        if let Some(vm) = self.vms.get_mut(place) {
            vm.ring = [before, after];
            (vm.quiet, vm.since) = (FRESH, (now >> TICK) as u32);
            vm.came = usage.map_or(0, |usage| virtual_time(&usage)) as u16;
        }
        if hand == 0 {
            self.clock.hand = link;
        } else {
            if let Some(vm) = self.vms.get_mut(before - 1) {
                vm.ring[1] = link;
            }
            if let Some(vm) = self.vms.get_mut(after - 1) {
                vm.ring[0] = link;
            }
        }
        self.clock.length += 1;
    }

    /// Takes a VM out of the ring, if it is in it.
    pub(super) fn leave_ring(&mut self, place: u32) {
        let Some([before, after]) = self.vms.get(place).map(|vm| vm.ring).filter(|[before, _]| *before != 0) else {
            return;
        };
        if let Some(vm) = self.vms.get_mut(before - 1) {
            vm.ring[1] = after;
        }
        if let Some(vm) = self.vms.get_mut(after - 1) {
            vm.ring[0] = before;
        }
        if let Some(vm) = self.vms.get_mut(place) {
            vm.ring = [0; 2];
        }
        if self.clock.hand == place + 1 {
            self.clock.hand = if after == place + 1 { 0 } else { after };
            self.clock.cursor = None;
        }
        self.clock.length -= 1;
    }

    /// Frames that are free, or will be when writes that are under way are over.
    fn coming(&self) -> u32 {
        self.spare() + self.underway.freeing
    }

    /// Frames that are to be free.
    fn wanted_free(&self) -> u32 {
        let waits = !self.stalled.is_empty() || !self.waiting.is_empty();
        let base = if waits { self.clock.high } else { self.clock.low };
        base.max(self.gate_needs()).max(self.stalled_needs())
    }

    /// Whether VMs wait for memory.
    fn somebody_waits(&self) -> bool {
        !(self.stalled.is_empty() && self.gate.is_empty() && self.waiting.is_empty())
    }

    /// Whether memory is to be taken back, and can be now.
    pub(super) fn reclaims(&self) -> bool {
        self.has_swap() && !self.clock.blocked && self.clock.length > 0 && self.coming() < self.wanted_free()
    }

    /// Takes memory back, a bounded number of visits.
    pub(super) fn reclaim(&mut self, machine: &mut impl Machine) {
        let target = self.wanted_free().max(self.clock.high);
        for _ in 0..VISITS {
            let Some(place) = self.clock.hand.checked_sub(1) else { break };
            if self.coming() >= target {
                break;
            }
            let now = machine.now();
            let force = self.clock.fruitless > 0 && now >= self.clock.forced.saturating_add(TURN);
            let freed = self.visit(machine, place, force);
            self.clock.lap.freed += freed.frames;
            if freed.frames == 0 {
                self.clock.lap.cost += machine.now().saturating_sub(now);
            }
            if freed.blocked {
                // It goes on when a write is over.
                self.clock.blocked = self.underway.count() > 0 || self.underway.moves() > 0;
                if self.clock.blocked {
                    break;
                }
            }
            if self.clock.cursor.is_some() && self.clock.hand == place + 1 {
                continue;
            }
            self.advance(machine, place);
            if force && freed.frames > 0 {
                // One VM has given up what it had.
                (self.clock.fruitless, self.clock.forced) = (0, now);
            }
        }
    }

    /// Moves the hand on from a VM, and ends the lap if it was the last.
    fn advance(&mut self, machine: &mut impl Machine, place: u32) {
        self.clock.cursor = None;
        if self.clock.hand == place + 1 {
            self.clock.hand = self.vms.get(place).map_or(0, |vm| vm.ring[1]);
        }
        self.clock.visited += 1;
        if self.clock.visited < self.clock.length {
            return;
        }
        let (lap, now) = (core::mem::take(&mut self.clock.lap), machine.now());
        self.clock.visited = 0;
        if lap.looked_at > 0 && lap.old <= lap.looked_at / YIELD {
            self.clock.next_look = now.saturating_add(lap.looking.saturating_mul(REST));
        }
        if lap.freed > 0 {
            self.clock.fruitless = 0;
            self.clock.window = (self.clock.window * 2).clamp(1, WINDOW);
        } else if let Some(turn) = lap.turn_ends {
            // No pages are taken out of working sets while a VM can leave whole.
            let pause = lap.cost.saturating_mul(REST).clamp(PAUSE, TURN);
            self.clock.pause(Some(turn.min(now.saturating_add(pause))));
        } else if lap.looked_at == 0 && self.clock.next_look > now {
            self.clock.pause(Some(self.clock.next_look));
        } else if self.clock.window > 0 {
            self.clock.window /= 2;
        } else {
            self.clock.fruitless += 1;
            // Nobody waits, or it is nobody's turn to give up all it has, or even by force nothing was freed.
            let waits = self.somebody_waits();
            if !waits || self.clock.fruitless > 1 {
                self.clock.pause(waits.then(|| self.clock.forced.saturating_add(TURN)));
            }
        }
    }

    /// The hand comes by a VM. `force`: all that it has is to go.
    fn visit(&mut self, machine: &mut impl Machine, place: u32, force: bool) -> Freed {
        let none = Freed::default();
        let Some(vm) = self.vms.get_mut(place) else { return none };
        let Some(at) = vm.at().filter(|_| !vm.is(MOVING | LEAVING)) else { return none };
        let Ok(usage) = machine.usage(at) else { return none };
        let switches = usage.switches as u32;
        let now = machine.now();
        let time = virtual_time(&usage);
        let turn = (u64::from(vm.since) << TICK) + self.clock.longest_turn();
        let is_over = turn <= now || u64::from((time as u16).wrapping_sub(vm.came)) << TICK >= TURN;
        let did_nothing = usage.state != 1 && vm.seen == switches;
        vm.quiet = match vm.quiet {
            _ if !did_nothing => 0,
            FRESH if !is_over => FRESH,
            FRESH => QUIET,
            laps => laps.saturating_add(1).min(QUIET),
        };
        vm.seen = switches;
        let quiet = vm.quiet == QUIET;
        let whole = vm.state() == State::Running && vm.under_way == 0 && self.clock.cursor.is_none();
        let at_rest = quiet && usage.state == 2 && vm.fault().is_none();
        // With more working sets than memory it is no use to take pages from all of them: some VMs must wait. First those that wait anyway, but for the one
        // that is served next; then those that have had their turn.
        let grace_ends = quiet || is_over;
        let stalled = vm.is(STALLED);
        let turn_ends = if stalled || is_over { 0 } else { turn };
        let may_park = vm.state() == State::Running
            && self.clock.cursor.is_none()
            && self.stalled.front() != Some(&place)
            && self.can_leave(place);
        if grace_ends {
            self.end_grace(place);
        }
        if whole && at_rest {
            match self.suspend(machine, place, false) {
                Begun::Yes(frames) => return Freed { frames, blocked: false },
                Begun::Blocked => return Freed { frames: 0, blocked: true },
                Begun::No => {}
            }
        }
        let mut freed = none;
        // Who waits for memory leaves rather than losing pages that it needs; and working sets are not looked at again and again in vain.
        if !(stalled && may_park) && (quiet || force || now >= self.clock.next_look) {
            freed = self.take_old(machine, place, (time, quiet), force);
        }
        if freed == none && may_park {
            freed = self.park(machine, place, turn_ends);
        }
        freed
    }

    /// A VM is to leave in the middle of its work, if its turn is over and it is time for another one.
    fn park(&mut self, machine: &mut impl Machine, place: u32, turn_ends: u64) -> Freed {
        let turn_ends = turn_ends.max(self.clock.next_park);
        if turn_ends > machine.now() {
            let earliest = self.clock.lap.turn_ends.map_or(turn_ends, |other| other.min(turn_ends));
            self.clock.lap.turn_ends = Some(earliest);
            return Freed::default();
        }
        match self.suspend(machine, place, true) {
            Begun::Yes(frames) => Freed { frames, blocked: false },
            Begun::Blocked => Freed { frames: 0, blocked: true },
            Begun::No => Freed::default(),
        }
    }

    /// Takes those of a VM's pages that are not in its working set, from the cursor on.
    fn take_old(&mut self, machine: &mut impl Machine, place: u32, (time, quiet): (u32, bool), force: bool) -> Freed {
        let begun = machine.now();
        let from = self.clock.cursor.filter(|frame| self.frames.belongs(*frame, place));
        let (resident, next) = self.resident(place, from, LOOK);
        self.clock.cursor = next;
        // What did nothing for a lap has no virtual time that passes; its unused pages are old all the same.
        let window = if force || quiet { 0 } else { self.clock.window };
        let old = self.old(machine, place, &resident.pages, (time, window), force);
        if !quiet {
            self.clock.lap.looked_at += resident.pages.len() as u32;
            self.clock.lap.old += old.len() as u32;
            self.clock.lap.looking += machine.now().saturating_sub(begun);
        }
        let mut freed = Freed::default();
        let mut rest = old.as_slice();
        while !rest.is_empty() && !freed.blocked {
            let (run, after) = rest.split_at(pages::run_of(rest));
            rest = after;
            let run = self.evict(machine, place, run);
            freed.frames += run.frames;
            freed.blocked = run.blocked;
        }
        freed
    }

    /// Those of a VM's pages that are not in its working set. The others are stamped.
    fn old(
        &mut self,
        machine: &mut impl Machine,
        place: u32,
        pages: &[(u32, Frame)],
        (time, window): (u32, u32),
        force: bool,
    ) -> Vec<(u32, Frame)> {
        let mut old = Vec::new();
        let Some(vm) = self.vms.get(place) else { return old };
        let Some(at) = vm.at() else { return old };
        let waited_for = vm.fault().map(|(page, _)| page);
        let states = pages::states(machine, at, pages, Scan::CLEAR_ACCESSED);
        for ((page, frame), state) in pages.iter().zip(states) {
            let used = state & PageState::ACCESSED.bits() != 0;
            if used {
                self.frames.set_stamp(*frame, time);
            }
            let age = time.wrapping_sub(self.frames.stamp(*frame));
            let is_old = force || (!used && (window == 0 || age >= window));
            if is_old && !self.frames.is_busy(*frame) && waited_for != Some(*page) {
                old.push((*page, *frame));
            }
        }
        old
    }
}
