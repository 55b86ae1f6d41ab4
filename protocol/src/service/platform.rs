//! The platform server: ACPI and PCI, and the machine's devices handed to their drivers.

use super::Service;
use alloc::vec::Vec;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// The platform service.
pub struct Platform;

/// A device that was claimed, as a number of the claiming driver's own: 0 for its first, and so on.
pub type DeviceNumber = u8;

/// What a driver asks of the platform server. A driver reaches only devices it has claimed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Request {
    /// Claims the next PCI device among those the system file names for this program of the driver (if for several drivers: each has its own, in order); after a
    /// restart of the driver, its old claims are dropped and the devices reset (bus mastering off) at `Connect`, and it gets the same ones again.
    Claim {
        /// [`crate::manifest::Startup::program`] of the driver.
        program: u8,
    },
    /// Reads 32 bits of the configuration space of a claimed device, at a multiple of 4.
    ConfigRead {
        /// Device.
        device: DeviceNumber,
        /// Offset in bytes.
        offset: u16,
    },
    /// Writes 32 bits of configuration space. Base address registers, the expansion ROM, MSI and MSI-X capabilities stay as they are.
    ConfigWrite {
        /// Device.
        device: DeviceNumber,
        /// Offset in bytes.
        offset: u16,
        /// Value.
        value: u32,
    },
    /// Takes the registers behind a base address register: a memory capability (DEVICE, MAP) comes with the answer.
    /// Pages that hold the MSI-X table are left out.
    Registers {
        /// Device.
        device: DeviceNumber,
        /// Base address register, 0-5.
        bar: u8,
    },
    /// Takes an interrupt of the device: an interrupt capability comes with the answer. MSI-X where the device has it
    /// (then `index` is the table entry), else MSI (index 0), else its INTx line; see [`Response::Shared`]. A device has 8 at most; more are [`Response::Failed`].
    Interrupt {
        /// Device.
        device: DeviceNumber,
        /// Index.
        index: u16,
    },
    /// Takes a legacy ISA interrupt that the system file names for this server: an interrupt capability comes with the answer.
    IsaInterrupt {
        /// 0-15.
        number: u8,
    },
    /// All PCI devices found.
    List,
    /// Time of the real-time clock.
    WallClock,
    /// Switches the machine off. An answer means that it is still on.
    PowerOff {
        /// Whether the system ends well; an emulator's exit status says so.
        success: bool,
    },
    /// Resets the machine, which then boots anew. An answer means that it was not reset.
    Reset,
}

/// A base address register.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub struct Bar {
    /// Number, 0-5.
    pub number: u8,
    /// Physical address.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// Whether it is memory (else I/O ports).
    pub memory: bool,
}

/// A PCI device in a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub struct DeviceInfo {
    /// Bus, device, function as bits 8-15, 3-7, 0-2.
    pub location: u16,
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Class (bits 16-23), subclass (8-15), programming interface (0-7).
    pub class: u32,
    /// Whether a driver has it.
    pub claimed: bool,
}

/// What the platform server answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Response {
    /// Done; a capability may have come along.
    Done,
    /// A claimed device.
    Device {
        /// Its number for further requests.
        device: DeviceNumber,
        /// What it is.
        info: DeviceInfo,
        /// Its base address registers.
        bars: Vec<Bar>,
        /// Entries of its MSI-X table; 0: none.
        msix: u16,
    },
    /// 32 bits of configuration space.
    Value(u32),
    /// Offset in bytes of the register block in the first page of the capability, and its bytes.
    Registers {
        /// Physical address of the first byte behind the capability.
        address: u64,
        /// Bytes.
        length: u64,
    },
    /// Devices.
    Devices(Vec<DeviceInfo>),
    /// Nanoseconds since 1970-01-01 UTC at kernel entry.
    WallClock(u64),
    /// No such device, register or interrupt, or not this client's.
    NotFound,
    /// The request is not allowed to this client.
    Denied,
    /// Out of interrupts, or the kernel refused.
    Failed,
    /// The device's INTx line is shared with devices of others: its interrupts come on
    /// [`crate::domain::line::SHARED_INTERRUPT`], and are acknowledged by raising the own line of the channel to the platform server.
    Shared,
}

impl Service for Platform {
    const NAME: &'static str = "platform";
    type Request<'a> = Request;
    type Response = Response;
}
