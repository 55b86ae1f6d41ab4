//! What a round works on.

use crate::{
    memory::{Copy, Fate, Outcome, Place},
    ports::PortId,
    queue::Own,
};
use alloc::vec::Vec;

/// A sender's turn in a round.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) port: PortId,
    /// Its indices, among those of the round; `None` if its queue page could not be read.
    pub(super) known: Option<usize>,
    /// It is to be told of this look: if nothing was taken, and if something was.
    pub(super) notifies: [bool; 2],
    /// It has more packets than were looked at.
    pub(super) more: bool,
    /// One of its packets waits for the uplink, and so do those after it.
    pub(super) stalled: bool,
    /// One of its packets, or its queue page, is not in memory.
    pub(super) away: bool,
    /// One of its packets is to be tried again, and so are those after it.
    pub(super) blocked: bool,
    /// Packets taken in this round.
    pub(super) taken: u32,
}

/// A VM that receives in a round.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) port: PortId,
    /// Its indices, among those of the round; `None` if its queue page was not read.
    pub(super) known: Option<usize>,
    /// It is not in memory: what is for it is held.
    pub(super) deaf: bool,
    /// Its queue page cannot be had.
    pub(super) broken: bool,
    /// A packet for it was dropped.
    pub(super) dropped: bool,
    /// One has arrived that cannot wait.
    pub(super) urgent: bool,
    /// It has become full, and is to hear of it.
    pub(super) full: bool,
    /// Buffers that were planned for, and those that were filled.
    pub(super) planned: u32,
    pub(super) filled: u32,
    /// Packets to be held for it in this round.
    pub(super) holding: usize,
    /// A planned buffer was not filled, so those after it are not in their places.
    pub(super) blocked: bool,
}

impl Receiver {
    pub(super) const fn new(port: PortId, deaf: bool) -> Receiver {
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
pub(super) enum Way {
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
pub(super) enum Origin {
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
pub(super) struct Packet {
    pub(super) origin: Origin,
    pub(super) from: Place,
    pub(super) length: usize,
    pub(super) way: Way,
    /// Whom it is for need not be told at once.
    pub(super) can_wait: bool,
    /// Its copies, among those of step 4.
    pub(super) copies: (usize, usize),
    /// What became of them.
    pub(super) fate: Fate,
}

impl Packet {
    pub(super) const fn new(origin: Origin, from: Place, length: usize, way: Way) -> Packet {
        Packet { origin, from, length, way, can_wait: false, copies: (0, 0), fate: Fate::Done }
    }
}

/// The round at work; empty between rounds, kept for its memory.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// The indices of all VMs whose queue pages were read.
    pub(super) known: Vec<(PortId, Own)>,
    pub(super) turns: Vec<Turn>,
    pub(super) packets: Vec<Packet>,
    pub(super) receivers: Vec<Receiver>,
    /// Lengths to be written: port, index of the receive entry, bytes.
    pub(super) lengths: Vec<(PortId, u32, u32)>,
    /// Ports whose indices changed, and whether they are to be told.
    pub(super) changed: Vec<(PortId, bool)>,
    /// VMs that came back and get what was held.
    pub(super) back: Vec<PortId>,
    pub(super) copies: Vec<Copy>,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) fates: Vec<Fate>,
}
