//! Why a disk cannot be used.

use crate::command::{Opcode, Status};
use block_driver::Problem;
use core::fmt;

/// Why a disk cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The registers read as all ones: nobody is there any more.
    Gone,
    /// It does not stop within the milliseconds that it says it needs.
    NeverStops(u64),
    /// It does not become ready within the milliseconds that it says it needs.
    NeverReady(u64),
    /// It says that it has failed for good.
    Fatal,
    /// It has no commands for disks.
    NoNvm,
    /// Its pages cannot be 4 KiB.
    PageSize(u64),
    /// Its queues have no room even for one command.
    QueueEntries(usize),
    /// Its doorbells lie outside the registers that the driver was given.
    Doorbells,
    /// The memory for the device is too small: bytes, and bytes that are needed.
    Memory(usize, usize),
    /// An admin command was not answered.
    NoAnswer(Opcode),
    /// An admin command has failed.
    Refused(Opcode, Status),
    /// An answer that belongs to no command.
    Nonsense,
    /// There is no namespace 1, or it is empty.
    NoNamespace,
    /// Sectors of so many bytes.
    Sector(u64),
    /// So many bytes of metadata with each sector.
    Metadata(u16),
    /// It takes fewer bytes at once than a buffer has.
    Transfer(u64),
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
            Error::NeverStops(ms) => write!(f, "the controller does not stop within {ms} ms"),
            Error::NeverReady(ms) => write!(f, "the controller does not become ready within {ms} ms"),
            Error::Fatal => write!(f, "the controller says that it has failed"),
            Error::NoNvm => write!(f, "the controller does not have the NVM command set"),
            Error::PageSize(bytes) => write!(f, "the controller's pages have {bytes} bytes at least, not 4096"),
            Error::QueueEntries(entries) => write!(f, "the controller's queues have {entries} entries only"),
            Error::Doorbells => write!(f, "the controller's doorbells lie outside the driver's registers"),
            Error::Memory(has, needs) => {
                write!(f, "the memory for the device has {has} bytes, of which {needs} are needed")
            }
            Error::NoAnswer(opcode) => write!(f, "the controller does not answer {opcode:?}"),
            Error::Refused(opcode, status) => write!(f, "the controller answers {opcode:?} with {status}"),
            Error::Nonsense => write!(f, "the controller answers a command that it was not given"),
            Error::NoNamespace => write!(f, "the controller has no namespace 1"),
            Error::Sector(bytes) => write!(f, "sectors of {bytes} bytes, which are not 512 to 4096"),
            Error::Metadata(bytes) => write!(f, "{bytes} bytes of metadata with each sector, which must be none"),
            Error::Transfer(bytes) => write!(f, "the controller takes {bytes} bytes at once, which is not enough"),
            Error::Changed => write!(f, "after the reset it is another disk"),
        }
    }
}
