//! The NIC of a VM: one queue page and packet buffers, all in the VM's own memory.
//!
//! The queue page is the first page of the NIC window; buffers lie anywhere in the window. Indices
//! count up freely (wrapping at 2^32); entry `i` is at `i % ENTRIES`. Each index has one writer.
//!
//! * **Send**: the VM fills `send[sent_filled % ENTRIES]`, advances `sent_filled`, and rings the doorbell.
//!   The switch advances `sent_taken` when it has copied the packet: the buffer is free again. Whether line
//!   [`crate::domain::line::NIC`] is raised then too is said by `notify`.
//! * **Receive**: the VM puts an empty buffer (its capacity in `length`) at `receive[offered % ENTRIES]` and
//!   advances `offered`. The switch writes a packet into it, its length into the entry, advances `arrived` and
//!   raises the line. Without an offered buffer a packet is held for a moment, of which `held` tells, or dropped and counted. A VM that offers a
//!   buffer while `held` is not 0 rings the doorbell.
//!
//! The switch reads entries once, checks the copy, and trusts none of it; a VM that writes nonsense
//! loses its own packets.

/// Entries of each ring.
pub const ENTRIES: usize = 32;
/// [`Indices::notify`]: whenever packets were taken. So does every value that is not named here.
pub const NOTIFY_TAKEN: u32 = 0;
/// Never: a VM that has buffers enough need not run because one is free again.
pub const NOTIFY_NEVER: u32 = 1;
/// Whenever packets were taken, and when the switch looks at the ring and all were taken before: a VM that lacks a buffer writes this, executes a
/// barrier, looks at `sent_taken` once more, rings the doorbell and waits.
pub const NOTIFY_LOOK: u32 = 2;
/// Bytes of the largest frame: 1,500 bytes of payload and the Ethernet header.
pub const FRAME_MAX: usize = 1514;
/// Bytes of the smallest frame: an Ethernet header.
pub const FRAME_MIN: usize = 14;

/// The MAC address of a VM that was given none: locally administered, `02:00` and its IPv4 address.
pub const fn usual_mac(address: [u8; 4]) -> [u8; 6] {
    let [a, b, c, d] = address;
    [2, 0, a, b, c, d]
}

/// A buffer: address in the VM's memory, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Entry {
    /// Address of the first byte, within the window.
    pub address: u64,
    /// Bytes of the packet, or capacity of an empty buffer.
    pub length: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// First 64 bytes of the queue page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Indices {
    /// VM: packets put up for sending.
    pub sent_filled: u32,
    /// VM: empty buffers offered.
    pub offered: u32,
    /// VM: when packets that are taken raise the line: [`NOTIFY_TAKEN`], [`NOTIFY_NEVER`], [`NOTIFY_LOOK`].
    pub notify: u32,
    /// Unused by the VM.
    pub reserved: [u32; 5],
    /// Switch: packets taken.
    pub sent_taken: u32,
    /// Switch: packets that have arrived.
    pub arrived: u32,
    /// Switch: packets dropped for want of a buffer.
    pub dropped: u32,
    /// Switch: packets refused (bad entry, forged source address, too long or short).
    pub refused: u32,
    /// Switch: not 0: packets are held until a buffer for them is offered and the doorbell rings.
    pub held: u32,
    /// Unused by the switch.
    pub reserved2: [u32; 3],
}

/// The queue page.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
pub struct QueuePage {
    /// Indices and counters.
    pub indices: Indices,
    /// Packets to send.
    pub send: [Entry; ENTRIES],
    /// Buffers to receive into.
    pub receive: [Entry; ENTRIES],
}

impl QueuePage {
    /// Empty queues.
    pub const EMPTY: QueuePage = QueuePage {
        indices: Indices {
            sent_filled: 0,
            offered: 0,
            notify: NOTIFY_TAKEN,
            reserved: [0; 5],
            sent_taken: 0,
            arrived: 0,
            dropped: 0,
            refused: 0,
            held: 0,
            reserved2: [0; 3],
        },
        send: [Entry { address: 0, length: 0, reserved: 0 }; ENTRIES],
        receive: [Entry { address: 0, length: 0, reserved: 0 }; ENTRIES],
    };
}

/// Offset in the queue page of the indices that the switch writes.
pub const SWITCH_INDICES: usize = core::mem::offset_of!(Indices, sent_taken);
/// Offset of the send ring.
pub const SEND_RING: usize = core::mem::offset_of!(QueuePage, send);
/// Offset of the receive ring.
pub const RECEIVE_RING: usize = core::mem::offset_of!(QueuePage, receive);

const _: () = assert!(size_of::<QueuePage>() == 4096 && size_of::<Indices>() == 64 && size_of::<Entry>() == 16);
const _: () = assert!(SWITCH_INDICES == 32 && SEND_RING == 64 && RECEIVE_RING == 64 + 16 * ENTRIES);
