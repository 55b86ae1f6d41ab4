//! A line of a client, without its end.

use crate::log::{KEY_MAX, VALUE_MAX};

/// Bytes of the longest line.
pub const LINE_MAX: usize = KEY_MAX + VALUE_MAX + 8;

/// What a client wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line<'a> {
    /// Keep a value.
    Put(&'a str, &'a str),
    /// Tell a value.
    Get(&'a str),
    /// Tell the number of the last record.
    Last,
}

/// Reads a line; or what is wrong with it.
pub fn read(line: &[u8]) -> Result<Line<'_>, &'static str> {
    let line = core::str::from_utf8(line).map_err(|_| "not UTF-8")?;
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match (word, rest.split_once(' ')) {
        ("PUT", Some((key, value))) if is_key(key) && value.len() <= VALUE_MAX => Ok(Line::Put(key, value)),
        ("GET", None) if is_key(rest) => Ok(Line::Get(rest)),
        ("LAST", None) if rest.is_empty() => Ok(Line::Last),
        _ => Err("PUT key value, GET key or LAST; a key has 1 to 64 bytes, a value up to 1024"),
    }
}

fn is_key(key: &str) -> bool {
    (1..=KEY_MAX).contains(&key.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        assert_eq!(read(b"PUT a some words "), Ok(Line::Put("a", "some words ")));
        assert_eq!(read(b"PUT a "), Ok(Line::Put("a", "")));
        assert_eq!(read(b"GET a"), Ok(Line::Get("a")));
        assert_eq!(read(b"LAST"), Ok(Line::Last));
        let long = [b"PUT a ".to_vec(), vec![b'x'; VALUE_MAX + 1]].concat();
        for line in [&b""[..], b"PUT a", b"PUT  b", b"GET", b"GET a b", b"LAST x", b"\xff", &long] {
            assert!(read(line).is_err(), "{line:?}");
        }
    }
}
