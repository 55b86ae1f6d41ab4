//! Doorbells, rung once for a batch.

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

/// Rings what is to be rung.
pub(super) fn ring() {
    for (due, device) in [(&NIC, Device::Nic), (&DISK, Device::Disk)] {
        if due.load(Ordering::Relaxed) {
            due.store(false, Ordering::Relaxed);
            now(device);
        }
    }
}

/// Rings at once. A service that is being restarted looks at all queues when it is back, so nothing is lost with `Gone`.
pub(super) fn now(device: Device) {
    let _ = hypercall::doorbell(device);
}
