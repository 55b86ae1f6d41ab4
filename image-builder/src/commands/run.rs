//! `cargo denali run`

use std::fs;
use std::io::{Read, Write, stdin, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::cli::Run;
use crate::interrupt::{self, Interrupted};
use crate::machine::disk::{Existing, Image};
use crate::machine::hardware::Chipset;
use crate::machine::ports::{self, Reachable};
use crate::machine::qemu::{self, Boot, Disk, Machine};
use crate::machine::{Running, Sink, http, is_last_word, serial::Serial};
use crate::session::{self, Session};
use crate::system::disks::DiskPlan;
use crate::terminal::Keys;
use crate::ui;

/// Web servers that are asked until they answer; with thousands of VMs a few tell enough.
const ASKED: usize = 64;

pub(super) fn run(options: &Run) -> Result<ExitCode> {
    let mut session = Session::start(options.tools)?;
    let path = options.system.clone().unwrap_or_else(|| session.workspace.default_system());
    let system = session.load(&path)?;
    let (reachable, left) = ports::assign(&system, options.port)?;
    ports::check_free(&reachable)?;
    let qemu = session.qemu()?;
    let (folder, boot) = match &options.image {
        Some(image) => (session.workspace.output(&system.name), boot_image(&session, options, image)?),
        None => {
            let built = session.build(&system)?;
            (built.folder.clone(), Boot::direct(&built))
        }
    };
    let mut machine = session.machine_booting(boot, &system, ports::network(&system, &reachable));
    machine.memory = options.memory.unwrap_or(machine.memory);
    machine.cpus = options.cpus.unwrap_or(machine.cpus);
    if options.iommu && options.machine == Chipset::Pc {
        return Err(miette!(help = "leave `--machine pc` out", "a PC of that age has no IOMMU"));
    }
    machine.chipset = options.machine;
    machine.nic = options.nic;
    machine.disk_bus = options.disk_bus;
    machine.iommu = options.iommu;
    machine.extra = options.extra.clone();
    if options.dry_run {
        // Nothing is made: these are where they would be.
        let place = |plan: &DiskPlan| Disk::new(&plan.name, &Image::path_in(&folder, plan));
        machine.disks = system.disks.iter().map(place).collect();
        println!("{}", machine.command_line());
        return Ok(ExitCode::SUCCESS);
    }
    fs::create_dir_all(&folder).into_diagnostic().wrap_err_with(|| miette!("{} cannot be made", folder.display()))?;
    let existing = if options.new_disks { Existing::Replace } else { Existing::Keep };
    machine.disks = session::disks(&system, &folder, existing)?;
    announce(&machine, &reachable, left);

    let keys = if options.headless { None } else { Keys::take()? };
    let sink = if keys.is_some() { raw_sink() } else { line_sink() };
    let log = folder.join("serial.log");
    let mut running = Running::start(&qemu, &machine, &log, sink)?;
    if !options.headless {
        forward_input(&mut running);
    }
    let answers = ask(&reachable, running.started);
    // On a shared console our own lines must not begin behind the system's prompt.
    let note = if keys.is_some() { |line: &str| ui::note(&format!("\r\x1b[K{line}")) } else { ui::note };
    let outcome = watch(&mut running, &reachable, &answers, options.seconds.map(Duration::from_secs), note);
    running.stop();
    drop(keys);
    if outcome.as_ref().is_err_and(|error| error.is::<Interrupted>()) {
        note("Ended.");
    }
    outcome
}

/// Boots exactly this file.
fn boot_image(session: &Session, options: &Run, image: &Path) -> Result<Boot> {
    if !image.is_file() {
        return Err(miette!(help = "`cargo denali image` makes one", "there is no image {}", image.display()));
    }
    let uefi = if options.uefi { Some(session.uefi()?) } else { None };
    Ok(Boot::Image { file: image.to_path_buf(), medium: options.medium, uefi })
}

fn announce(machine: &Machine, reachable: &[Reachable], left: usize) {
    let cpus = if machine.cpus == 1 { "1 processor".into() } else { format!("{} processors", machine.cpus) };
    ui::note(&format!("Booting in QEMU ({}, {} MiB, {cpus}). Ctrl-C ends it.", machine.accelerator, machine.memory));
    for disk in &machine.disks {
        ui::note(&format!("  disk {}: {}", disk.name, disk.image.display()));
    }
    for r in reachable.iter().filter(|r| !r.service.http) {
        ui::note(&format!("  VM {}, TCP port {}: {}", r.vm, r.service.port, r.place()));
    }
    if left > 0 {
        ui::note(&format!("  {left} more services are reachable only from inside the machine"));
    }
}

/// What happened to a request.
struct Answer {
    /// Index among the reachable services.
    service: usize,
    after: Duration,
}

/// Asks every web server until it answers, in the background.
fn ask(reachable: &[Reachable], started: Instant) -> Receiver<Answer> {
    let (sender, answers) = mpsc::channel();
    let web = reachable.iter().enumerate().filter(|(_, r)| r.service.http);
    for (service, r) in web.take(ASKED) {
        let (port, sender): (u16, Sender<Answer>) = (r.host, sender.clone());
        thread::spawn(move || {
            let far = Instant::now() + Duration::from_secs(24 * 60 * 60);
            if http::wait(port, "/", far).is_ok() {
                // The receiver is gone when the machine is: nobody wants to know any more.
                let _ = sender.send(Answer { service, after: started.elapsed() });
            }
        });
    }
    answers
}

/// Watches the machine until it ends, the time is up or the user presses Ctrl-C.
fn watch(
    running: &mut Running,
    reachable: &[Reachable],
    answers: &Receiver<Answer>,
    limit: Option<Duration>,
    note: fn(&str),
) -> Result<ExitCode> {
    let web = reachable.iter().filter(|r| r.service.http).count();
    let (mut answered, mut seen) = (0, 0);
    loop {
        while let Ok(answer) = answers.try_recv() {
            let r = &reachable[answer.service];
            note(&format!("✓ {} answers: VM {}, {:.1} s after power-on", r.place(), r.vm, answer.after.as_secs_f64()));
            answered += 1;
        }
        if let Some(status) = running.ended()? {
            return match status.code() {
                Some(0 | qemu::EXIT_SUCCESS) => {
                    note("The system has powered off.");
                    Ok(ExitCode::SUCCESS)
                }
                Some(qemu::EXIT_FAILURE) => {
                    Err(miette!("the system ended itself with a failure; see {}", running.log.display()))
                }
                _ => Err(miette!("QEMU has ended ({status}); see {}", running.log.display())),
            };
        }
        let lines = running.serial.since(seen);
        seen += lines.len();
        if let Some(line) = lines.iter().find(|line| is_last_word(&line.text)) {
            return Err(miette!(
                help = format!("see {}", running.log.display()),
                "the system has stopped: {}",
                line.text
            ));
        }
        interrupt::check()?;
        if limit.is_some_and(|limit| running.started.elapsed() >= limit) {
            if web > 0 && answered == 0 {
                return Err(miette!(
                    help = format!("the console's output is in {}", running.log.display()),
                    "no web server has answered"
                ));
            }
            return Ok(ExitCode::SUCCESS);
        }
        thread::sleep(interrupt::POLL);
    }
}

/// Shows bytes as they come: the user types on the same console.
fn raw_sink() -> Sink {
    Box::new(|bytes| {
        // A terminal that is gone is noticed by whoever reads from it.
        let _ = stdout().write_all(bytes).and_then(|()| stdout().flush());
    })
}

/// Shows whole lines, without terminal control sequences.
fn line_sink() -> Sink {
    let lines = Serial::default();
    Box::new(move |bytes| {
        for line in lines.push(bytes) {
            let _ = writeln!(stdout(), "{line}");
        }
    })
}

/// Copies what the user types to the machine's serial line.
fn forward_input(running: &mut Running) {
    let Some(mut line) = running.take_input() else { return };
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(length @ 1..) = stdin().read(&mut buffer) {
            // An error means that the machine has ended.
            if line.write_all(&buffer[..length]).and_then(|()| line.flush()).is_err() {
                return;
            }
        }
        // The end of the input is not the end of the machine: keep the line open.
        std::mem::forget(line);
    });
}
