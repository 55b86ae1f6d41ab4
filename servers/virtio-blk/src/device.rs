//! The device as the kit for block drivers wants it.
//!
//! A request is a chain of two or three descriptors: a header, the data (straight in the memory shared with the client), a
//! status byte. Headers and status bytes lie in a page of the device's memory, in the place of the request's tag.

use alloc::{boxed::Box, collections::VecDeque, format, vec, vec::Vec};
use bitflags::bitflags;
use block_driver::{BlockDriver, Dma, Failure, Geometry, Problem, Request};
use protocol::service::block_driver::{BLOCK, BUFFER};
use server_runtime::mmio;
use virtio::{
    Interrupts, Wire,
    hal::{self, Memory},
};
use virtio_drivers::{queue::VirtQueue, transport::DeviceStatus};

/// The queue (virtio 1.2, 5.2.2).
const QUEUE: u16 = 0;
/// Its descriptors.
const DESCRIPTORS: usize = 256;
/// Most descriptors of a request.
const CHAIN: usize = 3;
/// Requests that can be under way.
const TAGS: usize = DESCRIPTORS / CHAIN;
/// Bytes of a sector, the unit of positions and of the capacity (5.2.4), whatever the device's own sectors are.
const SECTOR: u64 = 512;
const SECTORS: u64 = BLOCK as u64 / SECTOR;

/// Offsets in the configuration (5.2.4).
const CONFIG_CAPACITY: usize = 0;
const CONFIG_SIZE_MAX: usize = 8;
const CONFIG_BLK_SIZE: usize = 20;
const CONFIG_ZEROES_SECTORS: usize = 48;
const CONFIG_ZEROES_SEGMENTS: usize = 52;
const CONFIG_ZEROES_UNMAP: usize = 56;

/// Kinds of requests (5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const WRITE_ZEROES: u32 = 13;
/// What became of them.
const STATUS_OK: u8 = 0;
const STATUS_UNSUPPORTED: u8 = 2;
const STATUS_NONE: u8 = 0xff;
/// In a segment to zero: it need not stay allocated.
const UNMAP: u32 = 1;
/// Most blocks zeroed at once: other requests wait for a device that does one thing at a time.
const ZERO_MOST: u32 = (32 << 20) / BLOCK as u32;

/// Where the parts of a request lie in the place of its tag: header (5.2.6), segment to zero (5.2.6.1), status.
const PLACE: usize = 48;
const HEADER: usize = 16;
const SEGMENT: usize = 16;
const SEGMENT_AT: usize = HEADER;
const STATUS_AT: usize = HEADER + SEGMENT;
const _: () = assert!(TAGS * PLACE <= BLOCK && STATUS_AT < PLACE);

bitflags! {
    /// What the device can do (5.2.3, 6).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Features: u64 {
        const SIZE_MAX = 1 << 1;
        const RO = 1 << 5;
        const BLK_SIZE = 1 << 6;
        const FLUSH = 1 << 9;
        const WRITE_ZEROES = 1 << 14;
        const VERSION_1 = 1 << 32;
        /// An IOMMU is between it and memory: addresses are as `platform` gave them all the same.
        const ACCESS_PLATFORM = 1 << 33;
    }
}

type Queue = VirtQueue<Memory, DESCRIPTORS>;

/// A virtio block device.
pub struct VirtioBlk<W> {
    wire: W,
    interrupts: Interrupts,
    /// The places of the tags.
    places: Dma,
    queue: Option<Box<Queue>>,
    /// By the first descriptor of a request: its tag, and what it is.
    entries: Vec<Option<(usize, Request)>>,
    /// Flushes that a device without a cache need not be asked for.
    flushed: VecDeque<usize>,
    /// Whether requests were added that the device was not told of.
    added: bool,
    geometry: Geometry,
    unmap: bool,
    has_flush: bool,
}

impl<W: Wire> VirtioBlk<W> {
    /// The device behind `wire`. Nothing is done with it before [`BlockDriver::reset`].
    pub fn new(wire: W, interrupts: Interrupts) -> Result<VirtioBlk<W>, Problem> {
        let places = hal::allocate(1).ok_or("the memory for the device is too small")?;
        Ok(VirtioBlk {
            wire,
            interrupts,
            places,
            queue: None,
            entries: vec![None; DESCRIPTORS],
            flushed: VecDeque::new(),
            added: false,
            geometry: Geometry { blocks: 0, sector: SECTOR as u32, read_only: false, zero_most: 0 },
            unmap: false,
            has_flush: false,
        })
    }

    fn read_geometry(&mut self, features: Features) -> virtio_drivers::Result<()> {
        let wire = &self.wire;
        let word = |offset| wire.read_config_space::<u32>(offset);
        let optional = |feature, offset, absent| if features.contains(feature) { word(offset) } else { Ok(absent) };
        let (geometry, unmap) = wire.read_consistent(|| {
            let sectors = u64::from(word(CONFIG_CAPACITY)?) | u64::from(word(CONFIG_CAPACITY + 4)?) << 32;
            let segments = optional(Features::WRITE_ZEROES, CONFIG_ZEROES_SEGMENTS, 0)?;
            let zeroes = optional(Features::WRITE_ZEROES, CONFIG_ZEROES_SECTORS, 0)?;
            let geometry = Geometry {
                blocks: sectors / SECTORS,
                sector: optional(Features::BLK_SIZE, CONFIG_BLK_SIZE, SECTOR as u32)?,
                read_only: features.contains(Features::RO),
                zero_most: if segments > 0 { (zeroes / SECTORS as u32).min(ZERO_MOST) } else { 0 },
            };
            let unmap = geometry.zero_most > 0 && wire.read_config_space::<u8>(CONFIG_ZEROES_UNMAP)? != 0;
            Ok((geometry, unmap))
        })?;
        (self.geometry, self.unmap) = (geometry, unmap);
        Ok(())
    }

    /// The longest piece of memory that the device takes.
    fn size_max(&self, features: Features) -> virtio_drivers::Result<u32> {
        if features.contains(Features::SIZE_MAX) { self.wire.read_config_space(CONFIG_SIZE_MAX) } else { Ok(u32::MAX) }
    }

    /// Writes the header of a request into the place of its tag.
    fn describe(&self, tag: usize, request: &Request) {
        let place = self.places.memory.part(tag * PLACE, PLACE);
        let (kind, block) = match *request {
            Request::Read { block, .. } => (IN, block),
            Request::Write { block, .. } => (OUT, block),
            Request::Flush => (FLUSH, 0),
            Request::Zero { block, count } => {
                place.write_u64(SEGMENT_AT, block * SECTORS);
                place.write_u32(SEGMENT_AT + 8, count * SECTORS as u32);
                place.write_u32(SEGMENT_AT + 12, if self.unmap { UNMAP } else { 0 });
                (WRITE_ZEROES, 0)
            }
        };
        place.write_u32(0, kind);
        place.write_u32(4, 0);
        place.write_u64(8, block * SECTORS);
        place.write_u8(STATUS_AT, STATUS_NONE);
    }

    /// Calls `work` with the queue and the parts of a request: those that the device reads, and those that it writes.
    ///
    /// # Safety
    /// As for [`VirtQueue::add`] and [`VirtQueue::pop_used`]: nobody else may use the parts while `work` runs.
    unsafe fn with_parts<R>(
        &mut self,
        tag: usize,
        request: &Request,
        work: impl for<'a> FnOnce(&mut Queue, &'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> R,
    ) -> Option<R> {
        let queue = self.queue.as_mut()?;
        let place = self.places.memory.part(tag * PLACE, PLACE);
        let slice = |memory: mmio::Region| core::ptr::slice_from_raw_parts_mut(memory.base().as_ptr(), memory.length());
        let header = slice(place.part(0, HEADER));
        let segment = slice(place.part(SEGMENT_AT, SEGMENT));
        let status = slice(place.part(STATUS_AT, 1));
        // SAFETY: the parts lie in regions that are mapped for the life of the driver and do not overlap; that nobody uses them
        // is up to the caller. The slices live for this call only; the queue keeps their addresses.
        unsafe {
            Some(match request {
                Request::Read { buffer, .. } => {
                    work(queue, &[&*header], &mut [&mut *slice(buffer.memory), &mut *status])
                }
                Request::Write { buffer, .. } => work(queue, &[&*header, &*slice(buffer.memory)], &mut [&mut *status]),
                Request::Flush => work(queue, &[&*header], &mut [&mut *status]),
                Request::Zero { .. } => work(queue, &[&*header, &*segment], &mut [&mut *status]),
            })
        }
    }
}

impl<W: Wire> BlockDriver for VirtioBlk<W> {
    fn tags(&self) -> usize {
        TAGS
    }

    fn reset(&mut self) -> Result<(), Problem> {
        self.wire.reset()?;
        // Its memory is free for the new one only after the device was reset.
        self.queue = None;
        self.entries.fill(None);
        self.flushed.clear();
        self.added = false;
        let features = self.wire.begin_init(Features::all());
        if !features.contains(Features::VERSION_1) {
            return Err("the device is older than virtio 1.0".into());
        }
        if !self.wire.get_status().contains(DeviceStatus::FEATURES_OK) {
            return Err("the device does not take the features that it offered".into());
        }
        self.read_geometry(features).map_err(|error| format!("configuration: {error}"))?;
        let size_max = self.size_max(features).map_err(|error| format!("configuration: {error}"))?;
        if (size_max as usize) < BUFFER {
            return Err(format!("the device takes {size_max} bytes at once, which is not enough"));
        }
        self.has_flush = features.contains(Features::FLUSH);
        let queue = Queue::new(&mut self.wire, QUEUE, false, false)
            .map_err(|error| format!("queue of {DESCRIPTORS} entries: {error}"))?;
        self.queue = Some(Box::new(queue));
        if !self.wire.has_interrupts() {
            return Err("the device has no room for its interrupt vectors".into());
        }
        self.wire.finish_init();
        Ok(())
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, tag: usize, request: Request) {
        if matches!(request, Request::Flush) && !self.has_flush {
            self.flushed.push_back(tag);
            return;
        }
        self.describe(tag, &request);
        // SAFETY: the place of the tag is the request's until it is finished, and the kit leaves the buffer alone until then. A client
        // may write to it all the same, but only through memory of its own; nothing here depends on what is in it.
        let token = unsafe { self.with_parts(tag, &request, |queue, inputs, outputs| queue.add(inputs, outputs)) };
        // The kit gives each tag once, and the queue has a chain for each.
        if let Some(token) = token.map(|token| token.expect("the queue takes a request for each tag")) {
            self.entries[usize::from(token)] = Some((tag, request));
            self.added = true;
        }
    }

    fn notify(&mut self) {
        if core::mem::replace(&mut self.added, false)
            && let Some(queue) = &self.queue
        {
            // The device must see the requests before we see whether it wants to be told.
            mmio::full_fence();
            if queue.should_notify() {
                self.wire.notify(QUEUE);
            }
        }
    }

    fn finished(&mut self) -> Option<(usize, Result<(), Failure>)> {
        if let Some(tag) = self.flushed.pop_front() {
            return Some((tag, Ok(())));
        }
        let token = self.queue.as_ref()?.peek_used()?;
        let known = self.entries.get_mut(usize::from(token)).and_then(Option::take);
        // A device that gives back what it was not given cannot be trusted with memory: the driver starts anew.
        let (tag, request) = known.expect("the device gives back a request that it does not have");
        // SAFETY: the same parts as in `submit`, and nobody else uses them yet.
        let popped =
            unsafe { self.with_parts(tag, &request, |queue, inputs, outputs| queue.pop_used(token, inputs, outputs)) };
        popped?.expect("the request is finished");
        let result = match self.places.memory.read_u8(tag * PLACE + STATUS_AT) {
            STATUS_OK => Ok(()),
            STATUS_UNSUPPORTED => Err(Failure::Unsupported),
            _ => Err(Failure::Failed),
        };
        Some((tag, result))
    }

    fn interrupt(&mut self, lines: u64) {
        // A disk that changes its size is not there yet: partitions lie where they were.
        let _ = self.interrupts.acknowledge(&mut self.wire, lines);
    }
}

#[cfg(test)]
mod tests;
