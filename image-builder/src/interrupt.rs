//! Ctrl-C: remembered, never acted upon in the handler itself.
//!
//! Whatever waits (for a compiler, for QEMU, for a reply) looks at [`requested`] a few times a
//! second and gives up with [`Interrupted`]. So every child process is ended and the terminal
//! restored by ordinary code on the way out, and the process ends with [`EXIT_CODE`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use miette::{IntoDiagnostic, Result, WrapErr};

/// Exit code after Ctrl-C, as shells expect it: 128 + SIGINT.
pub const EXIT_CODE: u8 = 130;
/// How often a waiting loop should look.
pub const POLL: Duration = Duration::from_millis(50);

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// The user pressed Ctrl-C (or the process was asked to terminate).
#[derive(Clone, Copy, Debug, thiserror::Error, miette::Diagnostic)]
#[error("interrupted")]
pub struct Interrupted;

/// Installs the handler for SIGINT, SIGTERM and SIGHUP.
pub fn install() -> Result<()> {
    ctrlc::set_handler(|| REQUESTED.store(true, Ordering::SeqCst))
        .into_diagnostic()
        .wrap_err("the handler for Ctrl-C could not be installed")
}

/// Whether the user wants to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// An error if the user wants to stop.
pub fn check() -> Result<()> {
    if requested() { Err(Interrupted.into()) } else { Ok(()) }
}
