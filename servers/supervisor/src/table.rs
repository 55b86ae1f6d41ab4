//! Lists as columns.

use alloc::{format, string::String, vec::Vec};

/// The rows below their heads, each column as wide as its widest cell. Columns whose head begins with `>` are
/// aligned to the right.
pub fn table<const COLUMNS: usize>(heads: [&str; COLUMNS], rows: &[[String; COLUMNS]]) -> String {
    let right = heads.map(|head| head.starts_with('>'));
    let heads = heads.map(|head| String::from(head.trim_start_matches('>')));
    let all: Vec<&[String; COLUMNS]> = core::iter::once(&heads).chain(rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = core::array::from_fn(width);
    let mut text = String::new();
    for row in all {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let padded = if right[column] { format!("{cell:>width$}") } else { format!("{cell:width$}") };
            if column > 0 {
                line += "  ";
            }
            line += &padded;
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// An amount of memory given in KiB.
pub fn memory(kib: u64) -> String {
    match kib {
        0..10_240 => format!("{kib} KiB"),
        10_240..10_485_760 => format!("{} MiB", kib >> 10),
        _ => format!("{} GiB", kib >> 20),
    }
}

/// A time given in nanoseconds.
pub fn time(nanoseconds: u64) -> String {
    let milliseconds = nanoseconds / 1_000_000;
    format!("{}.{:03} s", milliseconds / 1000, milliseconds % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let rows = [["swap".into(), "4 MiB".into()], ["vswitch".into(), "512 KiB".into()]];
        assert_eq!(table(["SERVER", ">MEMORY"], &rows), "SERVER    MEMORY\nswap       4 MiB\nvswitch  512 KiB\n");
        assert_eq!(table(["SERVER"], &[]), "SERVER\n");
    }

    #[test]
    fn amounts_are_readable() {
        assert_eq!([memory(64), memory(10_240), memory(24 << 20)], ["64 KiB", "10 MiB", "24 GiB"]);
        assert_eq!([time(0), time(1_234_567_890)], ["0.000 s", "1.234 s"]);
    }

    proptest! {
        #[test]
        fn every_row_is_a_line(cells in proptest::collection::vec(("[a-zé]{1,10}", "[0-9]{1,10}"), 0..10)) {
            let rows: Vec<_> = cells.iter().map(|(a, b)| [a.clone(), b.clone()]).collect();
            let text = table(["A", ">B"], &rows);
            prop_assert_eq!(text.lines().count(), rows.len() + 1);
            let ends: std::collections::BTreeSet<_> = text.lines().map(|line| line.chars().count()).collect();
            prop_assert_eq!(ends.len(), 1, "right-aligned last column");
        }
    }
}
