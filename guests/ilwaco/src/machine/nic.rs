//! The VM's NIC, for whoever wants frames without a network stack. [`super::net`] is made of it.

use super::{doorbell, entry, lines, vm};
use crate::{
    packets::{Outgoing, Packets, Received},
    window::Buffers,
};
use core::{
    future::poll_fn,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    task::{Context, Poll},
};

static TAKEN: AtomicBool = AtomicBool::new(false);
static SENT: AtomicU64 = AtomicU64::new(0);
static RECEIVED: AtomicU64 = AtomicU64::new(0);
/// Packets that had arrived when the VM said `ready`.
static BEFORE: AtomicU32 = AtomicU32::new(0);

/// The NIC. There is one.
pub struct Nic {
    packets: Packets,
    /// Clone generation of the VM when it last received.
    generation: u32,
}

/// Takes the NIC. `None` if the image has none, or it was taken.
pub fn take() -> Option<Nic> {
    let image = entry::image();
    if image.nic.is_null() || TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    lines::enable(lines::NIC);
    // SAFETY: `entry!` put the address and size of a `Window` static there; `TAKEN` sees to it that this happens once.
    let buffers = unsafe { Buffers::new(image.nic, image.nic_length) };
    Some(Nic { packets: Packets::new(buffers), generation: vm::clone_generation() })
}

/// The NIC window of the image: address and bytes. For tests of what the switch makes of nonsense.
pub fn window() -> Option<(*const u8, usize)> {
    let image = entry::image();
    (!image.nic.is_null()).then_some((image.nic, image.nic_length))
}

impl Nic {
    /// The next packet that has arrived. Give it back with [`Nic::release`].
    pub fn try_receive(&mut self) -> Option<Received> {
        let generation = vm::clone_generation();
        if core::mem::replace(&mut self.generation, generation) != generation {
            // What arrived before the VM became a clone was not sent to it.
            self.packets.forget(BEFORE.load(Ordering::Relaxed));
        }
        let Some(packet) = self.packets.receive() else {
            self.ring_for_held();
            return None;
        };
        RECEIVED.fetch_add(1, Ordering::Relaxed);
        Some(packet)
    }

    /// The same; `context` is woken by the next interrupt of the NIC if there is none.
    pub fn poll_receive(&mut self, context: &mut Context) -> Option<Received> {
        // Registered first: a packet that arrives after the look then wakes.
        lines::register(lines::NIC, context.waker());
        self.try_receive()
    }

    /// Waits for a packet.
    pub async fn receive(&mut self) -> Received {
        poll_fn(|context| self.poll_receive(context).map_or(Poll::Pending, Poll::Ready)).await
    }

    /// Gives the buffer of a packet back.
    pub fn release(&mut self, packet: Received) {
        self.packets.release(packet);
    }

    /// Sees to it that the switch hears of the buffers that are offered, if it waits for any.
    fn ring_for_held(&self) {
        if self.packets.is_awaited() {
            doorbell::nic_later();
        }
    }

    /// A buffer for a packet to send; `None` while all are in use.
    pub fn outgoing(&mut self) -> Option<Outgoing> {
        self.packets.outgoing()
    }

    /// The same; `context` is woken by the next interrupt of the NIC if there is none.
    pub fn poll_outgoing(&mut self, context: &mut Context) -> Option<Outgoing> {
        if let Some(packet) = self.packets.outgoing() {
            return Some(packet);
        }
        lines::register(lines::NIC, context.waker());
        // Those that are waiting are sent only once the doorbell has rung.
        doorbell::nic_later();
        self.packets.outgoing()
    }

    /// Puts a buffer back unsent.
    pub fn unused(&mut self, packet: Outgoing) {
        self.packets.unused(packet);
    }

    /// Sends the first `length` bytes of a packet. The doorbell is rung once for all that is sent in a round of tasks.
    pub fn send(&mut self, packet: Outgoing, length: usize) {
        self.packets.send(packet, length);
        SENT.fetch_add(1, Ordering::Relaxed);
        doorbell::nic_later();
    }

    /// Rings the doorbell now, for code that does not return to the idle loop.
    pub fn flush(&mut self) {
        doorbell::ring();
    }
}

/// Whether the switch has taken all packets that were sent.
pub(super) fn is_sent() -> bool {
    queue(|queue| queue.sent_taken.load(Ordering::Acquire) == queue.sent_filled.load(Ordering::Relaxed)).unwrap_or(true)
}

/// Notes what has arrived: the VM is about to say `ready`.
pub(super) fn note_arrived() {
    let arrived = queue(|queue| queue.arrived.load(Ordering::Acquire)).unwrap_or(0);
    BEFORE.store(arrived, Ordering::Relaxed);
}

/// Looks at the queue page, if there is one.
fn queue<R>(look: impl FnOnce(&crate::window::Queue) -> R) -> Option<R> {
    let image = entry::image();
    if image.nic.is_null() {
        return None;
    }
    // SAFETY: as in `take`; these `Buffers` are used for the counters in the queue page only, which are atomics.
    let buffers = unsafe { Buffers::new(image.nic, image.nic_length) };
    Some(look(buffers.queue()))
}

/// Counters of the NIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counters {
    /// Packets sent.
    pub sent: u64,
    /// Packets received.
    pub received: u64,
    /// Packets that the switch dropped because no buffer was offered.
    pub dropped: u64,
    /// Packets that the switch refused to send.
    pub refused: u64,
}

/// The counters now.
pub fn counters() -> Counters {
    let lost =
        queue(|queue| (queue.dropped.load(Ordering::Relaxed).into(), queue.refused.load(Ordering::Relaxed).into()));
    let (dropped, refused) = lost.unwrap_or_default();
    Counters { sent: SENT.load(Ordering::Relaxed), received: RECEIVED.load(Ordering::Relaxed), dropped, refused }
}
