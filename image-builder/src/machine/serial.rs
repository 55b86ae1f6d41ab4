//! What the machine writes to its serial line: kept by lines, for whoever waits for one.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::interrupt;

/// Most lines kept; older ones are only in the log file.
const KEPT: usize = 100_000;
/// A line longer than this is cut.
const LINE_MAX: usize = 4096;

/// A line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// When its end came.
    pub at: Instant,
    /// Its text without line ends and without terminal control sequences.
    pub text: String,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<Line>,
    /// Number of the first kept line.
    first: usize,
    partial: Vec<u8>,
    closed: bool,
}

/// The lines so far; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Serial {
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Serial {
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in bytes from the line; the answer is the lines that they completed.
    pub fn push(&self, bytes: &[u8]) -> Vec<String> {
        let mut state = self.state();
        let mut complete = Vec::new();
        for byte in bytes {
            if *byte == b'\n' {
                let text = clean(&std::mem::take(&mut state.partial));
                complete.push(text.clone());
                state.lines.push(Line { at: Instant::now(), text });
            } else if state.partial.len() < LINE_MAX {
                state.partial.push(*byte);
            }
        }
        if state.lines.len() > KEPT {
            let excess = state.lines.len() - KEPT / 2;
            state.lines.drain(..excess);
            state.first += excess;
        }
        self.shared.1.notify_all();
        complete
    }

    /// Nothing more will come.
    pub fn close(&self) {
        let mut state = self.state();
        if !state.partial.is_empty() {
            let text = clean(&std::mem::take(&mut state.partial));
            state.lines.push(Line { at: Instant::now(), text });
        }
        state.closed = true;
        self.shared.1.notify_all();
    }

    /// Number of the next line to come.
    pub fn position(&self) -> usize {
        let state = self.state();
        state.first + state.lines.len()
    }

    /// The lines from number `from` on.
    pub fn since(&self, from: usize) -> Vec<Line> {
        let state = self.state();
        state.lines[from.saturating_sub(state.first).min(state.lines.len())..].to_vec()
    }

    /// What has been written of a line that is not complete.
    pub fn partial(&self) -> String {
        clean(&self.state().partial)
    }

    /// The last `count` lines.
    pub fn last(&self, count: usize) -> Vec<String> {
        let state = self.state();
        let start = state.lines.len().saturating_sub(count);
        state.lines[start..].iter().map(|line| line.text.clone()).collect()
    }

    /// Waits until a line from number `from` on is as wanted: that line, or `None` if the time is up, the
    /// line is closed or the user pressed Ctrl-C.
    pub fn wait(&self, from: usize, deadline: Instant, wanted: impl Fn(&str) -> bool) -> Option<Line> {
        let mut next = from;
        let mut state = self.state();
        loop {
            let start = next.saturating_sub(state.first).min(state.lines.len());
            if let Some(line) = state.lines[start..].iter().find(|line| wanted(&line.text)) {
                return Some(line.clone());
            }
            next = state.first + state.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() || interrupt::requested() {
                return None;
            }
            let pause = left.min(Duration::from_millis(100));
            state = self.shared.1.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The text of a line without control characters and terminal sequences. What was erased again
/// (`\r`, `ESC [ K`: a prompt that makes room for a line) is left out.
fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::new();
    let mut at_start = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\x1b' if characters.peek() == Some(&'[') => {
                characters.next();
                // Parameters, up to and with the final letter.
                while characters.next_if(|c| !c.is_ascii_alphabetic()).is_some() {}
                if characters.next() == Some('K') && at_start {
                    out.clear();
                }
            }
            '\r' => at_start = true,
            _ if character.is_control() && character != '\t' => {}
            _ => {
                at_start = false;
                out.push(character);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn lines_are_put_together_and_cleaned() {
        let serial = Serial::default();
        assert_eq!(serial.push(b"> kil\r\x1b[Kconsole: a line\r\n> kil"), ["console: a line"]);
        assert_eq!(serial.push(b"\r\x1b[K"), Vec::<String>::new());
        assert_eq!(serial.push(b"he"), Vec::<String>::new());
        assert_eq!(serial.push(b"llo\r\n\x1b[1;32mgreen\x1b[0m\nrest"), ["hello", "green"]);
        assert_eq!(serial.partial(), "rest");
        serial.close();
        assert_eq!(serial.last(2), ["green", "rest"]);
        assert_eq!(serial.since(2).len(), 2);
    }

    #[test]
    fn waiting_ends_with_the_line_the_end_or_the_deadline() {
        let serial = Serial::default();
        let soon = || Instant::now() + Duration::from_millis(50);
        let writer = serial.clone();
        let thread = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            writer.push(b"one\ntwo\n");
        });
        let long = Instant::now() + Duration::from_secs(10);
        assert_eq!(serial.wait(0, long, |line| line == "two").map(|line| line.text), Some("two".into()));
        assert_eq!(serial.wait(2, soon(), |line| line == "two"), None, "only lines from there on");
        serial.close();
        assert_eq!(serial.wait(0, long, |line| line == "three"), None, "no more lines will come");
        thread.join().expect("the writer ends");
    }

    #[test]
    fn a_flood_of_output_does_not_fill_the_memory() {
        let serial = Serial::default();
        for _ in 0..3 {
            serial.push(&[b"x\n".repeat(KEPT / 2 + 1), vec![b'y'; 3 * LINE_MAX]].concat());
        }
        assert!(serial.partial().len() <= LINE_MAX);
        assert_eq!(serial.position(), 3 * (KEPT / 2 + 1), "lines keep their numbers");
        assert!(serial.since(0).len() <= KEPT);
    }
}
