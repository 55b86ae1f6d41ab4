//! What untrusted text is turned into before it is printed.
//!
//! Control characters could move the cursor, forge lines of others or reprogram the terminal; each is printed as `.`.

use alloc::string::String;

/// Spaces that a tab stands for.
const TAB: &str = "    ";

/// Appends one line of text, harmless, to `out`. Bytes that are not UTF-8 become U+FFFD.
pub fn sanitise(bytes: &[u8], out: &mut String) {
    // Nearly all text.
    if bytes.iter().all(|byte| matches!(byte, b' '..=b'~'))
        && let Ok(text) = core::str::from_utf8(bytes)
    {
        return out.push_str(text);
    }
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\t' => out.push_str(TAB),
                '\r' => {}
                _ if is_harmless(character) => out.push(character),
                _ => out.push('.'),
            }
        }
        if !chunk.invalid().is_empty() {
            out.push('\u{fffd}');
        }
    }
}

/// Whether a character neither controls the terminal nor changes the direction of the text around it.
fn is_harmless(character: char) -> bool {
    !character.is_control()
        && !matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Bytes of a line that has not ended, of a server without a console; a longer one is broken.
const BEGUN_MAX: usize = 1024;

/// Adds text to a line that was begun; takes out the lines that are whole.
pub fn whole_lines(begun: &mut String, text: &str) -> String {
    begun.push_str(text);
    let end = begun.rfind('\n').map_or(0, |end| end + 1);
    let rest = begun.split_off(end);
    let mut lines = core::mem::replace(begun, rest);
    if begun.len() > BEGUN_MAX {
        lines.push_str(begun);
        lines.push('\n');
        begun.clear();
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sanitised(bytes: &[u8]) -> String {
        let mut out = String::new();
        sanitise(bytes, &mut out);
        out
    }

    #[test]
    fn escape_sequences_lose_their_power() {
        assert_eq!(sanitised(b"a\x1b[2Jb\x07\r"), "a.[2Jb.");
        assert_eq!(sanitised("c1 \u{9b}2J, bidi \u{202e}".as_bytes()), "c1 .2J, bidi .");
        assert_eq!(sanitised(b"tab\tbad\xffend"), "tab    bad\u{fffd}end");
        assert_eq!(sanitised("Grüße, 世界".as_bytes()), "Grüße, 世界");
    }

    proptest! {
        #[test]
        fn no_control_character_survives(bytes: std::vec::Vec<u8>) {
            prop_assert!(!sanitised(&bytes).chars().any(char::is_control));
        }
    }

    #[test]
    fn lines_are_put_together_and_do_not_grow_for_ever() {
        let mut begun = String::new();
        assert_eq!(whole_lines(&mut begun, "one\ntw"), "one\n");
        assert_eq!(whole_lines(&mut begun, "o\nthree\n"), "two\nthree\n");
        assert_eq!(whole_lines(&mut begun, ""), "");
        for _ in 0..100 {
            let lines = whole_lines(&mut begun, &"x".repeat(300));
            assert!(begun.len() <= BEGUN_MAX && (lines.is_empty() || lines.ends_with("x\n")));
        }
    }
}
