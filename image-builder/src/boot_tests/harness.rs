//! Booting a system for a test, and what a test can do with it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use tempfile::TempDir;

use super::BootTest;
use crate::build::Built;
use crate::interrupt;
use crate::machine::bochs::{self, Bochs};
use crate::machine::disk::{Existing, Image};
use crate::machine::http::{self, Page};
use crate::machine::ports::{self, Reachable};
use crate::machine::power::{Fate, Volatile};
use crate::machine::qemu::{Boot, Machine, Medium, Network};
use crate::machine::serial::Line;
use crate::machine::{Running, is_last_word};
use crate::session::{self, Session};
use crate::system::System;
use crate::toolchain;

/// Firmware of a machine that boots an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Firmware {
    /// BIOS: SeaBIOS.
    Bios,
    /// UEFI: OVMF.
    Uefi,
}

/// A test's surroundings.
#[derive(Debug)]
pub struct Context<'a> {
    session: &'a mut Session,
    limit: Duration,
    deadline: Instant,
    folder: PathBuf,
    running: Option<Running>,
    reachable: Vec<Reachable>,
    boots: usize,
    /// Whether the next boot finds the disks of the one before.
    keep_disks: bool,
    /// Processors of the machines, in place of what the system file says.
    processors: Option<u16>,
    /// Disks that forget what was not flushed.
    volatile: Vec<Volatile>,
    /// Folder of the machine's control socket: its path must be short.
    sockets: Option<TempDir>,
}

impl<'a> Context<'a> {
    pub(super) fn new(session: &'a mut Session, test: &BootTest) -> Result<Context<'a>> {
        let folder = session.workspace.output("tests").join(test.name);
        fs::create_dir_all(&folder)
            .into_diagnostic()
            .wrap_err_with(|| miette!("{} cannot be made", folder.display()))?;
        Ok(Context {
            session,
            limit: test.limit,
            deadline: Instant::now() + test.limit,
            folder,
            running: None,
            reachable: Vec::new(),
            boots: 0,
            keep_disks: false,
            processors: None,
            volatile: Vec::new(),
            sockets: None,
        })
    }

    /// Ends the machine. The answer is where its log lies, and the last lines of it.
    pub(super) fn end(mut self) -> (PathBuf, Vec<String>) {
        match self.running.take() {
            Some(mut running) => {
                running.stop();
                (running.log.clone(), running.serial.last(super::SHOWN))
            }
            None => (self.folder.clone(), Vec::new()),
        }
    }

    /// Until when the test may go on.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Reads and builds a system: `None` for the default one.
    pub fn build(&mut self, name: Option<&str>) -> Result<(System, Built)> {
        let path = match name {
            Some(name) => self.session.workspace.system(name),
            None => self.session.workspace.default_system(),
        };
        let built = self.session.build_once(&path)?;
        // Building is not what is tested: the time starts now.
        self.deadline = Instant::now() + self.limit;
        Ok(built)
    }

    /// Builds and boots a system, its services at free ports of the host.
    pub fn boot(&mut self, name: Option<&str>) -> Result<()> {
        let (system, built) = self.build(name)?;
        self.boot_built(&system, &built)
    }

    /// Boots a system that was built. Its disks are new at each boot, unless [`Context::keep_disks`] was called.
    pub fn boot_built(&mut self, system: &System, built: &Built) -> Result<()> {
        self.boot_changed(system, built, |_, _| Ok(()))
    }

    /// Boots a system on a machine that `change` has changed: its disks, for example.
    pub fn boot_changed(
        &mut self,
        system: &System,
        built: &Built,
        change: impl FnOnce(&mut Context<'a>, &mut Machine) -> Result<()>,
    ) -> Result<()> {
        self.reachable = ports::assign_free(system)?;
        let mut machine = self.session.machine(system, built, ports::network(system, &self.reachable));
        self.add_disks(system, &mut machine)?;
        change(self, &mut machine)?;
        machine.cpus = self.processors.unwrap_or(machine.cpus);
        self.start(&machine)
    }

    /// Gives the machines that are booted from now on so many processors, whatever the system file says.
    pub fn processors(&mut self, processors: u16) {
        self.processors = Some(processors);
    }

    /// The image of a system that was built, to be booted in place of its kernel and bundle ([`Machine::boot`]).
    pub fn image_of(&mut self, built: &Built, medium: Medium, firmware: Firmware) -> Result<Boot> {
        let file = built.folder.join("denali.img");
        self.session.image(built, &file)?;
        let uefi = match firmware {
            Firmware::Bios => None,
            Firmware::Uefi => Some(self.session.uefi()?),
        };
        // Nor is installing what makes the image, or making it, what is tested.
        self.deadline = Instant::now() + self.limit;
        Ok(Boot::Image { file, medium, uefi })
    }

    /// Boots the image of a system that was built in Bochs, which has no disks of ours.
    pub fn boot_bochs(&mut self, system: &System, built: &Built) -> Result<()> {
        let Boot::Image { file, .. } = self.image_of(built, Medium::Cd, Firmware::Bios)? else {
            return Err(miette!("an image is booted as something else"));
        };
        toolchain::ensure_things(&bochs::NEEDED, self.session.installing())?;
        self.deadline = Instant::now() + self.limit;
        self.reachable = ports::assign_free(system)?;
        let network = ports::network(system, &self.reachable);
        let machine = Bochs { image: file, memory: system.memory.0.div_ceil(1 << 20), network };
        let command = machine.command(&self.folder)?;
        let log = self.next_log();
        let running = self.running.insert(Running::launch(command, &log, Box::new(|_| {}))?);
        running.send(bochs::GO)
    }

    /// Waits until the machine has switched itself off.
    pub fn off(&mut self, position: usize) -> Result<()> {
        let limit = self.deadline.saturating_duration_since(Instant::now());
        let running = self.running()?;
        match running.wait(limit)? {
            Some(_) => Ok(()),
            None => Err(miette!("the machine does not end; it said {:?}", running.serial.since(position).last())),
        }
    }

    /// Boots a system with its NIC on a UNIX socket, on a machine that `change` has changed.
    pub fn boot_on_frames(
        &mut self,
        system: &System,
        built: &Built,
        network: Network,
        change: impl FnOnce(&mut Context<'a>, &mut Machine) -> Result<()>,
    ) -> Result<()> {
        let mut machine = self.session.machine(system, built, network);
        self.add_disks(system, &mut machine)?;
        change(self, &mut machine)?;
        self.start(&machine)
    }

    fn add_disks(&mut self, system: &System, machine: &mut Machine) -> Result<()> {
        // The machine before it, if there was one, must not write any more.
        self.running = None;
        self.volatile.clear();
        let existing = if self.keep_disks { Existing::Keep } else { Existing::Replace };
        machine.disks = session::disks(system, &self.folder, existing)?;
        Ok(())
    }

    /// Lets later boots find the disks as this one leaves them, or no longer.
    pub fn keep_disks(&mut self, keep: bool) {
        self.keep_disks = keep;
    }

    /// The image of one of the machine's disks. While a machine runs, it may be read but not written; see [`Image::write`].
    pub fn image(&self, disk: &str) -> Image {
        Image::at(&self.folder.join(disk).with_extension("img"))
    }

    /// Gives all disks of a machine a cache that forgets at [`Context::cut_power`] what was not flushed.
    pub fn volatile_disks(&mut self, machine: &mut Machine) -> Result<()> {
        self.volatile = machine.disks.iter_mut().map(Volatile::give).collect::<Result<_>>()?;
        Ok(())
    }

    /// Cuts the machine's power, and lets disks that are volatile forget; each `seed` is another chance. The next boot finds the disks so.
    pub fn cut_power(&mut self, seed: u64) -> Result<Fate> {
        self.running()?.cut();
        self.keep_disks = true;
        let mut all = Fate::default();
        for volatile in self.volatile.drain(..) {
            let fate = volatile.forget(seed)?;
            all.flushed += fate.flushed;
            all.kept += fate.kept;
            all.lost += fate.lost;
        }
        Ok(all)
    }

    /// A place for the control socket of the next machine ([`Machine::qmp`]).
    pub fn socket(&mut self) -> Result<PathBuf> {
        let folder = TempDir::with_prefix("denali-").into_diagnostic()?;
        Ok(self.sockets.insert(folder).path().join("qmp"))
    }

    fn start(&mut self, machine: &Machine) -> Result<()> {
        let qemu = self.session.qemu()?;
        let log = self.next_log();
        self.running = Some(Running::start(&qemu, machine, &log, Box::new(|_| {}))?);
        Ok(())
    }

    /// Where the next machine writes its log. The machine before it, if there was one, ends here.
    fn next_log(&mut self) -> PathBuf {
        self.running = None;
        self.boots += 1;
        self.folder.join(format!("serial-{}.log", self.boots))
    }

    /// The machine.
    pub fn running(&mut self) -> Result<&mut Running> {
        self.running.as_mut().ok_or_else(|| miette!("the test has booted nothing yet"))
    }

    /// Folder for files of this test.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The VMs' services, in the order of the system file.
    pub fn services(&self) -> &[Reachable] {
        &self.reachable
    }

    /// The port of the host that leads to the first service of a VM.
    pub fn port_of(&self, vm: &str) -> Result<u16> {
        let found = self.reachable.iter().find(|r| r.vm == vm);
        found.map(|r| r.host).ok_or_else(|| miette!("the system has no VM `{vm}` with a service"))
    }

    /// Waits until a VM answers a GET request with status 200.
    pub fn page(&self, vm: &str, path: &str) -> Result<Page> {
        let port = self.port_of(vm)?;
        let page = http::wait(port, path, self.deadline)
            .map_err(|error| miette!("VM `{vm}` does not answer a GET request for {path} on port {port}: {error}"))?;
        interrupt::check()?;
        if page.status == 200 { Ok(page) } else { Err(miette!("VM `{vm}` answers {path} with status {}", page.status)) }
    }

    /// A TCP connection to the first service of a VM.
    pub fn connect(&self, vm: &str) -> Result<TcpStream> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port_of(vm)?));
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).into_diagnostic()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).into_diagnostic()?;
        stream.set_write_timeout(Some(Duration::from_secs(5))).into_diagnostic()?;
        Ok(stream)
    }

    /// Waits for a line on the serial line, from number `from` on, that contains all of these words.
    pub fn line(&mut self, from: usize, words: &[&str]) -> Result<Line> {
        let deadline = self.deadline;
        let running = self.running()?;
        let wanted = |line: &str| words.iter().all(|word| line.contains(word));
        // Once the system has stopped for good there is nothing to wait for.
        let found = running.serial.wait(from, deadline, |line| wanted(line) || is_last_word(line));
        interrupt::check()?;
        match found {
            Some(line) if wanted(&line.text) => Ok(line),
            Some(line) => Err(miette!("the system has stopped: {}", line.text)),
            None => Err(miette!("no line with {} appeared on the serial line", quoted(words))),
        }
    }

    /// Waits until the console tells that a VM has ended or was stopped, and why.
    pub fn ended(&mut self, vm: &str) -> Result<Line> {
        let deadline = self.deadline;
        let found = self.running()?.serial.wait(0, deadline, |line| tells_end(line, vm));
        interrupt::check()?;
        found.ok_or_else(|| miette!("the console does not tell that VM `{vm}` was stopped"))
    }

    /// Types a line on the system's console. The answer is the number of the next line of output.
    pub fn command(&mut self, text: &str) -> Result<usize> {
        let running = self.running()?;
        let position = running.serial.position();
        running.send(format!("{text}\r").as_bytes())?;
        Ok(position)
    }

    /// Fails if the kernel has panicked or the machine has ended.
    pub fn healthy(&mut self) -> Result<()> {
        let running = self.running()?;
        if let Some(status) = running.ended()? {
            return Err(miette!("the machine has ended ({status})"));
        }
        match running.serial.since(0).iter().find(|line| is_last_word(&line.text)) {
            Some(line) => Err(miette!("the system has stopped: {}", line.text)),
            None => Ok(()),
        }
    }
}

/// Whether a line of the console tells that a VM has ended or was stopped. What a VM writes itself, behind its
/// name and a bar, does not count.
pub fn tells_end(line: &str, vm: &str) -> bool {
    let Some((before, words)) = line.split_once(&format!("loader: vm {vm} ")) else { return false };
    !before.contains('|') && (words.starts_with("stopped") || words.starts_with("ended"))
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loader_tells_the_end_of_a_vm() {
        assert!(tells_end("denali> loader: vm web-1 stopped: divide error at 0x20d079", "web-1"));
        assert!(tells_end("loader: vm web-1 ended with code 0", "web-1"));
        assert!(!tells_end("loader: vm web-12 ended with code 0", "web-1"));
        assert!(!tells_end("loader: vm web-1 has no network", "web-1"));
        assert!(!tells_end("vm liar| loader: vm web-1 stopped: by me", "web-1"));
    }
}
