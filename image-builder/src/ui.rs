//! Progress on the terminal: a spinner where there is one, plain lines where not.
//!
//! Progress goes to the standard error stream; what a command is asked for goes to standard output.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Something that takes time.
#[derive(Debug)]
pub struct Step {
    what: String,
    bar: Option<ProgressBar>,
    started: Instant,
}

impl Step {
    /// Says that something begins: "Building the microkernel".
    pub fn start(what: impl Into<String>) -> Step {
        let what = what.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner:.cyan} {wide_msg} {elapsed:.dim}");
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let step = Step { what, bar, started: Instant::now() };
        match &step.bar {
            Some(_) => step.detail(""),
            None => eprintln!("{} …", step.what),
        }
        step
    }

    /// Shows what is being done right now; only on a terminal.
    pub fn detail(&self, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(if detail.is_empty() { self.what.clone() } else { format!("{}: {detail}", self.what) });
        }
    }

    /// Says that it is done, and how long it took.
    pub fn done(self, note: &str) {
        let note = if note.is_empty() { String::new() } else { format!(", {note}") };
        self.end(&format!("✓ {} ({:.1} s{note})", self.what, self.started.elapsed().as_secs_f64()));
    }

    /// Says that it failed; the error itself is told by the caller.
    pub fn failed(self) {
        self.end(&format!("✗ {} ({:.1} s)", self.what, self.started.elapsed().as_secs_f64()));
    }

    fn end(&self, line: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{line}");
    }
}

/// Says something in passing.
pub fn note(line: &str) {
    eprintln!("{line}");
}
