//! What one terminal is to show: the serial line, or the screen.
//!
//! Each terminal has a queue of its own, so a slow or dead one holds nothing up on the other, and each knows by itself whether the bottom
//! line (the prompt and what was typed after it) is on it.

use crate::output::{Class, Output};
use alloc::{
    format,
    string::{String, ToString},
};

/// Returns to the first column and erases the line.
const ERASE: &str = "\r\x1b[K";
/// Colours on the screen: the name of a server, the name of a VM, the prompt; and what ends them.
const SERVER: &str = "\x1b[36m";
const VM: &str = "\x1b[34m";
const PROMPT: &str = "\x1b[92m";
const PLAIN: &str = "\x1b[0m";

/// A terminal's output.
#[derive(Debug, Default)]
pub struct Head {
    output: Output,
    /// Whether the bottom line is on the terminal.
    shown: bool,
    /// Lines that found no room.
    dropped: u64,
    /// Whether names and the prompt are coloured. On the serial line they are not: programs read it, too.
    coloured: bool,
}

impl Head {
    /// A terminal that shows colours.
    pub fn coloured() -> Head {
        Head { coloured: true, ..Head::default() }
    }

    /// The next byte; if there is none, what has to be there when nothing more waits: the count of what was dropped, and the bottom line.
    pub fn next_byte(&mut self, prompt: &str, typed: &[u8]) -> Option<u8> {
        if self.output.is_empty() {
            self.settle(prompt, typed);
        }
        self.output.pop()
    }

    /// Whether all that can be shown was taken. `bottom`: there is a bottom line to show.
    pub fn is_idle(&self, bottom: bool) -> bool {
        self.output.is_empty() && self.dropped == 0 && (self.shown || !bottom)
    }

    fn settle(&mut self, prompt: &str, typed: &[u8]) {
        if self.dropped > 0 {
            let report = format!("console: {} lines dropped, the serial line is too slow\n", self.dropped);
            self.dropped = 0;
            self.print(Class::Server, &report, 1);
        }
        let is_empty = prompt.is_empty() && typed.is_empty();
        if !self.shown && !is_empty {
            let typed = String::from_utf8_lossy(typed);
            let bottom = match self.coloured {
                true => format!("{PROMPT}{prompt}{PLAIN}{typed}"),
                false => format!("{prompt}{typed}"),
            };
            self.shown = self.output.push(Class::Operator, &bottom);
        }
    }

    /// Takes the bottom line away, before a line is printed or because it has changed.
    pub fn erase_bottom(&mut self) {
        if self.shown {
            // If it does not fit, an old prompt stays in the middle of the output: ugly, and harmless.
            let _ = self.output.push(Class::Operator, ERASE);
            self.shown = false;
        }
    }

    /// Queues whole lines, `count` of them.
    pub fn print(&mut self, class: Class, lines: &str, count: u64) {
        self.erase_bottom();
        let fits = match self.coloured && class != Class::Operator {
            true => self.output.push(class, &lines.split_inclusive('\n').map(colour_name).collect::<String>()),
            false => self.output.push(class, lines),
        };
        if !fits {
            self.dropped += count;
        }
    }

    /// Queues what the operator has to see at once, whatever is at the bottom. `false` if there is no room.
    #[must_use]
    pub fn show(&mut self, text: &str) -> bool {
        self.output.push(Class::Operator, text)
    }

    /// A byte was added to the bottom line.
    pub fn echo(&mut self, byte: u8) {
        if self.shown && !(byte.is_ascii() && self.show(char::from(byte).encode_utf8(&mut [0; 4]))) {
            // Drawn anew as a whole when nothing more waits; the parts of a character beyond ASCII come one by one.
            self.erase_bottom();
        }
    }

    /// The bottom line was entered: it stays where it is, or is printed whole.
    pub fn entered(&mut self, prompt: &str, line: &str) {
        let end = if self.shown { "\n".to_string() } else { format!("{prompt}{line}\n") };
        self.shown = false;
        let _ = self.show(&end);
    }
}

/// A line of a server or a VM with the name at its beginning coloured.
fn colour_name(line: &str) -> String {
    let (colour, end) = match line.starts_with("vm ").then(|| line.find('|')).flatten() {
        Some(end) => (VM, end + 1),
        None => (SERVER, line.find(':').map_or(0, |end| end + 1)),
    };
    let (name, text) = line.split_at(end);
    format!("{colour}{name}{PLAIN}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn printed(head: &mut Head, prompt: &str, typed: &str) -> String {
        let bytes = core::iter::from_fn(|| head.next_byte(prompt, typed.as_bytes()));
        String::from_utf8(bytes.collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn names_have_a_colour_on_the_screen() {
        let mut head = Head::coloured();
        head.print(Class::Vm, "vm web| a: b\nvm web| c\n", 2);
        head.print(Class::Server, "swap: ready\n", 1);
        head.print(Class::Operator, "a: table\n", 1);
        let vm = "\x1b[34mvm web|\x1b[0m";
        let expected = format!("{vm} a: b\r\n{vm} c\r\n\x1b[36mswap:\x1b[0m ready\r\na: table\r\n\x1b[92m> \x1b[0mli");
        assert_eq!(printed(&mut head, "> ", "li"), expected);
    }

    #[test]
    fn the_bottom_line_comes_back_after_other_lines() {
        let mut head = Head::default();
        assert_eq!(printed(&mut head, "> ", ""), "> ");
        head.echo(b'x');
        assert!(!head.is_idle(true));
        assert_eq!(printed(&mut head, "> ", "x"), "x");
        head.echo(0xc3);
        assert_eq!(printed(&mut head, "> ", "xü"), "\r\x1b[K> xü");
        assert!(head.is_idle(true));
        head.entered("> ", "xü");
        assert_eq!(printed(&mut head, "", ""), "\r\n");
        head.entered("> ", "typed ahead");
        assert_eq!(printed(&mut head, "", ""), "> typed ahead\r\n");
    }
}
