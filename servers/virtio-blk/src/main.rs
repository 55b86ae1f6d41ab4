//! The driver: binds [`virtio_blk`] to the machine.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]

extern crate alloc;

use block_driver::{Problem, Setup};
use server_runtime::Startup;
use virtio::Msix;
use virtio_blk::device::VirtioBlk;
use virtio_drivers::transport::DeviceType;

server_runtime::entry!(main);

fn main(startup: Startup) -> ! {
    block_driver::serve(startup, open)
}

fn open(setup: &Setup<'_>) -> Result<VirtioBlk<Msix>, Problem> {
    let mut buffers = setup.buffers.clone();
    buffers.push(setup.table);
    let opened = virtio::open(setup.startup, DeviceType::Block, setup.dma, buffers)?;
    VirtioBlk::new(opened.wire, opened.interrupts)
}
