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
mod round;
mod turns;
mod ways;

use crate::{
    away::Waits,
    header::{ARP_REPLY, Header, LOOK, Mac},
    memory::{Fate, Memory, Place},
    ports::{PortId, Ports, Refusal},
    queue::{Own, SEND_PART, WHOLE, Window},
    quiet::Quiet,
    uplink::{State, Uplink},
};
use alloc::collections::VecDeque;
use protocol::service::{VmNumber, VmRef};
use round::{Origin, Packet, Receiver, Round, Way};

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

    /// A place in the memory of a port's VM.
    fn place(&self, id: PortId, address: u64) -> Place {
        let at = self.ports.get(id).map_or(VmRef::NOWHERE, |port| port.at);
        Place::Vm { vm: self.ports.vm(id).unwrap_or_default(), at, address }
    }
}

#[cfg(test)]
mod tests;
