//! Registers, by offset, and their bits (chapter 6).

use bitflags::bitflags;

/// Bytes of registers.
pub const LENGTH: usize = 0x100;

/// The card's own address: 6 bytes.
pub const ADDRESS: usize = 0x00;
/// Which groups' packets are taken: 64 bits, by a hash.
pub const MULTICAST: usize = 0x08;
/// Physical address of the transmit ring: 64 bits.
pub const TRANSMIT_RING: usize = 0x20;
/// [`Command`]: 8 bits.
pub const COMMAND: usize = 0x37;
/// Causes that interrupt: [`Causes`], 16 bits.
pub const INTERRUPT_MASK: usize = 0x3c;
/// Causes of interrupts: [`Causes`], 16 bits. Writing clears those that are written.
pub const INTERRUPT_STATUS: usize = 0x3e;
/// Transmit configuration: 32 bits.
pub const TRANSMIT_CONFIG: usize = 0x40;
/// Receive configuration: 32 bits.
pub const RECEIVE_CONFIG: usize = 0x44;
/// State of the medium: 8 bits.
pub const MEDIA_STATUS: usize = 0x58;
/// Tells the card to look into the transmit rings: 8 bits.
pub const TRANSMIT_POLL: usize = 0xd9;
/// [`PlusCommand`]: 16 bits.
pub const PLUS_COMMAND: usize = 0xe0;
/// Physical address of the receive ring: 64 bits.
pub const RECEIVE_RING: usize = 0xe4;
/// From how many bytes of a packet on it is sent while the rest is fetched, in units of 32: 8 bits.
pub const TRANSMIT_THRESHOLD: usize = 0xec;

/// [`MEDIA_STATUS`]: there is no link.
pub const NO_LINK: u8 = 1 << 2;
/// [`TRANSMIT_POLL`]: the ring of normal priority.
pub const NORMAL_PRIORITY: u8 = 1 << 6;
/// [`TRANSMIT_CONFIG`]: the standard's gap between packets, bursts of 1 KiB.
pub const TRANSMIT_USUAL: u32 = 3 << 24 | 6 << 8;
/// [`RECEIVE_CONFIG`]: hand on from 512 bytes of a packet on, bursts of 256 bytes.
pub const RECEIVE_USUAL: u32 = 5 << 13 | 4 << 8;
/// [`RECEIVE_CONFIG`]: packets for all single addresses, for the own one, for groups, for everybody.
pub const RECEIVE_ALL: u32 = 0xf;

bitflags! {
    /// [`COMMAND`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Command: u8 {
        /// Send.
        const SEND = 1 << 2;
        /// Receive.
        const RECEIVE = 1 << 3;
        /// Reset. Clears itself.
        const RESET = 1 << 4;
        const _ = !0;
    }

    /// [`INTERRUPT_MASK`], [`INTERRUPT_STATUS`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Causes: u16 {
        /// A packet was received.
        const RECEIVED = 1 << 0;
        /// A packet was sent.
        const SENT = 1 << 2;
        /// A packet could not be sent.
        const SEND_FAILED = 1 << 3;
        /// A packet came and there was no descriptor for it.
        const NO_DESCRIPTOR = 1 << 4;
        /// The link changed.
        const LINK = 1 << 5;
        /// The card's own memory for packets has overflowed.
        const OVERFLOW = 1 << 6;
        const _ = !0;
    }

    /// [`PLUS_COMMAND`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct PlusCommand: u16 {
        /// Send by descriptors.
        const SEND = 1 << 0;
        /// Receive by descriptors.
        const RECEIVE = 1 << 1;
        /// Read and write memory in whole cache lines.
        const LONG_ACCESSES = 1 << 3;
        /// Use addresses beyond 4 GiB.
        const LONG_ADDRESSES = 1 << 4;
        const _ = !0;
    }
}
