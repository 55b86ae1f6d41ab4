//! Who is served when, and where packets go.
//!
//! VMs that rang their doorbell wait in a queue. A *round* takes up to [`TURNS`] of them and up to [`PACKETS`] packets of
//! each, in six steps, each one batch of copies:
//!
//! 1. read the senders' queue pages,
//! 2. read the first bytes of each packet into the switch, and decide by them,
//! 3. read the queue pages of the VMs that receive,
//! 4. copy: the bytes that were decided by from the switch, the rest straight from the sender to the receiver or to the
//!    driver's buffer; so a sender that changes its packet meanwhile changes nothing that was checked,
//! 5. write the lengths of what has arrived,
//! 6. write indices back, only where all lengths are there.
//!
//! A VM has one packet looked at for each that others have: none can keep another from sending. Packets for the network
//! wait in the sender's own ring while the driver has no room; VMs that have no buffer, or are not in memory, are waited for
//! ([`crate::away`]), by nobody else.

mod deliver;
mod pager;

use crate::{
    away::Waits,
    header::{ARP_REPLY, Header, LOOK, Mac},
    memory::{Copy, Fate, Memory, Outcome, Place},
    ports::{PortId, Ports, Refusal},
    queue::{Own, Page, SEND_PART, WHOLE, Window},
    quiet::Quiet,
    uplink::{State, Uplink},
};
use alloc::{collections::VecDeque, vec::Vec};
use protocol::service::{VmNumber, VmRef};

/// VMs in a round.
pub const TURNS: usize = 8;
/// Packets of a VM in a round.
pub const PACKETS: usize = 8;
/// Packets in a round.
const BATCH: usize = TURNS * PACKETS;

// The scratch memory: senders' pages, beginnings of packets, receivers' pages, lengths, indices, packets that are held.
const SENDERS: usize = 0;
const HEADERS: usize = SENDERS + TURNS * SEND_PART;
const RECEIVERS: usize = HEADERS + BATCH * LOOK;
const LENGTHS: usize = RECEIVERS + BATCH * WHOLE;
/// Lengths written in a round: those of its packets, and of the VMs that came back at most all that an earlier round left.
const LENGTHS_MOST: usize = BATCH + TURNS * protocol::nic::ENTRIES;
const INDICES: usize = LENGTHS + LENGTHS_MOST * 4;
const HELD: usize = INDICES + (TURNS + BATCH) * Own::LENGTH;
/// Bytes of scratch memory that the switch needs.
pub const SCRATCH: usize = HELD + crate::away::HELD * crate::away::BUFFER;

/// A sender's turn in a round.
#[derive(Debug)]
struct Turn {
    port: PortId,
    /// Its indices, among those of the round; `None` if its queue page could not be read.
    known: Option<usize>,
    /// It is to be told of this look: if nothing was taken, and if something was.
    notifies: [bool; 2],
    /// It has more packets than were looked at.
    more: bool,
    /// One of its packets waits for the uplink, and so do those after it.
    stalled: bool,
    /// One of its packets, or its queue page, is not in memory.
    away: bool,
    /// One of its packets is to be tried again, and so are those after it.
    blocked: bool,
    /// Packets taken in this round.
    taken: u32,
}

/// A VM that receives in a round.
#[derive(Debug)]
struct Receiver {
    port: PortId,
    /// Its indices, among those of the round; `None` if its queue page was not read.
    known: Option<usize>,
    /// It is not in memory: what is for it is held.
    deaf: bool,
    /// Its queue page cannot be had.
    broken: bool,
    /// A packet for it was dropped.
    dropped: bool,
    /// One has arrived that cannot wait.
    urgent: bool,
    /// It has become full, and is to hear of it.
    full: bool,
    /// Buffers that were planned for, and those that were filled.
    planned: u32,
    filled: u32,
    /// Packets to be held for it in this round.
    holding: usize,
    /// A planned buffer was not filled, so those after it are not in their places.
    blocked: bool,
}

impl Receiver {
    const fn new(port: PortId, deaf: bool) -> Receiver {
        Receiver {
            port,
            known: None,
            deaf,
            broken: false,
            dropped: false,
            urgent: false,
            full: false,
            planned: 0,
            filled: 0,
            holding: 0,
            blocked: false,
        }
    }
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Nowhere: the sender may not send this.
    Refused,
    /// Nowhere: nobody is there to receive it.
    Nobody,
    /// Nowhere yet: the uplink has no room, or the packet itself is not in memory.
    Later,
    /// To a VM (place among the receivers).
    Vm(usize),
    /// To a VM that has no buffer for it.
    NoBuffer(usize),
    /// To a VM that is not in memory; until it is, into this buffer.
    Hold(usize, u16),
    /// It is held already and stays so.
    Stay,
    /// To the network, into the free buffer this far ahead.
    Uplink(usize),
}

/// Where a packet comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Origin {
    /// From the VM with this turn.
    Turn(usize),
    /// From the network.
    Uplink,
    /// From a buffer in which it was held.
    Held,
    /// From the switch itself: an answer.
    Switch,
}

/// A packet on its way.
#[derive(Clone, Copy, Debug)]
struct Packet {
    origin: Origin,
    from: Place,
    length: usize,
    way: Way,
    /// Whom it is for need not be told at once.
    can_wait: bool,
    /// Its copies, among those of step 4.
    copies: (usize, usize),
    /// What became of them.
    fate: Fate,
}

impl Packet {
    const fn new(origin: Origin, from: Place, length: usize, way: Way) -> Packet {
        Packet { origin, from, length, way, can_wait: false, copies: (0, 0), fate: Fate::Done }
    }
}

/// What was lost between the network and the VMs, beside what the VMs' queue pages count.
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
    /// Answers to the network for which it had no room.
    pub answers: u64,
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
    /// Those that would wait for the pager, but too many do already.
    crowd: VecDeque<PortId>,
    waits: Waits,
    /// When those that wait are looked at again.
    look_at: u64,
    quiet: Quiet,
    lost: Lost,
    round: Round,
}

/// The round at work; empty between rounds, kept for its memory.
#[derive(Debug, Default)]
struct Round {
    /// The indices of all VMs whose queue pages were read.
    known: Vec<(PortId, Own)>,
    turns: Vec<Turn>,
    packets: Vec<Packet>,
    receivers: Vec<Receiver>,
    /// Lengths to be written: port, index of the receive entry, bytes.
    lengths: Vec<(PortId, u32, u32)>,
    /// Ports whose indices changed, and whether they are to be told.
    changed: Vec<(PortId, bool)>,
    /// VMs that came back and get what was held.
    back: Vec<PortId>,
    copies: Vec<Copy>,
    outcomes: Vec<Outcome>,
    fates: Vec<Fate>,
}

impl Switch {
    /// A switch for VMs at places below `places`.
    pub fn new(places: usize, uplink: Uplink) -> Switch {
        Switch {
            ports: Ports::new(places),
            uplink,
            ready: VecDeque::new(),
            stalled: VecDeque::new(),
            crowd: VecDeque::new(),
            waits: Waits::new(),
            look_at: protocol::abi::NEVER,
            quiet: Quiet::default(),
            lost: Lost::default(),
            round: Round::default(),
        }
    }

    /// Gives a VM a port. What it has put up for sending already is looked at, if the VM is in memory: one that is not (`at` is
    /// [`VmRef::NOWHERE`]) is left in peace.
    pub fn attach(
        &mut self,
        vm: VmNumber,
        at: VmRef,
        mac: Mac,
        address: [u8; 4],
        window: Window,
    ) -> Result<(), Refusal> {
        let id = self.ports.attach(vm, at, (mac, address), window)?;
        // What was waited for was another VM.
        self.waits.remove(id);
        if at != VmRef::NOWHERE {
            self.enqueue(id);
        }
        Ok(())
    }

    /// Takes a VM's port away. `false` if it has none.
    pub fn detach(&mut self, vm: VmNumber) -> bool {
        self.ports.detach(vm).is_some_and(|id| {
            self.waits.remove(id);
            self.quiet.end(id);
            true
        })
    }

    /// Whether a VM has a port.
    pub fn is_attached(&self, vm: VmNumber) -> bool {
        self.ports.by_vm(vm).is_some()
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
            if self.waits.is_full(id) {
                self.waits.brought(id);
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

    /// Lets some go on for which there was no room among those that wait for the pager, if there is now.
    fn wake_crowd(&mut self) {
        for _ in 0..TURNS.min(self.waits.room()) {
            let Some(id) = self.crowd.pop_front() else {
                break;
            };
            self.ready.push_back(id);
        }
    }

    /// The place among the round's indices of a port whose queue page was read. The switch keeps none between rounds: they stand in
    /// the page, and a VM that changes them there harms only itself. What could not be written there counts first.
    fn know(&mut self, id: PortId, page: Own) -> usize {
        let known = &mut self.round.known;
        known.iter().position(|(port, _)| *port == id).unwrap_or_else(|| {
            let own = self.waits.get_mut(id).map_or(page, |wait| wait.know(page));
            known.push((id, own));
            known.len() - 1
        })
    }

    /// Indices that are known in this round.
    fn own(&mut self, known: Option<usize>) -> Option<&mut Own> {
        self.round.known.get_mut(known?).map(|(_, own)| own)
    }

    fn is_done(&self, copy: usize) -> bool {
        self.round.fates.get(copy) == Some(&Fate::Done)
    }

    /// Takes packets from the network. Returns whether there are more.
    pub fn receive(&mut self, memory: &mut impl Memory) -> bool {
        let count = self.uplink.arrived().min(BATCH);
        if count == 0 {
            return false;
        }
        let (room, mut answers) = (self.uplink.room(), 0);
        for ahead in 0..count {
            let mut header = [0; LOOK];
            let Some((length, place, look)) = self.uplink.look(ahead, &mut header) else {
                self.lost.forged += 1;
                continue;
            };
            let header = Header::read(&header[..look]);
            let packet = match header.and_then(|header| self.answer_in(&header)) {
                Some(_) if answers >= room => {
                    self.lost.answers += 1;
                    continue;
                }
                Some(answer) => {
                    let offset = HEADERS + self.round.packets.len() * LOOK;
                    memory.scratch()[offset..][..ARP_REPLY].copy_from_slice(&answer);
                    answers += 1;
                    Packet::new(Origin::Switch, Place::Scratch(offset), ARP_REPLY, Way::Uplink(answers - 1))
                }
                None => {
                    let can_wait = header.is_some_and(|header| header.can_wait());
                    Packet {
                        can_wait,
                        ..Packet::new(Origin::Uplink, Place::Uplink(place), length, self.way_in(header))
                    }
                }
            };
            self.round.packets.push(packet);
        }
        self.deliver(memory);
        self.uplink.take(count);
        self.uplink.arrived() > 0
    }

    /// The answer to a packet from the network that asks for the address of a VM. The VM is not touched for it.
    fn answer_in(&self, header: &Header) -> Option<[u8; ARP_REPLY]> {
        let port = self.asked_for(header)?;
        let (mac, address) = self.ports.addresses(port)?;
        let for_it = header.is_multicast() || header.destination == mac;
        // Neither in the name of a VM, nor so that the answer goes to somebody who has not asked.
        let honest = self.ports.by_mac(header.source).is_none() && header.is_from_asker();
        if for_it && honest { header.arp_reply(mac, address) } else { None }
    }

    /// The port whose address an ARP request asks for.
    fn asked_for(&self, header: &Header) -> Option<PortId> {
        header.asks_for().and_then(|address| self.ports.by_address(address))
    }

    /// The way of a packet from the network that the switch does not answer.
    fn way_in(&mut self, header: Option<Header>) -> Way {
        let known = |header: &Header| self.ports.by_mac(header.source).is_some() || self.asked_for(header).is_some();
        let Some(header) = header.filter(|header| !known(header)) else {
            self.lost.forged += 1;
            return Way::Nobody;
        };
        if header.is_multicast() {
            self.lost.multicast += 1;
            return Way::Nobody;
        }
        match self.ports.by_mac(header.destination) {
            Some(port) => Way::Vm(self.receiver(port)),
            None => {
                self.lost.unknown += 1;
                Way::Nobody
            }
        }
    }

    /// The place of a port among the receivers of this round.
    fn receiver(&mut self, port: PortId) -> usize {
        let receivers = &mut self.round.receivers;
        receivers.iter().position(|receiver| receiver.port == port).unwrap_or_else(|| {
            let deaf = self.waits.is_deaf(port);
            receivers.push(Receiver::new(port, deaf));
            receivers.len() - 1
        })
    }

    /// A round of the VMs that came back, and one of those whose turn it is. Returns whether there may be more to do at once.
    pub fn serve(&mut self, memory: &mut impl Memory) -> bool {
        self.tell_late(memory);
        self.look(memory);
        let released = self.release(memory);
        self.wake_stalled();
        self.wake_crowd();
        self.begin_turns(memory);
        if self.round.turns.is_empty() {
            return released;
        }
        self.collect(memory);
        self.route(memory);
        self.deliver(memory);
        self.end_turns();
        released || self.has_turns()
    }

    /// Whether it is somebody's turn.
    fn has_turns(&mut self) -> bool {
        let stalled = !self.stalled.is_empty() && (self.uplink.state() == State::Absent || self.uplink.room() > 0);
        stalled || !self.ready.is_empty() || !self.crowd.is_empty() && self.waits.room() > 0
    }

    /// Step 1: reads the senders' pages.
    fn begin_turns(&mut self, memory: &mut impl Memory) {
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

    /// A place in the memory of a port's VM.
    fn place(&self, id: PortId, address: u64) -> Place {
        let at = self.ports.get(id).map_or(VmRef::NOWHERE, |port| port.at);
        Place::Vm { vm: self.ports.vm(id).unwrap_or_default(), at, address }
    }

    /// Finds the packets, and reads their first bytes (step 2).
    fn collect(&mut self, memory: &mut impl Memory) {
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
    fn route(&mut self, memory: &mut impl Memory) {
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

    /// Whether a VM may send this.
    fn may_send(&self, sender: PortId, header: &Header) -> bool {
        self.ports.addresses(sender).is_some_and(|(mac, address)| header.is_from(mac, address))
    }

    /// The answer to a VM's packet that asks for the address of another VM. Nobody else is touched for it.
    fn answer_out(&self, sender: PortId, header: &Header) -> Option<[u8; ARP_REPLY]> {
        let port = self.asked_for(header).filter(|port| *port != sender && self.may_send(sender, header))?;
        let (mac, address) = self.ports.addresses(port)?;
        header.arp_reply(mac, address)
    }

    /// The way of a VM's packet that the switch does not answer.
    fn way_out(&mut self, sender: PortId, header: Option<Header>) -> Way {
        let Some(header) = header.filter(|header| self.may_send(sender, header)) else {
            return Way::Refused;
        };
        // What is for more than one goes to the network alone: no VM gets what it has not asked for.
        let receiver = if header.is_multicast() { None } else { self.ports.by_mac(header.destination) };
        match receiver {
            // A VM that talks to itself needs no network for it.
            Some(port) if port == sender => Way::Nobody,
            Some(port) => Way::Vm(self.receiver(port)),
            None => Way::Uplink(0),
        }
    }

    /// Puts those back into a queue that are not done.
    fn end_turns(&mut self) {
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
}

#[cfg(test)]
mod tests;
