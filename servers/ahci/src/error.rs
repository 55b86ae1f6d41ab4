//! Why a disk cannot be used.

use block_driver::Problem;
use core::fmt;

/// Why a disk cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The registers read as all ones: nobody is there any more.
    Gone,
    /// The controller's reset does not end.
    Reset,
    /// The controller has no port with this number.
    NoPort(usize),
    /// No port has a disk.
    NoDisk,
    /// The link to what is at a port does not come up.
    Link(usize),
    /// The port does not stop.
    Stuck(usize),
    /// The disk stays busy after a reset.
    Busy(usize),
    /// What is at a port is no disk, but has this signature.
    Signature(usize, u32),
    /// The disk does not say what it is.
    Identify(usize),
    /// What it says of itself is damaged.
    Checksum,
    /// It has no 48-bit addresses, or no blocks.
    Capacity,
    /// Sectors of so many bytes.
    Sector(u64),
    /// It is locked by a password.
    Locked,
    /// The controller does not reach all memory that is for it.
    Addresses,
    /// The memory for the device is too small: bytes, and bytes that are needed.
    Memory(usize, usize),
    /// After a reset it is another disk.
    Changed,
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        alloc::format!("{error}")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Gone => write!(f, "the controller is gone: its registers are not there any more"),
            Error::Reset => write!(f, "the controller's reset does not end"),
            Error::NoPort(port) => write!(f, "the controller has no port {port}"),
            Error::NoDisk => write!(f, "the controller has no disk"),
            Error::Link(port) => write!(f, "port {port}: the link does not come up"),
            Error::Stuck(port) => write!(f, "port {port} does not stop"),
            Error::Busy(port) => write!(f, "port {port}: the disk stays busy"),
            Error::Signature(port, signature) => write!(f, "port {port}: no disk, but a device {signature:#010x}"),
            Error::Identify(port) => write!(f, "port {port}: the disk does not identify itself"),
            Error::Checksum => write!(f, "what the disk says of itself is damaged"),
            Error::Capacity => write!(f, "the disk has no 48-bit addresses, or no sectors"),
            Error::Sector(bytes) => write!(f, "sectors of {bytes} bytes, which are not 512 to 4096"),
            Error::Locked => write!(f, "the disk is locked by a password"),
            Error::Addresses => write!(f, "the controller does not reach memory above 4 GiB"),
            Error::Memory(has, needs) => {
                write!(f, "the memory for the device has {has} bytes, of which {needs} are needed")
            }
            Error::Changed => write!(f, "after the reset it is another disk"),
        }
    }
}
