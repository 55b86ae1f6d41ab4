//! TCP sequence numbers that only this VM and its peers know.
//!
//! The TCP/IP library draws initial sequence numbers from a generator that is seeded once. Clones of a VM have the same generator, so each could tell what its
//! siblings' connections begin with, and disturb them from outside. So what leaves the VM has a number added to its sequence numbers that
//! depends on the connection and on a key that no other VM has, and what arrives has it taken from its acknowledgements: RFC 6528, *Defending against Sequence
//! Number Attacks*, section 3, done beneath the library. It stays the same as long as the connection.

use siphasher::sip::SipHasher24;

/// The secret of a VM.
pub type Key = [u8; 16];

const ETHERNET: usize = 14;
const TYPE: usize = 12;
const IPV4: [u8; 2] = [0x08, 0x00];
const TCP: u8 = 6;
/// Where the addresses are, that of the sender first.
const ENDS: usize = ETHERNET + 12;
/// Bytes of the shortest TCP header.
const HEADER: usize = 20;
/// Of a TCP header: where its flags are, and two of them.
const FLAGS: usize = 13;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Where the TCP header of a frame begins. `None`: there is none, or not the whole of it.
fn tcp(frame: &[u8]) -> Option<usize> {
    if frame.get(TYPE..ETHERNET)? != IPV4 {
        return None;
    }
    let ip = frame.get(ETHERNET..)?;
    let header = usize::from(ip.first()? & 15) * 4;
    // Of a fragment but the first what is there is no header.
    let fragment = u16::from_be_bytes([ip.get(6)? & 0x1f, *ip.get(7)?]);
    let is_whole = *ip.get(9)? == TCP && fragment == 0 && header >= 20 && ip.len() >= header + HEADER;
    is_whole.then_some(ETHERNET + header)
}

/// Where the TCP header of a frame begins, and what the numbers of its connection are moved by.
fn find(frame: &[u8], key: &Key, leaves: bool) -> Option<(usize, u32)> {
    let tcp = tcp(frame)?;
    let [from, to] = [ENDS, ENDS + 4].map(|end| frame.get(end..end + 4));
    let [source, destination] = [tcp, tcp + 2].map(|port| frame.get(port..port + 2));
    let (from, to) = ((from?, source?), (to?, destination?));
    let [here, there] = if leaves { [from, to] } else { [to, from] };
    // As one piece: that is much less work than one after the other.
    let mut connection = [0; 12];
    for (part, at) in [(here.0, 0), (here.1, 4), (there.0, 6), (there.1, 10)] {
        connection.get_mut(at..at + part.len())?.copy_from_slice(part);
    }
    Some((tcp, SipHasher24::new_with_key(key).hash(&connection) as u32))
}

/// Whether a frame asks for a TCP connection.
pub fn is_request(frame: &[u8]) -> bool {
    let flags = tcp(frame).and_then(|tcp| frame.get(tcp + FLAGS));
    flags.is_some_and(|flags| flags & (SYN | ACK) == SYN)
}

/// A frame that leaves the VM.
pub fn leaves(frame: &mut [u8], key: &Key) {
    if let Some((tcp, by)) = find(frame, key, true) {
        shift(frame, tcp, 4, by);
    }
}

/// A frame that has arrived.
pub fn arrives(frame: &mut [u8], key: &Key) {
    if let Some((tcp, by)) = find(frame, key, false)
        && frame.get(tcp + FLAGS).is_some_and(|flags| flags & ACK != 0)
    {
        shift(frame, tcp, 8, by.wrapping_neg());
    }
}

/// Adds to the number `at` bytes behind the beginning of the TCP header, and mends the checksum (RFC 1624).
fn shift(frame: &mut [u8], tcp: usize, at: usize, by: u32) {
    let Some(header) = frame.get_mut(tcp..tcp + HEADER) else { return };
    let (Some(number), Some(sum)) = (header.get(at..at + 4), header.get(16..18)) else { return };
    let before = u32::from_be_bytes(number.try_into().unwrap_or_default());
    let sum = u16::from_be_bytes(sum.try_into().unwrap_or_default());
    let after = before.wrapping_add(by);
    let halves = |number: u32| [number >> 16, number & 0xffff];
    let mut total = u32::from(!sum);
    for (old, new) in halves(before).into_iter().zip(halves(after)) {
        total += (!old & 0xffff) + new;
    }
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    header[at..at + 4].copy_from_slice(&after.to_be_bytes());
    header[16..18].copy_from_slice(&(!(total as u16)).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    /// One's complement sum of all there is (RFC 1071).
    fn sum(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
        let mut total: u32 = words.sum();
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    /// A frame with a TCP segment, its checksum without the pseudo-header: that does not change.
    fn frame(ends: [u32; 2], ports: [u16; 2], numbers: [u32; 2], flags: u8, options: usize, data: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET + 20 + options];
        frame[TYPE..ETHERNET].copy_from_slice(&IPV4);
        (frame[ETHERNET], frame[ETHERNET + 9]) = (0x45 + options as u8 / 4, TCP);
        for (index, end) in ends.iter().enumerate() {
            frame[ETHERNET + 12 + 4 * index..][..4].copy_from_slice(&end.to_be_bytes());
        }
        let tcp = frame.len();
        ports.iter().for_each(|port| frame.extend(port.to_be_bytes()));
        numbers.iter().for_each(|number| frame.extend(number.to_be_bytes()));
        frame.extend([0x50, flags, 1, 2, 0, 0, 0, 0]);
        frame.extend(data);
        let checksum = !sum(&frame[tcp..]);
        frame[tcp + 16..tcp + 18].copy_from_slice(&checksum.to_be_bytes());
        frame
    }

    fn number(frame: &[u8], tcp: usize, at: usize) -> u32 {
        u32::from_be_bytes(frame[tcp + at..tcp + at + 4].try_into().unwrap())
    }

    proptest! {
        #[test]
        fn a_peer_sees_other_numbers_and_its_answers_fit(
            ends: [u32; 2], ports: [u16; 2], numbers: [u32; 2], key: Key, options in (0usize..11).prop_map(|words| words * 4),
            data in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let tcp = ETHERNET + 20 + options;
            let original = frame(ends, ports, numbers, ACK, options, &data);
            let mut sent = original.clone();
            leaves(&mut sent, &key);
            prop_assert_eq!(sum(&sent[tcp..]), 0xffff, "its checksum is right");
            prop_assert_eq!(number(&sent, tcp, 8), numbers[1], "the peer's number is the peer's");
            // The peer acknowledges what it saw.
            let seen = number(&sent, tcp, 4);
            let [here, there] = ends;
            let mut answer = frame([there, here], [ports[1], ports[0]], [numbers[1], seen], ACK, options, &data);
            arrives(&mut answer, &key);
            prop_assert_eq!((number(&answer, tcp, 4), number(&answer, tcp, 8)), (numbers[1], numbers[0]));
            prop_assert_eq!(sum(&answer[tcp..]), 0xffff);
        }

        #[test]
        fn any_frame_is_harmless(mut bytes in prop::collection::vec(any::<u8>(), 0..90), real: bool, key: Key) {
            if real && bytes.len() > ETHERNET + 9 {
                bytes[TYPE..ETHERNET].copy_from_slice(&IPV4);
                (bytes[ETHERNET], bytes[ETHERNET + 9]) = (0x45, TCP);
            }
            leaves(&mut bytes, &key);
            arrives(&mut bytes, &key);
        }
    }

    #[test]
    fn keys_and_connections_have_numbers_of_their_own() {
        let tcp = ETHERNET + 20;
        let seen = |ends, ports, key: u8| {
            let mut frame = frame(ends, ports, [5, 0], 2, 0, &[]);
            leaves(&mut frame, &[key; 16]);
            number(&frame, tcp, 4)
        };
        let mut all = vec![
            seen([1, 2], [80, 9], 1),
            seen([1, 2], [80, 9], 2),
            seen([1, 2], [80, 10], 1),
            seen([1, 3], [80, 9], 1),
            seen([3, 2], [80, 9], 1),
            5,
        ];
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 6);
    }

    #[test]
    fn what_is_no_tcp_stays_as_it_is() {
        let good = frame([1, 2], [3, 4], [5, 6], ACK, 0, &[7; 9]);
        let change = |at: usize, value: u8| {
            let mut frame = good.clone();
            frame[at] = value;
            frame
        };
        let mut short = good.clone();
        short.truncate(ETHERNET + 20 + HEADER - 1);
        // Another type, UDP, a later fragment, a header that is too short.
        for frame in [change(TYPE, 9), change(ETHERNET + 9, 17), change(ETHERNET + 7, 1), change(ETHERNET, 0x44), short]
        {
            let mut after = frame.clone();
            leaves(&mut after, &[1; 16]);
            arrives(&mut after, &[1; 16]);
            assert_eq!(after, frame);
        }
        // Without the flag the field says nothing.
        let reset = frame([1, 2], [3, 4], [5, 6], 4, 0, &[]);
        let mut after = reset.clone();
        arrives(&mut after, &[1; 16]);
        assert_eq!(after, reset);
    }

    #[test]
    fn only_the_first_segment_is_a_request() {
        let mut frame = vec![0; 54];
        (frame[12], frame[14], frame[23]) = (8, 0x45, 6);
        for (flags, expected) in [(SYN, true), (SYN | 0xc0, true), (SYN | ACK, false), (ACK, false), (4, false)] {
            frame[14 + 20 + FLAGS] = flags;
            assert_eq!(is_request(&frame), expected, "{flags:#x}");
        }
        frame[14 + 20 + FLAGS] = SYN;
        frame[23] = 17;
        assert!(!is_request(&frame) && !is_request(&frame[..40]) && !is_request(&[]));
    }
}
