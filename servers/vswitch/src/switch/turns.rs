//! Steps 1 and 2 of a round: whose turn it is, and what of it goes where.

use super::{
    HEADERS, PACKETS, SENDERS, Switch, TURNS,
    round::{Origin, Packet, Round, Turn, Way},
};
use crate::{
    header::{ARP_REPLY, Header, LOOK},
    memory::{Copy, Fate, Memory, Place},
    queue::{Page, SEND_PART},
    uplink::State,
};

impl Switch {
    /// Step 1: reads the senders' pages.
    pub(super) fn begin_turns(&mut self, memory: &mut impl Memory) {
        while self.round.turns.len() < TURNS
            && let Some(id) = self.ready.pop_front()
        {
            self.ports.end_wait(id);
            let Some(port) = self.ports.get(id) else {
                continue;
            };
            if let Some(wait) = self.waits.get_mut(id).filter(|wait| !wait.is_full()) {
                // Its turn comes when the pager has brought it.
                wait.sends = true;
                continue;
            }
            let from = self.place(id, port.window.address());
            let to = Place::Scratch(SENDERS + self.round.turns.len() * SEND_PART);
            self.round.copies.push(Copy { from, to, length: SEND_PART });
            self.round.turns.push(Turn {
                port: id,
                known: None,
                notifies: [false; 2],
                more: false,
                stalled: false,
                away: false,
                blocked: false,
                taken: 0,
            });
        }
        self.copy(memory);
    }

    /// Finds the packets, and reads their first bytes (step 2).
    pub(super) fn collect(&mut self, memory: &mut impl Memory) {
        let mut turns = core::mem::take(&mut self.round.turns);
        for (index, turn) in turns.iter_mut().enumerate() {
            let fate = self.round.fates.get(index).copied();
            turn.away = fate == Some(Fate::SourceAway);
            let vm = self.ports.vm(turn.port).unwrap_or_default();
            let Some((at, window)) = self.ports.get(turn.port).map(|port| (port.at, port.window)) else {
                continue;
            };
            if fate != Some(Fate::Done) {
                continue;
            }
            let page = Page(&memory.scratch()[SENDERS + index * SEND_PART..][..SEND_PART]);
            turn.known = Some(self.know(turn.port, page.own()));
            let Some(own) = self.own(turn.known) else {
                continue;
            };
            let Some(unsent) = page.unsent(own.taken) else {
                // The index makes no sense: all that it stands for is refused.
                own.taken = page.filled();
                own.refused = own.refused.wrapping_add(1);
                turn.taken = 1;
                continue;
            };
            let taken = own.taken;
            turn.notifies = [unsent == 0 && page.notifies_none(), page.notifies_taken()];
            turn.more = unsent as usize > PACKETS;
            for ahead in 0..unsent.min(PACKETS as u32) {
                let entry = page.send(taken.wrapping_add(ahead), window);
                let (way, address, length) = match entry {
                    Some(entry) => (Way::Nobody, entry.address, entry.length as usize),
                    None => (Way::Refused, 0, 0),
                };
                let from = Place::Vm { vm, at, address };
                let Round { packets, copies, .. } = &mut self.round;
                if entry.is_some() {
                    let to = Place::Scratch(HEADERS + packets.len() * LOOK);
                    copies.push(Copy { from, to, length: length.min(LOOK) });
                }
                packets.push(Packet::new(Origin::Turn(index), from, length, way));
            }
        }
        self.round.turns = turns;
        self.copy(memory);
    }

    /// Decides where each packet goes.
    pub(super) fn route(&mut self, memory: &mut impl Memory) {
        let mut looked = 0;
        let (mut room, mut reserved) = (self.uplink.room(), 0);
        for index in 0..self.round.packets.len() {
            let Packet { way, length, origin, .. } = self.round.packets[index];
            let Origin::Turn(turn) = origin else {
                continue;
            };
            if matches!(way, Way::Refused) {
                continue;
            }
            let header = &memory.scratch()[HEADERS + index * LOOK..][..length.min(LOOK)];
            let header = Header::read(header).filter(|_| self.is_done(looked));
            let missing = self.round.fates.get(looked) == Some(&Fate::SourceAway);
            looked += 1;
            let Turn { port, stalled, away, .. } = self.round.turns[turn];
            if stalled || away || missing {
                self.round.turns[turn].away |= missing;
                self.round.packets[index].way = Way::Later;
                continue;
            }
            if let Some(answer) = header.as_ref().and_then(|header| self.answer_out(port, header)) {
                // The request becomes its answer, and the sender the receiver.
                memory.scratch()[HEADERS + index * LOOK..][..ARP_REPLY].copy_from_slice(&answer);
                let way = Way::Vm(self.receiver(port));
                let packet = &mut self.round.packets[index];
                (packet.length, packet.way) = (ARP_REPLY, way);
                continue;
            }
            self.round.packets[index].can_wait = header.is_some_and(|header| header.can_wait());
            self.round.packets[index].way = match self.way_out(port, header) {
                Way::Uplink(_) if self.uplink.state() == State::Absent => {
                    self.lost.no_uplink += 1;
                    Way::Nobody
                }
                Way::Uplink(_) if room == 0 => {
                    self.round.turns[turn].stalled = true;
                    Way::Later
                }
                Way::Uplink(_) => {
                    room -= 1;
                    reserved += 1;
                    Way::Uplink(reserved - 1)
                }
                way => way,
            };
        }
    }

    /// Puts those back into a queue that are not done.
    pub(super) fn end_turns(&mut self) {
        let mut turns = core::mem::take(&mut self.round.turns);
        for turn in turns.drain(..) {
            if !(turn.stalled || turn.away || turn.blocked || turn.more) || self.ports.get(turn.port).is_none() {
                continue;
            }
            if let Some(wait) = self.waits.get_mut(turn.port).filter(|wait| !wait.is_full()) {
                wait.sends = true;
            } else if self.ports.begin_wait(turn.port) {
                // It may have been queued again by `attach`; a place is never in two queues.
                let queue = match turn {
                    Turn { stalled: true, .. } => &mut self.stalled,
                    Turn { away: true, .. } => &mut self.crowd,
                    _ => &mut self.ready,
                };
                queue.push_back(turn.port);
            }
        }
        self.round.turns = turns;
    }

    /// Whether it is somebody's turn.
    pub(super) fn has_turns(&mut self) -> bool {
        let stalled = !self.stalled.is_empty() && (self.uplink.state() == State::Absent || self.uplink.room() > 0);
        stalled || !self.ready.is_empty() || !self.crowd.is_empty() && self.waits.room() > 0
    }
}
