//! Registers of a controller (3.1).

use block_driver::pci::hardware::Hardware;

/// Controller capabilities, 64 bits.
pub const CAP: usize = 0x00;
/// Interrupt mask set and clear: for devices that interrupt by a line.
pub const INTMS: usize = 0x0c;
/// Controller configuration.
pub const CC: usize = 0x14;
/// Controller status.
pub const CSTS: usize = 0x1c;
/// Admin queue attributes.
pub const AQA: usize = 0x24;
/// Admin submission queue's address, 64 bits.
pub const ASQ: usize = 0x28;
/// Admin completion queue's address, 64 bits.
pub const ACQ: usize = 0x30;
/// First doorbell.
pub const DOORBELLS: usize = 0x1000;
/// Bytes of registers that a driver of one I/O queue pair needs, if doorbells are not spread out.
pub const LENGTH: usize = DOORBELLS + 4 * 4;

/// In [`CC`]: enable.
pub const CC_ENABLE: u32 = 1;
/// In [`CC`]: entries of 64 and 16 bytes in I/O queues; pages of 4 KiB, NVM commands and round robin are zeros.
pub const CC_SETTINGS: u32 = 6 << 16 | 4 << 20;
/// In [`CSTS`]: ready.
pub const CSTS_READY: u32 = 1;
/// In [`CSTS`]: fatal.
pub const CSTS_FATAL: u32 = 1 << 1;
/// What registers of a device that is gone read as.
pub const GONE: u32 = !0;

/// What [`CAP`] says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Reads them.
    pub fn read(hardware: &impl Hardware) -> Capabilities {
        Capabilities(u64::from(hardware.read(CAP)) | u64::from(hardware.read(CAP + 4)) << 32)
    }

    /// Most entries of an I/O queue, at least 2 on a device that keeps to the standard.
    pub const fn queue_entries(self) -> usize {
        (self.0 & 0xffff) as usize + 1
    }

    /// Nanoseconds that it may take to become ready, or to stop.
    pub const fn timeout(self) -> u64 {
        let units = self.0 >> 24 & 0xff;
        // Some say 0.
        if units == 0 { 500_000_000 } else { units * 500_000_000 }
    }

    /// Bytes from one doorbell to the next.
    pub const fn doorbell_stride(self) -> usize {
        4 << (self.0 >> 32 & 0xf)
    }

    /// Whether it has the NVM command set.
    pub const fn has_nvm(self) -> bool {
        self.0 >> 37 & 1 != 0
    }

    /// Bytes of its smallest page, the unit of [`crate::identify::Controller::transfer_most`].
    pub const fn page_least(self) -> u64 {
        4096 << (self.0 >> 48 & 0xf)
    }

    /// Bytes of registers that are used of such a controller, with one I/O queue pair.
    pub const fn registers(self) -> usize {
        DOORBELLS + 4 * self.doorbell_stride()
    }
}

/// Offset of the doorbell of a queue's tail (submission) or head (completion).
pub const fn doorbell(queue: u16, completion: bool, stride: usize) -> usize {
    DOORBELLS + (queue as usize * 2 + completion as usize) * stride
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read() {
        // QEMU's: 2,048 entries, contiguous queues, 7.5 s, NVM and admin-only command sets, pages of 4 KiB to 64 KiB.
        let qemu = Capabilities(4 << 52 | 1 << 44 | 1 << 37 | 0xf << 24 | 1 << 16 | 0x7ff);
        assert_eq!((qemu.queue_entries(), qemu.timeout(), qemu.doorbell_stride()), (2048, 7_500_000_000, 4));
        assert_eq!((qemu.has_nvm(), qemu.page_least(), qemu.registers()), (true, 4096, 0x1010));
        let all = Capabilities(!0);
        assert_eq!((all.queue_entries(), all.doorbell_stride(), all.page_least()), (0x1_0000, 4 << 15, 4096 << 15));
        assert_eq!(Capabilities(0).timeout(), 500_000_000);
        assert_eq!((doorbell(0, false, 4), doorbell(1, false, 4), doorbell(1, true, 8)), (0x1000, 0x1008, 0x1018));
    }
}
