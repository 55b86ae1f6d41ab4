//! The typed services of the servers, one file each.
//!
//! A request and its response are postcard-encoded values of the two types of a [`Service`]. A client
//! first connects: it sends the service's key, a hash over the schemas of both types, under the label
//! [`label::CONNECT`]. A server built from other types answers [`label::WRONG_VERSION`], so a mismatch is
//! an error at connection, never garbage. Requests are decoded to their exact length; leftovers or a
//! malformed request are answered with [`label::MALFORMED`] and change nothing.
//!
//! Calls go upward only: supervisor → loader → vswitch, vdisk → swap → drivers → platform, console, init. The
//! builder refuses a system in which they do not. The other way there are virtual interrupts.

use postcard_schema::{Schema, key::Key};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub mod block_driver;
pub mod console;
pub mod init;
pub mod loader;
pub mod net_driver;
pub mod pager;
pub mod platform;
pub mod switch;
pub mod vdisk;

/// Labels of messages.
pub mod label {
    /// Request: opens a session; the message is the key, 8 bytes. Reply: the server's key.
    pub const CONNECT: u8 = 0;
    /// Request: a request of the service.
    pub const REQUEST: u8 = 1;
    /// Reply: a response of the service.
    pub const RESPONSE: u8 = 1;
    /// Request, without a session: how much of its heap the server has in use. Reply: [`RESPONSE`], with bytes as 8 bytes.
    pub const HEAP: u8 = 2;
    /// Request, without a session: what the server has said on the kernel's debug line from this byte on, 8 bytes. Reply: [`RESPONSE`],
    /// with where it goes on, 8 bytes, and the text, which may begin later if what was asked for is forgotten.
    pub const JOURNAL: u8 = 3;
    /// Reply: the request could not be decoded.
    pub const MALFORMED: u8 = 2;
    /// Reply: the server was built from another version of the service.
    pub const WRONG_VERSION: u8 = 3;
}

/// A service: its name and the types of its messages.
pub trait Service {
    /// Name, for people and for the key.
    const NAME: &'static str;
    /// What a client asks.
    type Request<'a>: Serialize + Deserialize<'a> + Schema;
    /// What the server answers.
    type Response: Serialize + DeserializeOwned + Schema;

    /// The key: changes whenever the schema of a message changes.
    fn key() -> u64 {
        let request = Key::for_path::<Self::Request<'static>>(Self::NAME).to_bytes();
        let response = Key::for_path::<Self::Response>(Self::NAME).to_bytes();
        u64::from_le_bytes(request).rotate_left(1) ^ u64::from_le_bytes(response)
    }
}

/// A VM's number: unique since boot, and the tag of its domain. Its low [`PLACE_BITS`] bits are its *place*, by which every server can
/// keep its record in a table; two VMs that are there at the same time have different places.
pub type VmNumber = u64;

/// Bits of a place.
pub const PLACE_BITS: u32 = 24;

/// The place of a VM.
pub const fn place(vm: VmNumber) -> u32 {
    (vm & ((1 << PLACE_BITS) - 1)) as u32
}

/// Where a VM is *now*, as the kernel names it: the frame of its control block and that frame's generation,
/// as in [`crate::abi::Target::pool`]. A VM that leaves memory is nowhere; when it comes back it is somewhere else. Who
/// finds it `Gone` asks the pager for it ([`pager::Request::Bring`]).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, Schema)]
pub struct VmRef {
    /// Frame number.
    pub frame: u32,
    /// Low 26 bits of the generation.
    pub generation: u32,
}

impl VmRef {
    /// Where a VM is of which it is not known where it is: nowhere, until the pager is asked.
    pub const NOWHERE: VmRef = VmRef { frame: u32::MAX, generation: 0 };
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::{collections::HashSet, vec::Vec};

    fn keys() -> [u64; 9] {
        [
            block_driver::BlockDriver::key(),
            console::Console::key(),
            init::Init::key(),
            loader::Loader::key(),
            net_driver::NetDriver::key(),
            pager::Pager::key(),
            platform::Platform::key(),
            switch::Switch::key(),
            vdisk::Vdisk::key(),
        ]
    }

    #[test]
    fn every_service_has_a_key_of_its_own() {
        assert_eq!(keys().into_iter().collect::<HashSet<_>>().len(), keys().len());
    }

    /// The bytes of some messages as they were first laid down: a reordered enum or a changed field fails here.
    #[test]
    fn bytes_stay_what_they_are() {
        let vm = VmRef { frame: 0x1234, generation: 7 };
        let golden: [(Vec<u8>, &[u8]); 8] = [
            (postcard::to_allocvec(&console::Request::Log("hi")).unwrap(), &[0, 2, b'h', b'i']),
            (postcard::to_allocvec(&pager::Request::Start(300)).unwrap(), &[3, 0xac, 2]),
            (postcard::to_allocvec(&switch::Request::Detach(300)).unwrap(), &[1, 0xac, 2]),
            (postcard::to_allocvec(&pager::Response::Here(vm)).unwrap(), &[7, 0xb4, 0x24, 7]),
            (postcard::to_allocvec(&block_driver::Response::NoPartition).unwrap(), &[3]),
            (postcard::to_allocvec(&vdisk::Request::Detach(300)).unwrap(), &[1, 0xac, 2]),
            (
                postcard::to_allocvec(&net_driver::Response::Started { mac: [1; 6], link: true }).unwrap(),
                &[0, 1, 1, 1, 1, 1, 1, 1],
            ),
            (postcard::to_allocvec(&platform::Request::Registers { device: 1, bar: 4 }).unwrap(), &[3, 1, 4]),
        ];
        for (bytes, wanted) in golden {
            assert_eq!(bytes, wanted);
        }
    }

    fn try_all(bytes: &[u8]) {
        let _ = postcard::take_from_bytes::<block_driver::Request>(bytes);
        let _ = postcard::take_from_bytes::<vdisk::Request>(bytes);
        let _ = postcard::take_from_bytes::<console::Request>(bytes);
        let _ = postcard::take_from_bytes::<init::Request>(bytes);
        let _ = postcard::take_from_bytes::<loader::Request>(bytes);
        let _ = postcard::take_from_bytes::<net_driver::Request>(bytes);
        let _ = postcard::take_from_bytes::<pager::Request>(bytes);
        let _ = postcard::take_from_bytes::<platform::Request>(bytes);
        let _ = postcard::take_from_bytes::<switch::Request>(bytes);
        let _ = crate::manifest::Manifest::decode(bytes);
        let _ = crate::manifest::Startup::decode(bytes);
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            try_all(&bytes);
        }
    }
}
