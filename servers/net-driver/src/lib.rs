//! The kit for network drivers: everything that all of them have in common.
//!
//! A driver implements [`NetDriver`] for its device and hands a function that opens the device to [`serve`]. The kit
//! keeps the rings shared with the switch ([`rings`]), serves [`protocol::service::net_driver`], tells both sides what
//! moved, once for each batch, and reaches the device through the platform server ([`pci`], the crate `pci-device`).
//!
//! The crate's README is the guide.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod rings;
mod serve;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use pci_device::{self as pci, Dma, Problem};
pub use serve::{Setup, serve};

use server_runtime::mmio::Region;

/// A packet buffer of the memory shared with the switch. It stays where it is for the life of the driver.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// The whole buffer, [`protocol::service::net_driver::BUFFER`] bytes. The packet begins at
    /// [`protocol::service::net_driver::HEADROOM`]; before it is room for a header of the device's.
    pub memory: Region,
    /// The physical address of its first byte, for the device.
    pub physical: u64,
}

/// A network device.
///
/// Entries are numbers below [`protocol::service::net_driver::ENTRIES`], of sending and of receiving separately. A device
/// may finish them in any order; the kit puts them back into theirs. All calls return at once.
pub trait NetDriver {
    /// The device's MAC address.
    fn mac(&self) -> [u8; 6];

    /// Whether the link is up.
    fn link(&mut self) -> bool;

    /// Resets the device and begins anew: no buffer that it was given before may be touched by it from here on. Called
    /// before everything else, and whenever the switch begins anew.
    fn restart(&mut self) -> Result<(), Problem>;

    /// Gives the device an empty buffer to receive a packet into. There is always room: the device holds at most one
    /// buffer for each entry.
    fn offer(&mut self, entry: usize, buffer: Buffer);

    /// Gives the device a packet of `length` bytes to send. There is always room, likewise.
    fn send(&mut self, entry: usize, buffer: Buffer, length: usize);

    /// Tells the device of all that it was given since the last time.
    fn notify(&mut self);

    /// Takes back the buffer of a packet that was received, with its length: the entry, and the bytes from
    /// [`protocol::service::net_driver::HEADROOM`] on.
    fn received(&mut self) -> Option<(usize, usize)>;

    /// Takes back the buffer of a packet that was sent.
    fn sent(&mut self) -> Option<usize>;

    /// The device's interrupt came, on the lines whose bits are set: acknowledges it.
    fn interrupt(&mut self, lines: u64);
}
