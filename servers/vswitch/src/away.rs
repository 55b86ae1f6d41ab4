//! VMs that are waited for: what the switch keeps of them until they can receive again.
//!
//! A VM that has left memory, or a page of it, is brought by the pager, which may take as long as a disk does. Nobody waits for that:
//! what the VM has to send stays in its own ring, what others send to it is *held* here, a few packets of each VM, and the
//! switch goes on. When the pager says that the VM is back, it gets what was held, in order, and goes on sending.
//!
//! A VM that is in memory and has no buffer is *full*: it has not run since the last packets came. What more there is for it is held in the same way, for a moment, until it
//! rings its doorbell. So a VM need not offer, and touch, as many buffers as a burst could have packets.
//!
//! Only VMs that are being waited for have a record here: one that is out of memory and left in peace costs nothing.

use crate::{memory::Need, ports::PortId, queue::Own};
use alloc::{collections::VecDeque, vec::Vec};
use hashbrown::HashMap;
use protocol::nic::{ENTRIES, FRAME_MAX};

/// Packets that can be held, of all VMs.
pub const HELD: usize = 256;
/// Packets that can be held for one VM that is away.
pub const HELD_EACH: usize = 8;
/// Packets that can be held for one VM that is full.
pub const FULL_EACH: usize = 16;
/// Buffers that are left for VMs that are away, however many are full.
pub const AWAY_ONLY: usize = HELD / 2;
/// Bytes of a buffer.
pub const BUFFER: usize = FRAME_MAX.next_multiple_of(64);
/// Nanoseconds for which a packet is held for a VM that is away.
pub const HOLD: u64 = 5_000_000_000;
/// Nanoseconds for which one is held for a VM that is full.
pub const HOLD_FULL: u64 = 200_000_000;
/// Nanoseconds after which the pager is asked again for what it has not brought.
pub const ASK_AGAIN: u64 = 1_000_000_000;
/// Nanoseconds between looks at who waits.
pub const LOOK_EVERY: u64 = 100_000_000;
/// VMs that may wait; the switch lets some more in that were in memory a moment ago. A stranger's packets, one for each VM, could otherwise
/// make it wait for a million. A power of two less an eighth: what the hash table has room for.
pub const WAITS: usize = 1792;
/// VMs that the pager is asked for again in one look.
pub const ASKS: usize = 64;

/// A packet that is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeldPacket {
    /// Its buffer.
    pub buffer: u16,
    /// Its bytes.
    pub length: u16,
    /// When it came.
    pub since: u64,
}

/// A VM that waits.
#[derive(Debug)]
pub struct Wait {
    /// What the pager was asked for last; `None`: the VM is full.
    pub need: Option<Need>,
    /// When; or when it was found to be full.
    pub asked: u64,
    /// The pager has brought it, or it has rung; it is to be looked at.
    pub back: bool,
    /// It stands in the queue of those that are back.
    queued: bool,
    /// It cannot receive: packets for it are held.
    pub deaf: bool,
    /// It has something to send.
    pub sends: bool,
    /// Its queue page lacks our indices.
    pub owes: bool,
    /// Our indices, if its queue page was read since it is waited for.
    pub own: Option<Own>,
    /// Packets for it that were lost, beyond those that `own` counts.
    dropped: u32,
    /// It is to be told.
    pub raise: bool,
    /// Lengths of packets that its queue page lacks: index of the receive entry, bytes.
    pub lengths: Vec<(u32, u32)>,
    /// Packets held for it, oldest first.
    pub held: VecDeque<HeldPacket>,
}

impl Wait {
    /// Whether it is in memory, and only lacks buffers.
    pub fn is_full(&self) -> bool {
        self.need.is_none()
    }

    /// Our indices, now that its queue page says these.
    pub fn know(&mut self, page: Own) -> Own {
        let mut own = self.own.unwrap_or(page);
        own.dropped = own.dropped.wrapping_add(core::mem::take(&mut self.dropped));
        own
    }

    /// Packets for it that were lost, as its queue page will say.
    #[cfg(test)]
    pub fn dropped(&self, page: Own) -> u32 {
        self.own.unwrap_or(page).dropped.wrapping_add(self.dropped)
    }

    /// A packet for it is lost.
    pub fn drop_one(&mut self) {
        self.dropped = self.dropped.wrapping_add(1);
        self.owes = true;
    }

    fn is_overdue(&self, now: u64) -> bool {
        let limit = if self.is_full() { HOLD_FULL } else { HOLD };
        self.held.front().is_some_and(|packet| now.saturating_sub(packet.since) >= limit)
    }

    /// A length could not be written. The ring has no room for more than its entries: what is older was overwritten.
    pub fn owe_length(&mut self, entry: u32, bytes: u32) {
        if self.lengths.len() >= ENTRIES {
            self.lengths.remove(0);
        }
        self.lengths.push((entry, bytes));
    }
}

/// All that wait.
#[derive(Debug)]
pub struct Waits {
    /// How many may.
    most: usize,
    waits: HashMap<PortId, Wait>,
    /// Buffers that are free.
    free: Vec<u16>,
    /// Those that are back, each once.
    back: VecDeque<PortId>,
}

impl Waits {
    /// Nobody; later [`WAITS`].
    pub fn new() -> Waits {
        Waits::with_room(WAITS)
    }

    /// Nobody; later so many.
    pub fn with_room(most: usize) -> Waits {
        Waits { most, waits: HashMap::new(), free: (0..HELD as u16).rev().collect(), back: VecDeque::new() }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waits.is_empty()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waits.len()
    }

    /// How many more may begin to wait because of what they send, or others send to them.
    pub fn room(&self) -> usize {
        self.most.saturating_sub(self.waits.len())
    }

    /// Who waits at a port.
    pub fn get(&self, id: PortId) -> Option<&Wait> {
        self.waits.get(&id)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, id: PortId) -> Option<&mut Wait> {
        self.waits.get_mut(&id)
    }

    /// Whether what is for a VM has to be held: it cannot receive, or something is held already, which comes first.
    pub fn is_deaf(&self, id: PortId) -> bool {
        self.waits.get(&id).is_some_and(|wait| wait.deaf || !wait.held.is_empty())
    }

    /// The pager was asked for something of a VM and has not got it yet.
    pub fn begin(&mut self, id: PortId, need: Need, now: u64) {
        self.begin_wait(id, Some(need), now);
    }

    /// A VM is full. Whether it was not before.
    pub fn begin_full(&mut self, id: PortId, now: u64) -> bool {
        let before = self.is_full(id);
        self.begin_wait(id, None, now);
        !before
    }

    fn begin_wait(&mut self, id: PortId, need: Option<Need>, now: u64) {
        let wait = self.waits.entry(id).or_insert_with(|| Wait {
            need,
            asked: now,
            back: false,
            queued: false,
            deaf: false,
            sends: false,
            owes: false,
            own: None,
            dropped: 0,
            raise: false,
            lengths: Vec::new(),
            held: VecDeque::new(),
        });
        (wait.need, wait.asked, wait.back) = (need, now, false);
    }

    /// Whether a VM is full.
    pub fn is_full(&self, id: PortId) -> bool {
        self.waits.get(&id).is_some_and(Wait::is_full)
    }

    /// Packets for a VM that waits are held from now on.
    pub fn deafen(&mut self, id: PortId) {
        if let Some(wait) = self.waits.get_mut(&id) {
            wait.deaf = true;
        }
    }

    /// A VM is back, or is to be looked at once more.
    pub fn brought(&mut self, id: PortId) {
        if let Some(wait) = self.waits.get_mut(&id) {
            wait.back = true;
            if !core::mem::replace(&mut wait.queued, true) {
                self.back.push_back(id);
            }
        }
    }

    /// The next VM that is back.
    pub fn next_back(&mut self) -> Option<PortId> {
        while let Some(id) = self.back.pop_front() {
            // A record that was made anew meanwhile may have a place of its own in the queue: the first of both counts.
            if let Some(wait) = self.waits.get_mut(&id)
                && core::mem::replace(&mut wait.queued, false)
                && wait.back
            {
                return Some(id);
            }
        }
        None
    }

    /// A free buffer for one more packet of a VM that waits and has `planned` more than those that are held.
    pub fn take_buffer(&mut self, id: PortId, planned: usize) -> Option<u16> {
        let (most, left) = if self.is_full(id) { (FULL_EACH, AWAY_ONLY) } else { (HELD_EACH, 0) };
        if self.held(id) + planned < most && self.free.len() > left { self.free.pop() } else { None }
    }

    /// Gives a buffer back.
    pub fn free_buffer(&mut self, buffer: u16) {
        self.free.push(buffer);
    }

    /// Packets held for a VM.
    pub fn held(&self, id: PortId) -> usize {
        self.waits.get(&id).map_or(0, |wait| wait.held.len())
    }

    /// Holds a packet for a VM that waits. `false` if it does not.
    pub fn hold(&mut self, id: PortId, packet: HeldPacket) -> bool {
        self.waits.get_mut(&id).is_some_and(|wait| {
            wait.held.push_back(packet);
            true
        })
    }

    /// Whether the oldest packet that is held for a VM is held for too long.
    pub fn is_overdue(&self, id: PortId, now: u64) -> bool {
        self.waits.get(&id).is_some_and(|wait| wait.is_overdue(now))
    }

    /// The oldest packet of a VM is done with.
    pub fn release(&mut self, id: PortId) {
        if let Some(packet) = self.waits.get_mut(&id).and_then(|wait| wait.held.pop_front()) {
            self.free.push(packet.buffer);
        }
    }

    /// Takes a VM out, and its packets back; what it was.
    pub fn remove(&mut self, id: PortId) -> Option<Wait> {
        let wait = self.waits.remove(&id)?;
        self.free.extend(wait.held.iter().map(|packet| packet.buffer));
        if self.waits.is_empty() {
            // After a storm the table would stay as large as that was.
            self.waits.shrink_to_fit();
        }
        Some(wait)
    }

    /// The VMs that have not been brought, or have not rung, for long, at most [`ASKS`]; and those that have packets which are too old.
    pub fn overdue(&self, now: u64) -> (Vec<PortId>, Vec<PortId>) {
        let waits = || self.waits.iter();
        let late = |wait: &Wait| {
            let limit = if wait.is_full() { LOOK_EVERY } else { ASK_AGAIN };
            !wait.back && now.saturating_sub(wait.asked) >= limit
        };
        let asks = waits().filter(|(_, wait)| late(wait)).map(|(id, _)| *id).take(ASKS).collect();
        (asks, waits().filter(|(_, wait)| wait.is_overdue(now)).map(|(id, _)| *id).collect())
    }

    /// The pager was restarted: it has forgotten what it was asked for.
    pub fn ask_all_again(&mut self) {
        for wait in self.waits.values_mut() {
            wait.asked = 0;
        }
    }
}

impl Default for Waits {
    fn default() -> Waits {
        Waits::new()
    }
}
