//! The line that the operator is typing.

use alloc::{string::String, vec::Vec};

/// Bytes of the longest line.
pub const LINE_MAX: usize = 256;

/// What a typed byte did to the line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Edit {
    /// Nothing that shows.
    Nothing,
    /// The line got longer by this byte.
    Added(u8),
    /// The line got shorter.
    Shortened,
    /// The line was given up.
    Cancelled,
    /// The line is complete; the editor is empty again.
    Entered(String),
    /// The line is full; the byte is lost.
    Full,
}

/// Where in an escape sequence the input is. Sequences (arrow keys and the like) are passed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Escape {
    #[default]
    None,
    /// After ESC.
    Begun,
    /// After ESC `[` or ESC `O`: until a letter or `~`.
    Sequence,
}

/// The line editor.
#[derive(Default, Debug)]
pub struct Editor {
    line: Vec<u8>,
    escape: Escape,
    after_return: bool,
}

impl Editor {
    /// What was typed so far.
    pub fn line(&self) -> &[u8] {
        &self.line
    }

    /// Takes one typed byte: text, backspace, ^U (clear), ^W (last word), ^C (give up), return.
    pub fn typed(&mut self, byte: u8) -> Edit {
        let after_return = core::mem::replace(&mut self.after_return, byte == b'\r');
        match self.escape {
            Escape::None => {}
            Escape::Begun => {
                self.escape = if matches!(byte, b'[' | b'O') { Escape::Sequence } else { Escape::None };
                return Edit::Nothing;
            }
            Escape::Sequence => {
                if matches!(byte, 0x40..=0x7e) {
                    self.escape = Escape::None;
                }
                return Edit::Nothing;
            }
        }
        match byte {
            b'\n' if after_return => Edit::Nothing,
            b'\r' | b'\n' => {
                let line = core::mem::take(&mut self.line);
                Edit::Entered(String::from_utf8_lossy(&line).into_owned())
            }
            0x08 | 0x7f => self.shorten(|line| {
                // A whole character: its continuation bytes, then its first byte.
                while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }),
            0x15 => self.shorten(Vec::clear),
            0x17 => self.shorten(|line| {
                while line.last() == Some(&b' ') {
                    line.pop();
                }
                while line.last().is_some_and(|byte| *byte != b' ') {
                    line.pop();
                }
            }),
            0x03 => {
                self.line.clear();
                Edit::Cancelled
            }
            0x1b => {
                self.escape = Escape::Begun;
                Edit::Nothing
            }
            0x00..=0x1f => Edit::Nothing,
            _ if self.line.len() == LINE_MAX => Edit::Full,
            _ => {
                self.line.push(byte);
                Edit::Added(byte)
            }
        }
    }

    fn shorten(&mut self, change: impl FnOnce(&mut Vec<u8>)) -> Edit {
        if self.line.is_empty() {
            return Edit::Nothing;
        }
        change(&mut self.line);
        Edit::Shortened
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entered(typed: &[u8]) -> Vec<String> {
        let mut editor = Editor::default();
        let edits = typed.iter().map(|byte| editor.typed(*byte));
        edits.filter_map(|edit| if let Edit::Entered(line) = edit { Some(line) } else { None }).collect()
    }

    #[test]
    fn edits_like_a_terminal() {
        assert_eq!(entered(b"lisx\x7ft\r"), ["list"]);
        assert_eq!(entered(b"wrong\x15right\n"), ["right"]);
        assert_eq!(entered(b"kill  virtio\x17\x17list\r"), ["list"]);
        assert_eq!(entered(b"a\r\nb\r\n"), ["a", "b"]);
        assert_eq!(entered(b"a\n\nb\n"), ["a", "", "b"]);
        assert_eq!(entered("gr\u{fc}\x7fu\r".as_bytes()), ["gru"]);
        assert_eq!(entered(b"x\x03y\r"), ["y"]);
        assert_eq!(entered(b"a\x1b[A\x1bOP\x1b[3~b\r"), ["ab"]);
    }

    proptest! {
        #[test]
        fn any_bytes_leave_a_short_line(bytes: Vec<u8>) {
            let mut editor = Editor::default();
            for byte in bytes.iter().cycle().take(bytes.len() * 8) {
                editor.typed(*byte);
                prop_assert!(editor.line().len() <= LINE_MAX);
            }
        }
    }
}
