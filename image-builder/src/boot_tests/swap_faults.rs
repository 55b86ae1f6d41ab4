//! Swap disks that lie, fail, stall, are too small or are not there: VMs concerned are told, and nobody else.

use std::fs;
use std::time::Duration;

use miette::{IntoDiagnostic, Result, miette};
use protocol::service::block_driver::{BLOCK, Partition};
use serde_json::json;

use super::BootTest;
use super::harness::Context;
use super::pages::Vms;
use super::swap::{SYSTEM, memory, nobody_stopped, stopped};
use crate::machine::disk::{Existing, Image};
use crate::machine::faults::{Faults, Kind};
use crate::machine::power::Chance;
use crate::machine::qemu::Machine;
use crate::machine::qmp::Qmp;
use crate::system::disks::{DiskPlan, TABLES};
use crate::system::types::Size;

pub(super) const TESTS: &[BootTest] = &[
    BootTest {
        name: "swap-flip",
        about: "bits of the swap disk are flipped: the VMs whose memory that was are stopped and told why, the others are right",
        limit: Duration::from_secs(120),
        long: false,
        run: flip,
    },
    BootTest {
        name: "swap-errors",
        about: "the swap disk cannot read and write what some VMs have there: they are stopped and told why, the others are right",
        limit: Duration::from_secs(120),
        long: false,
        run: errors,
    },
    BootTest {
        name: "swap-stall",
        about: "the swap disk does not answer for a while: VMs wait or are stopped and told why, and the others are right afterwards",
        limit: Duration::from_secs(120),
        long: false,
        run: stall,
    },
    BootTest {
        name: "swap-small",
        about: "less swap space than all VMs need: those that find none are refused and told why, until others give theirs back",
        limit: Duration::from_secs(120),
        long: false,
        run: small,
    },
    BootTest {
        name: "swap-missing",
        about: "no swap disk, none with a partition table, none with a partition for swap space: said so, and what fits into memory runs",
        limit: Duration::from_secs(120),
        long: false,
        run: missing,
    },
];

/// The system's swap disk.
const DISK: &str = "disk";
/// How long a VM that may have been stopped is waited for.
const SHORT: Duration = Duration::from_secs(5);

/// Some VMs: every tenth, from `first` on.
fn every_tenth(all: &[usize], first: usize) -> Vec<usize> {
    all.iter().copied().skip(first).step_by(10).collect()
}

/// Those of `all` that are not in `some`.
fn without(all: &[usize], some: &[usize]) -> Vec<usize> {
    all.iter().copied().filter(|vm| !some.contains(vm)).collect()
}

/// Fails unless the VMs that were stopped are all in `may`, for a reason with one of these words. Those that were stopped.
fn stopped_for(context: &mut Context<'_>, vms: &Vms, may: &[usize], reasons: &[&str]) -> Result<Vec<usize>> {
    let told = stopped(context)?;
    for (name, why) in &told {
        let concerned = may.iter().any(|vm| vms.name(*vm) == name);
        if !concerned || !reasons.iter().any(|reason| why.contains(reason)) {
            return Err(miette!("VM `{name}` {why}"));
        }
    }
    Ok(may.iter().copied().filter(|vm| told.contains_key(vms.name(*vm))).collect())
}

/// Fails if a VM does not answer although it was not stopped.
fn told(vms: &Vms, silent: &[usize], stopped: &[usize]) -> Result<()> {
    match silent.iter().find(|vm| !stopped.contains(vm)) {
        Some(vm) => Err(miette!("VM `{}` does not answer, and the console does not say why", vms.name(*vm))),
        None => Ok(()),
    }
}

/// Flips a bit of each block of a VM's region that was written.
fn flip_all(image: &Image, (first, length): (u64, u64), chance: &mut Chance) -> Result<()> {
    let mut bytes = image.read(Partition::Swap, first, length as usize)?;
    for block in bytes.chunks_mut(BLOCK).filter(|block| block.iter().any(|byte| *byte != 0)) {
        let bit = chance.next() as usize % (BLOCK * 8);
        block[bit / 8] ^= 1 << (bit % 8);
    }
    image.write(Partition::Swap, first, &bytes)
}

fn flip(context: &mut Context<'_>) -> Result<()> {
    let socket = context.socket()?;
    let mut vms = Vms::boot_changed(context, SYSTEM, |_, machine| {
        machine.qmp = Some(socket.clone());
        Ok(())
    })?;
    let mut qmp = Qmp::connect(&socket)?;
    let all = vms.all();
    vms.check(&all)?;
    let victims = every_tenth(&all, 3);
    let others = without(&all, &victims);
    // The others take all memory.
    vms.touch(&others, |_| 64)?;
    vms.check(&others)?;
    nobody_stopped(context)?;
    let mut chance = Chance(std::process::id().into());
    let image = context.image(DISK);
    qmp.execute("stop", json!({}))?;
    for vm in &victims {
        flip_all(&image, vms.region(*vm), &mut chance)?;
    }
    qmp.execute("cont", json!({}))?;

    let patience = std::mem::replace(&mut vms.patience, SHORT);
    let silent = vms.try_check(&victims)?;
    vms.patience = patience;
    let lost = stopped_for(context, &vms, &victims, &["authentication failed"])?;
    told(&vms, &silent, &lost)?;
    if lost.len() < victims.len() / 2 {
        return Err(miette!("of {} VMs whose memory was changed only {} have noticed it", victims.len(), lost.len()));
    }
    vms.check(&others)?;
    vms.compare(&others)?;
    stopped_for(context, &vms, &victims, &["authentication failed"])?;
    println!("  of {} VMs whose memory was changed {} were stopped", victims.len(), lost.len());
    context.healthy()
}

/// Has each read, or write, of a VM's region fail.
fn fail(faults: &mut Faults, image: &Image, (first, length): (u64, u64), kind: fn(u64) -> Kind) -> Result<()> {
    let start = image.first_sector(Partition::Swap)? + first / 512;
    (start..start + length / 512).step_by(BLOCK / 512).for_each(|sector| faults.add(kind(sector), false));
    Ok(())
}

fn errors(context: &mut Context<'_>) -> Result<()> {
    let (system, _) = context.build(Some(SYSTEM))?;
    let region = |vm: usize| {
        let length = crate::system::disks::region(system.manifest.vms[vm].memory);
        (vm as u64 * length, length)
    };
    let all: Vec<usize> = (0..system.manifest.vms.len()).collect();
    let (unread, unwritten) = (every_tenth(&all, 2), every_tenth(&all, 7));
    let path = context.folder().join("faults");
    let mut vms = Vms::boot_changed(context, SYSTEM, |context, machine| {
        let (image, mut faults) = (context.image(DISK), Faults::default());
        unread.iter().try_for_each(|vm| fail(&mut faults, &image, region(*vm), Kind::Read))?;
        unwritten.iter().try_for_each(|vm| fail(&mut faults, &image, region(*vm), Kind::Write))?;
        faults.write(&path)?;
        machine.disks[0].faults = Some(path.clone());
        // A request that fails would take with it those of others that it was merged with.
        machine.disks[0].device.push("request-merging=off".into());
        Ok(())
    })?;
    let victims = [unread.clone(), unwritten.clone()].concat();
    let others = without(&all, &victims);
    vms.check(&others)?;
    let patience = std::mem::replace(&mut vms.patience, SHORT);
    let mut silent = vms.try_check(&victims)?;
    vms.patience = patience;
    vms.touch(&others, |_| 64)?;
    vms.check(&others)?;
    // Whoever was in memory until now has left it, if it could.
    let rest = without(&victims, &silent);
    vms.patience = SHORT;
    silent.extend(vms.try_check(&rest)?);
    vms.patience = patience;
    let reasons =
        ["cannot be read from swap space: input/output error", "cannot be written to swap space: input/output error"];
    let lost = stopped_for(context, &vms, &victims, &reasons)?;
    told(&vms, &silent, &lost)?;
    let count = |some: &[usize]| some.iter().filter(|vm| lost.contains(vm)).count();
    println!("  of {} VMs {} were stopped by reads, {} by writes", victims.len(), count(&unread), count(&unwritten));
    if count(&unread) < unread.len() / 2 || count(&unwritten) == 0 {
        return Err(miette!("too few VMs have met an error"));
    }
    vms.compare(&others)?;
    context.healthy()
}

fn stall(context: &mut Context<'_>) -> Result<()> {
    let socket = context.socket()?;
    let mut vms = Vms::boot_changed(context, SYSTEM, |_, machine| {
        machine.qmp = Some(socket.clone());
        Ok(())
    })?;
    let mut qmp = Qmp::connect(&socket)?;
    let all = vms.all();
    vms.check(&all)?;
    nobody_stopped(context)?;
    qmp.throttle(DISK, 1)?;
    // Most of them are not in memory.
    vms.patience = SHORT;
    let silent = vms.try_check(&all[..24])?;
    context.line(0, &["virtio-blk:", "not answered within 2 s; the device was reset"])?;
    if silent.is_empty() {
        return Err(miette!("all VMs answer: nothing was stalled"));
    }
    // The system lives all the while.
    memory(context)?;
    qmp.throttle(DISK, 0)?;
    let reasons = ["from swap space: ", "to swap space: "];
    vms.patience = Duration::from_secs(20);
    let lost = stopped_for(context, &vms, &all, &reasons)?;
    let silent = vms.try_check(&without(&all, &lost))?;
    let lost = stopped_for(context, &vms, &all, &reasons)?;
    told(&vms, &silent, &lost)?;
    println!("  of {} VMs {} were stopped", all.len(), lost.len());
    let rest = without(&all, &lost);
    if rest.is_empty() {
        return Err(miette!("no VM has outlived the stall"));
    }
    vms.touch(&rest, |_| 100)?;
    vms.check(&rest)?;
    vms.compare(&rest)?;
    context.healthy()
}

/// Gives a machine a swap disk with other partitions than the system file says.
fn replace(context: &Context<'_>, machine: &mut Machine, partitions: &[(Partition, u64)]) -> Result<()> {
    let partitions: Vec<_> = partitions.iter().map(|(kind, mib)| (*kind, Size(mib << 20))).collect();
    let size = Size(TABLES + partitions.iter().map(|(_, size)| size.0).sum::<u64>());
    let plan = DiskPlan { name: DISK.into(), size, partitions };
    let image = Image::ensure(context.folder(), &plan, Existing::Replace)?;
    machine.disks[0].image = image.path().to_path_buf();
    Ok(())
}

/// The VMs that the console says were refused for this reason.
fn refused(context: &mut Context<'_>, vms: &Vms, reason: &str) -> Result<Vec<usize>> {
    let lines = context.running()?.serial.since(0);
    let is_refused = |vm: &usize| {
        let words = format!("loader: vm {} refused: {reason}", vms.name(*vm));
        lines.iter().any(|line| line.text.contains(&words))
    };
    Ok(vms.all().into_iter().filter(is_refused).collect())
}

fn small(context: &mut Context<'_>) -> Result<()> {
    const REASON: &str = "not enough swap space is left for its 1536 KiB";
    let mut vms =
        Vms::boot_changed(context, SYSTEM, |context, machine| replace(context, machine, &[(Partition::Swap, 64)]))?;
    let all = vms.all();
    let last = *all.last().ok_or_else(|| miette!("there are no VMs"))?;
    context.line(0, &[&format!("loader: vm {} refused: {REASON}", vms.name(last))])?;
    let none = refused(context, &vms, REASON)?;
    let (run, room) = (without(&all, &none), (64 << 20) / vms.region(0).1);
    if run.len() as u64 != room {
        return Err(miette!("{} VMs run, and there is room for {room}", run.len()));
    }
    vms.check(&run)?;
    vms.touch(&run, |_| 64)?;
    vms.check(&run)?;
    // Refused once more, while the others have all memory; and not once one of them has gone.
    let name = vms.name(last).to_string();
    let position = context.command(&format!("start {name}"))?;
    context.line(position, &[&format!("VM {name}: {REASON}")])?;
    let gone = vms.name(run[0]).to_string();
    context.command(&format!("stop {gone}"))?;
    let position = context.command(&format!("start {name}"))?;
    vms.check(&[last])?;
    if context.running()?.serial.since(position).iter().any(|line| line.text.contains(REASON)) {
        return Err(miette!("VM `{name}` was refused although VM `{gone}` has given its swap space back"));
    }
    vms.check(&run[1..])?;
    vms.compare(&run[1..])?;
    context.healthy()
}

/// A system without swap space: some VMs run, and the others are refused.
fn in_core(context: &mut Context<'_>, vms: &mut Vms, lines: &[&[&str]]) -> Result<()> {
    const REASON: &str = "not enough memory for its 1536 KiB";
    for words in lines {
        context.line(0, words)?;
    }
    context.line(0, &["swap: ", "MiB for VMs, no swap space:"])?;
    let all = vms.all();
    let last = vms.name(all.len() - 1).to_string();
    context.line(0, &[&format!("loader: vm {last} refused: {REASON}")])?;
    let run = without(&all, &refused(context, vms, REASON)?);
    if run.len() < 4 {
        return Err(miette!("only {} VMs run", run.len()));
    }
    vms.check(&run)?;
    vms.touch(&run, |_| 64)?;
    vms.check(&run)?;
    let position = context.command("memory")?;
    context.line(position, &["no swap space"])?;
    nobody_stopped(context)?;
    context.healthy()
}

fn missing(context: &mut Context<'_>) -> Result<()> {
    let mut vms = Vms::boot_changed(context, SYSTEM, |_, machine| {
        machine.disks.clear();
        Ok(())
    })?;
    in_core(context, &mut vms, &[&["virtio-blk: no device:"], &["swap: disk of virtio-blk: there is no disk"]])?;

    let mut vms = Vms::boot_changed(context, SYSTEM, |context, _| {
        let image = context.image(DISK);
        let length = fs::metadata(image.path()).into_diagnostic()?.len();
        let empty = fs::File::create(image.path()).into_diagnostic()?;
        empty.set_len(length).into_diagnostic()
    })?;
    let table = ["virtio-blk: no partition table (no GPT signature; backup: no GPT signature)"];
    let none = ["swap: disk of virtio-blk: the disk has no such partition"];
    in_core(context, &mut vms, &[&table, &none])?;

    let mut vms =
        Vms::boot_changed(context, SYSTEM, |context, machine| replace(context, machine, &[(Partition::Vdisk, 64)]))?;
    in_core(context, &mut vms, &[&["virtio-blk: no swap partition, which `swap` is to have"], &none])
}
