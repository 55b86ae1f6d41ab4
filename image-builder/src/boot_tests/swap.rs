//! Swap space: VMs that touch several times the memory there is, and keep all of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memchr::memmem;
use miette::{Result, miette};
use pages::SECRET;
use protocol::service::block_driver::{BLOCK, Partition};

use super::BootTest;
use super::harness::Context;
use super::pages::{AT_ONCE, PATIENCE, Vms};
use crate::machine::disk::Image;
use crate::machine::power::Chance;

pub(super) const TESTS: &[BootTest] = &[
    BootTest {
        name: "swap-one",
        about: "VMs touch four times the memory there is: all of it is what it must be, and nothing of it can be read on the swap disk",
        limit: Duration::from_secs(120),
        long: false,
        run: |context| swap(context, SYSTEM, &["disk"]),
    },
    BootTest {
        name: "swap-two",
        about: "the same with two swap disks: both are used alike",
        limit: Duration::from_secs(120),
        long: false,
        run: |context| swap(context, "swap-two", &["first", "second"]),
    },
    BootTest {
        name: "swap-kill",
        about: "the pager and the disk's driver are killed under load, in any order: no VM is lost, and all memory is right",
        limit: Duration::from_secs(120),
        long: false,
        run: kill,
    },
    BootTest {
        name: "swap-many",
        about: "2,000 VMs that touch 4 MiB each on a machine of 2 GiB: each of them answers, and all memory is right",
        limit: Duration::from_secs(3600),
        long: true,
        run: many,
    },
];

/// Most tests of swap space boot this.
pub const SYSTEM: &str = "swapping";
/// Times that servers are killed.
const KILLS: usize = 8;
/// How long it may take until all of many VMs have filled their memory.
const FILLING: Duration = Duration::from_secs(2400);
/// VMs that are asked at a time while servers are killed.
const GROUP: usize = 16;
/// Bytes of a swap partition that are looked at at a time.
const PIECE: u64 = 4 << 20;
/// What nobody has written.
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// What the operator's command `memory` shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shown {
    /// VMs.
    pub vms: u64,
    /// VMs that have left memory whole.
    pub suspended: u64,
    /// Pages read from swap space.
    pub page_ins: u64,
    /// Pages written to it.
    pub page_outs: u64,
}

/// The numbers in a text.
fn numbers(text: &str) -> impl Iterator<Item = u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok())
}

/// Has the operator ask.
pub fn memory(context: &mut Context<'_>) -> Result<Shown> {
    let position = context.command("memory")?;
    context.line(position, &["swap space: ", "free"])?;
    let vms = context.line(position, &["VMs: ", "swapped out whole"])?.text;
    let pages = context.line(position, &["pages read from swap space: "])?.text;
    let unclear = || miette!("`memory` shows {vms:?} and {pages:?}");
    let (mut first, mut second) = (numbers(&vms), numbers(&pages));
    let next = |numbers: &mut dyn Iterator<Item = u64>| numbers.next().ok_or_else(unclear);
    Ok(Shown {
        vms: next(&mut first)?,
        suspended: next(&mut first)?,
        page_ins: next(&mut second)?,
        page_outs: next(&mut second)?,
    })
}

/// The VMs of which the console tells that they were stopped or have ended, and why.
pub fn stopped(context: &mut Context<'_>) -> Result<BTreeMap<String, String>> {
    let lines = context.running()?.serial.since(0);
    let told = lines.iter().filter_map(|line| {
        let (before, rest) = line.text.split_once("loader: vm ")?;
        let (name, why) = rest.split_once(' ')?;
        let ends = !before.contains('|') && (why.starts_with("stopped") || why.starts_with("ended"));
        ends.then(|| (name.to_string(), why.to_string()))
    });
    Ok(told.collect())
}

/// Fails if a VM was stopped.
pub fn nobody_stopped(context: &mut Context<'_>) -> Result<()> {
    match stopped(context)?.iter().next() {
        Some((name, why)) => Err(miette!("VM `{name}` {why}")),
        None => Ok(()),
    }
}

/// Looks at all of a swap partition: how many of its blocks were written. Fails if anything of a guest's memory can be read there.
fn written(image: &Image) -> Result<u64> {
    let place = image.path().display();
    let found = image.partitions()?.into_iter().find(|(kind, ..)| *kind == Partition::Swap);
    let (_, _, length) = found.ok_or_else(|| miette!("{place} has no swap partition"))?;
    let secret = memmem::Finder::new(&SECRET[..16]);
    let (mut blocks, mut at) = (0, 0);
    while at < length {
        let piece = image.read(Partition::Swap, at, PIECE.min(length - at) as usize)?;
        if let Some(offset) = secret.find(&piece) {
            return Err(miette!("{place}: a guest's secret can be read at byte {}", at + offset as u64));
        }
        let is_zero = |block: &[u8]| block == &ZEROS[..block.len()];
        blocks += piece.chunks(BLOCK).filter(|block| !is_zero(block)).count() as u64;
        // Secrets begin where pages do: none lies across two pieces.
        at += PIECE;
    }
    Ok(blocks)
}

fn swap(context: &mut Context<'_>, system: &str, disks: &[&str]) -> Result<()> {
    let mut vms = Vms::boot(context, system)?;
    let all = vms.all();
    vms.check(&all)?;
    vms.touch(&all, |vm| 100 + vm as u32)?;
    vms.check(&all)?;
    vms.check(&all)?;
    vms.compare(&all)?;
    nobody_stopped(context)?;
    context.healthy()?;
    let shown = memory(context)?;
    let count = all.len() as u64;
    // Each VM has more than so many pages, and the system has no memory for a third of them.
    if shown.vms != count || shown.page_ins < count * 100 || shown.page_outs < count * 100 {
        return Err(miette!("{count} VMs should have swapped more than that: {shown:?}"));
    }
    let blocks = disks.iter().map(|disk| written(&context.image(disk))).collect::<Result<Vec<_>>>()?;
    println!("  {shown:?}, blocks of the disks that were written: {blocks:?}");
    let (least, most) = (blocks.iter().min().copied().unwrap_or(0), blocks.iter().max().copied().unwrap_or(0));
    if least == 0 || most - least > most / 4 {
        return Err(miette!("the disks should have been written alike; blocks written: {blocks:?}"));
    }
    Ok(())
}

/// Asks the VMs, group by group, to touch and to check their pages until it is `over`; `answers` counts groups that have answered.
fn load(vms: &mut Vms, over: &AtomicBool, answers: &AtomicUsize) -> Result<()> {
    let all = vms.all();
    for round in 0.. {
        for group in all.chunks(GROUP) {
            if over.load(Ordering::Relaxed) {
                return Ok(());
            }
            vms.touch(group, |vm| 20 + (vm as u32 + round) % 50)?;
            vms.check(group)?;
            answers.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Kills servers, each when VMs have answered since the one before; whether the load still went on.
fn kills(context: &mut Context<'_>, count: usize, answers: &AtomicUsize, load: impl Fn() -> bool) -> Result<()> {
    let mut chance = Chance(std::process::id().into());
    for kill in 0..KILLS {
        let before = answers.load(Ordering::Relaxed);
        while answers.load(Ordering::Relaxed) == before {
            if !load() {
                return Ok(());
            }
            if Instant::now() >= context.deadline() {
                return Err(miette!("no VM answers after kill {kill}"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(chance.next() % 300));
        // Each of both at least twice, otherwise as it comes.
        let pager = if kill < 4 { kill % 2 == 0 } else { chance.next().is_multiple_of(2) };
        let victim = if pager { "swap" } else { "virtio-blk" };
        let position = context.command(&format!("kill {victim}"))?;
        context.line(position, &[&format!("init: server {victim} restarted (")])?;
        if pager {
            context.line(position, &[&format!("swap: {count} VMs found again")])?;
        }
    }
    Ok(())
}

fn kill(context: &mut Context<'_>) -> Result<()> {
    let mut vms = Vms::boot(context, SYSTEM)?;
    let all = vms.all();
    vms.check(&all)?;
    let (over, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    let before = memory(context)?;
    let (loaded, killed) = thread::scope(|scope| {
        let thread = scope.spawn(|| load(&mut vms, &over, &answers));
        let killed = kills(context, all.len(), &answers, || !thread.is_finished());
        over.store(true, Ordering::Relaxed);
        (thread.join(), killed)
    });
    // A VM that was stopped says more than that it does not answer.
    nobody_stopped(context)?;
    context.healthy()?;
    loaded.map_err(|_| miette!("the load panicked"))??;
    killed?;
    vms.check(&all)?;
    vms.compare(&all)?;
    nobody_stopped(context)?;
    let after = memory(context)?;
    println!("  {KILLS} kills while VMs answered {} times, {before:?} before, {after:?} after", answers.into_inner());
    if after.page_ins <= before.page_ins || after.page_outs <= before.page_outs {
        return Err(miette!("nothing was swapped while servers were killed: {before:?}, {after:?}"));
    }
    context.healthy()
}

fn many(context: &mut Context<'_>) -> Result<()> {
    let mut vms = Vms::boot(context, "swap")?;
    let all = vms.all();
    // They answer when they have filled their memory, all at the same time.
    vms.patience = FILLING;
    let mut begun = Instant::now();
    for (index, round) in ["filled", "checked", "checked again"].into_iter().enumerate() {
        // In groups of as many as are asked at a time: it ends with the first that does not answer.
        for (number, group) in all.chunks(AT_ONCE).enumerate() {
            let answered = if index == 0 { vms.ask(group, |_| "who".into()).map(drop) } else { vms.check(group) };
            if let Err(error) = answered {
                let shown = memory(context)?;
                return Err(error.wrap_err(miette!("{} VMs had answered; {shown:?}", number * AT_ONCE)));
            }
            if number % 32 == 0 {
                let (shown, seconds) = (memory(context)?, begun.elapsed().as_secs_f64());
                println!("  {} VMs {round} after {seconds:.0} s: {shown:?}", number * AT_ONCE + group.len());
            }
        }
        println!("  {} VMs {round}: {:.0} s", all.len(), begun.elapsed().as_secs_f64());
        begun = Instant::now();
        vms.patience = PATIENCE;
    }
    nobody_stopped(context)?;
    context.healthy()?;
    for disk in ["first", "second"] {
        let blocks = written(&context.image(disk))?;
        println!("  disk {disk}: {blocks} blocks were written");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::disk::Existing;
    use crate::system::disks::DiskPlan;
    use crate::system::types::Size;

    #[test]
    fn what_is_written_is_counted_and_a_secret_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let partitions = vec![(Partition::Swap, Size(9 << 20))];
        let plan = DiskPlan { name: "disk".into(), size: Size(16 << 20), partitions };
        let image = Image::ensure(folder.path(), &plan, Existing::Replace).expect("it can be made");
        assert_eq!(written(&image).expect("it can be read"), 0);
        image.write(Partition::Swap, 5 << 20, &[1; 2 * BLOCK]).expect("there is room");
        image.write(Partition::Swap, (9 << 20) - 1, &[1]).expect("there is room");
        assert_eq!(written(&image).expect("it can be read"), 3);
        image.write(Partition::Swap, (9 << 20) - 4096 + 8, SECRET).expect("there is room");
        let error = written(&image).expect_err("it is found");
        assert!(error.to_string().contains(&format!("at byte {}", (9 << 20) - 4096 + 8)), "{error}");
    }

    #[test]
    fn numbers_are_read() {
        let text = "VMs: 80, of which 60 are swapped out whole, 2 wait for memory";
        assert_eq!(numbers(text).collect::<Vec<_>>(), [80, 60, 2]);
    }
}
