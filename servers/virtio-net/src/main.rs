//! The driver: binds [`virtio_net`] to the machine.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]

extern crate alloc;

use net_driver::{Problem, Setup};
use server_runtime::Startup;
use virtio::Msix;
use virtio_drivers::transport::DeviceType;
use virtio_net::device::VirtioNet;

server_runtime::entry!(main);

fn main(startup: Startup) -> ! {
    net_driver::serve(startup, open)
}

fn open(setup: &Setup<'_>) -> Result<VirtioNet<Msix>, Problem> {
    let opened = virtio::open(setup.startup, DeviceType::Network, setup.dma, alloc::vec![setup.packets])?;
    Ok(VirtioNet::new(opened.wire, opened.interrupts))
}
