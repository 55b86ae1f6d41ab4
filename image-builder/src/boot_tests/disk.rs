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
use crate::machine::qemu::Machine;
use crate::machine::qmp::Qmp;
use crate::machine::serial::Line;

pub(super) const TESTS: &[BootTest] = &[
    BootTest {
        name: "disk",
        about: "two disks are written, flushed, read and zeroed; the host finds everything where it should be, and nothing else",
        limit: Duration::from_secs(120),
        long: false,
        run: disk,
    },
    BootTest {
        name: "disk-plain",
        about: "the same, by a device that interrupts by its line, and one that has no cache and zeroes nothing by itself",
        limit: Duration::from_secs(120),
        long: false,
        run: plain,
    },
    BootTest {
        name: "disk-kill",
        about: "drivers and clients of disks are killed under load: every request is answered, everything is right",
        limit: Duration::from_secs(120),
        long: false,
        run: kill,
    },
    BootTest {
        name: "disk-errors",
        about: "a disk fails some reads, writes and flushes: they are answered so, and everything else is right",
        limit: Duration::from_secs(120),
        long: false,
        run: errors,
    },
    BootTest {
        name: "disk-stall",
        about: "a disk does not answer for a while: requests time out, the other disk goes on, and it works again afterwards",
        limit: Duration::from_secs(120),
        long: false,
        run: stall,
    },
    BootTest {
        name: "disk-power",
        about: "the power is cut at random moments, and disks forget what was not flushed: all that was flushed is there",
        limit: Duration::from_secs(120),
        long: false,
        run: |context| power(context, 6),
    },
    BootTest {
        name: "disk-power-long",
        about: "the same, many times",
        limit: Duration::from_secs(1200),
        long: true,
        run: |context| power(context, 200),
    },
    BootTest {
        name: "disk-damage",
        about: "disks with damaged partition tables, without any, missing, or read-only: said so, and nothing is written",
        limit: Duration::from_secs(120),
        long: false,
        run: damage,
    },
];

const SYSTEM: &str = "disk";
/// As in the system file: blocks of both areas, and those that the host writes.
const AREA: u64 = 1024;
const AREA1: u64 = 100;
const HOST_BLOCKS: u64 = 64;
/// Generations that the servers write.
const GENERATIONS: u64 = 60;
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

fn disk(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(Some(SYSTEM))?;
    context.boot_changed(&system, &built, |_, machine| prepare(machine))?;
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

fn kill(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(Some(SYSTEM))?;
    context.boot_changed(&system, &built, |_, machine| prepare(machine))?;
    // With the platform server, what it knows of who has which disk is gone.
    for victim in ["virtio-blk", "disk1", "virtio-blk", "check", "platform", "disk1", "check1", "virtio-blk"] {
        let now = context.running()?.serial.position();
        context.line(now, &["check: generation"])?;
        let position = context.command(&format!("kill {victim}"))?;
        context.line(position, &[&format!("init: server {victim} restarted (")])?;
        if context.running()?.serial.since(0).iter().any(|line| line.text.contains(DONE)) {
            return Err(miette!("the load was over before `{victim}` was killed: nothing was tested"));
        }
    }
    let counts = finish(context)?;
    context.line(0, &["check: the driver was restarted"])?;
    context.line(0, &["check1: the driver was restarted"])?;
    nothing_failed(&counts)
}

/// Has the first disk fail reads and writes of these blocks of the partition once each, and a flush.
fn fail_once(path: &Path, image: &Image, reads: &[u64], writes: &[u64]) -> Result<()> {
    let start = image.first_sector(Partition::Scratch)?;
    let sector = |block: &u64| start + block * (BLOCK as u64 / 512);
    let mut faults = Faults::default();
    reads.iter().map(sector).map(Kind::Read).for_each(|kind| faults.add(kind, true));
    writes.iter().map(sector).map(Kind::Write).for_each(|kind| faults.add(kind, true));
    faults.add(Kind::Flush, true);
    faults.write(path)
}

fn errors(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(Some(SYSTEM))?;
    let path = context.folder().join("faults");
    let (reads, writes) = ([77, 600], [0, 500, 1023]);
    context.boot_changed(&system, &built, |_, machine| {
        prepare(machine)?;
        fail_once(&path, &first(machine)?, &reads, &writes)?;
        machine.disks[0].faults = Some(path.clone());
        Ok(())
    })?;
    let counts = finish(context)?;
    let failed = count(&counts, "failed");
    let wanted = (reads.len() + writes.len()) as u64 + 1;
    // A request that fails takes with it those that QEMU has merged with it.
    if failed.is_none_or(|failed| failed < wanted) {
        return Err(miette!("at least {wanted} requests should have failed: {counts}"));
    }
    Ok(())
}

fn stall(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(Some(SYSTEM))?;
    let socket = context.socket()?;
    context.boot_changed(&system, &built, |_, machine| {
        machine.qmp = Some(socket.clone());
        prepare(machine)
    })?;
    let mut qmp = Qmp::connect(&socket)?;
    context.line(0, &["check: generation 2 is right"])?;
    qmp.throttle("first", 1)?;
    let reset = context.line(0, &["virtio-blk:", "not answered within 2 s; the device was reset"])?;
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
    context.line(0, &["virtio-blk: the first partition table is damaged (the checksum of the entries is wrong)"])?;
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
    context.line(0, &["virtio-blk: no partition table (no GPT signature; backup: no GPT signature)"])?;
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
    context.line(0, &["virtio-blk: disk of 64 MiB", "read-only"])?;
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
