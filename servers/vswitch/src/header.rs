//! What a packet says of itself, and whether a VM may say that.

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet,
};

/// Bytes from the beginning of a packet that are looked at: enough for an ARP packet and for an IPv4 header with options.
pub const LOOK: usize = 64;
/// Bytes of an ARP reply: the least that an Ethernet frame has.
pub const ARP_REPLY: usize = 60;
/// Bytes of an IPv4 header without options.
const IPV4_MIN: usize = 20;

/// A MAC address.
pub type Mac = [u8; 6];
/// An IPv4 address.
pub type Address = [u8; 4];

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Destination.
    pub destination: Mac,
    /// Source.
    pub source: Mac,
    /// The packet inside.
    pub payload: Payload,
}

/// The packet inside a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payload {
    /// ARP for IPv4 over Ethernet.
    Arp {
        /// Whether it asks.
        request: bool,
        /// The hardware address that the sender says it has.
        sender: Mac,
        /// The address that the sender says it has.
        sender_address: Address,
        /// The address that is asked for, or that of who had asked.
        target_address: Address,
    },
    /// IPv4.
    Ipv4 {
        /// Source.
        source: Address,
        /// It is a TCP acknowledgement and nothing else: no data, no beginning or end of a connection, not pushed.
        acknowledges: bool,
    },
    /// Anything else, or broken.
    Other,
}

impl Header {
    /// Reads the first bytes of a packet: [`LOOK`], or all if it has fewer. `None` if there is no Ethernet header.
    pub fn read(bytes: &[u8]) -> Option<Header> {
        let frame = EthernetFrame::new_checked(bytes).ok()?;
        let payload = match frame.ethertype() {
            EthernetProtocol::Arp => arp(frame.payload()),
            EthernetProtocol::Ipv4 => ipv4(frame.payload()),
            _ => None,
        };
        let payload = payload.unwrap_or(Payload::Other);
        Some(Header { destination: frame.dst_addr().0, source: frame.src_addr().0, payload })
    }

    /// Whether the VM with these addresses may send this: ARP and IPv4 only, and only in its own name. An ARP packet may
    /// leave the sender's address out, as a probe does that asks whether an address is free (RFC 5227).
    pub fn is_from(&self, mac: Mac, address: Address) -> bool {
        self.source == mac
            && match self.payload {
                Payload::Arp { sender, sender_address, request, .. } => {
                    sender == mac && (sender_address == address || request && sender_address == [0; 4])
                }
                Payload::Ipv4 { source, .. } => source == address,
                Payload::Other => false,
            }
    }

    /// Whether whom it is for need not be told at once ([`crate::quiet`]).
    pub fn can_wait(&self) -> bool {
        matches!(self.payload, Payload::Ipv4 { acknowledges: true, .. })
    }

    /// Whether it goes to more than one.
    pub fn is_multicast(&self) -> bool {
        EthernetAddress(self.destination).is_multicast() || EthernetAddress(self.destination).is_broadcast()
    }

    /// Whether the answer to an ARP request goes to whom the frame comes from.
    pub fn is_from_asker(&self) -> bool {
        let one = !EthernetAddress(self.source).is_multicast();
        one && matches!(self.payload, Payload::Arp { sender, .. } if sender == self.source)
    }

    /// The answer to an ARP request: that `address` is at `mac`.
    pub fn arp_reply(&self, mac: Mac, address: Address) -> Option<[u8; ARP_REPLY]> {
        let Payload::Arp { request: true, sender, sender_address, .. } = self.payload else { return None };
        let mut bytes = [0; ARP_REPLY];
        let mut frame = EthernetFrame::new_checked(&mut bytes[..]).ok()?;
        frame.set_src_addr(EthernetAddress(mac));
        frame.set_dst_addr(EthernetAddress(sender));
        frame.set_ethertype(EthernetProtocol::Arp);
        let reply = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(mac),
            source_protocol_addr: address.into(),
            target_hardware_addr: EthernetAddress(sender),
            target_protocol_addr: sender_address.into(),
        };
        reply.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
        Some(bytes)
    }

    /// The address that an ARP request asks for.
    pub fn asks_for(&self) -> Option<Address> {
        match self.payload {
            Payload::Arp { request: true, target_address, .. } => Some(target_address),
            _ => None,
        }
    }
}

fn arp(bytes: &[u8]) -> Option<Payload> {
    let packet = ArpPacket::new_checked(bytes).ok()?;
    let is_ethernet_ipv4 = u16::from(packet.hardware_type()) == 1
        && packet.protocol_type() == EthernetProtocol::Ipv4
        && packet.hardware_len() == 6
        && packet.protocol_len() == 4;
    if !is_ethernet_ipv4 {
        return None;
    }
    Some(Payload::Arp {
        request: packet.operation() == ArpOperation::Request,
        sender: packet.source_hardware_addr().try_into().ok()?,
        sender_address: packet.source_protocol_addr().try_into().ok()?,
        target_address: packet.target_protocol_addr().try_into().ok()?,
    })
}

fn ipv4(bytes: &[u8]) -> Option<Payload> {
    if bytes.len() < IPV4_MIN {
        return None;
    }
    // Not `new_checked`: the packet is longer than what is looked at.
    let packet = Ipv4Packet::new_unchecked(bytes);
    let is_sound = packet.version() == 4
        && usize::from(packet.header_len()) >= IPV4_MIN
        && packet.total_len() >= u16::from(packet.header_len());
    let header = usize::from(packet.header_len());
    let acknowledges = is_sound
        && packet.next_header() == IpProtocol::Tcp
        && !packet.more_frags()
        && packet.frag_offset() == 0
        && bytes.get(header..).is_some_and(|tcp| acknowledges(tcp, usize::from(packet.total_len()) - header));
    is_sound.then(|| Payload::Ipv4 { source: packet.src_addr().octets(), acknowledges })
}

/// Whether a TCP segment of so many bytes, of which these are the first, only acknowledges (RFC 9293, 3.1).
fn acknowledges(tcp: &[u8], length: usize) -> bool {
    const ACKNOWLEDGE: u8 = 0x10;
    let (Some(offset), Some(flags)) = (tcp.get(12), tcp.get(13)) else { return false };
    *flags == ACKNOWLEDGE && usize::from(offset >> 4) * 4 == length
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// An IPv4 packet of `length` bytes (at least 42).
    pub fn ipv4_packet(source: Mac, destination: Mac, from: Address, to: Address, length: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        packet.extend(destination);
        packet.extend(source);
        packet.extend([0x08, 0x00, 0x45, 0]);
        packet.extend((length as u16 - 14).to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
        packet.extend(from);
        packet.extend(to);
        packet.extend((packet.len()..length).map(|byte| byte as u8));
        packet
    }

    /// An ARP packet: request (1) or answer (2).
    pub fn arp_packet(operation: u8, source: Mac, destination: Mac, from: Address, to: Address) -> Vec<u8> {
        let mut packet = Vec::new();
        packet.extend(destination);
        packet.extend(source);
        packet.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation]);
        packet.extend(source);
        packet.extend(from);
        packet.extend([0; 6]);
        packet.extend(to);
        packet
    }

    const MAC: Mac = [2, 0, 10, 0, 2, 15];
    const ADDRESS: Address = [10, 0, 2, 15];
    const OTHER: Mac = [2, 0, 10, 0, 2, 16];
    const OTHER_ADDRESS: Address = [10, 0, 2, 16];

    fn allowed(packet: &[u8]) -> bool {
        Header::read(&packet[..packet.len().min(LOOK)]).is_some_and(|header| header.is_from(MAC, ADDRESS))
    }

    #[test]
    fn a_vm_speaks_in_its_own_name_only() {
        assert!(allowed(&ipv4_packet(MAC, OTHER, ADDRESS, OTHER_ADDRESS, 1500)));
        assert!(!allowed(&ipv4_packet(OTHER, MAC, ADDRESS, OTHER_ADDRESS, 1500)));
        assert!(!allowed(&ipv4_packet(MAC, OTHER, OTHER_ADDRESS, ADDRESS, 1500)));
        assert!(allowed(&arp_packet(1, MAC, [0xff; 6], ADDRESS, OTHER_ADDRESS)));
        assert!(allowed(&arp_packet(2, MAC, OTHER, ADDRESS, OTHER_ADDRESS)));
        assert!(allowed(&arp_packet(1, MAC, [0xff; 6], [0; 4], ADDRESS)));
        assert!(!allowed(&arp_packet(2, MAC, OTHER, [0; 4], OTHER_ADDRESS)));
        assert!(!allowed(&arp_packet(2, MAC, OTHER, OTHER_ADDRESS, OTHER_ADDRESS)));
        let mut forged = arp_packet(2, MAC, OTHER, ADDRESS, OTHER_ADDRESS);
        forged[22..28].copy_from_slice(&OTHER);
        assert!(!allowed(&forged));
    }

    #[test]
    fn other_protocols_and_tricks_are_not_for_vms() {
        for ethertype in [[0x86, 0xdd], [0x81, 0x00], [0x88, 0xa8], [0x00, 0x2e]] {
            let mut packet = ipv4_packet(MAC, OTHER, ADDRESS, OTHER_ADDRESS, 100);
            packet[12..14].copy_from_slice(&ethertype);
            assert!(!allowed(&packet));
        }
        for (offset, value) in [(14, 0x65), (14, 0x44), (16, 0)] {
            let mut packet = ipv4_packet(MAC, OTHER, ADDRESS, OTHER_ADDRESS, 60);
            (packet[offset], packet[17]) = (value, 4);
            assert!(!allowed(&packet));
        }
        assert!(!allowed(&ipv4_packet(MAC, OTHER, ADDRESS, OTHER_ADDRESS, 60)[..33]));
        assert!(!allowed(&[0; 13]));
    }

    /// A TCP segment with these flags, and so many bytes of options and data.
    pub fn tcp_packet(to: (Mac, Address), from: (Mac, Address), flags: u8, options: usize, data: usize) -> Vec<u8> {
        let mut packet = ipv4_packet(from.0, to.0, from.1, to.1, 54 + options + data);
        packet[23] = 6;
        packet[46] = ((20 + options) as u8 / 4) << 4;
        packet[47] = flags;
        packet
    }

    #[test]
    fn only_acknowledgements_can_wait() {
        let read = |packet: &[u8]| Header::read(&packet[..packet.len().min(LOOK)]).unwrap().can_wait();
        let segment = |flags, options, data| tcp_packet((MAC, ADDRESS), (OTHER, OTHER_ADDRESS), flags, options, data);
        assert!(read(&segment(0x10, 0, 0)) && read(&segment(0x10, 12, 0)));
        for flags in [0x11, 0x12, 0x14, 0x18, 0x30, 0x50, 0x02, 0] {
            assert!(!read(&segment(flags, 0, 0)), "{flags}");
        }
        assert!(!read(&segment(0x10, 0, 1)) && !read(&segment(0x10, 12, 1400)));
        // UDP, fragments, headers that are cut off or lie.
        let changed = |at: usize, byte| {
            let mut packet = segment(0x10, 0, 0);
            packet[at] = byte;
            read(&packet)
        };
        assert!(!changed(23, 17) && !changed(20, 0x20) && !changed(21, 1) && !changed(46, 0) && !changed(46, 0xf0));
        assert!(!changed(14, 0x4f) && !changed(17, 20));
        assert!(!read(&segment(0x10, 0, 0)[..47]));
    }

    #[test]
    fn requests_say_what_they_ask_for() {
        let request = Header::read(&arp_packet(1, MAC, [0xff; 6], ADDRESS, OTHER_ADDRESS)).unwrap();
        assert_eq!((request.asks_for(), request.is_multicast()), (Some(OTHER_ADDRESS), true));
        let answer = Header::read(&arp_packet(2, MAC, OTHER, ADDRESS, OTHER_ADDRESS)).unwrap();
        assert_eq!((answer.asks_for(), answer.is_multicast()), (None, false));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..LOOK)) {
            let header = Header::read(&bytes);
            prop_assert_eq!(header.is_some(), bytes.len() >= 14);
        }

        #[test]
        fn what_is_allowed_has_the_right_addresses(bytes in prop::collection::vec(any::<u8>(), 42..LOOK), ip: bool) {
            let mut packet = bytes;
            packet[6..12].copy_from_slice(&MAC);
            packet[12..14].copy_from_slice(if ip { &[8, 0] } else { &[8, 6] });
            if allowed(&packet) {
                prop_assert_eq!(ip, packet[26..30] == ADDRESS && packet[12..14] == [8, 0]);
                prop_assert!(ip || packet[22..28] == MAC);
            }
        }
    }
}
