//! QEMU's control socket (QMP), for tests that do something to a running machine.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, miette};
use serde_json::{Value, json};

use super::qemu;

/// How long QEMU may take to open the socket, and to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Milliseconds that a key is held down.
const HOLD: u64 = 20;

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

    /// Types on the machine's keyboard: small letters, digits, spaces, dashes, and line ends for the return key.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        for character in text.chars() {
            let key = match character {
                '\n' => "ret".to_string(),
                ' ' => "spc".to_string(),
                '-' => "minus".to_string(),
                'a'..='z' | '0'..='9' => character.to_string(),
                _ => return Err(miette!("there is no key for {character:?}")),
            };
            self.press(&key)?;
        }
        Ok(())
    }

    /// Presses a key of the machine's keyboard, by QEMU's name for it, and lets it go.
    pub fn press(&mut self, key: &str) -> Result<()> {
        self.execute("send-key", json!({ "keys": [{ "type": "qcode", "data": key }], "hold-time": HOLD }))?;
        // QEMU lets the key go by itself, and the keyboard's queue is short.
        thread::sleep(Duration::from_millis(2 * HOLD));
        Ok(())
    }

    /// Writes a picture of what the machine's screen shows to a file, whose ending says the format: `ppm` or `png`.
    pub fn picture(&mut self, file: &Path) -> Result<()> {
        let format = file.extension().and_then(|ending| ending.to_str()).unwrap_or("ppm");
        self.execute("screendump", json!({ "filename": file, "format": format })).map(drop)
    }

    /// Lets a disk move so many bytes a second; 0: as many as it can.
    pub fn throttle(&mut self, disk: &str, bytes_per_second: u64) -> Result<()> {
        // Which device has the disk depends on its bus.
        let (blocks, node) = (self.execute("query-block", json!({}))?, qemu::node(disk));
        let found = blocks.as_array().into_iter().flatten().find(|block| block["inserted"]["node-name"] == node);
        let id = found.map(|block| &block["qdev"]).ok_or_else(|| miette!("the machine has no disk `{disk}`"))?;
        let arguments = json!({
            "id": id, "bps": bytes_per_second, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
        });
        self.execute("block_set_io_throttle", arguments).map(drop)
    }

    /// Takes a PCI device's registers away, as if somebody had pulled it out.
    pub fn vanish(&mut self, device: &str) -> Result<()> {
        let buses = self.execute("query-pci", json!({}))?;
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let devices: Vec<Value> = list(&buses).iter().flat_map(|bus| list(&bus["devices"])).collect();
        let found = devices.iter().find(|found| found["qdev_id"] == device);
        let number = |key: &str| found.and_then(|found| found[key].as_u64());
        let (Some(slot), Some(function)) = (number("slot"), number("function")) else {
            return Err(miette!("the machine has no PCI device `{device}`"));
        };
        // The command register, through the ports that firmware uses: nothing is decoded any more, and no bus is mastered.
        let register = 1 << 31 | slot << 11 | function << 8 | 4;
        for line in [format!("o/4 0xcf8 {register:#x}"), "o/2 0xcfc 0x0".into()] {
            self.execute("human-monitor-command", json!({ "command-line": line }))?;
        }
        Ok(())
    }
}
