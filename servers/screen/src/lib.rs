//! A text terminal on the machine's screen.
//!
//! * [`terminal`]: what bytes mean: text, line ends, a handful of escape sequences.
//! * [`grid`]: the cells of text, the cursor, scrolling.
//! * [`colour`]: the sixteen colours.
//! * [`font`]: the pictures of characters.
//! * [`canvas`]: where a cell lies in the framebuffer, and the bytes that show it there.
//! * [`Screen`]: all of it together: takes bytes, draws the cells that have changed.
//!
//! A framebuffer is written and never read: reading it is slow on real machines. What it shows is known from memory.
//! The bytes may come from anybody and the description of the framebuffer from any firmware: neither leads to a panic, to an
//! unbounded loop or to a write beyond the framebuffer.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod canvas;
pub mod colour;
pub mod font;
pub mod grid;
mod screen;
pub mod terminal;

pub use screen::Screen;

/// Memory of a framebuffer.
pub trait Memory {
    /// Bytes of it.
    fn length(&self) -> usize;
    /// Writes `bytes` at `offset`. Both lie within [`Memory::length`].
    fn write(&mut self, offset: usize, bytes: &[u8]);
}

impl Memory for alloc::vec::Vec<u8> {
    fn length(&self) -> usize {
        self.len()
    }
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}
