//! A machine that runs under QEMU.
//!
//! * [`qemu`]: its command line.
//! * [`bochs`]: the same for another emulator.
//! * [`hardware`]: which devices it has.
//! * `firmware`: UEFI firmware.
//! * [`serial`]: its serial line.
//! * [`http`]: asking its VMs for pages.
//! * [`disk`]: images of its disks.
//! * [`virtual_disks`], [`archive`]: what is in their partition for virtual disks.
//! * [`power`]: what its disks hold after a power cut.
//! * [`qmp`]: its control socket; [`picture`]: what its screen shows.
//! * [`lan`]: a host on the VMs' own network, which reaches each by its address.
//! * [`ports`]: which ports of the host lead to which VM.

pub mod archive;
pub mod bochs;
pub mod disk;
pub mod faults;
pub mod firmware;
pub mod hardware;
pub mod http;
pub mod lan;
pub mod picture;
pub mod ports;
pub mod power;
pub mod qemu;
pub mod qmp;
pub mod serial;
pub mod virtual_disks;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::process;
use qemu::Machine;
use serial::Serial;

/// What the kernel writes when it stops for good: it was refused its bundle, `init` has ended, or it has an error.
const LAST_WORDS: [&str; 3] = ["microkernel: PANIC", "microkernel: cannot boot", "microkernel: init has ended"];

/// Whether a line on the serial line says that the system has stopped for good.
pub fn is_last_word(line: &str) -> bool {
    LAST_WORDS.iter().any(|words| line.contains(words))
}

/// Where bytes from the serial line go besides.
pub type Sink = Box<dyn FnMut(&[u8]) + Send>;

/// A running machine. It ends when this value does.
#[derive(Debug)]
pub struct Running {
    child: Child,
    input: Option<ChildStdin>,
    /// Its serial line.
    pub serial: Serial,
    /// When it was started.
    pub started: Instant,
    /// Where everything it writes is kept.
    pub log: PathBuf,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts a machine. `sink` gets what it writes to the serial line, besides the log file.
    pub fn start(qemu: &Path, machine: &Machine, log: &Path, sink: Sink) -> Result<Running> {
        let mut command = Command::new(qemu);
        command.args(machine.arguments());
        Running::launch(command, log, sink)
    }

    /// Starts a machine by the command of an emulator whose standard input and output are the machine's serial line.
    pub fn launch(mut command: Command, log: &Path, mut sink: Sink) -> Result<Running> {
        let mut file =
            File::create(log).into_diagnostic().wrap_err_with(|| miette!("{} cannot be written", log.display()))?;
        let emulator = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: Ctrl-C on the terminal reaches us, and we end the emulator.
        command.process_group(0);
        let mut child = command.spawn().into_diagnostic().wrap_err_with(|| miette!("{emulator} cannot be started"))?;
        let serial = Serial::default();
        let mut readers = Vec::new();
        if let Some(mut output) = child.stdout.take() {
            let serial = serial.clone();
            readers.push(thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = output.read(&mut buffer) {
                    // The log is for people to read afterwards; a full disk must not end the machine.
                    let _ = file.write_all(&buffer[..length]);
                    serial.push(&buffer[..length]);
                    sink(&buffer[..length]);
                }
                serial.close();
            }));
        }
        if let Some(errors) = child.stderr.take() {
            readers.push(thread::spawn(move || {
                for line in BufReader::new(errors).lines().map_while(|line| line.ok()) {
                    // That is us, ending it.
                    if !line.contains("terminating on signal") {
                        eprintln!("{emulator}: {line}");
                    }
                }
            }));
        }
        let input = child.stdin.take();
        Ok(Running { child, input, serial, started: Instant::now(), log: log.to_path_buf(), readers })
    }

    /// Types something on the serial line.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let input = self.input.as_mut().ok_or_else(|| miette!("the serial line is closed"))?;
        input.write_all(bytes).and_then(|()| input.flush()).into_diagnostic().wrap_err("the serial line is closed")
    }

    /// The input side of the serial line, for a thread that copies what the user types.
    pub fn take_input(&mut self) -> Option<ChildStdin> {
        self.input.take()
    }

    /// For how long each of its processors has run on one of the host's, by QEMU's threads: with `-name …,debug-threads=on` they have names.
    pub fn processor_times(&self) -> Result<Vec<Duration>> {
        let threads = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        let mut times = Vec::new();
        for thread in std::fs::read_dir(&threads).into_diagnostic()?.flatten() {
            let name = std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
            let Some(number) = name.strip_prefix("CPU ").and_then(|rest| rest.split('/').next()?.parse::<usize>().ok())
            else {
                continue;
            };
            let times_of = std::fs::read_to_string(thread.path().join("schedstat")).into_diagnostic()?;
            let time = times_of.split_whitespace().next().and_then(|time| time.parse().ok());
            times.push((number, time.ok_or_else(|| miette!("the host does not tell the time of a thread"))?));
        }
        times.sort_unstable();
        Ok(times.into_iter().map(|(_, time)| Duration::from_nanos(time)).collect())
    }

    /// Its exit status if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().into_diagnostic()
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.ended()?;
            if status.is_some() || Instant::now() >= deadline || crate::interrupt::requested() {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as a power cut would: at once, in the middle of whatever it does. What it had handed to the host is kept by
    /// the host; [`power::Volatile`] makes disks that forget.
    pub fn cut(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.stop();
    }

    /// Ends it, and waits until all it wrote has been read.
    pub fn stop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            process::end(&mut self.child);
        }
        for reader in self.readers.drain(..) {
            // A reader that panicked has lost output, nothing else.
            let _ = reader.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}
