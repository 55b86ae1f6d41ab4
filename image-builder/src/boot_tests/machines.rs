//! One image on many machines: on every one a web server answers, and a VM finds again after a reboot what it wrote to its disk.
//!
//! The machines are so chosen that each value of each property meets each value of every other (an IOMMU only Q35 can have).

use std::time::Duration;

use miette::{Result, WrapErr, miette};

use super::BootTest;
use super::harness::{Context, Firmware};
use super::journal::Client;
use crate::machine::qemu::{Chipset, DiskBus, Medium, Nic};

/// VMs of the default system.
const WEB: &str = "httpd-1";
const JOURNAL: &str = "journal";
/// What others than VMs may take of the memory: MiB, and percent of it (the kernel's frame table).
const OTHERS: u64 = 96;
const OTHERS_PERCENT: u64 = 1;
/// Values that are written before the reboot.
const WRITES: u64 = 20;

/// A machine.
struct Variant {
    firmware: Firmware,
    chipset: Chipset,
    medium: Medium,
    cpus: u16,
    /// MiB.
    memory: u64,
    nic: Nic,
    disk: DiskBus,
    iommu: bool,
}

macro_rules! machines {
    ($($name:literal $firmware:ident $chipset:ident $medium:ident $cpus:literal $memory:literal $nic:ident $disk:ident $iommu:literal;)*) => {
        pub(super) const TESTS: &[BootTest] = &[$(BootTest {
            name: concat!("machine-", $name),
            about: concat!(
                "the image boots and a VM's disk keeps its data: ", stringify!($firmware), ", ", stringify!($chipset), ", image on ",
                stringify!($medium), ", ", $cpus, " processors, ", $memory, " MiB, NIC ", stringify!($nic), ", disk ", stringify!($disk),
                ", IOMMU ", $iommu
            ),
            limit: Duration::from_secs(240),
            long: false,
            run: |context| keeps_data(context, &Variant {
                firmware: Firmware::$firmware,
                chipset: Chipset::$chipset,
                medium: Medium::$medium,
                cpus: $cpus,
                memory: $memory,
                nic: Nic::$nic,
                disk: DiskBus::$disk,
                iommu: $iommu,
            }),
        }),*];
    };
}

machines! {
    "01" Bios Pc  Usb  4   256 E1000e  Nvme   false;
    "02" Bios Pc  Cd   1   256 Virtio  Ahci   false;
    "03" Bios Pc  Cd   2  1024 E1000e  Virtio false;
    "04" Bios Pc  Usb  1  1024 E1000   Ahci   false;
    "05" Bios Pc  Usb  2 16384 Virtio  Virtio false;
    "06" Bios Q35 Disk 4  1024 Rtl8139 Ahci   false;
    "07" Bios Q35 Usb  2  4096 Rtl8139 Ahci   true;
    "08" Bios Q35 Disk 2  4096 Virtio  Nvme   false;
    "09" Bios Q35 Cd   1 16384 E1000e  Ahci   true;
    "10" Uefi Pc  Disk 1   256 Rtl8139 Virtio false;
    "11" Uefi Pc  Cd   1  4096 E1000   Nvme   false;
    "12" Uefi Pc  Disk 4  4096 E1000e  Virtio false;
    "13" Uefi Pc  Disk 4 16384 E1000   Ahci   false;
    "14" Uefi Q35 Usb  2   256 E1000   Virtio true;
    "15" Uefi Q35 Disk 4  1024 Virtio  Nvme   true;
    "16" Uefi Q35 Cd   4 16384 Rtl8139 Nvme   false;
}

fn keeps_data(context: &mut Context<'_>, variant: &Variant) -> Result<()> {
    boot(context, variant)?;
    if variant.cpus > 1 {
        context.line(0, &["platform:", &format!("{} processors run domains", variant.cpus)])?;
    }
    uses_all_memory(context, variant.memory)?;
    context.page(WEB, "/")?;
    let mut journal = Client::new(context, JOURNAL)?;
    for _ in 0..WRITES {
        journal.put()?;
    }
    context.healthy()?;

    context.keep_disks(true);
    boot(context, variant)?;
    context.page(WEB, "/")?;
    journal.again(context)?;
    journal.check().wrap_err_with(|| miette!("after a reboot"))?;
    context.healthy()
}

/// Memory below and above 4 GiB is the VMs', all but what the firmware, the kernel and the servers take.
fn uses_all_memory(context: &mut Context<'_>, memory: u64) -> Result<()> {
    let said = context.line(0, &["swap: ", " MiB for VMs"])?.text;
    let number = said.split(|c: char| !c.is_ascii_digit()).find_map(|word| word.parse::<u64>().ok());
    let pool = number.ok_or_else(|| miette!("the pager says {said:?}"))?;
    let taken = OTHERS + memory * OTHERS_PERCENT / 100;
    if pool + taken < memory || pool >= memory {
        return Err(miette!("of {memory} MiB, {pool} MiB are the VMs': {taken} MiB should be enough for all others"));
    }
    println!("  {pool} of {memory} MiB are the VMs'");
    Ok(())
}

fn boot(context: &mut Context<'_>, variant: &Variant) -> Result<()> {
    let (system, built) = context.build(None)?;
    let boot = context.image_of(&built, variant.medium, variant.firmware)?;
    context.boot_changed(&system, &built, |_, machine| {
        (machine.boot, machine.chipset, machine.iommu) = (boot, variant.chipset, variant.iommu);
        (machine.cpus, machine.memory) = (variant.cpus, variant.memory);
        (machine.nic, machine.disk_bus) = (variant.nic, variant.disk);
        Ok(())
    })
}
