//! Ethernet and ARP under the host on the LAN.
//!
//! `smoltcp` has both, but asks for one address a second and remembers few: the host here talks to thousands of VMs. So it hands over IP
//! packets, and this finds out where they go.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Ipv4Packet,
};

/// The host's MAC address.
pub const OWN_MAC: EthernetAddress = EthernetAddress([0x02, 0xee, 0, 0, 0, 1]);
/// Pause between two questions for the same address.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Packets that wait for an address; more are lost, as on any network.
const WAITING: usize = 16;

/// What is known of an address.
#[derive(Debug, Default)]
struct Neighbour {
    mac: Option<EthernetAddress>,
    asked: Option<Instant>,
    waiting: Vec<Vec<u8>>,
}

/// What a frame from the machine brings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Incoming {
    /// An IP packet for the host.
    Packet(Vec<u8>),
    /// Frames to be sent.
    Frames(Vec<Vec<u8>>),
    /// Nothing for the host.
    Nothing,
}

/// The link.
#[derive(Debug)]
pub struct Link {
    own: Ipv4Addr,
    neighbours: HashMap<Ipv4Addr, Neighbour>,
}

impl Link {
    /// The link of a host with this address.
    pub fn new(own: Ipv4Addr) -> Link {
        Link { own, neighbours: HashMap::new() }
    }

    /// Takes an IP packet from the host; the frames to be sent for it.
    pub fn outgoing(&mut self, packet: Vec<u8>, now: Instant) -> Vec<Vec<u8>> {
        let Ok(header) = Ipv4Packet::new_checked(&packet[..]) else { return Vec::new() };
        let to = header.dst_addr();
        let neighbour = self.neighbours.entry(to).or_default();
        if let Some(mac) = neighbour.mac {
            return vec![frame(mac, EthernetProtocol::Ipv4, &packet)];
        }
        if neighbour.waiting.len() < WAITING {
            neighbour.waiting.push(packet);
        }
        if neighbour.asked.is_some_and(|asked| now.saturating_duration_since(asked) < ASK_AGAIN) {
            return Vec::new();
        }
        neighbour.asked = Some(now);
        vec![arp(ArpOperation::Request, self.own, EthernetAddress::BROADCAST, to)]
    }

    /// Takes a frame from the machine.
    pub fn incoming(&mut self, bytes: &[u8]) -> Incoming {
        let Ok(ethernet) = EthernetFrame::new_checked(bytes) else { return Incoming::Nothing };
        if ethernet.dst_addr() != OWN_MAC && !ethernet.dst_addr().is_broadcast() {
            return Incoming::Nothing;
        }
        match ethernet.ethertype() {
            EthernetProtocol::Ipv4 => match Ipv4Packet::new_checked(ethernet.payload()) {
                Ok(packet) if packet.dst_addr() == self.own => Incoming::Packet(ethernet.payload().to_vec()),
                _ => Incoming::Nothing,
            },
            EthernetProtocol::Arp => self.arp(ethernet.payload()).unwrap_or(Incoming::Nothing),
            _ => Incoming::Nothing,
        }
    }

    fn arp(&mut self, bytes: &[u8]) -> Option<Incoming> {
        let packet = ArpPacket::new_checked(bytes).ok()?;
        let ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: mac,
            source_protocol_addr: address,
            target_protocol_addr,
            ..
        } = ArpRepr::parse(&packet).ok()?
        else {
            return None;
        };
        if target_protocol_addr != self.own {
            return None;
        }
        let neighbour = self.neighbours.entry(address).or_default();
        neighbour.mac = Some(mac);
        let waiting = std::mem::take(&mut neighbour.waiting);
        let mut frames: Vec<_> = waiting.iter().map(|packet| frame(mac, EthernetProtocol::Ipv4, packet)).collect();
        if operation == ArpOperation::Request {
            frames.insert(0, arp(ArpOperation::Reply, self.own, mac, address));
        }
        Some(Incoming::Frames(frames))
    }
}

fn frame(to: EthernetAddress, ethertype: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let header = EthernetRepr { src_addr: OWN_MAC, dst_addr: to, ethertype };
    let mut bytes = vec![0; header.buffer_len() + payload.len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    header.emit(&mut frame);
    frame.payload_mut().copy_from_slice(payload);
    bytes
}

/// An ARP packet as a frame: a question goes to everybody.
pub fn arp(operation: ArpOperation, own: Ipv4Addr, to: EthernetAddress, address: Ipv4Addr) -> Vec<u8> {
    let asked = operation == ArpOperation::Request;
    let packet = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: OWN_MAC,
        source_protocol_addr: own,
        target_hardware_addr: if asked { EthernetAddress([0; 6]) } else { to },
        target_protocol_addr: address,
    };
    let mut bytes = vec![0; packet.buffer_len()];
    packet.emit(&mut ArpPacket::new_unchecked(&mut bytes[..]));
    // Frames have at least 60 bytes.
    bytes.resize(46, 0);
    frame(to, EthernetProtocol::Arp, &bytes)
}

/// The hardware address in an ARP reply from `address`.
pub fn arp_reply(frame: &[u8], address: Ipv4Addr) -> Option<EthernetAddress> {
    let ethernet = EthernetFrame::new_checked(frame).ok().filter(|f| f.ethertype() == EthernetProtocol::Arp)?;
    match ArpRepr::parse(&ArpPacket::new_checked(ethernet.payload()).ok()?).ok()? {
        ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply, source_hardware_addr, source_protocol_addr, ..
        } => (source_protocol_addr == address).then_some(source_hardware_addr),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::wire::{IpProtocol, Ipv4Repr};

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
    const MAC: EthernetAddress = EthernetAddress([2, 0, 10, 0, 2, 15]);

    fn packet(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        let repr = Ipv4Repr {
            src_addr: from,
            dst_addr: to,
            next_header: IpProtocol::Unknown(99),
            payload_len: 5,
            hop_limit: 9,
        };
        let mut bytes = vec![7; repr.buffer_len() + 5];
        repr.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[..]), &Default::default());
        bytes
    }

    /// What a VM sends: its ARP packets have its addresses.
    fn from_vm(mut frame: Vec<u8>) -> Vec<u8> {
        frame[6..12].copy_from_slice(&MAC.0);
        frame[22..28].copy_from_slice(&MAC.0);
        frame
    }

    #[test]
    fn packets_wait_for_the_address_and_go_then() {
        let mut link = Link::new(OWN);
        let now = Instant::now();
        let asked = link.outgoing(packet(OWN, OTHER), now);
        assert_eq!(
            (asked.len(), &asked[0][..6], &asked[0][12..14], asked[0].len()),
            (1, &[0xff; 6][..], &[8, 6][..], 60)
        );
        assert!(link.outgoing(packet(OWN, OTHER), now).is_empty(), "asked already");
        assert_eq!(link.outgoing(packet(OWN, OTHER), now + ASK_AGAIN).len(), 1, "asked again");
        let reply = from_vm(arp(ArpOperation::Reply, OTHER, OWN_MAC, OWN));
        let Incoming::Frames(frames) = link.incoming(&reply) else { panic!() };
        assert_eq!(frames, vec![frame(MAC, EthernetProtocol::Ipv4, &packet(OWN, OTHER)); 3]);
        assert_eq!(link.outgoing(packet(OWN, OTHER), now), [frames[0].clone()]);
    }

    #[test]
    fn questions_are_answered_and_packets_of_others_left() {
        let mut link = Link::new(OWN);
        let Incoming::Frames(frames) =
            link.incoming(&from_vm(arp(ArpOperation::Request, OTHER, EthernetAddress::BROADCAST, OWN)))
        else {
            panic!()
        };
        assert_eq!((frames.len(), arp_reply(&frames[0], OWN)), (1, Some(OWN_MAC)));
        let other = from_vm(arp(ArpOperation::Request, OTHER, EthernetAddress::BROADCAST, Ipv4Addr::new(10, 0, 2, 9)));
        assert_eq!(link.incoming(&other), Incoming::Nothing);
        let ip = |to| frame(OWN_MAC, EthernetProtocol::Ipv4, &packet(OTHER, to));
        assert_eq!(link.incoming(&ip(OWN)), Incoming::Packet(packet(OTHER, OWN)));
        assert_eq!(link.incoming(&ip(OTHER)), Incoming::Nothing);
        assert_eq!(link.incoming(&[0; 9]), Incoming::Nothing);
        assert!(link.outgoing(vec![1, 2, 3], Instant::now()).is_empty());
    }

    #[test]
    fn replies_are_told_from_requests() {
        let request = arp(ArpOperation::Request, OTHER, EthernetAddress::BROADCAST, OWN);
        assert_eq!(arp_reply(&request, OTHER), None);
        let reply = arp(ArpOperation::Reply, OTHER, MAC, OWN);
        assert_eq!(
            (arp_reply(&reply, OTHER), arp_reply(&reply, OWN), arp_reply(&[0; 20], OWN)),
            (Some(OWN_MAC), None, None)
        );
    }
}
