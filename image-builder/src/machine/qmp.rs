//! QEMU's control socket (QMP), for tests that do something to a running machine.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, miette};
use serde_json::{Value, json};

/// How long QEMU may take to open the socket, and to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to the socket of [`super::qemu::Machine::qmp`] once it is there.
    pub fn connect(socket: &Path) -> Result<Qmp> {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= deadline => {
                    return Err(miette!("QEMU's control socket does not open: {error}"));
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).into_diagnostic()?;
        let mut qmp = Qmp { reader: BufReader::new(stream) };
        qmp.line()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line).into_diagnostic()?;
        serde_json::from_str(&line).into_diagnostic()
    }

    /// Carries out a command; returns what QEMU answers.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let text = json!({ "execute": command, "arguments": arguments }).to_string();
        self.reader.get_mut().write_all(text.as_bytes()).into_diagnostic()?;
        loop {
            // Events come in between.
            let answer = self.line()?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                return Err(miette!("QEMU refuses `{command}`: {error}"));
            }
        }
    }

    /// Plugs the cable of the machine's NIC in or out.
    pub fn set_cable(&mut self, plugged: bool) -> Result<()> {
        self.execute("set_link", json!({ "name": "nic", "up": plugged })).map(drop)
    }

    /// Lets a machine that was stopped go on.
    pub fn go(&mut self) -> Result<()> {
        self.execute("cont", json!({})).map(drop)
    }

    /// Lets a disk move so many bytes a second; 0: as many as it can.
    pub fn throttle(&mut self, disk: &str, bytes_per_second: u64) -> Result<()> {
        // The device that has the disk is a part of the PCI device of that name.
        let id = format!("/machine/peripheral/{disk}/virtio-backend");
        let arguments = json!({
            "id": id, "bps": bytes_per_second, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
        });
        self.execute("block_set_io_throttle", arguments).map(drop)
    }
}
