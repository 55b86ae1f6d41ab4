//! Steps 3 to 6 of a round: packets to where they go.

use super::{
    HEADERS, HELD, INDICES, LENGTHS, RECEIVERS, Switch,
    round::{Origin, Packet, Receiver, Round, Way},
};
use crate::{
    away::{BUFFER, HeldPacket, LOOK_EVERY},
    header::LOOK,
    memory::{Copy, Fate, Memory, Outcome, Place},
    queue::{Own, Page, WHOLE, receive_length},
};
use protocol::{memory::BATCH, nic::SWITCH_INDICES};

/// Why a receiver gets no packet now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unfit {
    /// All buffers that it has offered are filled, or it has offered none.
    Full,
    /// Its queue page, or the buffer, is not what it should be.
    Broken,
}

/// Where a buffer for held packets is.
pub(super) const fn buffer_place(buffer: u16) -> Place {
    Place::Scratch(HELD + buffer as usize * BUFFER)
}

impl Switch {
    /// Steps 3 to 6 for all packets of the round; then the round's lists are empty, but for the turns.
    pub(super) fn deliver(&mut self, memory: &mut impl Memory) {
        self.read_receivers(memory);
        self.plan(memory);
        self.copy(memory);
        self.note_fates();
        self.divert(memory);
        let now = memory.now();
        self.commit(now);
        self.write_pages(memory, now);
        self.keep_owed();
        self.round.packets.clear();
        self.round.receivers.clear();
    }

    /// Step 3. A receiver whose page is not in memory is deaf until it is.
    fn read_receivers(&mut self, memory: &mut impl Memory) {
        for index in 0..self.round.receivers.len() {
            let Receiver { port: id, deaf: false, .. } = self.round.receivers[index] else {
                continue;
            };
            let address = self.ports.get(id).map_or(0, |port| port.window.address());
            let to = Place::Scratch(RECEIVERS + index * WHOLE);
            self.round.copies.push(Copy { from: self.place(id, address), to, length: WHOLE });
        }
        self.copy(memory);
        let mut receivers = core::mem::take(&mut self.round.receivers);
        let read = receivers.iter_mut().enumerate().filter(|(_, receiver)| !receiver.deaf);
        for (copy, (index, receiver)) in read.enumerate() {
            match self.round.fates.get(copy) {
                Some(Fate::Done) => {
                    let page = Page(&memory.scratch()[RECEIVERS + index * WHOLE..][..WHOLE]);
                    receiver.known = Some(self.know(receiver.port, page.own()));
                }
                Some(Fate::SourceAway) => {
                    receiver.deaf = true;
                    self.waits.deafen(receiver.port);
                }
                // Its page cannot be had: it has no buffers.
                _ => receiver.broken = true,
            }
        }
        self.round.receivers = receivers;
    }

    /// Plans step 4: the copies of each packet.
    fn plan(&mut self, memory: &mut impl Memory) {
        for index in 0..self.round.packets.len() {
            let packet = self.round.packets[index];
            let to = match packet.way {
                Way::Vm(place) if self.round.receivers[place].deaf => {
                    self.plan_hold(index, place);
                    continue;
                }
                Way::Vm(place) => match self.buffer(place, packet.length, memory) {
                    Ok(to) => to,
                    Err(Unfit::Full) if self.wait_for_buffer(place, memory) => {
                        self.plan_hold(index, place);
                        continue;
                    }
                    Err(_) => {
                        self.round.packets[index].way = Way::NoBuffer(place);
                        continue;
                    }
                },
                Way::Uplink(ahead) => {
                    if let Some(look) = look(&packet) {
                        self.uplink.write_header(ahead, &memory.scratch()[HEADERS + index * LOOK..][..look]);
                    }
                    Place::Uplink(self.uplink.send_place(ahead))
                }
                _ => continue,
            };
            self.plan_copies(index, to, !matches!(packet.way, Way::Uplink(_)));
        }
    }

    /// The copies of a packet. What was decided by comes from the switch, not again from the sender; `header`: whether
    /// that is to be copied too.
    fn plan_copies(&mut self, index: usize, to: Place, header: bool) {
        let Round { packets, copies, .. } = &mut self.round;
        let packet = &mut packets[index];
        let first = copies.len();
        let looked = look(packet).unwrap_or(0);
        if looked > 0 && header {
            copies.push(Copy { from: Place::Scratch(HEADERS + index * LOOK), to, length: looked });
        }
        if packet.length > looked {
            let (from, length) = (packet.from.after(looked), packet.length - looked);
            copies.push(Copy { from, to: to.after(looked), length });
        }
        packet.copies = (first, copies.len());
        packet.fate = Fate::Done;
    }

    /// A receiver is full: waits for it from now on. `false`: there is no room among those that are waited for.
    fn wait_for_buffer(&mut self, place: usize, memory: &mut impl Memory) -> bool {
        let port = self.round.receivers[place].port;
        if self.waits.room() == 0 && self.waits.get(port).is_none() {
            return false;
        }
        let now = memory.now();
        self.round.receivers[place].full |= self.waits.begin_full(port, now);
        self.look_at = self.look_at.min(now.saturating_add(LOOK_EVERY));
        true
    }

    /// Plans to hold a packet for a receiver that is not in memory or full; if there is no room it is dropped.
    fn plan_hold(&mut self, index: usize, place: usize) {
        if self.round.packets[index].origin == Origin::Held {
            self.round.packets[index].way = Way::Stay;
            return;
        }
        let receiver = &mut self.round.receivers[place];
        match self.waits.take_buffer(receiver.port, receiver.holding) {
            Some(buffer) => {
                receiver.holding += 1;
                self.round.packets[index].way = Way::Hold(place, buffer);
                self.plan_copies(index, buffer_place(buffer), true);
            }
            None => self.round.packets[index].way = Way::NoBuffer(place),
        }
    }

    /// The next free buffer of a receiver.
    fn buffer(&mut self, place: usize, length: usize, memory: &mut impl Memory) -> Result<Place, Unfit> {
        let arrived = self.own(self.round.receivers[place].known).ok_or(Unfit::Broken)?.arrived;
        let receiver = &mut self.round.receivers[place];
        let window = self.ports.get(receiver.port).ok_or(Unfit::Broken)?.window;
        let page = Page(&memory.scratch()[RECEIVERS + place * WHOLE..][..WHOLE]);
        if page.offered(arrived) <= receiver.planned {
            return Err(Unfit::Full);
        }
        let entry = page.receive(arrived.wrapping_add(receiver.planned), length, window).ok_or(Unfit::Broken)?;
        receiver.planned += 1;
        let id = receiver.port;
        Ok(self.place(id, entry.address))
    }

    /// What became of the copies of each packet.
    fn note_fates(&mut self) {
        let Round { packets, fates, .. } = &mut self.round;
        for packet in packets {
            let (first, end) = core::mem::take(&mut packet.copies);
            let failed = fates.get(first..end).unwrap_or_default().iter().find(|fate| **fate != Fate::Done);
            packet.fate = failed.copied().unwrap_or(packet.fate);
        }
    }

    /// Step 4 once more for packets whose receiver turned out not to be in memory: they are held, and so is what comes after them.
    fn divert(&mut self, memory: &mut impl Memory) {
        for index in 0..self.round.packets.len() {
            let Packet { way: Way::Vm(place), fate, .. } = self.round.packets[index] else {
                continue;
            };
            if fate == Fate::DestinationAway {
                self.round.receivers[place].deaf = true;
                self.waits.deafen(self.round.receivers[place].port);
            }
            if self.round.receivers[place].deaf && !matches!(fate, Fate::SourceFailed | Fate::SourceAway) {
                self.plan_hold(index, place);
            }
        }
        if !self.round.copies.is_empty() {
            self.copy(memory);
            self.note_fates();
        }
    }

    /// What became of each packet, in order. A buffer that was planned for but not filled would leave a gap: what comes
    /// after it for the same receiver is tried again in the next round, and so is all that comes after that of the same
    /// sender, which keeps each sender's packets in order.
    fn commit(&mut self, now: u64) {
        let mut uplink_blocked = false;
        for index in 0..self.round.packets.len() {
            let Packet { origin, length, way, fate, can_wait, .. } = self.round.packets[index];
            let turn = if let Origin::Turn(turn) = origin { Some(turn) } else { None };
            let waits = turn.is_some_and(|turn| self.round.turns[turn].blocked)
                || matches!(way, Way::Later)
                || fate == Fate::SourceAway;
            let gap = match way {
                Way::Vm(place) => self.round.receivers[place].blocked,
                Way::Uplink(_) => uplink_blocked,
                _ => false,
            };
            if waits || gap || fate != Fate::Done {
                match way {
                    Way::Vm(place) => self.round.receivers[place].blocked = true,
                    Way::Uplink(_) => uplink_blocked = true,
                    _ => {}
                }
            }
            if let (Way::Hold(place, buffer), false, Fate::Done) = (way, waits, fate) {
                let held = HeldPacket { buffer, length: length as u16, since: now };
                if self.waits.hold(self.round.receivers[place].port, held) {
                    self.taken(turn, true);
                    continue;
                }
            }
            if let Way::Hold(_, buffer) = way {
                self.waits.free_buffer(buffer);
            }
            match (origin, way) {
                (Origin::Turn(turn), _) if waits || gap => {
                    self.round.turns[turn].blocked = true;
                    self.round.turns[turn].away |= fate == Fate::SourceAway;
                }
                (Origin::Uplink, Way::Vm(place)) if gap => self.drop_for(place),
                (Origin::Held | Origin::Switch, _) if gap => {}
                (_, Way::Vm(place)) => {
                    match fate {
                        Fate::Done => self.arrived(place, length, !can_wait),
                        Fate::SourceFailed => {}
                        _ => self.drop_for(place),
                    }
                    self.done_with(origin, place, fate != Fate::SourceFailed);
                }
                (_, Way::NoBuffer(place)) => {
                    self.drop_for(place);
                    self.done_with(origin, place, true);
                }
                // It could not be held after all: the sender's fault, or nobody's.
                (_, Way::Hold(place, _)) => {
                    if fate != Fate::SourceFailed {
                        self.drop_for(place);
                    }
                    self.taken(turn, fate != Fate::SourceFailed);
                }
                (_, Way::Uplink(_)) => {
                    if fate == Fate::Done {
                        self.uplink.put_up(length);
                    }
                    self.taken(turn, fate == Fate::Done);
                }
                (_, Way::Nobody) => self.taken(turn, true),
                (_, Way::Refused) => self.taken(turn, false),
                (_, Way::Later | Way::Stay) => {}
            }
        }
    }

    /// A packet for a receiver is done with, wherever it came from.
    fn done_with(&mut self, origin: Origin, place: usize, sent: bool) {
        match origin {
            Origin::Turn(turn) => self.taken(Some(turn), sent),
            Origin::Held => self.waits.release(self.round.receivers[place].port),
            Origin::Uplink | Origin::Switch => {}
        }
    }

    /// A packet of a sender is done with: sent, or refused.
    fn taken(&mut self, turn: Option<usize>, sent: bool) {
        let Some(turn) = turn.and_then(|turn| self.round.turns.get_mut(turn)) else {
            return;
        };
        turn.taken += 1;
        let known = turn.known;
        if let Some(own) = self.own(known) {
            own.taken = own.taken.wrapping_add(1);
            own.refused = own.refused.wrapping_add(u32::from(!sent));
        }
    }

    /// A packet has arrived; its length is written in step 5.
    fn arrived(&mut self, place: usize, length: usize, urgent: bool) {
        let receiver = &mut self.round.receivers[place];
        receiver.filled += 1;
        receiver.urgent |= urgent;
        let Receiver { port, known, .. } = *receiver;
        if let Some(own) = self.own(known) {
            let entry = own.arrived;
            own.arrived = entry.wrapping_add(1);
            self.round.lengths.push((port, entry, length as u32));
        }
    }

    /// A packet for a receiver is lost.
    fn drop_for(&mut self, place: usize) {
        let receiver = &mut self.round.receivers[place];
        receiver.dropped = true;
        let Receiver { port, known, .. } = *receiver;
        if let Some(own) = self.own(known) {
            own.dropped = own.dropped.wrapping_add(1);
        } else if let Some(wait) = self.waits.get_mut(port) {
            wait.drop_one();
        }
    }

    /// Steps 5 and 6, in one call of the kernel if nobody is waited for: in one call all of a queue page is there, or nothing is. If not, nothing that was
    /// written is wrong, and all of it is written once more, one step after the other.
    fn write_pages(&mut self, memory: &mut impl Memory, now: u64) {
        self.find_changed(now);
        let Round { lengths, changed, .. } = &self.round;
        if lengths.is_empty() && changed.is_empty() {
            return;
        }
        let waits = !self.waits.is_empty() && changed.iter().any(|(id, _)| self.waits.get(*id).is_some());
        if !waits && lengths.len() + changed.len() <= BATCH {
            self.plan_lengths(memory);
            self.plan_indices(memory);
            self.round.outcomes.clear();
            memory.copy(&self.round.copies, &mut self.round.outcomes);
            self.round.copies.clear();
            if self.round.outcomes.iter().all(|outcome| *outcome == Outcome::Done) {
                let mut changed = core::mem::take(&mut self.round.changed);
                for (id, _) in changed.drain(..).filter(|(_, told)| *told) {
                    self.tell(memory, id);
                }
                self.round.changed = changed;
                self.round.lengths.clear();
                return;
            }
        }
        self.write_lengths(memory);
        self.write_indices(memory);
    }

    fn plan_lengths(&mut self, memory: &mut impl Memory) {
        let lengths = core::mem::take(&mut self.round.lengths);
        for (index, (id, entry, length)) in lengths.iter().enumerate() {
            let offset = LENGTHS + index * 4;
            memory.scratch()[offset..offset + 4].copy_from_slice(&length.to_le_bytes());
            let window = self.ports.get(*id).map_or(0, |port| port.window.address());
            let to = self.place(*id, window.wrapping_add(receive_length(*entry) as u64));
            self.round.copies.push(Copy { from: Place::Scratch(offset), to, length: 4 });
        }
        self.round.lengths = lengths;
    }

    /// Step 5. A VM whose queue page has gone meanwhile gets its lengths when it is back.
    fn write_lengths(&mut self, memory: &mut impl Memory) {
        self.plan_lengths(memory);
        self.copy(memory);
        let mut lengths = core::mem::take(&mut self.round.lengths);
        for (index, length) in lengths.drain(..).enumerate() {
            if self.round.fates.get(index) == Some(&Fate::DestinationAway)
                && let Some(wait) = self.waits.get_mut(length.0)
            {
                wait.deaf = true;
                wait.owe_length(length.1, length.2);
            }
        }
        self.round.lengths = lengths;
    }

    /// Whose indices have changed, and who is to be told.
    fn find_changed(&mut self, now: u64) {
        let Round { receivers, turns, changed, known, .. } = &mut self.round;
        let received = receivers.iter().filter(|receiver| receiver.filled > 0 || receiver.dropped || receiver.full);
        changed.extend(received.map(|receiver| {
            let one_can_wait = receiver.filled == 1 && !receiver.urgent;
            let told = receiver.filled > 0 && !(one_can_wait && self.quiet.begin(receiver.port, now));
            // Else it could offer a buffer just now, see nothing held, and wait for ever.
            (receiver.port, told || receiver.full)
        }));
        let looked = turns.iter().map(|turn| (turn.port, turn.taken > 0, turn.notifies[usize::from(turn.taken > 0)]));
        changed.extend(looked.filter(|(_, taken, told)| *taken || *told).map(|(port, _, told)| (port, told)));
        // Once each: a VM that both sends and receives is told once.
        changed.sort_unstable_by_key(|(port, told)| (*port, !*told));
        changed.dedup_by_key(|(port, _)| *port);
        changed.retain(|(id, told)| {
            let known = known.iter().any(|(known, _)| known == id);
            if !known && let Some(wait) = self.waits.get_mut(*id) {
                // It is not there: it is told when it is back.
                wait.owes = true;
                wait.raise |= *told;
            }
            known && self.ports.get(*id).is_some()
        });
    }

    fn plan_indices(&mut self, memory: &mut impl Memory) {
        let changed = core::mem::take(&mut self.round.changed);
        for (index, (id, _)) in changed.iter().enumerate() {
            let window = self.ports.get(*id).map_or(0, |port| port.window.address());
            let offset = INDICES + index * Own::LENGTH;
            let known = self.round.known.iter().find(|(known, _)| known == id);
            let own = known.map(|(_, own)| *own).unwrap_or_default().to_bytes(self.waits.held(*id) > 0);
            memory.scratch()[offset..offset + Own::LENGTH].copy_from_slice(&own);
            let to = self.place(*id, window.wrapping_add(SWITCH_INDICES as u64));
            self.round.copies.push(Copy { from: Place::Scratch(offset), to, length: Own::LENGTH });
        }
        self.round.changed = changed;
    }

    /// Step 6: indices, then the interrupts.
    fn write_indices(&mut self, memory: &mut impl Memory) {
        self.round.changed.retain(|(id, told)| match self.waits.get_mut(*id) {
            // It lacks lengths: it gets them, and is told, when it is back.
            Some(wait) if !wait.lengths.is_empty() || !wait.back && wait.deaf && !*told => {
                wait.owes = true;
                wait.raise |= *told;
                false
            }
            _ => true,
        });
        self.plan_indices(memory);
        self.copy(memory);
        let mut changed = core::mem::take(&mut self.round.changed);
        for (index, (id, told)) in changed.iter().enumerate() {
            match self.round.fates.get(index) {
                Some(Fate::DestinationAway) => {
                    if let Some(wait) = self.waits.get_mut(*id) {
                        (wait.deaf, wait.owes) = (true, true);
                        wait.raise |= told;
                    }
                }
                Some(Fate::DestinationFailed) => {
                    // It would send the same again and again.
                    let turns = self.round.turns.iter_mut().filter(|turn| turn.port == *id);
                    turns.for_each(|turn| (turn.more, turn.blocked) = (false, false));
                }
                _ if *told => self.tell(memory, *id),
                _ => {}
            }
        }
        changed.clear();
        self.round.changed = changed;
    }

    /// Keeps the indices of VMs that are waited for until the wait is over: those in their queue pages may be old.
    fn keep_owed(&mut self) {
        for (id, own) in self.round.known.drain(..) {
            if let Some(wait) = self.waits.get_mut(id) {
                wait.own = Some(own);
            }
        }
    }
}

/// How many bytes of a packet the switch has itself: those of a VM's that it has looked at, and all of its own.
fn look(packet: &Packet) -> Option<usize> {
    matches!(packet.origin, Origin::Turn(_) | Origin::Switch).then(|| packet.length.min(LOOK))
}
