//! PCI configuration space.

pub use pci_types::PciAddress;
use pci_types::{CommandRegister, ConfigRegionAccess};

/// Offset of the command register (low half) and the status register (high half).
pub const COMMAND: u16 = 0x04;
/// Offset of the first base address register.
pub const BAR: u16 = 0x10;
/// Bytes of the configuration space that the access through I/O ports reaches.
pub const LENGTH: u16 = 256;
/// Bytes of the configuration space of a PCI Express function, where it is memory-mapped.
pub const LENGTH_EXPRESS: u16 = 4096;

/// Access to the configuration space of all functions, 32 bits at a time. Functions that do not exist read as all ones.
pub trait Config {
    /// Reads at `offset`, a multiple of 4 below [`LENGTH`].
    fn read(&self, address: PciAddress, offset: u16) -> u32;
    /// Writes there.
    fn write(&self, address: PciAddress, offset: u16, value: u32);
    /// Reads at `offset`, a multiple of 4 from [`LENGTH`] to [`LENGTH_EXPRESS`]; `None` where that is not to be had.
    fn read_extended(&self, address: PciAddress, offset: u16) -> Option<u32>;
}

/// Makes any [`Config`] one that `pci_types` takes.
pub(crate) struct Access<'a, C>(pub &'a C);

#[allow(unsafe_code)]
impl<C: Config> ConfigRegionAccess for Access<'_, C> {
    unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
        if offset < LENGTH { self.0.read(address, offset & !3) } else { !0 }
    }
    unsafe fn write(&self, address: PciAddress, offset: u16, value: u32) {
        if offset < LENGTH {
            self.0.write(address, offset & !3, value);
        }
    }
}

/// The address of a function as one number: bus in bits 8-15, device in 3-7, function in 0-2.
pub fn location(address: PciAddress) -> u16 {
    u16::from(address.bus()) << 8 | u16::from(address.device()) << 3 | u16::from(address.function())
}

/// The command register.
pub fn command(config: &impl Config, address: PciAddress) -> CommandRegister {
    CommandRegister::from_bits_retain(config.read(address, COMMAND) as u16)
}

/// Writes the command register. The bits of the status register are cleared by writing ones, so they are written as zero.
pub fn set_command(config: &impl Config, address: PciAddress, command: CommandRegister) {
    config.write(address, COMMAND, u32::from(command.bits()));
}
