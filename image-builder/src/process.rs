//! Running other programs: quietly, to the end or until Ctrl-C.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::interrupt;
use crate::ui::Step;

/// What a program printed, and how it ended.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub output: String,
    /// Its standard error stream.
    pub errors: String,
}

/// Runs a program to its end. Its messages are shown as the detail of `step`, line by line.
pub fn run(mut command: Command, step: Option<&Step>) -> Result<Outcome> {
    let name = command.get_program().to_string_lossy().into_owned();
    let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = started.into_diagnostic().wrap_err_with(|| miette!("`{name}` cannot be started"))?;
    let (sender, lines) = mpsc::channel();
    let errors = child.stderr.take().map(|stream| {
        thread::spawn(move || {
            let mut all = String::new();
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                all.push_str(&line);
                all.push('\n');
                // Nobody listens if there is no step; the text is kept all the same.
                let _ = sender.send(line);
            }
            all
        })
    });
    let output = child.stdout.take().map(|mut stream| {
        thread::spawn(move || {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all);
            String::from_utf8_lossy(&all).into_owned()
        })
    });
    let status = loop {
        while let Ok(line) = lines.try_recv() {
            if let Some(step) = step {
                step.detail(line.trim());
            }
        }
        if let Some(status) = child.try_wait().into_diagnostic()? {
            break status;
        }
        if interrupt::requested() {
            end(&mut child);
            return Err(interrupt::Interrupted.into());
        }
        thread::sleep(interrupt::POLL);
    };
    // A Ctrl-C on the terminal reaches the program too, and may have ended it before we looked.
    interrupt::check()?;
    let text = |thread: Option<thread::JoinHandle<String>>| thread.and_then(|t| t.join().ok()).unwrap_or_default();
    Ok(Outcome { status, output: text(output), errors: text(errors) })
}

/// Runs a program for what it prints; `None` if it cannot be started or fails.
pub fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// Ends a child process: asks first, then does not ask.
pub fn end(child: &mut Child) {
    let patience = Instant::now() + Duration::from_secs(2);
    if let Ok(pid) = i32::try_from(child.id()) {
        // It may be gone already; then there is nothing to end.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    while Instant::now() < patience {
        if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Where a program lies, if it is in the search path.
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_streams_and_the_status_are_kept() {
        let outcome = run(shell("echo out; echo error >&2; exit 3"), None).expect("sh runs");
        assert_eq!((outcome.output.as_str(), outcome.errors.as_str()), ("out\n", "error\n"));
        assert_eq!(outcome.status.code(), Some(3));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(Command::new("no-such-program"), None).expect_err("it does not exist");
        assert_eq!(error.to_string(), "`no-such-program` cannot be started");
    }

    #[test]
    fn a_program_that_ignores_the_request_is_ended_all_the_same() {
        let mut child = shell("trap '' TERM; while :; do sleep 0.1; done").spawn().expect("sh runs");
        thread::sleep(Duration::from_millis(100));
        end(&mut child);
        assert!(child.try_wait().expect("it was waited for").is_some());
    }

    #[test]
    fn programs_are_found_in_the_path() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program"), None);
    }
}
