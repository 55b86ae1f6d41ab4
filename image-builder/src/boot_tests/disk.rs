//! Disks: what is written is where it should be, whoever dies, fails or stalls.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use bench::pattern::{self, BLOCK, HOST};
use miette::{IntoDiagnostic, Result, miette};
use protocol::service::block_driver::Partition;

use super::BootTest;
use super::harness::Context;
use crate::machine::disk::Image;
use crate::machine::faults::{Faults, Kind};
use crate::machine::power::{Chance, Fate};
use crate::machine::qemu::{DiskBus, Machine};
use crate::machine::qmp::Qmp;
use crate::machine::serial::Line;

pub(super) const TESTS: &[BootTest] = &[
    test(
        "disk",
        "two disks are written, flushed, read and zeroed; the host finds everything where it should be, and nothing else",
        |context| disk(context, DiskBus::Virtio),
    ),
    test(
        "disk-plain",
        "the same, by a device that interrupts by its line, and one that has no cache and zeroes nothing by itself",
        plain,
    ),
    test(
        "disk-kill",
        "drivers and clients of disks are killed under load: every request is answered, everything is right",
        |context| kill(context, DiskBus::Virtio),
    ),
    test(
        "disk-errors",
        "a disk fails some reads, writes and flushes: they are answered so, and everything else is right",
        |context| errors(context, DiskBus::Virtio),
    ),
    test(
        "disk-stall",
        "a disk does not answer for a while: requests time out, the other disk goes on, and it works again afterwards",
        |context| stall(context, DiskBus::Virtio),
    ),
    test(
        "disk-gone",
        "a disk is pulled out: its requests fail, the log says so, and the other disk goes on",
        |context| gone(context, DiskBus::Virtio),
    ),
    test("disk-nvme", "`disk` with NVMe disks", |context| disk(context, DiskBus::Nvme)),
    test("disk-nvme-plain", "`disk` with NVMe disks of other properties", plain_nvme),
    test("disk-nvme-kill", "`disk-kill` with NVMe disks", |context| kill(context, DiskBus::Nvme)),
    test("disk-nvme-errors", "`disk-errors` with NVMe disks", |context| errors(context, DiskBus::Nvme)),
    test("disk-nvme-stall", "`disk-stall` with NVMe disks", |context| stall(context, DiskBus::Nvme)),
    test("disk-nvme-gone", "`disk-gone` with NVMe disks", |context| gone(context, DiskBus::Nvme)),
    test("disk-ahci", "`disk` with SATA disks", |context| disk(context, DiskBus::Ahci)),
    test("disk-ahci-kill", "`disk-kill` with SATA disks", |context| kill(context, DiskBus::Ahci)),
    test(
        "disk-ahci-errors",
        "some requests of a SATA disk fail: its driver says so, and all is right in the end",
        |context| errors(context, DiskBus::Ahci),
    ),
    test("disk-ahci-stall", "`disk-stall` with SATA disks", |context| stall(context, DiskBus::Ahci)),
    test("disk-ahci-gone", "`disk-gone` with SATA disks", |context| gone(context, DiskBus::Ahci)),
    test(
        "disk-power",
        "the power is cut at random moments, and disks forget what was not flushed: all that was flushed is there",
        |context| power(context, 6),
    ),
    BootTest {
        limit: Duration::from_secs(1200),
        long: true,
        ..test("disk-power-long", "the same, many times", |context| power(context, 200))
    },
    test(
        "disk-damage",
        "disks with damaged partition tables, without any, missing, or read-only: said so, and nothing is written",
        damage,
    ),
];

const fn test(name: &'static str, about: &'static str, run: fn(&mut Context<'_>) -> Result<()>) -> BootTest {
    BootTest { name, about, limit: Duration::from_secs(120), long: false, run }
}

const SYSTEM: &str = "disk";

/// Attaches all disks by this bus, and writes the host's blocks.
fn prepare_on(bus: DiskBus, machine: &mut Machine) -> Result<()> {
    machine.disk_bus = bus;
    prepare(machine)
}

/// As in the system file: blocks of both areas, and those that the host writes.
const AREA: u64 = 1024;
const AREA1: u64 = 100;
const HOST_BLOCKS: u64 = 64;
/// Generations that the servers write.
const GENERATIONS: u64 = 60;
/// Bytes a second that each disk may move while servers are killed: a generation takes a quarter of a second at least, and nobody is done
/// with all of them before the last kill, however quick the host is.
const KILL_SPEED: [(&str, u64); 2] = [("first", 32 << 20), ("second", 3 << 20)];
const DONE: &str = "all is checked";

/// Writes the host's blocks to the end of the first disk's partition.
fn prepare(machine: &mut Machine) -> Result<()> {
    let image = first(machine)?;
    let mut bytes = vec![0; HOST_BLOCKS as usize * BLOCK];
    let first = blocks(&image, Partition::Scratch)? - HOST_BLOCKS;
    pattern::fill(&mut bytes, first, HOST);
    image.write(Partition::Scratch, first * BLOCK as u64, &bytes)
}

fn first(machine: &Machine) -> Result<Image> {
    machine.disks.first().map(|disk| Image::at(&disk.image)).ok_or_else(|| miette!("the system has no disk"))
}

fn blocks(image: &Image, kind: Partition) -> Result<u64> {
    let found = image.partitions()?.into_iter().find(|(other, ..)| *other == kind);
    found.map(|(_, _, bytes)| bytes / BLOCK as u64).ok_or_else(|| miette!("there is no {} partition", kind.name()))
}

/// Fails unless a partition holds what `check` leaves: zeros, the last generation, and what was there before.
fn contents(image: &Image, kind: Partition, area: u64, host: u64) -> Result<()> {
    let all = blocks(image, kind)?;
    let bytes = image.read(kind, 0, (all * BLOCK as u64) as usize)?;
    let at = |block: u64| block as usize * BLOCK;
    let place = image.path().display();
    let is_zero = |from: u64, to: u64| bytes[at(from)..at(to)].iter().all(|byte| *byte == 0);
    if !is_zero(0, area / 2) {
        return Err(miette!("{place}: the zeroed blocks are not zeros"));
    }
    if let Some(wrong) = pattern::wrong(&bytes[at(area / 2)..at(area)], area / 2, GENERATIONS) {
        return Err(miette!("{place}: block {wrong} is not of generation {GENERATIONS}"));
    }
    if !is_zero(area, all - host) {
        return Err(miette!("{place}: blocks were written that nobody has asked for"));
    }
    if let Some(wrong) = pattern::wrong(&bytes[at(all - host)..], all - host, HOST) {
        return Err(miette!("{place}: block {wrong} is not as the host wrote it"));
    }
    Ok(())
}

/// Waits until both servers have checked everything, and looks at the images. Returns the line with the first one's counts.
fn finish(context: &mut Context<'_>) -> Result<String> {
    context.line(0, &["check1: all is checked"])?;
    context.line(0, &["check: all is checked"])?;
    let counts = context.line(0, &[&format!("check: generation {GENERATIONS} is right")])?.text;
    let (first, second) = (context.image("first"), context.image("second"));
    contents(&first, Partition::Scratch, AREA, HOST_BLOCKS)?;
    contents(&second, Partition::Vdisk, AREA1, 0)?;
    let swap = first.read(Partition::Swap, 0, (blocks(&first, Partition::Swap)? * BLOCK as u64) as usize)?;
    if swap.iter().any(|byte| *byte != 0) {
        return Err(miette!("a partition was written that is nobody's"));
    }
    context.healthy()?;
    Ok(counts)
}

/// The number before a word of a line.
fn count(line: &str, word: &str) -> Option<u64> {
    line.split_once(&format!(" {word}"))?.0.rsplit(' ').next()?.parse().ok()
}

fn disk(context: &mut Context<'_>, bus: DiskBus) -> Result<()> {
    let (system, built) = context.build(Some(SYSTEM))?;
    context.boot_changed(&system, &built, |_, machine| prepare_on(bus, machine))?;
    context.line(0, &["check: 64 blocks are as the host wrote them"])?;
    context.line(0, &["disk1: no swap partition, which `lost` is to have"])?;
    context.line(0, &["lost: the disk cannot be opened: the disk has no such partition"])?;
    let counts = finish(context)?;
    nothing_failed(&counts)
}

fn nothing_failed(counts: &str) -> Result<()> {
    match (count(counts, "failed"), count(counts, "timed out")) {
        (Some(0), Some(0)) => Ok(()),
        _ => Err(miette!("requests failed without a reason: {counts}")),
    }
}

/// A device without MSI-X, and one that can neither zero nor flush.
fn plain(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(Some(SYSTEM))?;
    context.boot_changed(&system, &built, |_, machine| {
        machine.disks[0].device.push("vectors=0".into());
        machine.disks[1].device.extend(["write-zeroes=off".into(), "write-cache=off".into()]);
        prepare(machine)
    })?;
    nothing_failed(&finish(context)?)
}

/// A device that takes just as much at once as is needed, and one with a single interrupt.
fn plain_nvme(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(Some(SYSTEM))?;
    context.boot_changed(&system, &built, |_, machine| {
        machine.disks[0].device.push("mdts=4".into());
        machine.disks[1].device.push("msix_qsize=1".into());
        prepare_on(DiskBus::Nvme, machine)
    })?;
    nothing_failed(&finish(context)?)
}

fn kill(context: &mut Context<'_>, bus: DiskBus) -> Result<()> {
    let (system, built) = context.build(Some(SYSTEM))?;
    let socket = context.socket()?;
    context.boot_changed(&system, &built, |_, machine| {
        machine.qmp = Some(socket.clone());
        prepare_on(bus, machine)
    })?;
    let mut qmp = Qmp::connect(&socket)?;
    for (disk, speed) in KILL_SPEED {
        qmp.throttle(disk, speed)?;
    }
    // With the platform server, what it knows of who has which disk is gone.
    for victim in ["disk0", "disk1", "disk0", "check", "platform", "disk1", "check1", "disk0"] {
        let client = if victim.ends_with('1') { "check1" } else { "check" };
        let now = context.running()?.serial.position();
        // From then on it has the disk open, and requests under way.
        context.line(now, &[&format!("{client}: generation")])?;
        let position = context.command(&format!("kill {victim}"))?;
        context.line(position, &[&format!("init: server {victim} restarted (")])?;
        if victim.starts_with("disk") {
            context.line(position, &[&format!("{client}: the driver was restarted")])?;
        }
        if context.running()?.serial.since(0).iter().any(|line| line.text.contains(DONE)) {
            return Err(miette!("the load was over before `{victim}` was killed: nothing was tested"));
        }
    }
    for (disk, _) in KILL_SPEED {
        qmp.throttle(disk, 0)?;
    }
    let counts = finish(context)?;
    nothing_failed(&counts)
}

/// Blocks of the first disk's partition whose reads and writes fail, and one whose reads fail for as long as the disk is read so many times.
const FAILING: ([u64; 2], [u64; 3]) = ([77, 600], [0, 500, 1023]);
const LASTING: (u64, u32) = (200, 1000);

/// Has the first disk fail reads and writes so many times each, and a flush once; `lasting`: also for a while.
fn fail(path: &Path, image: &Image, times: usize, lasting: bool) -> Result<()> {
    let (reads, writes) = FAILING;
    let start = image.first_sector(Partition::Scratch)?;
    let sector = |block: &u64| start + block * (BLOCK as u64 / 512);
    let mut faults = Faults::default();
    for _ in 0..times {
        reads.iter().map(sector).map(Kind::Read).for_each(|kind| faults.add(kind, true));
        writes.iter().map(sector).map(Kind::Write).for_each(|kind| faults.add(kind, true));
    }
    faults.add(Kind::Flush, true);
    if lasting {
        faults.add_for(sector(&LASTING.0), LASTING.1);
    }
    faults.write(path)
}

fn errors(context: &mut Context<'_>, bus: DiskBus) -> Result<()> {
    let (system, built) = context.build(Some(SYSTEM))?;
    let path = context.folder().join("faults");
    let is_ahci = bus == DiskBus::Ahci;
    context.boot_changed(&system, &built, |_, machine| {
        prepare_on(bus, machine)?;
        // What fails among queued commands, and what is under way with it, is tried once more by the driver of SATA disks: that alone need not
        // be told to anybody. What goes on to fail must be.
        fail(&path, &first(machine)?, if is_ahci { 8 } else { 1 }, is_ahci)?;
        machine.disks[0].faults = Some(path.clone());
        Ok(())
    })?;
    let counts = finish(context)?;
    let failed = count(&counts, "failed");
    // Two reads for each time that it is told, and most of them for that: nothing else is left to do until it ends.
    let wanted = if is_ahci { u64::from(LASTING.1) / 8 } else { (FAILING.0.len() + FAILING.1.len()) as u64 + 1 };
    context.line(0, &["disk0:", "requests have failed"])?;
    // A request that fails takes with it those that QEMU has merged with it.
    if failed.is_none_or(|failed| failed < wanted) {
        return Err(miette!("at least {wanted} requests should have failed: {counts}"));
    }
    if context.running()?.serial.since(0).iter().any(|line| line.text.contains("panicked")) {
        return Err(miette!("something was read that was not written, and said to be right"));
    }
    Ok(())
}

fn stall(context: &mut Context<'_>, bus: DiskBus) -> Result<()> {
    let (system, built) = context.build(Some(SYSTEM))?;
    let socket = context.socket()?;
    context.boot_changed(&system, &built, |_, machine| {
        machine.qmp = Some(socket.clone());
        prepare_on(bus, machine)
    })?;
    let mut qmp = Qmp::connect(&socket)?;
    context.line(0, &["check: generation 2 is right"])?;
    // QEMU's AHCI waits in a reset for what is under way: it must end some time.
    qmp.throttle("first", if bus == DiskBus::Ahci { 60_000 } else { 1 })?;
    let reset = context.line(0, &["disk0:", "not answered within 2 s; the device was reset"])?;
    // The other disk does not care.
    context.line(0, &["check1: all is checked"])?;
    if context.running()?.serial.since(0).iter().any(|line| line.text.contains("check: all is checked")) {
        return Err(miette!("the disk was not stalled"));
    }
    qmp.throttle("first", 0)?;
    let counts = finish(context)?;
    if count(&counts, "timed out").is_none_or(|late| late == 0) {
        return Err(miette!("after `{}`: {counts}", reset.text));
    }
    Ok(())
}

/// The first disk's controller is pulled out.
fn gone(context: &mut Context<'_>, bus: DiskBus) -> Result<()> {
    let (system, built) = context.build(Some(SYSTEM))?;
    let socket = context.socket()?;
    context.boot_changed(&system, &built, |_, machine| {
        machine.qmp = Some(socket.clone());
        prepare_on(bus, machine)
    })?;
    let mut qmp = Qmp::connect(&socket)?;
    context.line(0, &["check: generation 2 is right"])?;
    qmp.vanish(if bus == DiskBus::Ahci { "ahci-first" } else { "first" })?;
    context.line(0, &["disk0: no answer within 2 s, and the device is lost:"])?;
    context.line(0, &["disk0:", "requests have failed"])?;
    context.line(0, &["check1: all is checked"])?;
    contents(&context.image("second"), Partition::Vdisk, AREA1, 0)?;
    context.healthy()
}

/// Cuts the power at a random moment of each of so many boots.
fn power(context: &mut Context<'_>, cuts: u64) -> Result<()> {
    let (system, built) = context.build(Some(SYSTEM))?;
    let mut chance = Chance(std::process::id().into());
    let mut all = Fate::default();
    for cut in 1..=cuts {
        let seed = chance.next();
        context.boot_changed(&system, &built, |context, machine| {
            if cut == 1 {
                prepare(machine)?;
            }
            context.volatile_disks(machine)
        })?;
        // The host's blocks were written before the first cut, and must outlive all of them.
        context.line(0, &["check: 64 blocks are as the host wrote them"])?;
        context.line(0, &["check: generation 1 is right"])?;
        thread::sleep(Duration::from_millis(chance.next() % 400));
        let fate = context.cut_power(seed)?;
        let flushed = |line: &Line| line.text.split_once("check: generation ")?.1.split_once(' ')?.0.parse().ok();
        let lines = context.running()?.serial.since(0);
        let last = lines.iter().rev().find_map(flushed).unwrap_or(0);
        let done = lines.iter().any(|line| line.text.contains("check: all is checked"));
        survived(&context.image("first"), last, done)
            .map_err(|error| miette!("after cut {cut}, seed {seed}, in which {fate:?}: {error}"))?;
        (all.flushed, all.kept, all.lost) = (all.flushed + fate.flushed, all.kept + fate.kept, all.lost + fate.lost);
    }
    println!("  {cuts} cuts; sectors flushed: {}, kept: {}, lost: {}", all.flushed, all.kept, all.lost);
    // Otherwise nothing was tested.
    if all.kept == 0 || all.lost == 0 {
        return Err(miette!("the disks have forgotten nothing: {all:?}"));
    }
    Ok(())
}

/// Fails unless every sector of the area is of generation `last`, which was flushed, or of the next one, which was being written; or,
/// after the last generation, zero. If the server was `done` the zeros were flushed too.
fn survived(image: &Image, last: u64, done: bool) -> Result<()> {
    let bytes = image.read(Partition::Scratch, 0, AREA as usize * BLOCK)?;
    let mut expected = [vec![0; BLOCK], vec![0; BLOCK], vec![0; BLOCK]];
    for (block, found) in (0..AREA).zip(bytes.chunks(BLOCK)) {
        let zeroed = block < AREA / 2 && last == GENERATIONS;
        pattern::fill(&mut expected[0], block, last);
        // Nothing follows the last generation but zeros.
        pattern::fill(&mut expected[1], block, if last == GENERATIONS { last } else { last + 1 });
        let choice = match (zeroed, done) {
            (true, true) => &expected[2..],
            (true, false) => &expected[..],
            (false, _) => &expected[..2],
        };
        for (sector, found) in found.chunks(512).enumerate() {
            if choice.iter().all(|expected| found != &expected[sector * 512..][..512]) {
                return Err(miette!("block {block} has lost generation {last}"));
            }
        }
    }
    Ok(())
}

fn damage(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(Some(SYSTEM))?;
    // The first table is damaged: the backup does.
    context.boot_changed(&system, &built, |_, machine| {
        prepare(machine)?;
        change(&first(machine)?, |bytes| bytes[1024 + 32] ^= 1)
    })?;
    context.line(0, &["disk0: the first partition table is damaged (the checksum of the entries is wrong)"])?;
    context.line(0, &["check1: all is checked"])?;
    context.line(0, &["check: all is checked"])?;
    // The system has left the damage alone. The host's reader wants a whole table.
    change(&context.image("first"), |bytes| bytes[1024 + 32] ^= 1)?;
    finish(context)?;

    // Both are; and the second disk is missing.
    context.boot_changed(&system, &built, |_, machine| {
        machine.disks.truncate(1);
        change(&first(machine)?, |bytes| {
            let last = bytes.len() - 512;
            bytes[512] ^= 1;
            bytes[last] ^= 1;
        })
    })?;
    context.line(0, &["disk0: no partition table (no GPT signature; backup: no GPT signature)"])?;
    context.line(0, &["check: the disk cannot be opened: the disk has no such partition"])?;
    context.line(0, &["disk1: no device:"])?;
    context.line(0, &["check1: the disk cannot be opened: there is no disk"])?;
    context.healthy()?;

    // Nothing is wrong, but nothing may be written.
    context.boot_changed(&system, &built, |_, machine| {
        prepare(machine)?;
        machine.disks[0].read_only = true;
        Ok(())
    })?;
    context.line(0, &["disk0: disk of 64 MiB", "read-only"])?;
    context.line(0, &["check: 64 blocks are as the host wrote them"])?;
    context.line(0, &["check: panicked", "the disk cannot be written"])?;
    context.healthy()
}

/// Changes bytes of an image.
fn change(image: &Image, change: impl FnOnce(&mut [u8])) -> Result<()> {
    let mut bytes = fs::read(image.path()).into_diagnostic()?;
    change(&mut bytes);
    fs::write(image.path(), bytes).into_diagnostic()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read() {
        let line = "check: generation 12 is right: 5301 requests so far, 6 failed, 17 timed out";
        assert_eq!((count(line, "failed"), count(line, "timed out"), count(line, "lost")), (Some(6), Some(17), None));
    }
}
