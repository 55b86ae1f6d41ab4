//! What a machine may be made of.

use clap::ValueEnum;

/// Chipset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Chipset {
    /// Intel 440FX (1996): PCI, IDE
    Pc,
    /// Intel Q35 (2007): PCI Express, AHCI
    #[default]
    Q35,
}

/// Which network card a machine has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Nic {
    /// virtio-net
    #[default]
    Virtio,
    /// Intel 82540EM
    E1000,
    /// Intel 82574L
    E1000e,
    /// Realtek RTL8139C+
    Rtl8139,
}

/// What disks are connected to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum DiskBus {
    /// virtio-blk
    #[default]
    Virtio,
    /// NVMe: a controller for each disk
    Nvme,
    /// AHCI: a controller for each disk, one of them the chipset's own if it has one
    Ahci,
}

/// What an image is put on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Medium {
    /// USB stick
    #[default]
    Usb,
    /// Disk
    Disk,
    /// CD
    Cd,
}

impl Chipset {
    /// QEMU's name of the machine.
    pub(super) fn machine(self) -> &'static str {
        match self {
            Chipset::Pc => "pc",
            Chipset::Q35 => "q35",
        }
    }
}

impl Nic {
    /// QEMU's device, with the properties that are always wanted.
    pub fn device(self) -> &'static str {
        match self {
            Nic::Virtio => "virtio-net-pci,disable-legacy=on",
            Nic::E1000 => "e1000",
            Nic::E1000e => "e1000e",
            Nic::Rtl8139 => "rtl8139",
        }
    }
}
