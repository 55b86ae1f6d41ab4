//! Registers of a controller and of its ports (3.1, 3.3).

/// Host capabilities.
pub const CAP: usize = 0x00;
/// Global host control.
pub const GHC: usize = 0x04;
/// Interrupt status: a bit for each port.
pub const IS: usize = 0x08;
/// Ports implemented: a bit for each.
pub const PI: usize = 0x0c;
/// Host capabilities extended.
pub const CAP2: usize = 0x24;
/// BIOS/OS handoff.
pub const BOHC: usize = 0x28;
/// First port, and bytes from one to the next.
pub const PORTS: usize = 0x100;
/// Bytes of the registers of a port.
pub const PORT: usize = 0x80;
/// Most ports.
pub const PORTS_MOST: usize = 32;

/// In [`CAP`]: it takes commands that are queued.
pub const CAP_QUEUES: u32 = 1 << 30;
/// In [`CAP`]: it reaches memory above 4 GiB.
pub const CAP_LONG_ADDRESSES: u32 = 1 << 31;
/// In [`CAP`]: disks are spun up one by one, by the driver.
pub const CAP_STAGGERED: u32 = 1 << 27;
/// In [`GHC`]: reset.
pub const GHC_RESET: u32 = 1;
/// In [`GHC`]: interrupts.
pub const GHC_INTERRUPTS: u32 = 1 << 1;
/// In [`GHC`]: it is used as AHCI, not as the controller of old that it may be too.
pub const GHC_AHCI: u32 = 1 << 31;
/// In [`CAP2`]: there is a handoff.
pub const CAP2_HANDOFF: u32 = 1;
/// In [`BOHC`]: owned by the firmware, by the system; the firmware is busy.
pub const BOHC_FIRMWARE: u32 = 1;
/// See [`BOHC_FIRMWARE`].
pub const BOHC_SYSTEM: u32 = 1 << 1;
/// See [`BOHC_FIRMWARE`].
pub const BOHC_BUSY: u32 = 1 << 4;

/// Of a port: command list and received FIS, 64 bits each.
pub const CLB: usize = 0x00;
/// See [`CLB`].
pub const FB: usize = 0x08;
/// Of a port: interrupt status, interrupt enable.
pub const PORT_IS: usize = 0x10;
/// See [`PORT_IS`].
pub const PORT_IE: usize = 0x14;
/// Of a port: command and status.
pub const CMD: usize = 0x18;
/// Of a port: task file: status in bits 0-7, error in bits 8-15.
pub const TFD: usize = 0x20;
/// Of a port: signature of what is there.
pub const SIG: usize = 0x24;
/// Of a port: SATA status, control, error.
pub const SSTS: usize = 0x28;
/// See [`SSTS`].
pub const SCTL: usize = 0x2c;
/// See [`SSTS`].
pub const SERR: usize = 0x30;
/// Of a port: queued commands that the disk has; commands issued.
pub const SACT: usize = 0x34;
/// See [`SACT`].
pub const CI: usize = 0x38;

/// In [`CMD`]: process the command list.
pub const CMD_START: u32 = 1;
/// In [`CMD`]: spin up, power on.
pub const CMD_POWER: u32 = 1 << 1 | 1 << 2;
/// In [`CMD`]: receive FISes.
pub const CMD_RECEIVE: u32 = 1 << 4;
/// In [`CMD`]: it is still receiving FISes; it is still processing the command list.
pub const CMD_RECEIVING: u32 = 1 << 14;
/// See [`CMD_RECEIVING`].
pub const CMD_RUNNING: u32 = 1 << 15;

/// In [`TFD`]: busy, or wanting data.
pub const TFD_BUSY: u32 = 1 << 7 | 1 << 3;
/// In [`TFD`]: the last command has failed: error, device fault.
pub const TFD_FAILED: u32 = 1 | 1 << 5;

/// In [`PORT_IS`]: a command is over: by a register FIS, by a set-device-bits FIS.
pub const IS_DONE: u32 = 1 | 1 << 3;
/// In [`PORT_IS`]: the link came or went (PCS, PRCS).
pub const IS_LINK: u32 = 1 << 6 | 1 << 22;
/// In [`PORT_IS`]: a command has failed (TFES), or the controller could not go on (OFS, IFS, HBDS, HBFS).
pub const IS_FAILED: u32 = 1 << 30 | 1 << 24 | 1 << 27 | 1 << 28 | 1 << 29;

/// In [`SSTS`] bits 0-3: a device is there and the link is up.
pub const DET_UP: u32 = 3;
/// [`SIG`] of an ATA disk.
pub const SIG_DISK: u32 = 0x0000_0101;
/// What registers of a device that is gone read as.
pub const GONE: u32 = !0;

/// Offset of a register of a port.
#[inline]
pub const fn of_port(port: usize, register: usize) -> usize {
    PORTS + port * PORT + register
}
