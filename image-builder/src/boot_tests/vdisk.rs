//! Virtual disks: what was answered is there, whoever dies, and after a power cut.

use std::path::Path;
use std::time::{Duration, Instant};

use journal::log::{Log, Reader, recover};
use miette::{IntoDiagnostic, Result, WrapErr, miette};
use vdisk::store::BLOCK;

use super::BootTest;
use super::harness::Context;
use super::journal::Client;
use crate::machine::http;
use crate::machine::power::{Chance, Fate};
use crate::machine::virtual_disks;

pub(super) const TESTS: &[BootTest] = &[
    BootTest {
        name: "vdisk",
        about: "what guests wrote is there after a reboot, for them and for the host; two web servers share a disk; the operator's commands",
        limit: Duration::from_secs(90),
        long: false,
        run: vdisk,
    },
    BootTest {
        name: "vdisk-kill",
        about: "the server of virtual disks and its driver are killed under load: no write that was answered is lost, no VM ends",
        limit: Duration::from_secs(120),
        long: false,
        run: kill,
    },
    BootTest {
        name: "power-cut",
        about: "the power is cut at random moments while journals write and disks are made: all that was answered is there, no other disk is harmed",
        limit: Duration::from_secs(120),
        long: false,
        run: |context| power_cut(context, 20),
    },
    BootTest {
        name: "power-cut-long",
        about: "the same, many times",
        limit: Duration::from_secs(1800),
        long: true,
        run: |context| power_cut(context, 200),
    },
];

const SYSTEM: &str = "vdisk";
const JOURNALS: [&str; 3] = ["journal-1", "journal-2", "journal-3"];
const SITES: [&str; 2] = ["site-1", "site-2"];
/// The virtual disk of the web servers, and what is on it.
const CONTENT: &str = "content";
const FRONT: &str = "<h1>From a virtual disk</h1>";
const LARGE: usize = 300_001;
/// Puts the site onto the disk of a machine that is not booted yet.
fn prepare(context: &Context<'_>) -> Result<()> {
    let folder = tempfile::tempdir().into_diagnostic()?;
    std::fs::create_dir(folder.path().join("files")).into_diagnostic()?;
    std::fs::write(folder.path().join("index.html"), FRONT).into_diagnostic()?;
    std::fs::write(folder.path().join("files/large.txt"), large()).into_diagnostic()?;
    let mut disks = virtual_disks::open(&context.image("disk"))?;
    virtual_disks::import(&mut disks, CONTENT, folder.path()).map(drop)
}

fn large() -> Vec<u8> {
    (0..LARGE).map(|n| b'a' + (n / 100 % 26) as u8).collect()
}

/// Both web servers serve the site.
fn check_sites(context: &Context<'_>) -> Result<()> {
    for vm in SITES {
        let page = context.page(vm, "/")?;
        if page.body != FRONT.as_bytes() {
            return Err(miette!("VM `{vm}` does not serve the front page that is on its disk"));
        }
        if context.page(vm, "/files/large.txt")?.body != large() {
            return Err(miette!("VM `{vm}` does not serve the large file as it is on its disk"));
        }
    }
    Ok(())
}

/// What a journal's disk holds, read by the host.
fn on_host(disk: &Path) -> Result<Log> {
    let bytes = std::fs::read(disk).into_diagnostic()?;
    let blocks = (bytes.len() / BLOCK) as u64;
    let readers = [0, 1].map(|area| {
        let mut reader = Reader::new(area, blocks);
        let start = Log::areas(blocks)[area] as usize * BLOCK;
        let area = &bytes[start..start + (blocks / 2) as usize * BLOCK];
        area.chunks(BLOCK).all(|block| reader.push(block));
        reader
    });
    let log = recover(blocks, readers).map_err(|reason| miette!("{}: {reason}", disk.display()))?;
    log.ok_or_else(|| miette!("{} is empty", disk.display()))
}

fn vdisk(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(Some(SYSTEM))?;
    context.boot_changed(&system, &built, |context, _| prepare(context))?;
    let mut clients = JOURNALS.iter().map(|vm| Client::new(context, vm)).collect::<Result<Vec<_>>>()?;
    for client in &mut clients {
        for _ in 0..60 {
            client.put()?;
        }
        client.check()?;
    }
    check_sites(context)?;
    commands(context)?;
    context.healthy()?;

    let position = context.command("poweroff")?;
    context.off(position)?;
    check_on_host(context, &clients)?;
    let disks = virtual_disks::open(&context.image("disk"))?;
    if disks.store().table.get("extra").is_none() || disks.store().table.get("gone").is_some() {
        return Err(miette!("the disks that the operator made and deleted are not so after a reboot"));
    }
    drop(disks);

    context.keep_disks(true);
    context.boot_built(&system, &built)?;
    for client in &mut clients {
        client.again(context)?;
        client.check()?;
        client.put()?;
        client.check()?;
    }
    check_sites(context)?;
    // Without its disk a VM is refused, by name.
    context.running()?.cut();
    virtual_disks::open(&context.image("disk"))?.delete(CONTENT).map_err(virtual_disks::failed)?;
    context.boot_built(&system, &built)?;
    for vm in SITES {
        context.line(0, &[&format!("loader: vm {vm} refused: there is no virtual disk `{CONTENT}`")])?;
    }
    clients[0].again(context)?;
    clients[0].check()?;
    context.healthy()
}

/// The operator's commands.
fn commands(context: &mut Context<'_>) -> Result<()> {
    for (command, answer) in [
        ("disk create extra 64 KiB", ""),
        ("disk create extra 64 KiB", "there is a virtual disk extra already"),
        ("disk create gone 1 MiB", ""),
        ("disk delete gone", ""),
        ("disk delete gone", "there is no virtual disk gone"),
        ("disk create a/b 4 KiB", "the name of a virtual disk has"),
        ("disk create huge 1 GiB", "no room for a disk of this size"),
        ("disk delete content", "virtual disk content: a VM has it"),
    ] {
        let position = context.command(command)?;
        if !answer.is_empty() {
            context.line(position, &[answer])?;
        }
    }
    let position = context.command("disks")?;
    context.line(position, &["content", "2 VMs"])?;
    context.line(position, &["data-journal-1", "one VM, which writes"])?;
    context.line(position, &["extra", "64 KiB", "-"])?;
    context.line(position, &["room for virtual disks: "]).map(drop)
}

fn kill(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(Some(SYSTEM))?;
    context.boot_changed(&system, &built, |context, _| prepare(context))?;
    let mut clients = JOURNALS.iter().map(|vm| Client::new(context, vm)).collect::<Result<Vec<_>>>()?;
    let port = context.port_of(SITES[0])?;
    for round in 0..12 {
        let victim = if round % 3 == 2 { "virtio-blk" } else { "vdisk" };
        let position = context.running()?.serial.position();
        // While they wait for their answers, the server dies.
        let done = std::thread::scope(|scope| {
            let writers: Vec<_> =
                clients.iter_mut().map(|client| scope.spawn(move || (0..40).try_for_each(|_| client.put()))).collect();
            let page = scope.spawn(move || http::get(port, "/files/large.txt", Duration::from_secs(30)));
            std::thread::sleep(Duration::from_millis(20 + 17 * round));
            context.command(&format!("kill {victim}"))?;
            let writers = writers.into_iter().map(|writer| writer.join().expect("no panic"));
            writers.collect::<Result<Vec<()>>>()?;
            page.join().expect("no panic").map_err(|error| miette!("the page: {error}"))
        })?;
        if done.body != large() {
            return Err(miette!("a page that was under way when `{victim}` was killed is wrong"));
        }
        context.line(position, &[&format!("init: server {victim} restarted (")])?;
        clients.iter_mut().try_for_each(Client::check)?;
    }
    if context.running()?.serial.since(0).iter().any(|line| line.text.contains("loader: vm ")) {
        return Err(miette!("a VM ended"));
    }
    // And the host finds it all.
    context.running()?.cut();
    check_on_host(context, &clients)
}

/// The host finds on the disks all that was answered.
fn check_on_host(context: &Context<'_>, clients: &[Client]) -> Result<()> {
    let mut disks = virtual_disks::open(&context.image("disk"))?;
    for client in clients {
        let file = context.folder().join(format!("{}.raw", client.vm));
        // That of an earlier run.
        let _ = std::fs::remove_file(&file);
        virtual_disks::export(&mut disks, &format!("data-{}", client.vm), &file)?;
        let log = on_host(&file)?;
        let is_there = |(key, value): (&String, &String)| {
            let found = log.get(key);
            found == Some(value)
                || client.open.as_ref().is_some_and(|(other, open)| other == key && found == Some(open))
        };
        if !client.answered.iter().all(is_there) {
            return Err(miette!("the host does not find on the disk of `{}` what it has answered", client.vm));
        }
    }
    Ok(())
}

/// Cuts the power at a random moment of each of so many boots, while journals write and disks are made and deleted.
fn power_cut(context: &mut Context<'_>, cuts: u64) -> Result<()> {
    let (system, built) = context.build(Some(SYSTEM))?;
    let mut chance = Chance(std::process::id().into());
    let mut all = Fate::default();
    let mut clients: Vec<Client> = Vec::new();
    for cut in 1..=cuts {
        context.boot_changed(&system, &built, |context, machine| {
            if cut == 1 {
                prepare(context)?;
            }
            context.volatile_disks(machine)
        })?;
        for (place, vm) in JOURNALS.iter().enumerate() {
            match clients.get_mut(place) {
                Some(client) => client.again(context)?,
                None => clients.push(Client::new(context, vm)?),
            }
            clients[place].check().wrap_err_with(|| miette!("after {} cuts", cut - 1))?;
        }
        let fate = std::thread::scope(|scope| {
            // Until the power is cut.
            for client in &mut clients {
                scope.spawn(move || while client.put().is_ok() {});
            }
            let end = Instant::now() + Duration::from_millis(50 + chance.next() % 600);
            for number in 0.. {
                // Tables of disks are written, too.
                let name = number % 4;
                let command = if chance.next().is_multiple_of(2) { "create" } else { "delete" };
                let size = if command == "create" { " 128 KiB" } else { "" };
                context.command(&format!("disk {command} extra{name}{size}"))?;
                std::thread::sleep(Duration::from_millis(chance.next() % 40));
                if Instant::now() >= end {
                    break;
                }
            }
            context.cut_power(chance.next())
        })?;
        (all.flushed, all.kept, all.lost) = (all.flushed + fate.flushed, all.kept + fate.kept, all.lost + fate.lost);
        check_on_host(context, &clients).wrap_err_with(|| miette!("after {cut} cuts"))?;
    }
    if all.lost == 0 || clients.iter().any(|client| client.answered.is_empty()) {
        return Err(miette!("nothing was lost ({all:?}): nothing was tested"));
    }
    // The disks that nobody wrote are as they were.
    context.boot_built(&system, &built)?;
    for client in &mut clients {
        client.again(context)?;
        client.check()?;
    }
    check_sites(context)?;
    context.healthy()
}
