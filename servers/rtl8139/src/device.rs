//! The card as the kit for network drivers wants it.
//!
//! Descriptors point straight into the packet memory shared with the switch.

use crate::{
    registers::{
        ADDRESS, COMMAND, Causes, Command, INTERRUPT_MASK, INTERRUPT_STATUS, MEDIA_STATUS, MULTICAST, NO_LINK,
        NORMAL_PRIORITY, PLUS_COMMAND, PlusCommand, RECEIVE_ALL, RECEIVE_CONFIG, RECEIVE_RING, RECEIVE_USUAL,
        TRANSMIT_CONFIG, TRANSMIT_POLL, TRANSMIT_RING, TRANSMIT_THRESHOLD, TRANSMIT_USUAL,
    },
    ring::{BYTES, ERROR, FIRST, LAST, LENGTH, Ring, SLOTS},
};
use net_driver::{Buffer, Dma, NetDriver, Problem};
use protocol::{domain::line, service::net_driver::HEADROOM};

/// Line of the card's interrupt.
pub const LINE: u8 = line::HARDWARE_FIRST;
/// Bytes of memory for the rings.
pub const DMA_BYTES: usize = 2 * BYTES;

/// Bytes of a receive buffer: room for a packet of 1,514 bytes, a VLAN tag and the checksum, a multiple of 8. A packet that is longer
/// would go on in the next buffer, and is lost.
const RECEIVE_ROOM: u32 = 1528;
/// Bytes of the checksum at the end of each packet that was received.
const CHECKSUM: usize = 4;
/// Bytes of the shortest packet on the wire, without its checksum.
const SHORTEST: usize = 60;
/// [`TRANSMIT_THRESHOLD`]: send when a packet is there whole.
const WHOLE: u8 = 0x3b;
/// Causes for which the card always interrupts. When it had no descriptor, the kit looks what it can give.
const CAUSES: Causes = Causes::RECEIVED.union(Causes::NO_DESCRIPTOR).union(Causes::OVERFLOW).union(Causes::LINK);
/// Packets under way from which on the card tells when it has sent some. Below, the next packet or interrupt is early enough to
/// find out; above, some may wait for room in the ring.
const SEND_INTERRUPTS_FROM: usize = SLOTS / 2;

/// Microseconds between two looks whether the card has reset itself, and looks until it is given up: 100 ms.
const LOOK: u64 = 1_000;
const LOOKS: usize = 100;

/// The way to a card.
pub trait Wire {
    /// Reads a register of 8 bits.
    fn read_u8(&self, register: usize) -> u8;
    /// Reads a register of 16 bits.
    fn read_u16(&self, register: usize) -> u16;
    /// Writes a register of 8 bits.
    fn write_u8(&self, register: usize, value: u8);
    /// Writes a register of 16 bits.
    fn write_u16(&self, register: usize, value: u16);
    /// Writes a register of 32 bits.
    fn write_u32(&self, register: usize, value: u32);
    /// Waits.
    fn pause(&self, microseconds: u64);
    /// The interrupt is dealt with: lets the next one come.
    fn acknowledge(&self);
}

/// A card.
#[derive(Debug)]
pub struct Nic<W> {
    wire: W,
    receive: Ring,
    transmit: Ring,
    mac: [u8; 6],
    link: bool,
    /// Whether it must use addresses beyond 4 GiB.
    is_high: bool,
    /// Whether it interrupts for packets that were sent.
    tells_sent: bool,
}

impl<W: Wire> Nic<W> {
    /// The card behind `wire`, with its rings in `memory`: [`DMA_BYTES`]. `end`: the last physical address that the card is to reach.
    /// Nothing is done with it yet.
    pub fn new(wire: W, memory: Dma, end: u64) -> Result<Nic<W>, Problem> {
        if memory.memory.length() < DMA_BYTES {
            return Err(alloc::format!("{} bytes of device memory are not enough", memory.memory.length()));
        }
        Ok(Nic {
            wire,
            receive: Ring::new(memory.part(0, BYTES)),
            transmit: Ring::new(memory.part(BYTES, BYTES)),
            mac: [0; 6],
            link: false,
            is_high: end.max(memory.physical + DMA_BYTES as u64) > u64::from(u32::MAX),
            tells_sent: false,
        })
    }

    /// The way to the card.
    pub fn wire(&mut self) -> &mut W {
        &mut self.wire
    }

    /// Resets the card. Afterwards it touches no memory and does not interrupt.
    pub fn reset(&mut self) -> Result<(), Problem> {
        let wire = &self.wire;
        wire.write_u16(INTERRUPT_MASK, 0);
        wire.write_u8(COMMAND, Command::RESET.bits());
        let is_reset = || !Command::from_bits_retain(wire.read_u8(COMMAND)).contains(Command::RESET);
        let done = (0..LOOKS).any(|_| {
            let done = is_reset();
            if !done {
                wire.pause(LOOK);
            }
            done
        });
        if !done {
            return Err("the card does not reset".into());
        }
        wire.write_u16(INTERRUPT_MASK, 0);
        wire.write_u16(INTERRUPT_STATUS, !0);
        Ok(())
    }

    fn read_mac(&self) -> Result<[u8; 6], Problem> {
        let mut mac = [0; 6];
        mac.iter_mut().enumerate().for_each(|(index, byte)| *byte = self.wire.read_u8(ADDRESS + index));
        if mac == [0; 6] || mac[0] & 1 != 0 {
            return Err("the card has no address of its own".into());
        }
        Ok(mac)
    }

    fn read_link(&mut self) {
        // A card that was pulled out reads as all ones: no link.
        self.link = self.wire.read_u8(MEDIA_STATUS) & NO_LINK == 0;
    }

    fn write_address(&self, register: usize, address: u64) {
        self.wire.write_u32(register, address as u32);
        self.wire.write_u32(register + 4, (address >> 32) as u32);
    }

    /// Lets the card interrupt for packets that were sent, or not.
    fn tell_sent(&mut self, tell: bool) {
        if self.tells_sent != tell {
            self.tells_sent = tell;
            let sent = if tell { Causes::SENT | Causes::SEND_FAILED } else { Causes::empty() };
            self.wire.write_u16(INTERRUPT_MASK, (CAUSES | sent).bits());
        }
    }

    /// Tells the card of packets that have got a descriptor.
    fn poll(&mut self) {
        if self.transmit.fresh() {
            self.wire.write_u8(TRANSMIT_POLL, NORMAL_PRIORITY);
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
        self.mac = self.read_mac()?;
        self.receive.reset();
        self.transmit.reset();
        self.tells_sent = false;
        let mut mode = PlusCommand::SEND | PlusCommand::RECEIVE | PlusCommand::LONG_ACCESSES;
        mode.set(PlusCommand::LONG_ADDRESSES, self.is_high);
        // The card takes addresses of rings in this mode only (6.33).
        self.wire.write_u16(PLUS_COMMAND, mode.bits());
        self.write_address(RECEIVE_RING, self.receive.physical());
        self.write_address(TRANSMIT_RING, self.transmit.physical());
        self.wire.write_u8(COMMAND, (Command::SEND | Command::RECEIVE).bits());
        self.wire.write_u8(TRANSMIT_THRESHOLD, WHOLE);
        self.wire.write_u32(TRANSMIT_CONFIG, TRANSMIT_USUAL);
        // VMs have addresses of their own, so all packets are taken; the switch looks whom they are for.
        self.write_address(MULTICAST, !0);
        self.wire.write_u32(RECEIVE_CONFIG, RECEIVE_USUAL | RECEIVE_ALL);
        self.read_link();
        self.wire.write_u16(INTERRUPT_MASK, CAUSES.bits());
        Ok(())
    }

    fn offer(&mut self, entry: usize, buffer: Buffer) {
        // The card looks for it by itself.
        self.receive.put(entry, buffer.physical + HEADROOM as u64, RECEIVE_ROOM);
    }

    fn send(&mut self, entry: usize, buffer: Buffer, length: usize) {
        if length < SHORTEST {
            // The card does not fill up what is too short.
            buffer.memory.zero(HEADROOM + length, SHORTEST - length);
        }
        let word = FIRST | LAST | length.max(SHORTEST) as u32;
        self.transmit.put(entry, buffer.physical + HEADROOM as u64, word);
    }

    fn notify(&mut self) {
        self.tell_sent(self.transmit.under_way() >= SEND_INTERRUPTS_FROM);
        self.poll();
    }

    fn received(&mut self) -> Option<(usize, usize)> {
        let (entry, word) = self.receive.finished()?;
        // A packet that is damaged or lies in several buffers has no length that makes sense: the kit counts it as lost.
        let whole = word & (FIRST | LAST | ERROR) == FIRST | LAST;
        let length = ((word & LENGTH) as usize).saturating_sub(CHECKSUM);
        Some((entry, if whole { length } else { 0 }))
    }

    fn sent(&mut self) -> Option<usize> {
        match self.transmit.finished() {
            Some((entry, _)) => Some(entry),
            None => {
                // What waited has got the descriptors of what was taken back; the kit asks until there is no more.
                self.poll();
                None
            }
        }
    }

    fn interrupt(&mut self, _: u64) {
        // Before the kit looks into the rings: what comes after that asks again.
        let causes = Causes::from_bits_retain(self.wire.read_u16(INTERRUPT_STATUS));
        self.wire.write_u16(INTERRUPT_STATUS, causes.bits());
        if causes.contains(Causes::LINK) {
            self.read_link();
        }
        self.wire.acknowledge();
    }
}

#[cfg(test)]
mod tests;
