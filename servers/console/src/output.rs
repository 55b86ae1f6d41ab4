//! Bytes that wait for the serial line.

use alloc::collections::VecDeque;

/// Bytes that may wait.
pub const CAPACITY: usize = 32 * 1024;

/// Who prints; the less trusted leave room for the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// A VM: may fill half.
    Vm,
    /// A server: may fill three quarters.
    Server,
    /// The operator's prompt and echo: may fill all.
    Operator,
}

impl Class {
    const fn limit(self) -> usize {
        match self {
            Class::Vm => CAPACITY / 2,
            Class::Server => CAPACITY / 4 * 3,
            Class::Operator => CAPACITY,
        }
    }
}

/// The queue.
#[derive(Default, Debug)]
pub struct Output {
    queue: VecDeque<u8>,
}

impl Output {
    /// Queues `text` whole, with line ends as a terminal wants them; `false` if it does not fit.
    #[must_use]
    pub fn push(&mut self, class: Class, text: &str) -> bool {
        let ends = text.bytes().filter(|byte| *byte == b'\n').count();
        if self.queue.len() + text.len() + ends > class.limit() {
            return false;
        }
        for byte in text.bytes() {
            if byte == b'\n' {
                self.queue.push_back(b'\r');
            }
            self.queue.push_back(byte);
        }
        true
    }

    /// The next byte for the line.
    pub fn pop(&mut self) -> Option<u8> {
        self.queue.pop_front()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{string::String, vec::Vec};

    #[test]
    fn line_ends_become_those_of_a_terminal() {
        let mut output = Output::default();
        assert!(output.push(Class::Server, "a\nb\n"));
        assert_eq!(core::iter::from_fn(|| output.pop()).collect::<Vec<_>>(), b"a\r\nb\r\n");
    }

    #[test]
    fn a_class_leaves_room_for_the_better_ones() {
        let mut output = Output::default();
        let line = String::from_utf8(alloc::vec![b'x'; 1000]).unwrap();
        while output.push(Class::Vm, &line) {}
        assert!(output.len() <= CAPACITY / 2);
        while output.push(Class::Server, &line) {}
        assert!(output.len() > CAPACITY / 2 && output.len() <= CAPACITY / 4 * 3);
        while output.push(Class::Operator, &line) {}
        assert!(output.len() > CAPACITY / 4 * 3 && output.len() <= CAPACITY);
    }
}
