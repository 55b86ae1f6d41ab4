//! The device as the kit for network drivers wants it.
//!
//! Descriptors point straight into the packet memory shared with the switch; the header that virtio wants before each
//! packet lies in the room that every packet buffer has there. One descriptor is one buffer, so the queues are exactly as
//! long as the rings.

use alloc::{boxed::Box, vec, vec::Vec};
use bitflags::bitflags;
use net_driver::{Buffer, NetDriver, Problem};
use protocol::service::net_driver::{BUFFER, ENTRIES, HEADROOM};
use server_runtime::mmio;
use virtio::{Interrupts, Wire, hal::Memory};
use virtio_drivers::{queue::VirtQueue, transport::DeviceStatus};

/// Queues (virtio 1.2, 5.1.2).
const RECEIVE: u16 = 0;
const SEND: u16 = 1;
/// Bytes of the header before a packet (5.1.6, with VERSION_1).
const HEADER: usize = 12;
/// Offsets in the configuration (5.1.4).
const CONFIG_MAC: usize = 0;
const CONFIG_STATUS: usize = 6;
/// In the status: the link is up.
const LINK_UP: u16 = 1;
/// What a device without an address gets.
const NO_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
/// Packets under way from which on the device tells when it has sent some. Below, the next packet or interrupt is early
/// enough to find out.
const SEND_INTERRUPTS_FROM: usize = ENTRIES / 2;

bitflags! {
    /// What the device can do (5.1.3, 6).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Features: u64 {
        const MAC = 1 << 5;
        const STATUS = 1 << 16;
        const VERSION_1 = 1 << 32;
        /// An IOMMU is between it and memory: addresses are as `platform` gave them all the same.
        const ACCESS_PLATFORM = 1 << 33;
    }
}

type Queue = VirtQueue<Memory, ENTRIES>;

/// A queue and what each of its descriptors stands for.
struct Ring {
    queue: Box<Queue>,
    entries: Vec<Option<(usize, Buffer, usize)>>,
    /// Whether buffers were added that the device was not told of.
    added: bool,
}

impl Ring {
    fn new(wire: &mut impl Wire, index: u16) -> Result<Ring, Problem> {
        let queue = Queue::new(wire, index, false, false)
            .map_err(|error| alloc::format!("queue {index} of {ENTRIES} entries: {error}"))?;
        Ok(Ring { queue: Box::new(queue), entries: vec![None; ENTRIES], added: false })
    }

    fn remember(&mut self, token: virtio_drivers::Result<u16>, entry: usize, buffer: Buffer, length: usize) {
        // The kit gives each entry once, and the queue has a descriptor for each.
        let token = token.expect("the queue takes one buffer for each entry");
        self.entries[usize::from(token)] = Some((entry, buffer, length));
        self.added = true;
    }

    /// The next buffer that the device is done with.
    fn used(&mut self) -> Option<(u16, usize, Buffer, usize)> {
        let token = self.queue.peek_used()?;
        let known = self.entries.get_mut(usize::from(token)).and_then(Option::take);
        // A device that gives back what it was not given cannot be trusted with memory: the driver starts anew.
        let (entry, buffer, length) = known.expect("the device gives back a buffer that it does not have");
        Some((token, entry, buffer, length))
    }

    fn notify(&mut self, wire: &mut impl Wire, index: u16) {
        if core::mem::replace(&mut self.added, false) {
            // The device must see the buffers before we see whether it wants to be told.
            mmio::full_fence();
            if self.queue.should_notify() {
                wire.notify(index);
            }
        }
    }
}

/// The part of a buffer that a descriptor points to: the header and `length` bytes of the packet.
fn part(buffer: &Buffer, length: usize) -> *mut [u8] {
    let part = buffer.memory.part(HEADROOM - HEADER, HEADER + length);
    core::ptr::slice_from_raw_parts_mut(part.base().as_ptr(), part.length())
}

/// Bytes of a packet for which a receive buffer has room.
const RECEIVE_ROOM: usize = BUFFER - HEADROOM;

/// A virtio network device.
pub struct VirtioNet<W> {
    wire: W,
    interrupts: Interrupts,
    receive: Option<Ring>,
    send: Option<Ring>,
    mac: [u8; 6],
    has_status: bool,
    link: bool,
}

impl<W: Wire> VirtioNet<W> {
    /// The device behind `wire`. Nothing is done with it before [`NetDriver::restart`].
    pub fn new(wire: W, interrupts: Interrupts) -> VirtioNet<W> {
        VirtioNet { wire, interrupts, receive: None, send: None, mac: NO_MAC, has_status: false, link: true }
    }

    fn read_link(&mut self) {
        let status = self.wire.read_consistent(|| self.wire.read_config_space::<u16>(CONFIG_STATUS));
        // Without a status the link is up for ever.
        self.link = !self.has_status || status.is_ok_and(|status| status & LINK_UP != 0);
    }

    fn read_mac(&mut self) -> virtio_drivers::Result<[u8; 6]> {
        self.wire.read_consistent(|| {
            let mut mac = [0; 6];
            for (index, byte) in mac.iter_mut().enumerate() {
                *byte = self.wire.read_config_space(CONFIG_MAC + index)?;
            }
            Ok(mac)
        })
    }
}

impl<W: Wire> NetDriver for VirtioNet<W> {
    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn link(&mut self) -> bool {
        self.link
    }

    fn restart(&mut self) -> Result<(), Problem> {
        self.wire.reset()?;
        // Their memory is free for the new ones only after the device was reset.
        (self.receive, self.send) = (None, None);
        let features = self.wire.begin_init(Features::all());
        if !features.contains(Features::VERSION_1) {
            return Err("the device is older than virtio 1.0".into());
        }
        if !self.wire.get_status().contains(DeviceStatus::FEATURES_OK) {
            return Err("the device does not take the features that it offered".into());
        }
        if features.contains(Features::MAC) {
            self.mac = self.read_mac().map_err(|error| alloc::format!("MAC address: {error}"))?;
        }
        self.has_status = features.contains(Features::STATUS);
        self.read_link();
        let receive = Ring::new(&mut self.wire, RECEIVE)?;
        let mut send = Ring::new(&mut self.wire, SEND)?;
        send.queue.set_dev_notify(false);
        (self.receive, self.send) = (Some(receive), Some(send));
        if !self.wire.has_interrupts() {
            return Err("the device has no room for its interrupt vectors".into());
        }
        self.wire.finish_init();
        Ok(())
    }

    fn offer(&mut self, entry: usize, buffer: Buffer) {
        let Some(ring) = &mut self.receive else {
            return;
        };
        // SAFETY: the buffer is packet memory for the life of the driver, and the kit leaves it alone until it is taken back
        // (`received`). The slice lives for this call only; the queue keeps its address.
        let token = unsafe { ring.queue.add(&[], &mut [&mut *part(&buffer, RECEIVE_ROOM)]) };
        ring.remember(token, entry, buffer, RECEIVE_ROOM);
    }

    fn send(&mut self, entry: usize, buffer: Buffer, length: usize) {
        let Some(ring) = &mut self.send else {
            return;
        };
        // No offloads: a header of zeros. It is shared with the switch, so it is written for every packet.
        buffer.memory.zero(HEADROOM - HEADER, HEADER);
        // SAFETY: as in `offer`, until `sent`.
        let token = unsafe { ring.queue.add(&[&*part(&buffer, length)], &mut []) };
        ring.remember(token, entry, buffer, length);
    }

    fn notify(&mut self) {
        if let Some(ring) = &mut self.receive {
            ring.notify(&mut self.wire, RECEIVE);
        }
        if let Some(ring) = &mut self.send {
            let under_way = ENTRIES - ring.queue.available_desc();
            ring.queue.set_dev_notify(under_way >= SEND_INTERRUPTS_FROM);
            ring.notify(&mut self.wire, SEND);
            mmio::full_fence();
        }
    }

    fn received(&mut self) -> Option<(usize, usize)> {
        let ring = self.receive.as_mut()?;
        let (token, entry, buffer, room) = ring.used()?;
        // SAFETY: the same buffer as in `offer`, and nobody else uses it yet.
        let length = unsafe { ring.queue.pop_used(token, &[], &mut [&mut *part(&buffer, room)]) }.ok()?;
        Some((entry, (length as usize).saturating_sub(HEADER).min(room)))
    }

    fn sent(&mut self) -> Option<usize> {
        let ring = self.send.as_mut()?;
        let (token, entry, buffer, length) = ring.used()?;
        // SAFETY: the same buffer as in `send`.
        unsafe { ring.queue.pop_used(token, &[&*part(&buffer, length)], &mut []) }.ok()?;
        Some(entry)
    }

    fn interrupt(&mut self, lines: u64) {
        if self.interrupts.acknowledge(&mut self.wire, lines) {
            self.read_link();
        }
    }
}

#[cfg(test)]
mod tests;
