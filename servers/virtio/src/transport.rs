//! The PCI transport of `virtio-drivers`, with interrupt vectors.
//!
//! That transport leaves interrupts to INTx. With MSI-X, each queue and the configuration have to be given a vector, in
//! registers that it keeps to itself; this wrapper writes them besides, where the common configuration lies.

use pci_device::{Interrupt, Problem, Registers};
use server_runtime::mmio::Region;
use virtio_drivers::{
    Error, PhysAddr,
    transport::{
        DeviceStatus, DeviceType, InterruptStatus, Transport,
        pci::{
            PciTransport, VIRTIO_PCI_CAP_COMMON_CFG,
            bus::{ConfigurationAccess, DeviceFunction, PciRoot},
        },
    },
};

/// PCI capability: vendor-specific, which all of virtio's are.
const VENDOR: u8 = 0x09;
/// Registers of the common configuration (virtio 1.2, 4.1.4.3).
const CONFIG_VECTOR: usize = 0x10;
const DEVICE_STATUS: usize = 0x14;
const QUEUE_SELECT: usize = 0x16;
const QUEUE_VECTOR: usize = 0x1a;
const QUEUE_ENABLE: usize = 0x1c;
/// Bytes of the common configuration that are used here.
const COMMON_LENGTH: usize = 0x20;
/// A vector that the device could not take.
const NO_VECTOR: u16 = 0xffff;
/// Feature: the device reaches memory through an IOMMU (virtio 1.2, 6).
const ACCESS_PLATFORM: u64 = 1 << 33;
/// Looks at the status of a device that was reset. The device of an emulator is reset at once.
const RESET_LOOKS: usize = 1_000_000;

/// What a driver needs of a transport beyond that of `virtio-drivers`.
pub trait Wire: Transport {
    /// Resets the device; it touches no memory afterwards.
    fn reset(&mut self) -> Result<(), Problem>;
    /// Whether the device has taken all interrupt vectors since it was reset.
    fn has_interrupts(&self) -> bool;
}

/// How the device interrupts.
#[derive(Clone, Copy, Debug)]
pub enum Interrupts {
    /// By MSI-X: on one line for the queues and on this one for changes of the configuration.
    Messages {
        /// The line.
        config: u8,
    },
    /// By a shared line, to be acknowledged.
    Line(Interrupt),
}

impl Interrupts {
    /// Acknowledges the interrupt that came on `lines`. Returns whether the configuration has changed.
    pub fn acknowledge(&self, wire: &mut impl Transport, lines: u64) -> bool {
        match self {
            Interrupts::Messages { config } => lines & 1 << config != 0,
            Interrupts::Line(line) => {
                let changed = wire.ack_interrupt().contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT);
                line.acknowledge();
                changed
            }
        }
    }
}

/// MSI-X table entries to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vectors {
    /// For the queues.
    pub queues: u16,
    /// For changes of the configuration.
    pub config: u16,
}

/// The transport.
pub struct Msix {
    pci: PciTransport,
    common: Region,
    vectors: Option<Vectors>,
    /// Whether the device has refused a vector.
    refused: bool,
}

impl Msix {
    /// Wraps the transport of a device whose common configuration is in `registers` (by base address register). Without
    /// `vectors` the device uses INTx.
    pub fn new<C: ConfigurationAccess>(
        root: &PciRoot<C>,
        function: DeviceFunction,
        pci: PciTransport,
        read: impl Fn(u16) -> u32,
        registers: &[Option<Registers>; 6],
        vectors: Option<Vectors>,
    ) -> Result<Msix, Problem> {
        let common = root
            .capabilities(function)
            .find(|capability| {
                capability.id == VENDOR && (capability.private_header >> 8) as u8 == VIRTIO_PCI_CAP_COMMON_CFG
            })
            .ok_or("the device has no common configuration")?;
        let offset = u16::from(common.offset);
        let (bar, start) = (read(offset + 4) as u8, read(offset + 8) as usize);
        let block = registers.get(usize::from(bar)).copied().flatten();
        let block =
            block.filter(|block| start.checked_add(COMMON_LENGTH).is_some_and(|end| end <= block.memory.length()));
        let common = block.ok_or("the common configuration is not in registers of this driver")?.memory;
        Ok(Msix { pci, common: common.part(start, COMMON_LENGTH), vectors, refused: false })
    }

    fn set_vector(&mut self, register: usize, vector: u16) {
        self.common.write_u16(register, vector);
        self.refused |= self.common.read_u16(register) == NO_VECTOR;
    }
}

impl Wire for Msix {
    fn reset(&mut self) -> Result<(), Problem> {
        self.refused = false;
        self.common.write_u8(DEVICE_STATUS, 0);
        let done = (0..RESET_LOOKS).any(|_| self.common.read_u8(DEVICE_STATUS) == 0);
        if done { Ok(()) } else { Err("the device does not reset".into()) }
    }

    fn has_interrupts(&self) -> bool {
        !self.refused
    }
}

impl Transport for Msix {
    fn device_type(&self) -> DeviceType {
        self.pci.device_type()
    }
    fn read_device_features(&mut self) -> u64 {
        self.pci.read_device_features()
    }
    fn write_driver_features(&mut self, driver_features: u64) {
        // Addresses are physical ones behind an IOMMU too; a device that is there insists on its driver knowing it.
        let behind_iommu = self.pci.read_device_features() & ACCESS_PLATFORM;
        self.pci.write_driver_features(driver_features | behind_iommu);
    }
    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.pci.max_queue_size(queue)
    }
    fn notify(&mut self, queue: u16) {
        self.pci.notify(queue);
    }
    fn get_status(&self) -> DeviceStatus {
        self.pci.get_status()
    }
    fn set_status(&mut self, status: DeviceStatus) {
        self.pci.set_status(status);
    }
    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        self.pci.set_guest_page_size(guest_page_size);
    }
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(&mut self, queue: u16, size: u32, descriptors: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        // The vectors have to be there before the queue is enabled.
        if let Some(Vectors { queues, config }) = self.vectors {
            self.set_vector(CONFIG_VECTOR, config);
            self.common.write_u16(QUEUE_SELECT, queue);
            self.set_vector(QUEUE_VECTOR, queues);
        }
        self.pci.queue_set(queue, size, descriptors, driver, device);
    }
    fn queue_unset(&mut self, queue: u16) {
        self.pci.queue_unset(queue);
    }
    fn queue_used(&mut self, queue: u16) -> bool {
        self.common.write_u16(QUEUE_SELECT, queue);
        self.common.read_u16(QUEUE_ENABLE) == 1
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.pci.ack_interrupt()
    }
    fn read_config_generation(&self) -> u32 {
        self.pci.read_config_generation()
    }
    fn read_config_space<T: zerocopy::FromBytes + zerocopy::IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        self.pci.read_config_space(offset)
    }
    fn write_config_space<T: zerocopy::IntoBytes + zerocopy::Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), Error> {
        self.pci.write_config_space(offset, value)
    }
}
