//! The machine as its firmware describes it: tables that are broken or missing, chipsets, interrupt lines that devices share, and
//! how a machine ends.

use std::fs;
use std::path::Path;
use std::time::Duration;

use miette::{IntoDiagnostic, Result, miette};

use super::BootTest;
use super::harness::Context;
use crate::machine::qemu::{Chipset, Machine};

const LIMIT: Duration = Duration::from_secs(120);

pub(super) const TESTS: &[BootTest] = &[
    BootTest {
        name: "platform-q35",
        about: "the firmware's program is run, all devices are listed, and the machine is switched off by ACPI and reset",
        limit: LIMIT,
        long: false,
        run: q35,
    },
    BootTest {
        name: "platform-pc",
        about: "the same system on the other chipset, without memory-mapped configuration space, and with AML that the interpreter cannot all do; switched off by ACPI",
        limit: LIMIT,
        long: false,
        run: pc,
    },
    BootTest {
        name: "platform-noacpi",
        about: "a machine without any ACPI tables comes up, and is reset all the same",
        limit: LIMIT,
        long: false,
        run: no_acpi,
    },
    BootTest {
        name: "platform-aml",
        about: "AML that is nonsense is told; AML without end costs one restart of the platform server, which goes on without AML",
        limit: LIMIT,
        long: false,
        run: broken_aml,
    },
    BootTest {
        name: "platform-shared",
        about: "network card and disk on one interrupt line, without messages: both work, also when a driver or the platform server dies",
        limit: LIMIT,
        long: false,
        run: shared_line,
    },
    BootTest {
        name: "iommu",
        about: "a driver's device that reaches for memory that is not its own is stopped and told; all others work; without an IOMMU that is said",
        limit: LIMIT,
        long: false,
        run: iommu,
    },
];

/// Boots the default system on a machine that `change` has changed, and waits until its first web server answers.
fn boot(context: &mut Context<'_>, change: impl FnOnce(&mut Machine)) -> Result<()> {
    let (system, built) = context.build(None)?;
    context.boot_changed(&system, &built, |_, machine| {
        change(machine);
        Ok(())
    })?;
    answers(context)
}

fn answers(context: &mut Context<'_>) -> Result<()> {
    let server = context.services().iter().find(|service| service.service.http);
    let vm = server.map(|server| server.vm.clone()).ok_or_else(|| miette!("the default system has no web server"))?;
    context.page(&vm, "/").map(|_| ())
}

/// A virtual disk of this name is made through the disk's driver, and the page comes through the card's. Neither had to be reset for that.
fn devices_work(context: &mut Context<'_>, disk: &str) -> Result<()> {
    context.command(&format!("disk create {disk} 64 KiB"))?;
    let from = context.command("disks")?;
    context.line(from, &[disk, "64 KiB  -"])?;
    answers(context)?;
    never(context, &["the device was reset"])
}

fn extra(machine: &mut Machine, arguments: &[&str]) {
    machine.extra.extend(arguments.iter().map(Into::into));
}

/// Fails if a line with these words has appeared.
fn never(context: &mut Context<'_>, words: &[&str]) -> Result<()> {
    let lines = context.running()?.serial.since(0);
    match lines.iter().find(|line| words.iter().all(|word| line.text.contains(word))) {
        Some(line) => Err(miette!("the serial line should not say {:?}", line.text)),
        None => Ok(()),
    }
}

fn q35(context: &mut Context<'_>) -> Result<()> {
    let log = context.folder().join("configuration.log");
    let traced = log.display().to_string();
    boot(context, |machine| {
        machine.debug_exit = false;
        extra(machine, &["-trace", "pci_cfg_write", "-D", &traced]);
    })?;
    context.line(0, &["memory-mapped configuration space", "segment 0 buses 00-ff"])?;
    context.line(0, &["PCI", "8086:2930", "no driver in the system file"])?;
    for wrong in ["AML", "ACPI:", "MADT:"] {
        never(context, &["platform: ", wrong])?;
    }
    let from = context.command("devices")?;
    context.line(from, &["010601", "SATA controller"])?;
    context.line(from, &["1af4:1041", "yes"])?;
    // What the firmware's program said survives the server.
    let sized = sized(&log)?;
    let from = context.command("kill platform")?;
    context.line(from, &["server platform restarted"])?;
    never(context, &["AML"])?;
    // It answers, so it is through with its start.
    let from = context.command("devices")?;
    context.line(from, &["1af4:1041"])?;
    answers(context)?;
    // Drivers use the devices: their registers have stayed where they are, all the time.
    if sized == 0 || self::sized(&log)? != sized {
        return Err(miette!(
            "{sized} base address registers were written at the first start, and then {}",
            self::sized(&log)?
        ));
    }
    let from = context.command("poweroff")?;
    context.off(from)?;
    never(context, &["nothing ends this machine"])?;

    boot(context, |_| ())?;
    let from = context.command("reboot")?;
    context.off(from)?;
    never(context, &["nothing resets this machine"])
}

/// Writes to base address registers so far, of those to the configuration of devices that QEMU has noted.
fn sized(log: &Path) -> Result<usize> {
    let text = fs::read_to_string(log).into_diagnostic()?;
    let offset = |line: &str| u32::from_str_radix(line.split_once("@0x")?.1.split(' ').next()?, 16).ok();
    Ok(text.lines().filter_map(offset).filter(|offset| (0x10..0x28).contains(offset)).count())
}

fn pc(context: &mut Context<'_>) -> Result<()> {
    boot(context, |machine| {
        machine.debug_exit = false;
        machine.chipset = Chipset::Pc;
    })?;
    // The interpreter cannot do what the wiring of this machine takes; the rest survives.
    context.line(0, &["AML has not come to an end before; going on with what it had said"])?;
    never(context, &["platform restarted (2 so far)"])?;
    // What there is is told all the same.
    context.line(0, &["PCI", "1af4:1041"])?;
    context.line(0, &["no IOMMU: drivers' devices reach all memory"])?;
    never(context, &["memory-mapped configuration space"])?;
    let from = context.command("poweroff")?;
    context.off(from)?;
    never(context, &["nothing ends this machine"])
}

fn no_acpi(context: &mut Context<'_>) -> Result<()> {
    boot(context, |machine| {
        machine.debug_exit = false;
        extra(machine, &["-machine", "pc,acpi=off"]);
    })?;
    context.line(0, &["no ACPI tables"])?;
    let from = context.command("poweroff")?;
    context.line(from, &["this machine cannot be switched off by software"])?;
    let from = context.command("reboot")?;
    context.off(from)
}

fn broken_aml(context: &mut Context<'_>) -> Result<()> {
    // No operation begins with these.
    let nonsense = table(context, "nonsense", &[0x5b, 0xff, 0x02, 0x03])?;
    boot(context, |machine| extra(machine, &["-acpitable", &nonsense]))?;
    context.line(0, &["AML: SSDT"])?;
    never(context, &["platform", "died"])?;

    // While (One) {}
    let endless = table(context, "endless", &[0xa2, 0x02, 0x01])?;
    boot(context, |machine| {
        machine.debug_exit = false;
        extra(machine, &["-acpitable", &endless]);
    })?;
    context.line(0, &["the firmware's AML does not come to an end"])?;
    context.line(0, &["AML has not come to an end before; going on with what it had said"])?;
    context.line(0, &["platform restarted (1 so far)"])?;
    never(context, &["platform restarted (2 so far)"])?;
    let from = context.command("poweroff")?;
    context.line(from, &["this machine cannot be switched off by software"])?;
    context.healthy()
}

/// A file with a table of the firmware that holds this program, as QEMU's option takes it.
fn table(context: &Context<'_>, name: &str, program: &[u8]) -> Result<String> {
    let mut table = Vec::from(*b"SSDT");
    table.extend((36 + program.len() as u32).to_le_bytes());
    // Revision; the checksum is QEMU's to make; who made it.
    table.extend([2, 0]);
    table.extend(*b"DENALIDENALI  \x01\0\0\0TEST\x01\0\0\0");
    table.extend(program);
    let path = context.folder().join(format!("{name}.aml"));
    fs::write(&path, table).into_diagnostic()?;
    Ok(format!("file={}", path.display()))
}

fn shared_line(context: &mut Context<'_>) -> Result<()> {
    boot(context, |machine| {
        extra(machine, &["-global", "virtio-net-pci.vectors=0"]);
        // The card is in slot 1; slots that are four apart have their pins on the same lines.
        for disk in &mut machine.disks {
            disk.device.extend(["vectors=0".into(), "addr=0x5".into()]);
        }
    })?;
    never(context, &["no interrupt for"])?;
    never(context, &["does not acknowledge"])?;
    for server in ["nic", "disk", "platform"] {
        let from = context.command(&format!("kill {server}"))?;
        context.line(from, &["server", server, "restarted (1 so far)"])?;
        devices_work(context, &format!("after-{server}"))?;
    }
    never(context, &["does not acknowledge"])?;
    context.healthy()
}

fn iommu(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(Some("iommu"))?;
    context.boot_changed(&system, &built, |_, machine| {
        machine.iommu = true;
        extra(machine, &["-device", "edu,dma_mask=0xffffffffffffffff"]);
        Ok(())
    })?;
    context.line(0, &["IOMMU: 1 units; drivers' devices reach their drivers' shared memories only"])?;
    context.line(0, &["rogue: a copy within its own memory works"])?;
    context.line(0, &["IOMMU: device", "of rogue wanted to write to memory at 0x", "stopped"])?;
    context.line(0, &["server rogue died: killed"])?;
    never(context, &["nobody stops me"])?;
    answers(context)?;
    // What the devices may reach survives the platform server, and a driver that comes back has it again.
    for server in ["platform", "nic", "disk"] {
        let from = context.command(&format!("kill {server}"))?;
        context.line(from, &["server", server, "restarted (1 so far)"])?;
        devices_work(context, &format!("after-{server}"))?;
    }
    for driver in ["nic", "disk", "no driver"] {
        never(context, &["IOMMU: device", &format!("of {driver} wanted")])?;
    }
    context.healthy()?;

    // The same without: said plainly.
    context.boot_built(&system, &built)?;
    context.line(0, &["no IOMMU: drivers' devices reach all memory"])?;
    answers(context)
}
