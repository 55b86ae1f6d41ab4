//! The queue page of a VM's NIC, read as what a stranger wrote.

use protocol::{
    layout::PAGE,
    nic::{
        ENTRIES, Entry, FRAME_MAX, FRAME_MIN, Indices, NOTIFY_LOOK, NOTIFY_NEVER, RECEIVE_RING, SEND_RING,
        SWITCH_INDICES,
    },
};

/// Bytes of the page up to the end of the send ring.
pub const SEND_PART: usize = RECEIVE_RING;
/// Bytes of the page that are used.
pub const WHOLE: usize = RECEIVE_RING + ENTRIES * size_of::<Entry>();

/// The indices that the switch writes, as it keeps them for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Own {
    /// Packets taken.
    pub taken: u32,
    /// Packets that have arrived.
    pub arrived: u32,
    /// Packets dropped for want of a buffer.
    pub dropped: u32,
    /// Packets refused.
    pub refused: u32,
}

impl Own {
    /// Bytes of them in the page, from [`SWITCH_INDICES`].
    pub const LENGTH: usize = 20;

    /// As they are in the page. `held`: packets are held for the VM.
    pub fn to_bytes(self, held: bool) -> [u8; Own::LENGTH] {
        let mut bytes = [0; Own::LENGTH];
        let words = [self.taken, self.arrived, self.dropped, self.refused, u32::from(held)];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// A copy of a queue page, or of its first [`SEND_PART`] bytes.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a>(pub &'a [u8]);

impl Page<'_> {
    fn word(&self, offset: usize) -> u32 {
        self.0.get(offset..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    fn entry(&self, ring: usize, index: u32) -> Entry {
        let offset = ring + index as usize % ENTRIES * size_of::<Entry>();
        let address = u64::from(self.word(offset)) | u64::from(self.word(offset + 4)) << 32;
        Entry { address, length: self.word(offset + 8), reserved: self.word(offset + 12) }
    }

    /// The indices as an earlier incarnation of the switch left them. The VM may have changed them, to its own harm.
    pub fn own(&self) -> Own {
        let word = |index: usize| self.word(SWITCH_INDICES + index * 4);
        Own { taken: word(0), arrived: word(1), dropped: word(2), refused: word(3) }
    }

    /// The VM's index of packets put up for sending.
    pub fn filled(&self) -> u32 {
        self.word(core::mem::offset_of!(Indices, sent_filled))
    }

    /// Packets put up for sending beyond `taken`; `None` if the VM's index makes no sense.
    pub fn unsent(&self, taken: u32) -> Option<u32> {
        Some(self.filled().wrapping_sub(taken)).filter(|count| *count as usize <= ENTRIES)
    }

    /// Whether the VM is to be told of a look at which packets were taken.
    pub fn notifies_taken(&self) -> bool {
        self.notify() != NOTIFY_NEVER
    }

    /// Whether the VM is to be told of a look at which there was nothing to take.
    pub fn notifies_none(&self) -> bool {
        self.notify() == NOTIFY_LOOK
    }

    fn notify(&self) -> u32 {
        self.word(core::mem::offset_of!(Indices, notify))
    }

    /// Buffers offered beyond `arrived`; none if the VM's index makes no sense.
    pub fn offered(&self, arrived: u32) -> u32 {
        let offered = self.word(core::mem::offset_of!(Indices, offered));
        Some(offered.wrapping_sub(arrived)).filter(|count| *count as usize <= ENTRIES).unwrap_or(0)
    }

    /// The packet to send at `index`, if the entry makes sense.
    pub fn send(&self, index: u32, window: Window) -> Option<Entry> {
        let entry = self.entry(SEND_RING, index);
        let length = entry.length as usize;
        ((FRAME_MIN..=FRAME_MAX).contains(&length) && entry.reserved == 0 && window.holds(entry.address, length))
            .then_some(entry)
    }

    /// The buffer to receive into at `index`, if it is one and holds `length` bytes.
    pub fn receive(&self, index: u32, length: usize, window: Window) -> Option<Entry> {
        let entry = self.entry(RECEIVE_RING, index);
        (entry.length as usize >= length && entry.reserved == 0 && window.holds(entry.address, length)).then_some(entry)
    }
}

/// Offset in the page of the length of receive entry `index`.
pub fn receive_length(index: u32) -> usize {
    RECEIVE_RING + index as usize % ENTRIES * size_of::<Entry>() + core::mem::offset_of!(Entry, length)
}

/// The part of a VM's memory in which its queue page and buffers lie; the queue page comes first. Kept in pages: a port is small.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Window {
    first: u32,
    pages: u32,
}

impl Window {
    /// No window.
    pub const NONE: Window = Window { first: 0, pages: 0 };

    /// The window with this address and length; `None` if it is not whole pages, too small for a queue page, or larger than any memory.
    pub fn new(address: u64, length: u64) -> Option<Window> {
        if !address.is_multiple_of(PAGE) || !length.is_multiple_of(PAGE) || length == 0 {
            return None;
        }
        let (first, pages) = (u32::try_from(address / PAGE).ok()?, u32::try_from(length / PAGE).ok()?);
        first.checked_add(pages).map(|_| Window { first, pages })
    }

    /// First byte: where the queue page is.
    pub const fn address(self) -> u64 {
        self.first as u64 * PAGE
    }

    /// Bytes.
    pub const fn length(self) -> u64 {
        self.pages as u64 * PAGE
    }

    /// Whether a buffer lies within. It may lie in the queue page, whose end is free; a VM that has its own queues
    /// overwritten harms only itself.
    pub fn holds(self, address: u64, length: usize) -> bool {
        let Some(offset) = address.checked_sub(self.address()) else {
            return false;
        };
        offset.checked_add(length as u64).is_some_and(|end| end <= self.length())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const WINDOW: Window = Window { first: 0x204, pages: 8 };

    #[test]
    fn windows_have_edges() {
        assert_eq!(Window::new(0x20_4000, 0x8000), Some(WINDOW));
        assert_eq!((WINDOW.address(), WINDOW.length()), (0x20_4000, 0x8000));
        assert!(WINDOW.holds(0x20_4000, 0x8000));
        assert!(WINDOW.holds(0x20_5000, 0x7000));
        assert!(!WINDOW.holds(0x20_5000, 0x7001));
        assert!(!WINDOW.holds(0x20_3000, 10));
        assert!(!WINDOW.holds(u64::MAX - 5, 10));
        let wrong = [(0x20_4000, 0), (0x20_4001, 0x1000), (0x20_4000, 0x1001), (!0xfff, 0x1000), (0x1000, !0xfff)];
        for (address, length) in wrong {
            assert_eq!(Window::new(address, length), None);
        }
    }

    #[test]
    fn own_indices_survive_the_page() {
        let own = Own { taken: 1, arrived: u32::MAX, dropped: 3, refused: 4 };
        for held in [false, true] {
            let mut page = [0; WHOLE];
            page[SWITCH_INDICES..][..Own::LENGTH].copy_from_slice(&own.to_bytes(held));
            assert_eq!(Page(&page).own(), own);
            assert_eq!(page[core::mem::offset_of!(Indices, held)], u8::from(held));
        }
    }

    #[test]
    fn indices_wrap() {
        let mut page = [0; WHOLE];
        page[..4].copy_from_slice(&3u32.to_le_bytes());
        page[4..8].copy_from_slice(&20u32.to_le_bytes());
        assert_eq!(Page(&page).unsent(u32::MAX - 1), Some(5));
        assert_eq!(Page(&page).unsent(4), None);
        assert_eq!((Page(&page).offered(0), Page(&page).offered(u32::MAX - 100)), (20, 0));
    }

    proptest! {
        #[test]
        fn any_page_gives_sensible_entries(page in prop::collection::vec(any::<u8>(), 0..=WHOLE), index: u32, length in 0usize..2000) {
            let page = Page(&page);
            if let Some(entry) = page.send(index, WINDOW) {
                prop_assert!(WINDOW.holds(entry.address, entry.length as usize));
                prop_assert!((FRAME_MIN..=FRAME_MAX).contains(&(entry.length as usize)));
            }
            if let Some(entry) = page.receive(index, length, WINDOW) {
                prop_assert!(entry.length as usize >= length && WINDOW.holds(entry.address, length));
            }
            prop_assert!(page.offered(index) as usize <= ENTRIES);
            prop_assert!(page.unsent(index).unwrap_or(0) as usize <= ENTRIES);
            let _ = (page.own(), Vec::from(page.own().to_bytes(false)));
        }
    }
}
