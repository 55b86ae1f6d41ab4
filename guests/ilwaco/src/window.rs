//! The NIC window: queue page and packet buffers, memory that guest and switch share.
//!
//! This module holds all `unsafe` of the NIC. The queue page consists of atomics, so that sharing it is
//! plain Rust; a packet buffer is reached through a [`Buffer`], of which there is one for each.

use crate::packets::{BUFFERS_MAX, BUFFERS_MIN};
use core::{
    cell::UnsafeCell,
    mem::offset_of,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};
use protocol::nic::{self, ENTRIES};

/// Number of a buffer of a window.
pub(crate) type BufferIndex = u8;

/// Bytes of a buffer: two in a page.
const BUFFER: usize = 2048;
/// Bytes of the queue page behind the rings, used as one buffer more: a VM with little traffic then needs no other page.
const TAIL: usize = 4096 - nic::RECEIVE_RING - 16 * ENTRIES;

/// An entry of a ring ([`nic::Entry`]).
#[repr(C)]
pub(crate) struct Entry {
    address: AtomicU64,
    length: AtomicU32,
    reserved: AtomicU32,
}

impl Entry {
    pub(crate) fn set(&self, address: u64, length: u32) {
        self.address.store(address, Ordering::Relaxed);
        self.length.store(length, Ordering::Relaxed);
        self.reserved.store(0, Ordering::Relaxed);
    }
    pub(crate) fn length(&self) -> u32 {
        self.length.load(Ordering::Relaxed)
    }
    #[cfg(test)]
    pub(crate) fn address(&self) -> u64 {
        self.address.load(Ordering::Relaxed)
    }
}

/// The queue page ([`nic::QueuePage`]) as atomics, with the buffer at its end.
#[repr(C, align(4096))]
pub(crate) struct Queue {
    pub sent_filled: AtomicU32,
    pub offered: AtomicU32,
    pub notify: AtomicU32,
    reserved: [AtomicU32; 5],
    pub sent_taken: AtomicU32,
    pub arrived: AtomicU32,
    pub dropped: AtomicU32,
    pub refused: AtomicU32,
    pub held: AtomicU32,
    reserved2: [AtomicU32; 3],
    pub send: [Entry; ENTRIES],
    pub receive: [Entry; ENTRIES],
    tail: UnsafeCell<[u8; TAIL]>,
}

const _: () = {
    assert!(size_of::<Queue>() == size_of::<nic::QueuePage>() && size_of::<Entry>() == size_of::<nic::Entry>());
    assert!(offset_of!(Queue, sent_filled) == offset_of!(nic::Indices, sent_filled));
    assert!(offset_of!(Queue, offered) == offset_of!(nic::Indices, offered));
    assert!(offset_of!(Queue, notify) == offset_of!(nic::Indices, notify));
    assert!(offset_of!(Queue, sent_taken) == offset_of!(nic::Indices, sent_taken));
    assert!(offset_of!(Queue, arrived) == offset_of!(nic::Indices, arrived));
    assert!(offset_of!(Queue, dropped) == offset_of!(nic::Indices, dropped));
    assert!(offset_of!(Queue, refused) == offset_of!(nic::Indices, refused));
    assert!(offset_of!(Queue, held) == offset_of!(nic::Indices, held));
    assert!(offset_of!(Queue, send) == nic::SEND_RING && offset_of!(Queue, receive) == nic::RECEIVE_RING);
    assert!(TAIL >= nic::FRAME_MAX && BUFFER >= nic::FRAME_MAX);
};

/// A NIC window with `COUNT` packet buffers besides the one in the queue page. It belongs in a static.
#[repr(C, align(4096))]
pub struct Window<const COUNT: usize> {
    queue: Queue,
    buffers: [UnsafeCell<[u8; BUFFER]>; COUNT],
}

// SAFETY: the queue page is atomics; the buffers are reached only through a `Buffer`, of which there is one for each.
unsafe impl<const COUNT: usize> Sync for Window<COUNT> {}

impl<const COUNT: usize> Default for Window<COUNT> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const COUNT: usize> Window<COUNT> {
    /// Empty queues.
    pub const fn new() -> Window<COUNT> {
        const { assert!(COUNT + 1 >= BUFFERS_MIN && COUNT < BUFFERS_MAX, "a NIC has 3 to 63 packet buffers") };
        Window {
            queue: Queue {
                sent_filled: AtomicU32::new(0),
                offered: AtomicU32::new(0),
                notify: AtomicU32::new(0),
                reserved: [const { AtomicU32::new(0) }; 5],
                sent_taken: AtomicU32::new(0),
                arrived: AtomicU32::new(0),
                dropped: AtomicU32::new(0),
                refused: AtomicU32::new(0),
                held: AtomicU32::new(0),
                reserved2: [const { AtomicU32::new(0) }; 3],
                send: [const { Entry { address: AtomicU64::new(0), length: AtomicU32::new(0), reserved: AtomicU32::new(0) } };
                    ENTRIES],
                receive: [const {
                    Entry { address: AtomicU64::new(0), length: AtomicU32::new(0), reserved: AtomicU32::new(0) }
                }; ENTRIES],
                tail: UnsafeCell::new([0; TAIL]),
            },
            buffers: [const { UnsafeCell::new([0; BUFFER]) }; COUNT],
        }
    }

    #[cfg(test)]
    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// What a switch does: writes a packet to an address that was offered.
    #[cfg(test)]
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        let start = core::ptr::from_ref(self) as u64;
        assert!(address >= start && address + bytes.len() as u64 <= start + size_of::<Self>() as u64);
        // SAFETY: inside the window, in a buffer that was offered: nobody else uses it.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
    }

    /// What a switch does: copies a packet that was put up for sending.
    #[cfg(test)]
    pub(crate) fn read(&self, address: u64, length: usize) -> std::vec::Vec<u8> {
        let start = core::ptr::from_ref(self) as u64;
        assert!(address >= start && address + length as u64 <= start + size_of::<Self>() as u64);
        // SAFETY: inside the window, in a buffer that was put up for sending: nobody writes it.
        unsafe { core::slice::from_raw_parts(address as *const u8, length) }.to_vec()
    }
}

/// The right to all buffers of a window. There must be one for each window, which whoever makes it sees to.
#[derive(Debug)]
pub struct Buffers {
    window: *const u8,
    count: BufferIndex,
}

// SAFETY: it stands for the buffers, which are plain bytes.
unsafe impl Send for Buffers {}

impl Buffers {
    /// The buffers of a window.
    #[cfg(test)]
    pub(crate) fn of<const COUNT: usize>(window: &'static Window<COUNT>) -> Buffers {
        // SAFETY: the reference is to a whole window; each test makes its own.
        unsafe { Buffers::new(core::ptr::from_ref(window).cast(), size_of_val(window)) }
    }

    /// The buffers of the window of `length` bytes at `window`.
    ///
    /// # Safety
    /// There must be a [`Window`] of this size for ever, and no other `Buffers` of it.
    #[cfg(any(test, target_os = "none"))]
    pub(crate) unsafe fn new(window: *const u8, length: usize) -> Buffers {
        // What does not fill a whole buffer (an odd one makes half a page) is not used.
        let buffers = length.saturating_sub(4096) / BUFFER;
        Buffers { window, count: buffers.min(BUFFERS_MAX - 1) as BufferIndex + 1 }
    }

    /// Buffers there are, that in the queue page included.
    pub(crate) fn count(&self) -> BufferIndex {
        self.count
    }

    pub(crate) fn queue(&self) -> &'static Queue {
        // SAFETY: the window begins with its queue page, lives for ever, and consists of atomics where this reaches.
        unsafe { &*self.window.cast::<Queue>() }
    }

    /// Address and capacity of a buffer.
    pub(crate) fn place(&self, index: BufferIndex) -> (u64, u32) {
        let (offset, capacity) = place(index);
        (self.window as u64 + offset as u64, capacity as u32)
    }

    /// The bytes of a buffer. The caller (`packets`) takes a buffer only out of the pool or after the switch is done with it.
    pub(crate) fn take(&self, index: BufferIndex) -> Buffer {
        Buffer { window: self.window, index: index.min(self.count - 1) }
    }
}

/// Offset in the window, and capacity.
fn place(index: BufferIndex) -> (usize, usize) {
    match usize::from(index).checked_sub(1) {
        None => (offset_of!(Queue, tail), TAIL),
        Some(index) => (4096 + index * BUFFER, BUFFER),
    }
}

/// A buffer in use by the guest.
#[derive(Debug)]
pub(crate) struct Buffer {
    window: *const u8,
    index: BufferIndex,
}

impl Buffer {
    pub(crate) fn index(&self) -> BufferIndex {
        self.index
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        let (offset, capacity) = place(self.index);
        // SAFETY: `Buffers` checked that the index lies in the window, whose buffers are in `UnsafeCell`s. A buffer that has a
        // `Buffer` is in no ring and not in the pool: neither the switch nor another `Buffer` uses it.
        unsafe { core::slice::from_raw_parts_mut(self.window.add(offset).cast_mut(), capacity) }
    }
}
