//! The disk window: queue page and buffers, memory that guest and disk server share.
//!
//! This module holds all `unsafe` of the disks. The queue page consists of atomics, so that sharing it is plain Rust; the buffers are reached
//! through [`Pages`], by whoever keeps the books of which are in use ([`crate::blocks`]).

use core::{
    cell::UnsafeCell,
    mem::offset_of,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};
use protocol::disk::{self, BLOCK, COMPLETION_ENTRIES, ENTRIES};

/// Most buffers of a window, each of one block.
pub const BUFFERS_MAX: usize = 512;

/// A request ([`disk::Request`]).
#[repr(C)]
pub(crate) struct Request {
    kind: AtomicU32,
    disk: AtomicU32,
    block: AtomicU64,
    address: AtomicU64,
    count: AtomicU32,
    reserved: AtomicU32,
}

impl Request {
    const fn empty() -> Request {
        Request {
            kind: AtomicU32::new(0),
            disk: AtomicU32::new(0),
            block: AtomicU64::new(0),
            address: AtomicU64::new(0),
            count: AtomicU32::new(0),
            reserved: AtomicU32::new(0),
        }
    }

    pub(crate) fn set(&self, request: disk::Request) {
        self.kind.store(request.kind, Ordering::Relaxed);
        self.disk.store(request.disk, Ordering::Relaxed);
        self.block.store(request.block, Ordering::Relaxed);
        self.address.store(request.address, Ordering::Relaxed);
        self.count.store(request.count, Ordering::Relaxed);
        self.reserved.store(request.reserved, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn get(&self) -> disk::Request {
        disk::Request {
            kind: self.kind.load(Ordering::Relaxed),
            disk: self.disk.load(Ordering::Relaxed),
            block: self.block.load(Ordering::Relaxed),
            address: self.address.load(Ordering::Relaxed),
            count: self.count.load(Ordering::Relaxed),
            reserved: self.reserved.load(Ordering::Relaxed),
        }
    }
}

/// An answer ([`disk::Completion`]).
#[repr(C)]
pub(crate) struct Completion {
    pub index: AtomicU32,
    pub status: AtomicU32,
}

/// The queue page ([`disk::QueuePage`]) as atomics.
#[repr(C, align(4096))]
pub(crate) struct Queue {
    pub submitted: AtomicU32,
    reserved: [AtomicU32; 7],
    pub completed: AtomicU32,
    reserved2: [AtomicU32; 7],
    pub requests: [Request; ENTRIES],
    pub completions: [Completion; COMPLETION_ENTRIES],
}

const _: () = {
    assert!(size_of::<Queue>() == size_of::<disk::QueuePage>() && size_of::<Request>() == size_of::<disk::Request>());
    assert!(offset_of!(Queue, completed) == disk::COMPLETED);
    assert!(offset_of!(Queue, requests) == disk::REQUESTS && offset_of!(Queue, completions) == disk::COMPLETIONS);
    assert!(offset_of!(Request, disk) == offset_of!(disk::Request, disk));
    assert!(offset_of!(Request, block) == offset_of!(disk::Request, block));
    assert!(offset_of!(Request, address) == offset_of!(disk::Request, address));
    assert!(offset_of!(Request, count) == offset_of!(disk::Request, count));
    assert!(offset_of!(Completion, status) == offset_of!(disk::Completion, status));
};

#[repr(C, align(4096))]
struct Buffer(UnsafeCell<[u8; BLOCK]>);

/// A disk window with `COUNT` buffers of one block. It belongs in a static.
#[repr(C, align(4096))]
pub struct DiskWindow<const COUNT: usize> {
    queue: Queue,
    buffers: [Buffer; COUNT],
}

// SAFETY: the queue page is atomics; the buffers are reached only through the one `Pages`.
unsafe impl<const COUNT: usize> Sync for DiskWindow<COUNT> {}

impl<const COUNT: usize> Default for DiskWindow<COUNT> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const COUNT: usize> DiskWindow<COUNT> {
    /// Empty queues.
    pub const fn new() -> DiskWindow<COUNT> {
        const { assert!(COUNT > 0 && COUNT <= BUFFERS_MAX, "a disk window has 1 to 512 buffers of 4 KiB") };
        DiskWindow {
            queue: Queue {
                submitted: AtomicU32::new(0),
                reserved: [const { AtomicU32::new(0) }; 7],
                completed: AtomicU32::new(0),
                reserved2: [const { AtomicU32::new(0) }; 7],
                requests: [const { Request::empty() }; ENTRIES],
                completions: [const { Completion { index: AtomicU32::new(0), status: AtomicU32::new(0) } };
                    COMPLETION_ENTRIES],
            },
            buffers: [const { Buffer(UnsafeCell::new([0; BLOCK])) }; COUNT],
        }
    }
}

/// The right to queue page and buffers of a window. There must be one for each window, which whoever makes it sees to.
#[derive(Debug)]
pub struct Pages {
    window: *const u8,
    count: usize,
}

// SAFETY: it stands for the buffers, which are plain bytes.
unsafe impl Send for Pages {}

impl Pages {
    /// Those of a window that is used for nothing else.
    #[cfg(test)]
    pub(crate) fn of<const COUNT: usize>(window: &'static DiskWindow<COUNT>) -> Pages {
        // SAFETY: the reference is to a whole window; each test makes its own.
        unsafe { Pages::new(core::ptr::from_ref(window).cast(), size_of_val(window)) }
    }

    /// Those of the window of `length` bytes at `window`.
    ///
    /// # Safety
    /// There must be a [`DiskWindow`] of this size for ever, and no other `Pages` of it.
    #[cfg(any(test, target_os = "none"))]
    pub(crate) unsafe fn new(window: *const u8, length: usize) -> Pages {
        Pages { window, count: (length / BLOCK).saturating_sub(1).min(BUFFERS_MAX) }
    }

    /// Buffers there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn queue(&self) -> &'static Queue {
        // SAFETY: the window begins with its queue page, lives for ever, and consists of atomics where this reaches.
        unsafe { &*self.window.cast::<Queue>() }
    }

    /// Address of a buffer.
    pub(crate) fn address(&self, buffer: usize) -> u64 {
        self.window as u64 + self.offset(buffer, 0) as u64
    }

    /// Copies `bytes` into the buffers from `buffer` on.
    pub(crate) fn fill(&mut self, buffer: usize, bytes: &[u8]) {
        let to = self.at(buffer, bytes.len());
        // SAFETY: within the window, in buffers, which are in `UnsafeCell`s; `bytes` is a reference to other memory, as there is none to
        // them. The server reads them only while a request names them, and then this is not called.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Copies out of the buffers from `buffer` on.
    pub(crate) fn take(&self, buffer: usize, bytes: &mut [u8]) {
        let from = self.at(buffer, bytes.len());
        // SAFETY: as in `fill`; the server writes only while a request names them.
        unsafe { core::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
    }

    fn at(&self, buffer: usize, length: usize) -> *mut u8 {
        let offset = self.offset(buffer, length);
        // SAFETY: within the window, as just checked.
        unsafe { self.window.add(offset).cast_mut() }
    }

    /// Offset in the window of a buffer that has `length` bytes before the window ends.
    fn offset(&self, buffer: usize, length: usize) -> usize {
        assert!(buffer < self.count && length <= (self.count - buffer) * BLOCK, "outside the disk window");
        (1 + buffer) * BLOCK
    }
}
