//! The terminal while the system's console has it: keys go through one by one, without echo.

use std::io::{IsTerminal, stdin, stdout};

use miette::{IntoDiagnostic, Result, WrapErr};
use nix::sys::termios::{InputFlags, LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// The terminal in that state; dropping it restores what was.
#[derive(Debug)]
pub struct Keys {
    before: Termios,
}

impl Keys {
    /// Takes the terminal if standard input and output are one.
    pub fn take() -> Result<Option<Keys>> {
        if !stdin().is_terminal() || !stdout().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin()).into_diagnostic().wrap_err("the terminal's settings cannot be read")?;
        let mut raw = before.clone();
        // Ctrl-C keeps its meaning: it ends the machine.
        raw.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::IEXTEN);
        raw.input_flags.remove(InputFlags::ICRNL | InputFlags::IXON);
        tcsetattr(stdin(), SetArg::TCSANOW, &raw).into_diagnostic().wrap_err("the terminal cannot be set")?;
        Ok(Some(Keys { before }))
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // Nothing can be done for a terminal that has gone away.
        let _ = tcsetattr(stdin(), SetArg::TCSANOW, &self.before);
    }
}
