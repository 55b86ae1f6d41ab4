//! What this server has said on the kernel's debug line, for whoever shows it elsewhere: the console server, on a screen.
//!
//! Servers without a console (`init`, `platform`) speak there. The console asks them now and then ([`label::JOURNAL`]), since calls go
//! upward only.

use crate::client::with_scratch;
use alloc::{collections::VecDeque, string::String};
use hypercall::Outgoing;
use protocol::{
    abi::{LONG_MESSAGE, Lend},
    service::label,
};
use spin::Mutex;

/// Bytes kept; older lines are forgotten.
pub const CAPACITY: usize = 8 * 1024;
/// Bytes before the text in an answer: where the journal goes on.
const NEXT: usize = 8;

static JOURNAL: Mutex<Journal> = Mutex::new(Journal::new());

/// The last lines that were said.
struct Journal {
    text: VecDeque<u8>,
    /// Bytes that were ever said.
    end: u64,
}

impl Journal {
    const fn new() -> Journal {
        Journal { text: VecDeque::new(), end: 0 }
    }

    /// Adds a line with its end. What is longer than all room is left out.
    fn push(&mut self, line: &[u8]) {
        self.end += line.len() as u64;
        self.text.extend(line);
        while self.text.len() > CAPACITY {
            // Whole lines.
            while self.text.pop_front().is_some_and(|byte| byte != b'\n') {}
        }
    }

    /// What was said from the byte `from` on, or from the oldest that is kept, as much as fits: the offset behind it, and how many bytes.
    /// Who asks for what was never said has asked the server before it was restarted, and gets all.
    fn read(&self, from: u64, into: &mut [u8]) -> (u64, usize) {
        let first = self.end - self.text.len() as u64;
        let from = if from > self.end { first } else { from.max(first) };
        let mut length = 0;
        for (to, byte) in into.iter_mut().zip(self.text.iter().skip((from - first) as usize)) {
            *to = *byte;
            length += 1;
        }
        (from + length as u64, length)
    }
}

/// Notes a line, with its end, that was said on the debug line.
pub fn note(line: &[u8]) {
    if let Some(mut journal) = JOURNAL.try_lock() {
        journal.push(line);
    }
}

/// The answer to [`label::JOURNAL`]; its length.
pub(crate) fn answer(from: u64, into: &mut [u8; LONG_MESSAGE]) -> usize {
    let (head, text) = into.split_at_mut(NEXT);
    let (next, length) = JOURNAL.lock().read(from, text);
    head.copy_from_slice(&next.to_le_bytes());
    NEXT + length
}

/// Asks the server behind the domain capability in `slot` what it has said from the byte `from` on: the offset to ask for next, and text.
/// The text is empty if there is nothing new; `None` if the server does not answer.
pub fn ask(slot: u8, from: u64) -> Option<(u64, String)> {
    let answer = hypercall::call(slot, Outgoing::new(label::JOURNAL, &from.to_le_bytes()), None, Lend::NONE).ok()?;
    with_scratch(|scratch| {
        let bytes = crate::buffer::copy(&answer, scratch);
        let (next, text) = bytes.split_first_chunk::<NEXT>().filter(|_| answer.label == label::RESPONSE)?;
        Some((u64::from_le_bytes(*next), String::from_utf8_lossy(text).into_owned()))
    })?
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn a_journal_is_read_in_pieces_and_forgets_whole_lines() {
        let mut journal = Journal::new();
        let read = |journal: &Journal, from, most| {
            let mut bytes = alloc::vec![0; most];
            let (next, length) = journal.read(from, &mut bytes);
            bytes.truncate(length);
            (next, String::from_utf8(bytes).unwrap())
        };
        assert_eq!(read(&journal, 7, 9), (0, String::new()));
        journal.push(b"init: one\n");
        journal.push(b"init: two\n");
        assert_eq!(read(&journal, 0, 14), (14, "init: one\ninit".into()));
        assert_eq!(read(&journal, 14, 99), (20, ": two\n".into()));
        assert_eq!(read(&journal, 20, 99), (20, String::new()));
        assert_eq!(read(&journal, 21, 4), (4, "init".into()));
        let long = [&[b'x'; 998][..], b"\n"].concat();
        for _ in 0..20 {
            journal.push(&long);
        }
        let (next, kept) = read(&journal, 3, 2 * CAPACITY);
        assert!(kept.len() <= CAPACITY && kept.len().is_multiple_of(999) && kept.starts_with('x'));
        assert_eq!(next, 20 + 20 * 999);
        journal.push(&Vec::from([b'y'; CAPACITY + 1]));
        assert_eq!(read(&journal, 0, 9).1, "");
    }
}
