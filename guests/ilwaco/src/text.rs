//! Bookkeeping of the console page: a ring of output, a ring of input.

use core::{
    mem::offset_of,
    sync::atomic::{AtomicU8, AtomicU32, Ordering},
};
use protocol::text::{ConsolePage, INPUT, OUTPUT};

/// The console page ([`ConsolePage`]) as atomics, so that sharing it with the console server is plain Rust.
#[repr(C, align(4096))]
pub struct TextPage {
    written: AtomicU32,
    input_read: AtomicU32,
    read: AtomicU32,
    input_written: AtomicU32,
    output: [AtomicU8; OUTPUT],
    input: [AtomicU8; INPUT],
}

const _: () = {
    assert!(size_of::<TextPage>() == size_of::<ConsolePage>());
    assert!(offset_of!(TextPage, written) == offset_of!(ConsolePage, written));
    assert!(offset_of!(TextPage, input_read) == offset_of!(ConsolePage, input_read));
    assert!(offset_of!(TextPage, read) == offset_of!(ConsolePage, read));
    assert!(offset_of!(TextPage, input_written) == offset_of!(ConsolePage, input_written));
    assert!(offset_of!(TextPage, output) == offset_of!(ConsolePage, output));
    assert!(offset_of!(TextPage, input) == offset_of!(ConsolePage, input));
};

impl Default for TextPage {
    fn default() -> Self {
        Self::new()
    }
}

impl TextPage {
    /// Empty rings.
    pub const fn new() -> TextPage {
        TextPage {
            written: AtomicU32::new(0),
            input_read: AtomicU32::new(0),
            read: AtomicU32::new(0),
            input_written: AtomicU32::new(0),
            output: [const { AtomicU8::new(0) }; OUTPUT],
            input: [const { AtomicU8::new(0) }; INPUT],
        }
    }

    /// Bytes of output that can be written before something unread is overwritten.
    pub fn room(&self) -> usize {
        let unread = self.written.load(Ordering::Relaxed).wrapping_sub(self.read.load(Ordering::Acquire));
        OUTPUT.saturating_sub(unread as usize)
    }

    /// How far the console has read; it changes while somebody listens.
    pub fn progress(&self) -> u32 {
        self.read.load(Ordering::Acquire)
    }

    /// Whether the console has taken everything.
    pub fn is_drained(&self) -> bool {
        self.progress() == self.written.load(Ordering::Relaxed)
    }

    /// Writes bytes, over what was not read yet if there is no room.
    pub fn write(&self, bytes: &[u8]) {
        let mut written = self.written.load(Ordering::Relaxed);
        for byte in bytes {
            self.output[written as usize % OUTPUT].store(*byte, Ordering::Relaxed);
            written = written.wrapping_add(1);
        }
        // Release: the bytes are there before the console may see them counted.
        self.written.store(written, Ordering::Release);
    }

    /// Takes input; returns how many bytes.
    pub fn read(&self, buffer: &mut [u8]) -> usize {
        let mut read = self.input_read.load(Ordering::Relaxed);
        let written = self.input_written.load(Ordering::Acquire);
        // More than the ring holds: the oldest bytes are overwritten. Go on with those that are there.
        if written.wrapping_sub(read) as usize > INPUT {
            read = written.wrapping_sub(INPUT as u32);
        }
        let mut count = 0;
        for slot in buffer.iter_mut().take(written.wrapping_sub(read) as usize) {
            *slot = self.input[read as usize % INPUT].load(Ordering::Relaxed);
            read = read.wrapping_add(1);
            count += 1;
        }
        self.input_read.store(read, Ordering::Release);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{string::String, vec::Vec};

    fn take_output(page: &TextPage) -> Vec<u8> {
        let mut read = page.read.load(Ordering::Relaxed);
        let mut bytes = Vec::new();
        while read != page.written.load(Ordering::Acquire) {
            bytes.push(page.output[read as usize % OUTPUT].load(Ordering::Relaxed));
            read = read.wrapping_add(1);
        }
        page.read.store(read, Ordering::Release);
        bytes
    }

    fn type_input(page: &TextPage, bytes: &[u8]) {
        let mut written = page.input_written.load(Ordering::Relaxed);
        for byte in bytes {
            page.input[written as usize % INPUT].store(*byte, Ordering::Relaxed);
            written = written.wrapping_add(1);
        }
        page.input_written.store(written, Ordering::Release);
    }

    #[test]
    fn output_comes_out_in_order_across_the_end_of_the_ring() {
        let page = TextPage::new();
        let mut expected = String::new();
        let mut seen = String::new();
        for line in 0..500 {
            let text = std::format!("line {line}\n");
            assert!(page.room() >= text.len());
            page.write(text.as_bytes());
            assert!(!page.is_drained());
            expected.push_str(&text);
            seen.push_str(&String::from_utf8(take_output(&page)).unwrap());
            assert!(page.is_drained());
        }
        assert_eq!(seen, expected);
    }

    #[test]
    fn room_is_what_is_left() {
        let page = TextPage::new();
        assert_eq!(page.room(), OUTPUT);
        page.write(&[b'x'; 100]);
        assert_eq!(page.room(), OUTPUT - 100);
        page.write(&[b'x'; 3 * OUTPUT]);
        assert_eq!(page.room(), 0);
    }

    #[test]
    fn input_is_read_in_parts() {
        let page = TextPage::new();
        let mut buffer = [0; 4];
        assert_eq!(page.read(&mut buffer), 0);
        type_input(&page, b"hello\n");
        assert_eq!(page.read(&mut buffer), 4);
        assert_eq!(&buffer, b"hell");
        assert_eq!(page.read(&mut buffer), 2);
        assert_eq!(&buffer[..2], b"o\n");
    }

    #[test]
    fn lost_input_is_skipped() {
        let page = TextPage::new();
        type_input(&page, &[b'a'; INPUT]);
        type_input(&page, &[b'b'; 10]);
        let mut all = [0; 2 * INPUT];
        assert_eq!(page.read(&mut all), INPUT);
        assert_eq!(&all[INPUT - 10..INPUT], &[b'b'; 10]);
        assert_eq!(page.read(&mut all), 0);
    }
}
