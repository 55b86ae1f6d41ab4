//! The host's side of the guest `journal`: writes values, and knows which of them were answered.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use super::harness::Context;

/// Keys of each journal.
const KEYS: u64 = 40;

/// A connection to a journal.
pub(super) struct Client {
    reader: BufReader<TcpStream>,
    pub(super) vm: String,
    /// What was answered, by key; and the one value that was sent and not answered.
    pub(super) answered: BTreeMap<String, String>,
    pub(super) open: Option<(String, String)>,
    /// Writes so far.
    count: u64,
}

impl Client {
    /// Connects once the VM answers.
    pub(super) fn new(context: &mut Context<'_>, vm: &str) -> Result<Client> {
        let reader = BufReader::new(connect(context, vm)?);
        Ok(Client { reader, vm: vm.into(), answered: BTreeMap::new(), open: None, count: 0 })
    }

    /// Connects again, after a reboot, knowing what was answered before.
    pub(super) fn again(&mut self, context: &mut Context<'_>) -> Result<()> {
        self.reader = BufReader::new(connect(context, &self.vm)?);
        Ok(())
    }

    pub(super) fn ask(&mut self, line: &str) -> Result<String> {
        let failed = || miette!("VM `{}` does not answer `{line}`", self.vm);
        self.reader.get_mut().write_all(format!("{line}\n").as_bytes()).into_diagnostic().wrap_err_with(failed)?;
        let mut answer = String::new();
        let count = self.reader.read_line(&mut answer).into_diagnostic().wrap_err_with(failed)?;
        if count == 0 || !answer.ends_with('\n') { Err(failed()) } else { Ok(answer.trim_end().into()) }
    }

    /// Writes another value.
    pub(super) fn put(&mut self) -> Result<()> {
        self.count += 1;
        let key = format!("key{}", self.count * 7 % KEYS);
        let value = format!("{}-{}", self.count, "x".repeat((self.count * 131 % 900) as usize));
        self.open = Some((key.clone(), value.clone()));
        let answer = self.ask(&format!("PUT {key} {value}"))?;
        if !answer.starts_with("OK ") {
            return Err(miette!("VM `{}` answers PUT with `{answer}`", self.vm));
        }
        self.answered.insert(key, value);
        self.open = None;
        Ok(())
    }

    /// Checks all values that were answered. The one that was not may be there or not; from now on it is what it is found to be.
    pub(super) fn check(&mut self) -> Result<()> {
        let open = self.open.take();
        let keys: Vec<String> = self.answered.keys().chain(open.iter().map(|(key, _)| key)).cloned().collect();
        for key in keys {
            let answer = self.ask(&format!("GET {key}"))?;
            let found = answer.strip_prefix("VALUE ");
            let expected = self.answered.get(&key).map(String::as_str);
            match &open {
                Some((other, value)) if *other == key && found == Some(value) => {
                    self.answered.insert(key, value.clone());
                }
                _ if found == expected => {}
                _ => {
                    let wanted = expected.unwrap_or("nothing");
                    return Err(miette!(
                        "VM `{}` has lost an answered write: {key} should be {wanted}, but it answers {answer}",
                        self.vm
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Connects once the VM answers.
fn connect(context: &mut Context<'_>, vm: &str) -> Result<TcpStream> {
    // QEMU would take a connection before, and try in vain for seconds.
    context.line(0, &[&format!("vm {vm}|"), "keys, last record"])?;
    loop {
        let error = match context.connect(vm) {
            Ok(mut stream) => match probe(&mut stream) {
                Ok(()) => return Ok(stream),
                Err(error) => error,
            },
            Err(error) => error,
        };
        crate::interrupt::check()?;
        if Instant::now() >= context.deadline() {
            return Err(error.wrap_err(miette!("VM `{vm}` does not serve its journal")));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether a journal is behind a connection.
fn probe(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"LAST\n").into_diagnostic()?;
    let mut answer = String::new();
    BufReader::new(stream.try_clone().into_diagnostic()?).read_line(&mut answer).into_diagnostic()?;
    if answer.starts_with("LAST ") { Ok(()) } else { Err(miette!("it answers `{answer}`")) }
}
