//! Access to memory that others change too: device registers, and pages shared with other servers.
//!
//! A [`Region`] is used by offset. Each access is checked against its length (a driver's mistake is a panic with its
//! place, not a wild write) and made exactly once, in program order. Values that come from a device or from another
//! server are copies: check the copy.

use core::{
    fmt,
    ptr::NonNull,
    sync::atomic::{Ordering, compiler_fence, fence},
};

/// A range of such memory. Copies name the same memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Region {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: a region is an address; all access is volatile and takes others' changes for granted.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({:p}, {:#x} bytes)", self.base, self.length)
    }
}

macro_rules! accessors {
    ($($type:ty, $read:ident, $write:ident;)*) => {$(
        #[doc = concat!("Reads a `", stringify!($type), "` at `offset`, a multiple of its size. Later accesses stay behind it.")]
        #[inline]
        #[track_caller]
        pub fn $read(&self, offset: usize) -> $type {
            let pointer = self.at(offset, size_of::<$type>()).cast::<$type>();
            assert!(pointer.is_aligned(), "access at {offset:#x} is not aligned");
            // SAFETY: within the region and aligned.
            let value = unsafe { pointer.read_volatile() };
            compiler_fence(Ordering::Acquire);
            value
        }

        #[doc = concat!("Writes a `", stringify!($type), "` at `offset`, a multiple of its size. Earlier accesses stay before it.")]
        #[inline]
        #[track_caller]
        pub fn $write(&self, offset: usize, value: $type) {
            let pointer = self.at(offset, size_of::<$type>()).cast::<$type>();
            assert!(pointer.is_aligned(), "access at {offset:#x} is not aligned");
            compiler_fence(Ordering::Release);
            // SAFETY: within the region and aligned.
            unsafe { pointer.write_volatile(value) };
        }
    )*};
}

impl Region {
    /// `length` bytes from `base`.
    ///
    /// # Safety
    /// They must stay mapped (writable if it is written) as long as the region or a copy of it is used, and no Rust
    /// reference may exist to any of them.
    pub const unsafe fn new(base: NonNull<u8>, length: usize) -> Region {
        Region { base, length }
    }

    /// Memory that nobody uses otherwise from here on: a leaked allocation, for tests off the metal.
    pub const fn of(memory: &'static mut [u64]) -> Region {
        let length = size_of_val(memory);
        // SAFETY: a slice is never at address 0.
        let base = unsafe { NonNull::new_unchecked(memory.as_mut_ptr().cast()) };
        Region { base, length }
    }

    /// Bytes.
    pub const fn length(&self) -> usize {
        self.length
    }

    /// First byte, for libraries that want an address.
    pub const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// A part of it. Panics if it is not within.
    #[track_caller]
    pub fn part(&self, offset: usize, length: usize) -> Region {
        Region { base: self.at(offset, length), length }
    }

    accessors! {
        u8, read_u8, write_u8;
        u16, read_u16, write_u16;
        u32, read_u32, write_u32;
        u64, read_u64, write_u64;
    }

    /// Writes back what the processor has of these bytes in its caches, for devices that do not look there.
    #[track_caller]
    pub fn flush(&self, offset: usize, length: usize) {
        const LINE: usize = 64;
        let start = self.at(offset, length).as_ptr();
        let first = start.addr() % LINE;
        compiler_fence(Ordering::SeqCst);
        for at in (0..first + length).step_by(LINE) {
            // SAFETY: the instruction exists on every x86-64 processor, changes no memory, and the address is within the region's pages.
            unsafe { core::arch::x86_64::_mm_clflush(start.wrapping_sub(first).wrapping_add(at)) };
        }
        fence(Ordering::SeqCst);
    }

    /// Copies bytes at `offset` out into `to`.
    #[track_caller]
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) {
        let from = self.at(offset, to.len());
        compiler_fence(Ordering::SeqCst);
        // SAFETY: within the region, which no reference covers, so `to` is elsewhere; any bytes are valid.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr(), to.len()) };
        compiler_fence(Ordering::SeqCst);
    }

    /// Copies `from` in at `offset`.
    #[track_caller]
    pub fn copy_in(&self, offset: usize, from: &[u8]) {
        let to = self.at(offset, from.len());
        compiler_fence(Ordering::SeqCst);
        // SAFETY: within the region, which no reference covers, so `from` is elsewhere.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), from.len()) };
        compiler_fence(Ordering::SeqCst);
    }

    /// Sets `length` bytes at `offset` to zero.
    #[track_caller]
    pub fn zero(&self, offset: usize, length: usize) {
        let to = self.at(offset, length);
        // SAFETY: within the region, which no reference covers.
        unsafe { to.write_bytes(0, length) };
        compiler_fence(Ordering::SeqCst);
    }

    #[inline]
    #[track_caller]
    fn at(&self, offset: usize, length: usize) -> NonNull<u8> {
        let end = offset.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.length), "access of {length} bytes at {offset:#x} leaves {self:?}");
        // SAFETY: the offset is within the region, as just checked.
        unsafe { self.base.add(offset) }
    }
}

/// Everything written so far is seen by others before anything read from now on: for "put up work, then look whether the
/// other side sleeps".
#[inline]
pub fn full_fence() {
    fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(memory: &mut [u64]) -> Region {
        let length = size_of_val(memory);
        // SAFETY: the tests do not use the memory otherwise while the region is used.
        unsafe { Region::new(NonNull::new(memory.as_mut_ptr()).unwrap().cast(), length) }
    }

    #[test]
    fn reads_what_was_written() {
        let mut memory = [0; 4];
        let region = region(&mut memory);
        region.write_u32(4, 0x0102_0304);
        assert_eq!((region.read_u8(4), region.read_u16(6), region.read_u64(0)), (4, 0x0102, 0x0102_0304 << 32));
        region.part(8, 8).copy_in(1, b"abc");
        let mut bytes = [0; 4];
        region.copy_out(8, &mut bytes);
        assert_eq!(&bytes, b"\0abc");
        region.zero(8, 2);
        assert_eq!(region.read_u32(8), u32::from_le_bytes(*b"\0\0bc"));
    }

    #[test]
    fn the_end_is_the_end() {
        let mut memory = [0; 2];
        let region = region(&mut memory);
        let panics = |work: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err();
        assert!(!panics(&|| region.write_u64(8, 1)));
        assert!(panics(&|| region.write_u64(9, 1)));
        assert!(panics(&|| region.write_u64(16, 1)));
        assert!(panics(&|| _ = region.read_u16(usize::MAX)));
        assert!(panics(&|| _ = region.read_u16(1)));
        assert!(panics(&|| _ = region.part(9, 8)));
        assert!(panics(&|| region.copy_in(0, &[0; 17])));
    }
}
