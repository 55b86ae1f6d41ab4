//! Who is served when, and where packets go.
//!
//! VMs that rang their doorbell wait in a queue. A *round* takes up to [`TURNS`] of them and up to [`PACKETS`] packets of
//! each, in five steps, each one batch of copies:
//!
//! 1. read the senders' queue pages,
//! 2. read the first bytes of each packet into the switch, and decide by them,
//! 3. read the queue pages of the VMs that receive,
//! 4. copy: the bytes that were decided by from the switch, the rest straight from the sender to the receiver or to the
//!    driver's buffer; so a sender that changes its packet meanwhile changes nothing that was checked,
//! 5. write lengths and indices back.
//!
//! A VM has one packet looked at for each that others have: none can keep another from sending. Packets for the network
//! wait in the sender's own ring while the driver has no room; packets for a VM without a buffer are dropped.

use crate::{
    header::{Header, LOOK, Mac},
    memory::{Copy, Fate, Memory, Place},
    ports::{Counters, Port, PortId, Ports, Refusal},
    queue::{Own, Page, SEND_PART, WHOLE, Window, receive_length},
    uplink::{State, Uplink},
};
use alloc::{collections::VecDeque, vec::Vec};
use protocol::{
    nic::SWITCH_INDICES,
    service::{VmNumber, VmRef},
};

/// VMs in a round.
pub const TURNS: usize = 8;
/// Packets of a VM in a round.
pub const PACKETS: usize = 8;
/// Packets in a round.
const BATCH: usize = TURNS * PACKETS;

// The scratch memory: senders' pages, beginnings of packets, receivers' pages, lengths, indices.
const SENDERS: usize = 0;
const HEADERS: usize = SENDERS + TURNS * SEND_PART;
const RECEIVERS: usize = HEADERS + BATCH * LOOK;
const LENGTHS: usize = RECEIVERS + BATCH * WHOLE;
const INDICES: usize = LENGTHS + BATCH * 4;
/// Bytes of scratch memory that the switch needs.
pub const SCRATCH: usize = INDICES + (TURNS + BATCH) * Own::LENGTH;

/// A sender's turn in a round.
#[derive(Debug)]
struct Turn {
    port: PortId,
    /// It has more packets than were looked at.
    more: bool,
    /// One of its packets waits for the uplink, and so do those after it.
    stalled: bool,
    /// One of its packets is to be tried again, and so are those after it.
    blocked: bool,
    /// Packets taken in this round.
    taken: u32,
}

/// A VM that receives in a round.
#[derive(Debug)]
struct Receiver {
    port: PortId,
    /// Buffers that were planned for, and those that were filled.
    planned: u32,
    filled: u32,
    /// A planned buffer was not filled, so those after it are not in their places.
    blocked: bool,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Nowhere: the sender may not send this.
    Refused,
    /// Nowhere: nobody is there to receive it.
    Nobody,
    /// Nowhere yet: the uplink has no room.
    Later,
    /// To a VM (place among the receivers).
    Vm(usize),
    /// To a VM that has no buffer for it.
    NoBuffer(usize),
    /// To the network, into the free buffer this far ahead.
    Uplink(usize),
}

/// A packet on its way.
#[derive(Clone, Copy, Debug)]
struct Packet {
    /// The sender's turn; `None` if it came from the network.
    turn: Option<usize>,
    from: Place,
    length: usize,
    way: Way,
    /// Its copies, among the fates of step 4.
    copies: (usize, usize),
}

/// What was lost between the network and the VMs, beside what the ports count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lost {
    /// Packets from the network for nobody here.
    pub unknown: u64,
    /// Broadcasts and multicasts from the network, which are not spread over the VMs.
    pub multicast: u64,
    /// Packets from the network in the name of a VM here, or broken.
    pub forged: u64,
    /// Packets for the network while there was no driver.
    pub no_uplink: u64,
}

/// The switch.
#[derive(Debug)]
pub struct Switch {
    ports: Ports,
    /// The way to the network.
    pub uplink: Uplink,
    /// Ports with something to send; those that wait for the uplink.
    ready: VecDeque<PortId>,
    stalled: VecDeque<PortId>,
    lost: Lost,
    // The round at work; empty between rounds, kept for their memory.
    turns: Vec<Turn>,
    packets: Vec<Packet>,
    receivers: Vec<Receiver>,
    copies: Vec<Copy>,
    fates: Vec<Fate>,
}

impl Switch {
    /// A switch for at most `ports` VMs.
    pub fn new(ports: usize, uplink: Uplink) -> Switch {
        Switch {
            ports: Ports::new(ports),
            uplink,
            ready: VecDeque::new(),
            stalled: VecDeque::new(),
            lost: Lost::default(),
            turns: Vec::new(),
            packets: Vec::new(),
            receivers: Vec::new(),
            copies: Vec::new(),
            fates: Vec::new(),
        }
    }

    /// Gives a VM a port. What it has put up for sending already is looked at.
    pub fn attach(
        &mut self,
        vm: VmNumber,
        at: VmRef,
        mac: Mac,
        address: [u8; 4],
        window: Window,
    ) -> Result<(), Refusal> {
        let port = Port { vm, at, mac, address, window, own: None, counters: Counters::default() };
        let id = self.ports.attach(port)?;
        self.enqueue(id);
        Ok(())
    }

    /// Takes a VM's port away. `false` if it has none.
    pub fn detach(&mut self, vm: VmNumber) -> bool {
        self.ports.detach(vm)
    }

    /// What a VM's port counted.
    pub fn counters(&self, vm: VmNumber) -> Option<Counters> {
        Some(self.ports.get(self.ports.by_vm(vm)?)?.counters)
    }

    /// What was lost otherwise.
    pub fn lost(&self) -> Lost {
        self.lost
    }

    /// A VM has rung its doorbell, where it is now.
    pub fn rung(&mut self, vm: VmNumber, at: VmRef) {
        if let Some(id) = self.ports.by_vm(vm) {
            if let Some(port) = self.ports.get_mut(id) {
                port.at = at;
            }
            self.enqueue(id);
        }
    }

    fn enqueue(&mut self, id: PortId) {
        if self.ports.begin_wait(id) {
            self.ready.push_back(id);
        }
    }

    /// Lets as many go on that wait for the uplink as there is room for.
    fn wake_stalled(&mut self) {
        let awake = match self.uplink.state() {
            State::Absent => self.stalled.len(),
            State::Starting => 0,
            State::Up => self.uplink.room(),
        };
        for _ in 0..awake {
            let Some(id) = self.stalled.pop_front() else {
                break;
            };
            self.ready.push_back(id);
        }
    }

    /// Makes the copies that were planned.
    fn copy(&mut self, memory: &mut impl Memory) {
        self.fates.clear();
        memory.copy(&self.copies, &mut self.fates);
        self.copies.clear();
    }

    fn is_done(&self, copy: usize) -> bool {
        self.fates.get(copy) == Some(&Fate::Done)
    }

    /// Takes packets from the network. Returns whether there were any.
    pub fn receive(&mut self, memory: &mut impl Memory) -> bool {
        let count = self.uplink.arrived().min(BATCH);
        if count == 0 {
            return false;
        }
        for ahead in 0..count {
            let mut header = [0; LOOK];
            match self.uplink.look(ahead, &mut header) {
                Some((length, place, look)) => {
                    let way = self.way_in(Header::read(&header[..look]));
                    let from = Place::Uplink(place);
                    self.packets.push(Packet { turn: None, from, length, way, copies: (0, 0) });
                }
                None => self.lost.forged += 1,
            }
        }
        self.deliver(memory);
        self.uplink.take(count);
        true
    }

    /// The way of a packet from the network.
    fn way_in(&mut self, header: Option<Header>) -> Way {
        let Some(header) = header.filter(|header| self.ports.by_mac(header.source).is_none()) else {
            self.lost.forged += 1;
            return Way::Nobody;
        };
        let port = match header.is_multicast() {
            true => header.asks_for().and_then(|address| self.ports.by_address(address)),
            false => self.ports.by_mac(header.destination),
        };
        match port {
            Some(port) => Way::Vm(self.receiver(port)),
            None => {
                self.lost.multicast += u64::from(header.is_multicast());
                self.lost.unknown += u64::from(!header.is_multicast());
                Way::Nobody
            }
        }
    }

    /// The place of a port among the receivers of this round.
    fn receiver(&mut self, port: PortId) -> usize {
        let known = self.receivers.iter().position(|receiver| receiver.port == port);
        known.unwrap_or_else(|| {
            self.receivers.push(Receiver { port, planned: 0, filled: 0, blocked: false });
            self.receivers.len() - 1
        })
    }

    /// A round of the VMs whose turn it is. Returns whether there were any.
    pub fn serve(&mut self, memory: &mut impl Memory) -> bool {
        self.wake_stalled();
        self.begin_turns(memory);
        if self.turns.is_empty() {
            return false;
        }
        self.collect(memory);
        self.route(memory);
        self.deliver(memory);
        self.end_turns();
        true
    }

    /// Step 1: reads the senders' pages.
    fn begin_turns(&mut self, memory: &mut impl Memory) {
        while self.turns.len() < TURNS
            && let Some(id) = self.ready.pop_front()
        {
            self.ports.end_wait(id);
            let Some(port) = self.ports.get(id) else {
                continue;
            };
            let from = Place::Vm { vm: port.vm, at: port.at, address: port.window.address };
            let to = Place::Scratch(SENDERS + self.turns.len() * SEND_PART);
            self.copies.push(Copy { from, to, length: SEND_PART });
            self.turns.push(Turn { port: id, more: false, stalled: false, blocked: false, taken: 0 });
        }
        self.copy(memory);
    }

    /// Finds the packets, and reads their first bytes (step 2).
    fn collect(&mut self, memory: &mut impl Memory) {
        for (index, turn) in self.turns.iter_mut().enumerate() {
            let Some(port) = self.ports.get_mut(turn.port).filter(|_| self.fates.get(index) == Some(&Fate::Done))
            else {
                continue;
            };
            let page = Page(&memory.scratch()[SENDERS + index * SEND_PART..][..SEND_PART]);
            let own = port.own.get_or_insert(page.own());
            let Some(unsent) = page.unsent(own.taken) else {
                // The index makes no sense: all that it stands for is refused.
                own.taken = page.filled();
                own.refused = own.refused.wrapping_add(1);
                port.counters.refused += 1;
                turn.taken = 1;
                continue;
            };
            turn.more = unsent as usize > PACKETS;
            for ahead in 0..unsent.min(PACKETS as u32) {
                let entry = page.send(own.taken.wrapping_add(ahead), port.window);
                let (way, address, length) = match entry {
                    Some(entry) => (Way::Nobody, entry.address, entry.length as usize),
                    None => (Way::Refused, 0, 0),
                };
                let from = Place::Vm { vm: port.vm, at: port.at, address };
                if entry.is_some() {
                    let to = Place::Scratch(HEADERS + self.packets.len() * LOOK);
                    self.copies.push(Copy { from, to, length: length.min(LOOK) });
                }
                self.packets.push(Packet { turn: Some(index), from, length, way, copies: (0, 0) });
            }
        }
        self.copy(memory);
    }

    /// Decides where each packet goes.
    fn route(&mut self, memory: &mut impl Memory) {
        let mut looked = 0;
        let (mut room, mut reserved) = (self.uplink.room(), 0);
        for index in 0..self.packets.len() {
            let Packet { way, length, turn, .. } = self.packets[index];
            if matches!(way, Way::Refused) {
                continue;
            }
            let header = &memory.scratch()[HEADERS + index * LOOK..][..length.min(LOOK)];
            let header = Header::read(header).filter(|_| self.is_done(looked));
            looked += 1;
            let Some(turn) = turn else {
                continue;
            };
            let way = self.way_out(self.turns[turn].port, header);
            self.packets[index].way = match way {
                _ if self.turns[turn].stalled => Way::Later,
                Way::Uplink(_) if self.uplink.state() == State::Absent => {
                    self.lost.no_uplink += 1;
                    Way::Nobody
                }
                Way::Uplink(_) if room == 0 => {
                    self.turns[turn].stalled = true;
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

    /// The way of a VM's packet.
    fn way_out(&mut self, sender: PortId, header: Option<Header>) -> Way {
        let allowed = |port: &Port, header: &Header| header.is_from(port.mac, port.address);
        let port = self.ports.get(sender);
        let Some(header) = header.filter(|header| port.is_some_and(|port| allowed(port, header))) else {
            return Way::Refused;
        };
        let receiver = match header.is_multicast() {
            true => header.asks_for().and_then(|address| self.ports.by_address(address)),
            false => self.ports.by_mac(header.destination),
        };
        match receiver {
            // A VM that talks to itself needs no network for it; a probe for its own address has no answer.
            Some(port) if port == sender => Way::Nobody,
            Some(port) => Way::Vm(self.receiver(port)),
            None => Way::Uplink(0),
        }
    }

    /// Steps 3 to 5 for all packets of the round; then the round's lists are empty, but for the turns.
    fn deliver(&mut self, memory: &mut impl Memory) {
        self.read_receivers(memory);
        self.plan(memory);
        self.copy(memory);
        self.commit();
        self.write_back(memory);
        self.packets.clear();
        self.receivers.clear();
    }

    /// Step 3.
    fn read_receivers(&mut self, memory: &mut impl Memory) {
        for (index, receiver) in self.receivers.iter().enumerate() {
            if let Some(port) = self.ports.get(receiver.port) {
                let from = Place::Vm { vm: port.vm, at: port.at, address: port.window.address };
                self.copies.push(Copy { from, to: Place::Scratch(RECEIVERS + index * WHOLE), length: WHOLE });
            }
        }
        self.copy(memory);
        for (index, receiver) in self.receivers.iter().enumerate() {
            let read = self.fates.get(index) == Some(&Fate::Done);
            if let Some(port) = self.ports.get_mut(receiver.port).filter(|_| read) {
                let page = Page(&memory.scratch()[RECEIVERS + index * WHOLE..][..WHOLE]);
                port.own.get_or_insert(page.own());
            }
        }
    }

    /// Plans step 4: the copies of each packet.
    fn plan(&mut self, memory: &mut impl Memory) {
        for index in 0..self.packets.len() {
            let packet = self.packets[index];
            let to = match packet.way {
                Way::Vm(place) => match self.buffer(place, packet.length, memory) {
                    Some(to) => to,
                    None => {
                        self.packets[index].way = Way::NoBuffer(place);
                        continue;
                    }
                },
                Way::Uplink(ahead) => Place::Uplink(self.uplink.send_place(ahead)),
                _ => continue,
            };
            let first = self.copies.len();
            // What was decided by comes from the switch, not again from the sender.
            let look = if packet.turn.is_some() { packet.length.min(LOOK) } else { 0 };
            let header = HEADERS + index * LOOK;
            match packet.way {
                Way::Uplink(ahead) => self.uplink.write_header(ahead, &memory.scratch()[header..][..look]),
                _ if look > 0 => self.copies.push(Copy { from: Place::Scratch(header), to, length: look }),
                _ => {}
            }
            if packet.length > look {
                let length = packet.length - look;
                self.copies.push(Copy { from: packet.from.after(look), to: to.after(look), length });
            }
            self.packets[index].copies = (first, self.copies.len());
        }
    }

    /// The next free buffer of a receiver.
    fn buffer(&mut self, place: usize, length: usize, memory: &mut impl Memory) -> Option<Place> {
        let receiver = &mut self.receivers[place];
        let port = self.ports.get(receiver.port)?;
        let own = port.own?;
        // If its page could not be read, `fates` of step 3 say so.
        if self.fates.get(place) != Some(&Fate::Done) {
            return None;
        }
        let page = Page(&memory.scratch()[RECEIVERS + place * WHOLE..][..WHOLE]);
        if page.offered(own.arrived) <= receiver.planned {
            return None;
        }
        let entry = page.receive(own.arrived.wrapping_add(receiver.planned), length, port.window)?;
        receiver.planned += 1;
        Some(Place::Vm { vm: port.vm, at: port.at, address: entry.address })
    }

    /// What became of each packet, in order. A buffer that was planned for but not filled would leave a gap: what comes
    /// after it for the same receiver is tried again in the next round, and so is all that comes after that of the same
    /// sender, which keeps each sender's packets in order.
    fn commit(&mut self) {
        let mut uplink_blocked = false;
        for index in 0..self.packets.len() {
            let Packet { turn, length, way, copies, .. } = self.packets[index];
            let failed =
                self.fates.get(copies.0..copies.1).into_iter().flatten().find(|fate| **fate != Fate::Done).copied();
            let held = turn.is_some_and(|turn| self.turns[turn].blocked) || matches!(way, Way::Later);
            let gap = match way {
                Way::Vm(place) => self.receivers[place].blocked,
                Way::Uplink(_) => uplink_blocked,
                _ => false,
            };
            if held || gap || failed.is_some() {
                match way {
                    Way::Vm(place) => self.receivers[place].blocked = true,
                    Way::Uplink(_) => uplink_blocked = true,
                    _ => {}
                }
            }
            match (turn, way) {
                (Some(turn), _) if held || gap => self.turns[turn].blocked = true,
                (None, Way::Vm(place)) if gap => self.drop_for(place),
                (_, Way::Vm(place)) => match failed {
                    None => {
                        self.arrived(place, length);
                        self.taken(turn, true);
                    }
                    Some(Fate::SourceFailed) => self.taken(turn, false),
                    Some(_) => {
                        self.drop_for(place);
                        self.taken(turn, true);
                    }
                },
                (_, Way::NoBuffer(place)) => {
                    self.drop_for(place);
                    self.taken(turn, true);
                }
                (_, Way::Uplink(_)) => {
                    if failed.is_none() {
                        self.uplink.put_up(length);
                    }
                    self.taken(turn, failed.is_none());
                }
                (_, Way::Nobody) => self.taken(turn, true),
                (_, Way::Refused | Way::Later) => self.taken(turn, false),
            }
        }
    }

    /// A packet of a sender is done with: sent, or refused.
    fn taken(&mut self, turn: Option<usize>, sent: bool) {
        let Some(turn) = turn.and_then(|turn| self.turns.get_mut(turn)) else {
            return;
        };
        turn.taken += 1;
        if let Some(port) = self.ports.get_mut(turn.port)
            && let Some(own) = &mut port.own
        {
            own.taken = own.taken.wrapping_add(1);
            own.refused = own.refused.wrapping_add(u32::from(!sent));
            port.counters.sent += u64::from(sent);
            port.counters.refused += u64::from(!sent);
        }
    }

    /// A packet has arrived; its length is written in step 5.
    fn arrived(&mut self, place: usize, length: usize) {
        let receiver = &mut self.receivers[place];
        receiver.filled += 1;
        if let Some(port) = self.ports.get_mut(receiver.port)
            && let Some(own) = &mut port.own
        {
            let address = port.window.address.wrapping_add(receive_length(own.arrived) as u64);
            own.arrived = own.arrived.wrapping_add(1);
            port.counters.received += 1;
            // The length itself goes to the scratch memory in `write_back`; until then it stands in the copy.
            self.copies.push(Copy {
                from: Place::Scratch(LENGTHS),
                to: Place::Vm { vm: port.vm, at: port.at, address },
                length,
            });
        }
    }

    fn drop_for(&mut self, place: usize) {
        if let Some(port) = self.ports.get_mut(self.receivers[place].port) {
            port.counters.dropped += 1;
            if let Some(own) = &mut port.own {
                own.dropped = own.dropped.wrapping_add(1);
            }
        }
    }

    /// Step 5: lengths, then indices, then the interrupts.
    fn write_back(&mut self, memory: &mut impl Memory) {
        for (index, copy) in self.copies.iter_mut().enumerate() {
            let offset = LENGTHS + index * 4;
            memory.scratch()[offset..offset + 4].copy_from_slice(&(copy.length as u32).to_le_bytes());
            (copy.from, copy.length) = (Place::Scratch(offset), 4);
        }
        let receivers = self.receivers.iter().map(|receiver| (receiver.port, receiver.filled > 0));
        let senders = self.turns.iter().filter(|turn| turn.taken > 0).map(|turn| (turn.port, true));
        let mut changed: Vec<(PortId, bool)> = receivers.chain(senders).collect();
        // Once each: a VM that both sends and receives is told once.
        changed.sort_unstable_by_key(|(port, told)| (*port, !*told));
        changed.dedup_by_key(|(port, _)| *port);
        for (index, (id, _)) in changed.iter().enumerate() {
            if let Some(port) = self.ports.get(*id)
                && let Some(own) = port.own
            {
                let offset = INDICES + index * Own::LENGTH;
                memory.scratch()[offset..offset + Own::LENGTH].copy_from_slice(&own.to_bytes());
                let address = port.window.address.wrapping_add(SWITCH_INDICES as u64);
                let to = Place::Vm { vm: port.vm, at: port.at, address };
                self.copies.push(Copy { from: Place::Scratch(offset), to, length: Own::LENGTH });
            }
        }
        self.copy(memory);
        for (id, _) in changed.iter().filter(|(_, told)| *told) {
            if let Some(port) = self.ports.get(*id) {
                memory.raise(port.at);
            }
        }
    }

    /// Puts those back into a queue that are not done.
    fn end_turns(&mut self) {
        for turn in core::mem::take(&mut self.turns) {
            if (turn.stalled || turn.blocked || turn.more) && self.ports.get(turn.port).is_some() {
                // It may have been queued again by `attach`; a place is never in two queues.
                if self.ports.begin_wait(turn.port) {
                    let queue = if turn.stalled { &mut self.stalled } else { &mut self.ready };
                    queue.push_back(turn.port);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
