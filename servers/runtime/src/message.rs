//! Messages of a service, to and from bytes.

use postcard::{Error, take_from_bytes, to_slice};
use protocol::{
    abi::LONG_MESSAGE,
    service::{Service, label},
};
use serde::{Deserialize, Serialize};

/// A message as a server sees it.
#[derive(Debug, PartialEq, Eq)]
pub enum Inbound<R> {
    /// A client opens a session.
    Connect {
        /// Whether it was built from the same version of the service.
        same_version: bool,
    },
    /// A request.
    Request(R),
    /// How much of the heap is in use?
    Heap,
    /// What has the server said on the debug line from this byte on?
    Journal(u64),
    /// Nonsense.
    Malformed,
}

/// Reads a message of a client of a service with this key.
pub fn decode_inbound<'a, S: Service>(key: u64, label: u8, bytes: &'a [u8]) -> Inbound<S::Request<'a>> {
    match label {
        label::CONNECT => match bytes.try_into() {
            Ok(theirs) => Inbound::Connect { same_version: u64::from_le_bytes(theirs) == key },
            Err(_) => Inbound::Malformed,
        },
        label::HEAP if bytes.is_empty() => Inbound::Heap,
        label::JOURNAL => {
            bytes.try_into().map_or(Inbound::Malformed, |from| Inbound::Journal(u64::from_le_bytes(from)))
        }
        label::REQUEST => decode(bytes).map_or(Inbound::Malformed, Inbound::Request),
        _ => Inbound::Malformed,
    }
}

/// Decodes all of `bytes`, refusing leftovers.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Error> {
    let (value, rest) = take_from_bytes(bytes)?;
    if rest.is_empty() { Ok(value) } else { Err(Error::DeserializeBadEncoding) }
}

/// Encodes a value into `buffer`; its bytes.
pub fn encode<'a, T: Serialize>(value: &T, buffer: &'a mut [u8; LONG_MESSAGE]) -> Result<&'a [u8], Error> {
    to_slice(value, buffer).map(|bytes| &*bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protocol::service::console::{Console, Request};

    #[test]
    fn requests_round_trip_and_leftovers_are_refused() {
        let mut buffer = [0; LONG_MESSAGE];
        let length = encode(&Request::Log("hello"), &mut buffer).unwrap().len();
        let read = |length| decode_inbound::<Console>(7, label::REQUEST, &buffer[..length]);
        assert_eq!(read(length), Inbound::Request(Request::Log("hello")));
        assert_eq!(read(length + 1), Inbound::Malformed);
        assert_eq!(read(length - 1), Inbound::Malformed);
    }

    #[test]
    fn keys_are_compared() {
        let connect = |bytes: &'static [u8]| decode_inbound::<Console>(7, label::CONNECT, bytes);
        assert_eq!(connect(&[7, 0, 0, 0, 0, 0, 0, 0]), Inbound::Connect { same_version: true });
        assert_eq!(connect(&[8, 0, 0, 0, 0, 0, 0, 0]), Inbound::Connect { same_version: false });
        assert_eq!(connect(&[7]), Inbound::Malformed);
    }

    #[test]
    fn anybody_may_ask_for_the_use_of_the_heap() {
        assert_eq!(decode_inbound::<Console>(7, label::HEAP, &[]), Inbound::Heap);
        assert_eq!(decode_inbound::<Console>(7, label::HEAP, &[0]), Inbound::Malformed);
    }

    #[test]
    fn anybody_may_ask_for_the_journal() {
        assert_eq!(decode_inbound::<Console>(7, label::JOURNAL, &[1, 1, 0, 0, 0, 0, 0, 0]), Inbound::Journal(257));
        assert_eq!(decode_inbound::<Console>(7, label::JOURNAL, &[1]), Inbound::Malformed);
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let text = "x".repeat(LONG_MESSAGE);
        assert!(encode(&Request::Log(&text), &mut [0; LONG_MESSAGE]).is_err());
    }

    proptest! {
        #[test]
        fn any_message_is_harmless(label: u8, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_inbound::<Console>(7, label, &bytes);
            let _ = decode_inbound::<protocol::service::platform::Platform>(7, label, &bytes);
            let _ = decode_inbound::<protocol::service::pager::Pager>(7, label, &bytes);
        }
    }
}
