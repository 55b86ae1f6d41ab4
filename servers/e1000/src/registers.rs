//! Registers, by offset, and their bits (8254x 13.4, 82574 10.2).

use bitflags::bitflags;

/// Bytes of registers that the driver uses.
pub const LENGTH: usize = 0x6000;

/// Device control: [`Control`].
pub const CTRL: usize = 0x0000;
/// Device status: [`Status`].
pub const STATUS: usize = 0x0008;
/// 8254x: reads a word of the EEPROM: [`EepromRead`].
pub const EERD: usize = 0x0014;
/// Extended device control: [`ExtendedControl`].
pub const CTRL_EXT: usize = 0x0018;
/// Causes of interrupts: [`Causes`]. Reading clears them all, writing those that are written.
pub const ICR: usize = 0x00c0;
/// The least time between two interrupts, in units of 256 ns.
pub const ITR: usize = 0x00c4;
/// Causes that interrupt from here on.
pub const IMS: usize = 0x00d0;
/// Causes that do not interrupt any more.
pub const IMC: usize = 0x00d8;
/// 82574: causes that are cleared, and masked, by their MSI-X message.
pub const EIAC: usize = 0x00dc;
/// 82574: which causes have which MSI-X message.
pub const IVAR: usize = 0x00e4;
/// 82574: [`ITR`] of MSI-X message 0; those of others follow.
pub const EITR: usize = 0x00e8;
/// Receive control: [`ReceiveControl`].
pub const RCTL: usize = 0x0100;
/// Transmit control: [`TransmitControl`].
pub const TCTL: usize = 0x0400;
/// Gaps between packets that are sent.
pub const TIPG: usize = 0x0410;
/// The receive ring.
pub const RECEIVE: usize = 0x2800;
/// Delay of the interrupt for a packet that was received.
pub const RDTR: usize = 0x2820;
/// The most that it is delayed.
pub const RADV: usize = 0x282c;
/// The transmit ring.
pub const TRANSMIT: usize = 0x3800;
/// Delay of the interrupt for a packet that was sent.
pub const TIDV: usize = 0x3820;
/// How descriptors of the transmit ring are fetched and written back.
pub const TXDCTL: usize = 0x3828;
/// 82574: receive filter control.
pub const RFCTL: usize = 0x5008;
/// The card's own address, bytes 0 to 3, and 4 to 5.
pub const RAL: usize = 0x5400;
/// See [`RAL`]; also [`OWN_ADDRESS`].
pub const RAH: usize = 0x5404;
/// Of [`RAH`]: there is an address.
pub const OWN_ADDRESS: u32 = 1 << 31;

/// Of a ring: physical address, low half.
pub const RING_LOW: usize = 0x00;
/// Of a ring: physical address, high half.
pub const RING_HIGH: usize = 0x04;
/// Of a ring: bytes, a multiple of 128.
pub const RING_LENGTH: usize = 0x08;
/// Of a ring: the descriptor that the card takes next.
pub const RING_HEAD: usize = 0x10;
/// Of a ring: the first descriptor that is not the card's.
pub const RING_TAIL: usize = 0x18;

bitflags! {
    /// [`CTRL`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Control: u32 {
        /// PCI Express: begin no more accesses to memory.
        const MASTER_DISABLE = 1 << 2;
        /// Link reset (SerDes).
        const LINK_RESET = 1 << 3;
        /// Set link up: let the MAC use the link that the PHY negotiates.
        const SET_LINK_UP = 1 << 6;
        /// Invert the PHY's loss-of-signal.
        const INVERT_LOSS = 1 << 7;
        /// Speed is forced.
        const FORCE_SPEED = 1 << 11;
        /// Duplex is forced.
        const FORCE_DUPLEX = 1 << 12;
        /// Reset all but the PHY. Clears itself.
        const RESET = 1 << 26;
        /// Obey pause frames.
        const RECEIVE_PAUSE = 1 << 27;
        /// Send pause frames.
        const SEND_PAUSE = 1 << 28;
        /// Take VLAN tags out of packets.
        const VLAN = 1 << 30;
        /// Reset the PHY.
        const PHY_RESET = 1 << 31;
        const _ = !0;
    }

    /// [`STATUS`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Status: u32 {
        /// The link is up.
        const LINK_UP = 1 << 1;
        /// PCI Express: accesses to memory are allowed, or under way.
        const MASTER_ENABLED = 1 << 19;
        const _ = !0;
    }

    /// [`EERD`]. Bits 15 to 8 say which word, bits 31 to 16 are its value (8254x 13.4.4; the 82541 and 82547 differ).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct EepromRead: u32 {
        /// Read.
        const START = 1 << 0;
        /// The word was read.
        const DONE = 1 << 4;
        const _ = !0;
    }

    /// [`CTRL_EXT`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct ExtendedControl: u32 {
        /// Mask causes when their MSI-X message is sent, as IAM says.
        const MASK_BY_MESSAGE = 1 << 24;
        /// Mask causes when ICR is read or written, as IAM says.
        const MASK_BY_READING = 1 << 27;
        /// Tells the firmware that a driver has the card.
        const DRIVER_LOADED = 1 << 28;
        /// MSI-X pending bits are cleared by sending the message.
        const CLEAR_PENDING = 1 << 31;
        const _ = !0;
    }

    /// [`ICR`], [`IMS`], [`IMC`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Causes: u32 {
        /// A descriptor of a packet that was sent was written back.
        const SENT = 1 << 0;
        /// The link changed.
        const LINK = 1 << 2;
        /// A packet was received.
        const RECEIVED = 1 << 7;
        /// MSI-X: something in the receive ring.
        const RECEIVE_RING = 1 << 20;
        /// MSI-X: something in the transmit ring.
        const TRANSMIT_RING = 1 << 22;
        /// MSI-X: something else, the link among it.
        const OTHER = 1 << 24;
        const _ = !0;
    }

    /// [`RCTL`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct ReceiveControl: u32 {
        /// Receive.
        const ENABLE = 1 << 1;
        /// Take all packets for single addresses.
        const ALL_UNICAST = 1 << 3;
        /// Take all packets for groups.
        const ALL_MULTICAST = 1 << 4;
        /// Take broadcasts.
        const BROADCAST = 1 << 15;
        /// Leave out the checksum at the end of a packet.
        const STRIP_CHECKSUM = 1 << 26;
        const _ = !0;
    }

    /// [`TCTL`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct TransmitControl: u32 {
        /// Send.
        const ENABLE = 1 << 1;
        /// Fill packets that are too short with zeros.
        const PAD = 1 << 3;
        /// Attempts after collisions: 15.
        const COLLISIONS = 15 << 4;
        /// Bytes within which a collision may come: 64, for full duplex.
        const COLLISION_DISTANCE = 64 << 12;
        const _ = !0;
    }
}
