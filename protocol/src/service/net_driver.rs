//! A network driver: two rings in memory shared with the switch, and a few requests.
//!
//! The shared memory ([`crate::manifest::Resource::Shared`]) begins with a [`RingPage`]; packet buffers of
//! [`BUFFER`] bytes follow, one for each entry of each ring: first those for sending, then those for
//! receiving. Indices count up freely (wrapping at 2^32); each has one writer, and each side keeps its own
//! private copy and checks what it reads. Doorbells are the virtual interrupts of the channel:
//! the switch raises the driver's line after filling entries, the driver the switch's after
//! `sent_taken` or `arrived` moved. A driver that starts anew zeroes the ring page; the switch learns
//! of it by [`crate::domain::line::PEER_RESTARTED`], connects again and starts from zero too.

use super::Service;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// Entries of each ring.
pub const ENTRIES: usize = 128;
/// Bytes of a packet buffer.
pub const BUFFER: usize = 2048;
/// Offset of a packet in its buffer: room for a device's header (virtio needs 12 bytes), 16-aligned.
pub const HEADROOM: usize = 16;
/// Bytes of shared memory needed: one page and the buffers.
pub const SHARED_BYTES: usize = 4096 + 2 * ENTRIES * BUFFER;

/// First page of the shared memory.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
pub struct RingPage {
    /// Switch: packets put up for sending.
    pub sent_filled: u32,
    /// Switch: received packets taken; their buffers are the driver's again.
    pub received_taken: u32,
    /// Padding to a cache line of its own.
    pub reserved: [u32; 14],
    /// Driver: packets sent; their buffers are the switch's again.
    pub sent_taken: u32,
    /// Driver: packets received.
    pub arrived: u32,
    /// Driver: packets lost for want of a free buffer.
    pub lost: u32,
    /// Padding.
    pub reserved2: [u32; 13],
    /// Lengths of the packets to send; entry `i` is in send buffer `i`.
    pub send: [u32; ENTRIES],
    /// Lengths of the packets received.
    pub receive: [u32; ENTRIES],
}

const _: () = assert!(size_of::<RingPage>() == 4096);

/// Offset in the shared memory of the buffer of send entry `entry`.
pub const fn send_buffer(entry: usize) -> usize {
    4096 + entry % ENTRIES * BUFFER
}

/// Offset in the shared memory of the buffer of receive entry `entry`.
pub const fn receive_buffer(entry: usize) -> usize {
    4096 + (ENTRIES + entry % ENTRIES) * BUFFER
}

/// The service of every network driver.
pub struct NetDriver;

/// What the switch asks of a network driver.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Request {
    /// Begins: the rings are empty and both sides count from zero. Packets flow from here on.
    Start,
    /// What the device counts.
    Statistics,
}

/// What a network driver answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Response {
    /// Started.
    Started {
        /// The device's own MAC address.
        mac: [u8; 6],
        /// Whether the link is up.
        link: bool,
    },
    /// Counters since the driver started.
    Statistics {
        /// Packets sent.
        sent: u64,
        /// Packets received.
        received: u64,
        /// Packets lost.
        lost: u64,
    },
    /// There is no device, or it does not work.
    NoDevice,
}

impl Service for NetDriver {
    const NAME: &'static str = "net-driver";
    type Request<'a> = Request;
    type Response = Response;
}
