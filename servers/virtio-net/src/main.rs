//! The driver: binds [`virtio_net`] to the machine.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]

extern crate alloc;

use alloc::{format, rc::Rc};
use core::cell::RefCell;
use net_driver::{Problem, Setup, pci};
use protocol::domain::line;
use server_runtime::Startup;
use virtio_drivers::transport::{
    DeviceType, Transport,
    pci::{
        PciTransport,
        bus::{DeviceFunction, PciRoot},
    },
};
use virtio_net::{
    config::Config,
    device::{Interrupts, VirtioNet},
    hal::{self, Map, Memory},
    transport::{Msix, Vectors},
};

server_runtime::entry!(main);

/// Line of the queues, or of the device's only interrupt.
const QUEUES: u8 = line::HARDWARE_FIRST;
/// Line of changes of the configuration.
const CONFIG: u8 = line::HARDWARE_FIRST + 1;
/// MSI-X entries that the device must have for both.
const VECTORS: Vectors = Vectors { queues: 0, config: 1 };

fn main(startup: Startup) -> ! {
    net_driver::serve(startup, open)
}

fn open(setup: &Setup<'_>) -> Result<VirtioNet<Msix>, Problem> {
    let mut device = pci::Device::claim(setup.platform)?;
    let mut registers = [None; 6];
    for bar in device.bars.clone() {
        if let Some(place) = registers.get_mut(usize::from(bar.number)) {
            *place = device.registers(bar.number)?;
        }
    }
    hal::init(Map { dma: setup.dma, packets: setup.packets, registers });

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
    if pci.device_type() != DeviceType::Network {
        return Err(format!("a {:?}, not a network device", pci.device_type()));
    }

    let vectors = (msix > VECTORS.config).then_some(VECTORS);
    let mut wire = Msix::new(&root, function, pci, |offset| config.read(offset), &registers, vectors)?;
    // The driver that was here before may have left it running: it must be quiet before it may reach memory.
    virtio_net::device::Wire::reset(&mut wire)?;
    let mut device = device.borrow_mut();
    let interrupts = if vectors.is_some() {
        device.interrupt(VECTORS.queues, QUEUES)?;
        device.interrupt(VECTORS.config, CONFIG)?;
        Interrupts::Messages { config: CONFIG }
    } else {
        Interrupts::Line(device.interrupt(0, QUEUES)?)
    };
    Ok(VirtioNet::new(wire, interrupts))
}
