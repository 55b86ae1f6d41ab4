//! What the guest is asked, line by line, and what it answers: one line each.
//!
//! | asked | answered |
//! |---|---|
//! | `who` | `vm NUMBER pages PAGES seed SEED touched TOUCHED` |
//! | `check` | `ok PAGES`: all pages hold what they must; or `wrong page N word W: FOUND, not EXPECTED` |
//! | `check FIRST COUNT` | the same for some pages |
//! | `touch COUNT` | `ok`: so many pages were written again, from where the last `touch` ended on |
//! | `sum` | `sum` and 16 hexadecimal digits over all pages as they are |
//! | `secret` | `secret` and what stands at the beginning of the first page |
//! | anything else | `error` and why |

use crate::memory::Memory;
use alloc::{format, string::String};

/// Longest line that is asked.
pub const LINE_MAX: usize = 80;

/// Carries out a line; the answer ends with a line end.
pub fn answer(memory: &mut Memory, line: &str) -> String {
    let mut words = line.split_whitespace();
    let command = words.next().unwrap_or("");
    let mut number = || words.next().map(|word| word.parse::<u32>());
    let answer = match (command, number(), number(), words.next()) {
        ("who", None, None, None) => {
            let pattern = memory.pattern();
            let (pages, touched) = (memory.count(), memory.touched());
            format!("vm {} pages {pages} seed {} touched {touched}", pattern.vm, pattern.seed)
        }
        ("check", None, None, None) => check(memory, 0, u32::MAX),
        ("check", Some(Ok(first)), Some(Ok(count)), None) => check(memory, first, count),
        ("touch", Some(Ok(count)), None, None) => {
            memory.touch(count.into());
            String::from("ok")
        }
        ("sum", None, None, None) => format!("sum {:016x}", memory.sum()),
        ("secret", None, None, None) => match memory.head(0) {
            Some(head) => format!("secret {}", String::from_utf8_lossy(&head).trim_end()),
            None => String::from("error: there are no pages"),
        },
        _ => String::from("error: who, check, check FIRST COUNT, touch COUNT, sum or secret is wanted"),
    };
    answer + "\n"
}

fn check(memory: &Memory, first: u32, count: u32) -> String {
    match memory.check(first..first.saturating_add(count)) {
        Ok(pages) => format!("ok {pages}"),
        Err(wrong) => {
            format!("wrong page {} word {}: {:016x}, not {:016x}", wrong.page, wrong.word, wrong.found, wrong.expected)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SECRET, pattern::Pattern};

    #[test]
    fn every_line_has_its_answer() {
        let pattern = Pattern { vm: 5, seed: 6, entropy: 100 };
        let mut memory = Memory::new(pattern, 4).unwrap();
        let mut ask = |line: &str| answer(&mut memory, line);
        assert_eq!(ask("who"), "vm 5 pages 4 seed 6 touched 0\n");
        assert_eq!(ask("check\r"), "ok 4\n");
        assert_eq!(ask("touch 3"), "ok\n");
        assert_eq!(ask("check 2 9"), "ok 2\n");
        assert_eq!(ask("sum"), format!("sum {:016x}\n", pattern.sum(4, 3)));
        assert_eq!(ask("secret"), format!("secret {}", String::from_utf8_lossy(SECRET)));
        for wrong in ["", "touch", "touch x", "touch 1 2", "check 1", "sum 1", "who are you", "check 1 2 3"] {
            assert!(ask(wrong).starts_with("error: "), "{wrong}");
        }
        memory.damage(1, 9);
        assert!(answer(&mut memory, "check").starts_with("wrong page 1 word 9: "));
    }
}
