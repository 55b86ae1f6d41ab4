//! The machine of a benchmark.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, miette};
use tempfile::TempDir;

use super::figures::Figures;
use crate::build::Built;
use crate::interrupt;
use crate::machine::disk::Existing;
use crate::machine::qemu::Machine;
use crate::machine::qmp::Qmp;
use crate::machine::{Running, is_last_word};
use crate::session::{self, Session};
use crate::system::System;

/// A machine of a benchmark that runs.
pub struct Bench {
    /// The machine.
    pub running: Running,
    sockets: TempDir,
}

impl Bench {
    /// Starts a machine with new disks that move so many bytes a second; `None`: as many as the host does.
    pub fn start(
        session: &mut Session,
        system: &System,
        built: &Built,
        mut machine: Machine,
        speed: Option<u64>,
    ) -> Result<Bench> {
        machine.disks = session::disks(system, &built.folder, Existing::Replace)?;
        let sockets = TempDir::with_prefix("denali-").into_diagnostic()?;
        machine.qmp = Some(sockets.path().join("qmp"));
        let qemu = session.qemu()?;
        let running = Running::start(&qemu, &machine, &built.folder.join("serial.log"), Box::new(|_| {}))?;
        if let (Some(speed), Some(socket)) = (speed, &machine.qmp) {
            let mut qmp = Qmp::connect(socket)?;
            machine.disks.iter().try_for_each(|disk| qmp.throttle(&disk.name, speed))?;
        }
        Ok(Bench { running, sockets })
    }

    /// The machine's control socket.
    pub fn socket(&self) -> PathBuf {
        self.sockets.path().join("qmp")
    }

    /// Waits for a line.
    pub fn wait(&mut self, from: usize, limit: Duration, what: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        let line = self.running.serial.wait(from, deadline, |line| wanted(line) || is_last_word(line));
        interrupt::check()?;
        match line {
            Some(line) if wanted(&line.text) => Ok(()),
            _ => {
                let help = format!("its output is in {}", self.running.log.display());
                Err(miette!(help = help, "the system does not say {what}"))
            }
        }
    }

    /// All figures that it told so far.
    pub fn figures(&self) -> Vec<Figures> {
        self.running.serial.since(0).iter().filter_map(Figures::of_line).collect()
    }
}
