//! Doorbells, rung once for a batch: with the hypercall that ends the round, or before another round.

use core::sync::atomic::{AtomicBool, Ordering};
use protocol::domain::Device;

static NIC: AtomicBool = AtomicBool::new(false);
static DISK: AtomicBool = AtomicBool::new(false);

/// Rings the NIC's doorbell before the VM next idles (or runs another round of tasks).
pub fn nic_later() {
    NIC.store(true, Ordering::Relaxed);
}

/// Rings the doorbell of the disks then.
pub fn disk_later() {
    DISK.store(true, Ordering::Relaxed);
}

/// What is to be rung, which the caller does: bits of devices.
pub(super) fn take() -> u64 {
    let mut doorbells = 0;
    for (due, device) in [(&NIC, Device::Nic), (&DISK, Device::Disk)] {
        if due.load(Ordering::Relaxed) {
            due.store(false, Ordering::Relaxed);
            doorbells |= device.bit();
        }
    }
    doorbells
}

/// Rings what is to be rung.
pub(super) fn ring() {
    let doorbells = take();
    for device in [Device::Nic, Device::Disk] {
        if doorbells & device.bit() != 0 {
            now(device);
        }
    }
}

/// Rings at once. A service that is being restarted looks at all queues when it is back, so nothing is lost with `Gone`.
pub(super) fn now(device: Device) {
    let _ = hypercall::doorbell(device);
}
