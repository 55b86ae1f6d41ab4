//! The card as the kit for network drivers wants it.
//!
//! Descriptors point straight into the packet memory shared with the switch. Receive buffers take a packet of at most 1,522 bytes:
//! longer ones the card drops by itself, so it never writes beyond a buffer although a buffer begins
//! [`HEADROOM`] bytes late.

use crate::{
    models::Kind,
    registers::{
        self, CTRL, CTRL_EXT, Causes, Control, EERD, EIAC, EITR, EepromRead, ExtendedControl, ICR, IMC, IMS, ITR, IVAR,
        OWN_ADDRESS, RADV, RAH, RAL, RCTL, RDTR, RECEIVE, RFCTL, ReceiveControl, STATUS, Status, TCTL, TIDV, TIPG,
        TRANSMIT, TXDCTL, TransmitControl,
    },
    ring::{BYTES, LAST, Ring},
};
use net_driver::{Buffer, Dma, NetDriver, Problem};
use protocol::{
    domain::line,
    service::net_driver::{ENTRIES, HEADROOM},
};

/// Line of the rings, or of the card's only interrupt.
pub const LINE_RINGS: u8 = line::HARDWARE_FIRST;
/// With MSI-X: line of everything else.
pub const LINE_OTHER: u8 = line::HARDWARE_FIRST + 1;
/// MSI-X messages that the driver uses: 0 for the rings, 1 for everything else.
pub const MESSAGES: u16 = 2;
/// Bytes of memory for the rings.
pub const DMA_BYTES: usize = 2 * BYTES;

/// The least time between two interrupts, in units of 256 ns: 50 µs. The first packet after a pause interrupts at once.
const INTERVAL: u32 = 195;
/// IVAR: message 0 for both rings, 1 for everything else, all valid (bit 3 of each); bit 31: for each write-back.
const VECTORS: u32 = 8 | 8 << 8 | (8 | 1) << 16 | 1 << 31;
/// Gaps between packets for copper (8254x 13.4.34, 82574 10.2.7.1): the first of the three differs.
const GAPS_PCI: u32 = 10 | 8 << 10 | 6 << 20;
const GAPS_EXPRESS: u32 = 8 | 8 << 10 | 6 << 20;
/// TXDCTL: count in descriptors, and write each back at once.
const WRITE_BACK: u32 = 1 << 24 | 1 << 16;
/// TXDCTL of the 82574: must be set (82574 10.2.6.9).
const MUST_BE_ONE: u32 = 1 << 22;
/// RFCTL: no interrupts for acknowledgements of TCP, which confuse MSI-X.
const NO_ACKNOWLEDGE_INTERRUPTS: u32 = 1 << 12;
/// Commands of a transmit descriptor: the packet ends here, append its checksum, write back when it was sent.
const SEND_COMMAND: u32 = (1 | 1 << 1 | 1 << 3) << 24;
/// Errors of a receive descriptor, above its status. The card passes on no damaged packets, so there should be none.
const ERRORS: u32 = 0xff << 8;
/// Packets under way from which on the card tells when it has sent some. Below, the next packet or interrupt is early enough to
/// find out.
const SEND_INTERRUPTS_FROM: usize = ENTRIES / 2;

/// Microseconds between two looks at something that changes by itself, and looks until it is given up: 100 ms.
const LOOK: u64 = 1_000;
const LOOKS: usize = 100;
/// Microseconds after which accesses to memory that were under way have ended.
const DRAIN: u64 = 10_000;

/// The way to a card.
pub trait Wire {
    /// Reads a register.
    fn read(&self, register: usize) -> u32;
    /// Writes a register.
    fn write(&self, register: usize, value: u32);
    /// Waits.
    fn pause(&self, microseconds: u64);
    /// The interrupt is dealt with: lets the next one come.
    fn acknowledge(&self);
}

/// How a card interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interrupts {
    /// By its INTx line or by MSI: on [`LINE_RINGS`], for everything.
    One,
    /// By MSI-X: on [`LINE_RINGS`] and [`LINE_OTHER`].
    Messages,
}

/// A card.
#[derive(Debug)]
pub struct Nic<W> {
    wire: W,
    kind: Kind,
    interrupts: Interrupts,
    receive: Ring,
    transmit: Ring,
    mac: [u8; 6],
    link: bool,
    /// Whether it interrupts for packets that were sent.
    tells_sent: bool,
}

impl<W: Wire> Nic<W> {
    /// The card behind `wire`, with its rings in `memory`: [`DMA_BYTES`]. Nothing is done with it yet.
    pub fn new(wire: W, kind: Kind, interrupts: Interrupts, memory: Dma) -> Result<Nic<W>, Problem> {
        if memory.memory.length() < DMA_BYTES {
            return Err(alloc::format!("{} bytes of device memory are not enough", memory.memory.length()));
        }
        Ok(Nic {
            wire,
            kind,
            interrupts,
            receive: Ring::new(memory.part(0, BYTES), RECEIVE),
            transmit: Ring::new(memory.part(BYTES, BYTES), TRANSMIT),
            mac: [0; 6],
            link: false,
            tells_sent: false,
        })
    }

    /// The way to the card.
    pub fn wire(&mut self) -> &mut W {
        &mut self.wire
    }

    /// Stops the card and resets it, all but the PHY, which keeps its link. Afterwards it touches no memory and does not interrupt.
    pub fn reset(&mut self) -> Result<(), Problem> {
        let wire = &self.wire;
        wire.write(IMC, !0);
        let receives = ReceiveControl::from_bits_retain(wire.read(RCTL)).contains(ReceiveControl::ENABLE);
        let sends = TransmitControl::from_bits_retain(wire.read(TCTL)).contains(TransmitControl::ENABLE);
        wire.write(RCTL, 0);
        wire.write(TCTL, TransmitControl::PAD.bits());
        let control = Control::from_bits_retain(wire.read(CTRL));
        if self.kind == Kind::Express {
            wire.write(CTRL, (control | Control::MASTER_DISABLE).bits());
            // What has not ended by then is ended by the reset.
            self.wait(|| !Status::from_bits_retain(wire.read(STATUS)).contains(Status::MASTER_ENABLED));
        } else if receives || sends {
            wire.pause(DRAIN);
        }
        wire.write(CTRL, (control | Control::RESET).bits());
        wire.pause(LOOK);
        if !self.wait(|| !Control::from_bits_retain(wire.read(CTRL)).contains(Control::RESET)) {
            return Err("the card does not reset".into());
        }
        wire.write(IMC, !0);
        // Reading clears them.
        wire.read(ICR);
        Ok(())
    }

    /// Looks until something is so. Returns whether it was, in time.
    fn wait(&self, is_so: impl Fn() -> bool) -> bool {
        for _ in 0..LOOKS {
            if is_so() {
                return true;
            }
            self.wire.pause(LOOK);
        }
        false
    }

    /// The card's own address, which it loads from its EEPROM after a reset. The 8254x of some emulators do not: there the driver loads it.
    fn own_mac(&self) -> Result<[u8; 6], Problem> {
        let loaded = || {
            let [low, high] = [RAL, RAH].map(|register| self.wire.read(register).to_le_bytes());
            is_own([low[0], low[1], low[2], low[3], high[0], high[1]])
        };
        if self.wait(|| loaded().is_some()) {
            // Read again: what is looked at is what is taken.
            return loaded().ok_or_else(no_mac);
        }
        let mac = self.eeprom_mac().and_then(is_own).ok_or_else(no_mac)?;
        self.wire.write(RAL, u32::from_le_bytes([mac[0], mac[1], mac[2], mac[3]]));
        self.wire.write(RAH, u32::from_le_bytes([mac[4], mac[5], 0, 0]) | OWN_ADDRESS);
        Ok(mac)
    }

    /// The first six bytes of the EEPROM, if it can be read in the way of the 8254x.
    fn eeprom_mac(&self) -> Option<[u8; 6]> {
        if self.kind != Kind::Pci {
            return None;
        }
        let mut mac = [0; 6];
        for (word, bytes) in (0..).zip(mac.chunks_exact_mut(2)) {
            self.wire.write(EERD, word << 8 | EepromRead::START.bits());
            let is_done = || EepromRead::from_bits_retain(self.wire.read(EERD)).contains(EepromRead::DONE);
            if !self.wait(is_done) {
                return None;
            }
            bytes.copy_from_slice(&self.wire.read(EERD).to_le_bytes()[2..]);
        }
        Some(mac)
    }

    fn read_link(&mut self) {
        let status = self.wire.read(STATUS);
        // A card that was pulled out reads as all ones.
        self.link = status != !0 && Status::from_bits_retain(status).contains(Status::LINK_UP);
    }

    fn set_up_rings(&mut self) {
        let (receive, transmit) = (self.receive.reset(), self.transmit.reset());
        let wire = &self.wire;
        receive.iter().chain(&transmit).for_each(|(register, value)| wire.write(*register, *value));
        wire.write(RDTR, 0);
        wire.write(RADV, 0);
        wire.write(TIDV, 0);
        let (gaps, write_back) = match self.kind {
            Kind::Pci => (GAPS_PCI, WRITE_BACK),
            Kind::Express => (GAPS_EXPRESS, WRITE_BACK | MUST_BE_ONE),
        };
        wire.write(TIPG, gaps);
        wire.write(TXDCTL, write_back);
    }

    fn set_up_interrupts(&mut self) {
        let wire = &self.wire;
        wire.write(ITR, INTERVAL);
        if self.kind == Kind::Express {
            let control = ExtendedControl::from_bits_retain(wire.read(CTRL_EXT));
            let control = control.difference(ExtendedControl::MASK_BY_MESSAGE | ExtendedControl::MASK_BY_READING)
                | ExtendedControl::DRIVER_LOADED;
            match self.interrupts {
                Interrupts::One => wire.write(CTRL_EXT, control.bits()),
                Interrupts::Messages => {
                    wire.write(CTRL_EXT, (control | ExtendedControl::CLEAR_PENDING).bits());
                    wire.write(RFCTL, wire.read(RFCTL) | NO_ACKNOWLEDGE_INTERRUPTS);
                    (0..usize::from(MESSAGES)).for_each(|message| wire.write(EITR + message * 4, INTERVAL));
                    wire.write(IVAR, VECTORS);
                    wire.write(EIAC, (Causes::RECEIVE_RING | Causes::TRANSMIT_RING).bits());
                }
            }
        }
        self.tells_sent = false;
        let always = match self.interrupts {
            Interrupts::One => Causes::RECEIVED | Causes::LINK,
            Interrupts::Messages => Causes::RECEIVE_RING | Causes::OTHER | Causes::LINK,
        };
        wire.write(IMS, always.bits());
    }

    /// The cause that stands for packets that were sent.
    fn sent_cause(&self) -> Causes {
        match self.interrupts {
            Interrupts::One => Causes::SENT,
            Interrupts::Messages => Causes::TRANSMIT_RING,
        }
    }

    /// Lets the card interrupt for packets that were sent, or not.
    fn tell_sent(&mut self, tell: bool) {
        if self.tells_sent != tell {
            self.tells_sent = tell;
            self.wire.write(if tell { IMS } else { IMC }, self.sent_cause().bits());
        }
    }
}

impl<W: Wire> NetDriver for Nic<W> {
    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn link(&mut self) -> bool {
        self.link
    }

    fn restart(&mut self) -> Result<(), Problem> {
        self.reset()?;
        self.mac = self.own_mac()?;
        let control = Control::from_bits_retain(self.wire.read(CTRL));
        // Speed and duplex are what the PHY has negotiated. No pause frames: a switch that is slow loses packets, it stops nobody.
        let cleared = Control::MASTER_DISABLE
            | Control::LINK_RESET
            | Control::INVERT_LOSS
            | Control::FORCE_SPEED
            | Control::FORCE_DUPLEX
            | Control::RECEIVE_PAUSE
            | Control::SEND_PAUSE
            | Control::VLAN
            | Control::PHY_RESET;
        self.wire.write(CTRL, (control.difference(cleared) | Control::SET_LINK_UP).bits());
        self.set_up_rings();
        self.set_up_interrupts();
        self.read_link();
        let transmit = TransmitControl::ENABLE
            | TransmitControl::PAD
            | TransmitControl::COLLISIONS
            | TransmitControl::COLLISION_DISTANCE;
        self.wire.write(TCTL, transmit.bits());
        // VMs have addresses of their own, so all packets are taken; the switch looks whom they are for.
        let receive = ReceiveControl::ENABLE
            | ReceiveControl::ALL_UNICAST
            | ReceiveControl::ALL_MULTICAST
            | ReceiveControl::BROADCAST
            | ReceiveControl::STRIP_CHECKSUM;
        self.wire.write(RCTL, receive.bits());
        Ok(())
    }

    fn offer(&mut self, entry: usize, buffer: Buffer) {
        self.receive.put(entry, buffer.physical + HEADROOM as u64, 0);
    }

    fn send(&mut self, entry: usize, buffer: Buffer, length: usize) {
        self.transmit.put(entry, buffer.physical + HEADROOM as u64, length as u32 | SEND_COMMAND);
    }

    fn notify(&mut self) {
        if let Some((register, value)) = self.receive.tail() {
            self.wire.write(register, value);
        }
        if let Some((register, value)) = self.transmit.tail() {
            self.tell_sent(self.transmit.under_way() >= SEND_INTERRUPTS_FROM);
            self.wire.write(register, value);
        }
    }

    fn received(&mut self) -> Option<(usize, usize)> {
        let finished = self.receive.finished()?;
        // A packet that is damaged or does not end here has no length that makes sense: the kit counts it as lost.
        let whole = finished.status & (LAST | ERRORS) == LAST;
        Some((finished.entry, if whole { finished.length } else { 0 }))
    }

    fn sent(&mut self) -> Option<usize> {
        self.transmit.finished().map(|finished| finished.entry)
    }

    fn interrupt(&mut self, lines: u64) {
        // All that is done here lets the next interrupt come; the kit looks into the rings afterwards, so none is lost.
        match self.interrupts {
            Interrupts::One => {
                let causes = Causes::from_bits_retain(self.wire.read(ICR));
                if causes.contains(Causes::LINK) {
                    self.read_link();
                }
            }
            Interrupts::Messages => {
                if lines & 1 << LINE_RINGS != 0 {
                    // The causes were cleared and masked when the message was sent.
                    let sent = if self.tells_sent { Causes::TRANSMIT_RING } else { Causes::empty() };
                    self.wire.write(IMS, (Causes::RECEIVE_RING | sent).bits());
                }
                if lines & 1 << LINE_OTHER != 0 {
                    self.wire.write(ICR, (Causes::OTHER | Causes::LINK).bits());
                    self.read_link();
                }
            }
        }
        self.wire.acknowledge();
    }
}

/// An address, if it can be a card's own: for one receiver, and not what registers hold that hold none.
fn is_own(mac: [u8; 6]) -> Option<[u8; 6]> {
    (mac != [0; 6] && mac[0] & 1 == 0).then_some(mac)
}

fn no_mac() -> Problem {
    "the card has no address of its own".into()
}

const _: () = assert!(registers::LENGTH > RAH);

#[cfg(test)]
mod tests;
