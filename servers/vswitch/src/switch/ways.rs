//! Who may send what, and the ways of packets.

use super::{Switch, round::Way};
use crate::{
    header::{ARP_REPLY, Header},
    ports::PortId,
};

impl Switch {
    /// The answer to a packet from the network that asks for the address of a VM. The VM is not touched for it.
    pub(super) fn answer_in(&self, header: &Header) -> Option<[u8; ARP_REPLY]> {
        let port = self.asked_for(header)?;
        let (mac, address) = self.ports.addresses(port)?;
        let for_it = header.is_multicast() || header.destination == mac;
        // Neither in the name of a VM, nor so that the answer goes to somebody who has not asked.
        let honest = self.ports.by_mac(header.source).is_none() && header.is_from_asker();
        if for_it && honest { header.arp_reply(mac, address) } else { None }
    }

    /// The port whose address an ARP request asks for.
    pub(super) fn asked_for(&self, header: &Header) -> Option<PortId> {
        header.asks_for().and_then(|address| self.ports.by_address(address))
    }

    /// The way of a packet from the network that the switch does not answer.
    pub(super) fn way_in(&mut self, header: Option<Header>) -> Way {
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

    /// Whether a VM may send this.
    pub(super) fn may_send(&self, sender: PortId, header: &Header) -> bool {
        self.ports.addresses(sender).is_some_and(|(mac, address)| header.is_from(mac, address))
    }

    /// The answer to a VM's packet that asks for the address of another VM. Nobody else is touched for it.
    pub(super) fn answer_out(&self, sender: PortId, header: &Header) -> Option<[u8; ARP_REPLY]> {
        let port = self.asked_for(header).filter(|port| *port != sender && self.may_send(sender, header))?;
        let (mac, address) = self.ports.addresses(port)?;
        header.arp_reply(mac, address)
    }

    /// The way of a VM's packet that the switch does not answer.
    pub(super) fn way_out(&mut self, sender: PortId, header: Option<Header>) -> Way {
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
}
