//! Log lines.

use crate::{journal, state};
use core::fmt::{Arguments, Write};
use protocol::service::console::{Request, TEXT_MAX};

/// Room for the server's name and the colon on the debug line, and for the line's end.
const PREFIX: usize = 64;

/// A line with the server's name before it; what does not fit is cut.
struct Line {
    bytes: [u8; PREFIX + TEXT_MAX],
    /// Bytes of the prefix.
    prefix: usize,
    length: usize,
}

impl Line {
    fn new(name: &str) -> Line {
        let mut line = Line { bytes: [0; PREFIX + TEXT_MAX], prefix: 0, length: 0 };
        line.put(name, PREFIX - 3);
        line.put(": ", PREFIX - 1);
        line.prefix = line.length;
        line
    }

    /// Adds what fits below `end`, in whole characters.
    fn put(&mut self, text: &str, end: usize) {
        let text = &text[..text.floor_char_boundary(end - self.length)];
        self.bytes[self.length..][..text.len()].copy_from_slice(text.as_bytes());
        self.length += text.len();
    }

    /// The line without the prefix.
    fn text(&self) -> &str {
        // Whole characters only are ever put in, so this never fails.
        core::str::from_utf8(&self.bytes[self.prefix..self.length]).unwrap_or_default()
    }

    /// All of it, ended.
    fn ended(&mut self) -> &[u8] {
        self.bytes[self.length] = b'\n';
        &self.bytes[..=self.length]
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.put(text, self.prefix + TEXT_MAX);
        Ok(())
    }
}

/// Prints one line; see [`crate::log!`].
pub fn log(arguments: Arguments) {
    let Some(state) = state::get() else { return early(arguments) };
    let mut line = Line::new(&state.name);
    // `Line` never fails, and a `Display` that does has printed what it could.
    let _ = line.write_fmt(arguments);
    // The console client is in use only if a log line is printed while one is printed (a panic in between).
    if let Some(mut console) = state.console.as_ref().and_then(|console| console.try_lock()) {
        let request = Request::Log(line.text());
        // The second attempt is for a console that was restarted meanwhile.
        if console.call(&request).or_else(|_| console.call(&request)).is_ok() {
            return;
        }
    }
    if let Some(slot) = state.debug {
        // Nothing more can be done for a line that the kernel refuses.
        let _ = hypercall::debug_write(slot, line.ended());
        journal::note(line.ended());
    }
}

/// Prints a line before the startup page was read, when neither name nor slots are known: a server that holds the debug
/// line holds it in some slot.
#[cold]
fn early(arguments: Arguments) {
    let mut line = Line::new("a server that is starting");
    let _ = line.write_fmt(arguments);
    for slot in 0..protocol::capability::SLOTS as u8 {
        if hypercall::debug_write(slot, line.ended()).is_ok() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_name_and_its_end() {
        let mut line = Line::new("swap");
        write!(line, "{} frames", 7).unwrap();
        assert_eq!(line.text(), "7 frames");
        assert_eq!(line.ended(), b"swap: 7 frames\n");
    }

    #[test]
    fn a_line_is_cut_at_a_whole_character() {
        let mut line = Line::new(&"é".repeat(100));
        for _ in 0..TEXT_MAX {
            line.write_str("é").unwrap();
        }
        assert_eq!(line.text().chars().count(), TEXT_MAX / 2);
        assert!(line.ended().len() <= PREFIX + TEXT_MAX);
        let mut line = Line::new("x");
        write!(line, "x{}", "é".repeat(TEXT_MAX)).unwrap();
        assert_eq!(line.text().len(), TEXT_MAX - 1);
    }
}
