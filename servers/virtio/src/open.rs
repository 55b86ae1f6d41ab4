//! Opening a device.

use crate::{
    config::Config,
    hal::{self, Map, Memory},
    transport::{Interrupts, Msix, Vectors, Wire},
};
use alloc::{format, rc::Rc, vec::Vec};
use core::cell::RefCell;
use pci_device::{Device, Dma, Problem};
use protocol::{domain::line, manifest::Startup};
use virtio_drivers::transport::{
    DeviceType, Transport,
    pci::{
        PciTransport,
        bus::{DeviceFunction, PciRoot},
    },
};

/// Line of the queues, or of the device's only interrupt.
const QUEUES: u8 = line::HARDWARE_FIRST;
/// Line of changes of the configuration.
const CONFIG: u8 = line::HARDWARE_FIRST + 1;
/// MSI-X entries that the device must have for both.
const VECTORS: Vectors = Vectors { queues: 0, config: 1 };

/// A device that was claimed and reset, and how it interrupts.
pub struct Opened {
    /// The way to it.
    pub wire: Msix,
    /// Its interrupts.
    pub interrupts: Interrupts,
}

/// Claims the driver's device from the platform server and resets it. `dma` is for its queues,
/// `buffers` is what else it may be told to read and write. A driver opens one device, once.
pub fn open(startup: &Startup, wanted: DeviceType, dma: Dma, buffers: Vec<Dma>) -> Result<Opened, Problem> {
    let mut device = Device::claim(startup)?;
    let mut registers = [None; 6];
    for bar in device.bars.clone() {
        if let Some(place) = registers.get_mut(usize::from(bar.number)) {
            *place = device.registers(bar.number)?;
        }
    }
    hal::init(Map { dma, buffers, registers });

    let (bars, msix, location) = (device.bars.clone(), device.msix, device.info.location);
    let device = Rc::new(RefCell::new(device));
    let reader = device.clone();
    // A function that does not answer reads as all ones.
    let config = Config::new(move |offset| reader.borrow_mut().config_read(offset).unwrap_or(!0), bars);
    let function = DeviceFunction {
        bus: (location >> 8) as u8,
        device: (location >> 3 & 31) as u8,
        function: (location & 7) as u8,
    };
    let mut root = PciRoot::new(config.clone());
    let pci = PciTransport::new::<Memory, _>(&mut root, function).map_err(|error| format!("{error}"))?;
    if pci.device_type() != wanted {
        return Err(format!("a device of kind {:?}, not {wanted:?}", pci.device_type()));
    }

    let vectors = (msix > VECTORS.config).then_some(VECTORS);
    let mut wire = Msix::new(&root, function, pci, |offset| config.read(offset), &registers, vectors)?;
    // The driver that was here before may have left it running: it must be quiet before it may reach memory.
    wire.reset()?;
    let mut device = device.borrow_mut();
    let interrupts = if vectors.is_some() {
        device.interrupt(VECTORS.queues, QUEUES)?;
        device.interrupt(VECTORS.config, CONFIG)?;
        Interrupts::Messages { config: CONFIG }
    } else {
        Interrupts::Line(device.interrupt(0, QUEUES)?)
    };
    Ok(Opened { wire, interrupts })
}
