//! What `init` asks of the kernel.

use core::fmt::Arguments;
use hypercall::MapError;
use protocol::{
    abi::{Error, Target},
    capability::Narrow,
    domain::{Control, DomainParameters, Event, Usage},
    memory::MapOperation,
};

/// The capability to copy into a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Capability {
    /// That in an own slot.
    Slot(u8),
    /// One to a domain of an own extent.
    Domain(Target),
}

/// The kernel, or a model of it.
pub trait Machine {
    /// Creates a domain in `frame` of the extent in `slot`.
    fn create(&mut self, slot: u8, frame: u64, parameters: &DomainParameters) -> Result<Target, Error>;
    /// One control operation. [`Error::Again`] is the caller's to handle.
    fn control(&mut self, domain: Target, control: Control, arguments: [u64; 3]) -> Result<(), Error>;
    /// Maps into the address space of a domain other than the own.
    fn map(&mut self, domain: Target, operations: &[MapOperation]) -> Result<(), MapError>;
    /// Copies bytes to a physical address in the extent in `slot`.
    fn copy(&mut self, bytes: &[u8], slot: u8, physical: u64) -> Result<(), Error>;
    /// Fills physical memory in the extent in `slot` with zeros.
    fn zero(&mut self, slot: u8, physical: u64, length: u64) -> Result<(), Error>;
    /// Puts a capability into a slot of a domain.
    fn grant(&mut self, domain: Target, slot: u8, from: Capability, narrow: Option<&Narrow>) -> Result<(), Error>;
    /// Raises a line of a domain.
    fn raise(&mut self, domain: Target, line: u8) -> Result<(), Error>;
    /// Figures of a domain.
    fn usage(&self, domain: Target) -> Result<Usage, Error>;
    /// Takes traps of servers.
    fn collect(&mut self, events: &mut [Event]) -> Result<usize, Error>;
    /// Nanoseconds since kernel entry.
    fn now(&self) -> u64;
    /// Prints a line.
    fn log(&mut self, line: Arguments);
}
