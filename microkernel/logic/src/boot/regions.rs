//! Memory as a list of regions in whole pages.

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Most regions. A PC has about ten, one with UEFI perhaps thirty.
pub const REGIONS: usize = 64;
/// End of all physical addresses (Intel SDM vol. 3, 4.1.4).
const END: u64 = 1 << 52;

/// A range of physical addresses: first byte, bytes.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

impl Region {
    /// First byte after it.
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }

    /// From one address to another; empty if the other is not behind it.
    pub const fn between(start: u64, end: u64) -> Region {
        Region { start, length: end.saturating_sub(start) }
    }
}

/// Regions in the order of their addresses, of whole pages, none empty; between two of them there is something else.
#[derive(Clone, Debug)]
pub struct Regions {
    list: [Region; REGIONS],
    count: usize,
    lost: u64,
}

impl Default for Regions {
    fn default() -> Regions {
        Regions { list: [Region::default(); REGIONS], count: 0, lost: 0 }
    }
}

impl Regions {
    /// The regions.
    pub fn list(&self) -> &[Region] {
        &self.list[..self.count]
    }

    /// All bytes.
    pub fn total(&self) -> u64 {
        self.list().iter().map(|region| region.length).sum()
    }

    /// First byte after the last region.
    pub fn end(&self) -> u64 {
        self.list().last().map_or(0, Region::end)
    }

    /// Bytes that were given up because there were more than [`REGIONS`] regions: the smallest of them.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Adds the pages that lie within a region.
    pub fn add(&mut self, region: Region) {
        let mut start = region.start.min(END).next_multiple_of(PAGE);
        let mut end = region.end().min(END) & !(PAGE - 1);
        if start >= end {
            return;
        }
        let first = self.list().partition_point(|known| known.end() < start);
        while let Some(known) = self.list().get(first).filter(|known| known.start <= end) {
            (start, end) = (start.min(known.start), end.max(known.end()));
            self.remove(first);
        }
        self.insert(first, Region::between(start, end));
    }

    /// Takes away the pages that a region touches.
    pub fn subtract(&mut self, region: Region) {
        if region.length == 0 {
            return;
        }
        let (start, end) = (region.start & !(PAGE - 1), region.end().min(END).next_multiple_of(PAGE));
        let mut at = self.list().partition_point(|known| known.end() <= start);
        while let Some(known) = self.list().get(at).copied().filter(|known| known.start < end) {
            self.remove(at);
            for rest in [Region::between(known.start, start), Region::between(end, known.end())] {
                if rest.length > 0 {
                    at = self.insert(at, rest);
                }
            }
        }
    }

    /// Takes bytes, rounded up to whole pages, off the beginning of the largest region in which they end at or before `limit`.
    pub fn take(&mut self, bytes: u64, limit: u64) -> Option<u64> {
        let bytes = bytes.checked_next_multiple_of(PAGE)?;
        let inside = |region: &&Region| region.length >= bytes && region.start + bytes <= limit;
        let start = self.list().iter().filter(inside).max_by_key(|region| region.length)?.start;
        self.subtract(Region { start, length: bytes });
        Some(start)
    }

    /// The largest region, and all others. Nothing is copied: boot has a small stack.
    pub fn largest(&self) -> (Region, impl Iterator<Item = Region>) {
        let largest = self.list().iter().copied().max_by_key(|region| region.length).unwrap_or_default();
        (largest, self.list().iter().copied().filter(move |region| region.start != largest.start))
    }

    fn remove(&mut self, at: usize) {
        self.list.copy_within(at + 1..self.count, at);
        self.count -= 1;
        self.list[self.count] = Region::default();
    }

    /// Inserts a region; if there is no room, the smallest of all is given up. The answer is where the one behind it is.
    fn insert(&mut self, mut at: usize, region: Region) -> usize {
        if self.count == REGIONS {
            let smallest = (0..REGIONS).min_by_key(|index| self.list[*index].length).unwrap_or(0);
            if self.list[smallest].length >= region.length {
                self.lost += region.length;
                return at;
            }
            self.lost += self.list[smallest].length;
            self.remove(smallest);
            at -= usize::from(smallest < at);
        }
        self.list.copy_within(at..self.count, at + 1);
        self.list[at] = region;
        self.count += 1;
        at + 1
    }
}
