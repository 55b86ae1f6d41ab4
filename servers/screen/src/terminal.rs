//! What bytes mean: a small part of ECMA-48, as terminals understand it.
//!
//! Understood are carriage return, line feed, backspace, tab; the sequences that move the cursor (`A` to `H`, `d`, `f`), erase (`J`,
//! `K`), set colours (`m`) and hide the cursor (`?25l`, `?25h`). All others are passed over.

use crate::{
    colour::Colour,
    grid::{Cell, Grid, Part},
};
use vte::{Params, ParamsIter, Parser, Perform};

/// Columns from one tab stop to the next.
const TAB: usize = 8;
/// Bytes kept of a command for the operating system (`ESC ]`), none of which is understood.
const COMMAND: usize = 16;

/// A terminal.
pub struct Terminal {
    parser: Parser<COMMAND>,
    state: State,
}

/// What the bytes so far have led to.
struct State {
    grid: Grid,
    /// How the next character looks.
    style: Cell,
    inverse: bool,
    bold: bool,
    hidden: bool,
}

impl core::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.state.grid.fmt(f)
    }
}

impl Terminal {
    /// An empty terminal.
    pub fn new(columns: usize, rows: usize) -> Terminal {
        let grid = Grid::new(columns, rows);
        let state = State { grid, style: Cell::BLANK, inverse: false, bold: false, hidden: false };
        Terminal { parser: Parser::new_with_size(), state }
    }

    /// Takes bytes: UTF-8 and escape sequences, cut anywhere.
    pub fn write(&mut self, bytes: &[u8]) {
        self.parser.advance(&mut self.state, bytes);
    }

    /// The cells.
    pub const fn grid(&self) -> &Grid {
        &self.state.grid
    }

    /// Row and column of the cursor, unless it is hidden.
    pub const fn cursor(&self) -> Option<(usize, usize)> {
        if self.state.hidden { None } else { Some(self.state.grid.cursor()) }
    }
}

impl State {
    fn cell(&self, character: char) -> Cell {
        let ink = if self.bold { self.style.ink.bright() } else { self.style.ink };
        let cell = Cell { character, ink, ..self.style };
        if self.inverse { cell.inverse() } else { cell }
    }

    /// `ESC [ … m`.
    fn select(&mut self, mut parameters: ParamsIter<'_>) {
        while let Some(parameter) = parameters.next() {
            match *parameter {
                [] | [0] => (self.style, self.inverse, self.bold) = (Cell::BLANK, false, false),
                [1] => self.bold = true,
                [22] => self.bold = false,
                [7] => self.inverse = true,
                [27] => self.inverse = false,
                [number @ 30..=37] => self.style.ink = Colour::new(number as u8 - 30),
                [39] => self.style.ink = Cell::BLANK.ink,
                [number @ 40..=47] => self.style.ground = Colour::new(number as u8 - 40),
                [49] => self.style.ground = Cell::BLANK.ground,
                [number @ 90..=97] => self.style.ink = Colour::new(number as u8 - 90).bright(),
                [number @ 100..=107] => self.style.ground = Colour::new(number as u8 - 100).bright(),
                // One of 256 colours, or any: what follows belongs to it.
                [38 | 48] => match parameters.next() {
                    Some([5]) => drop(parameters.next()),
                    Some([2]) => drop(parameters.nth(2)),
                    _ => {}
                },
                _ => {}
            }
        }
    }
}

impl Perform for State {
    fn print(&mut self, character: char) {
        if !character.is_control() {
            self.grid.put(self.cell(character));
        }
    }

    fn execute(&mut self, byte: u8) {
        let (row, column) = self.grid.cursor();
        match byte {
            b'\r' => self.grid.go(row, 0),
            b'\n' | 0x0b | 0x0c => self.grid.line_feed(),
            0x08 => self.grid.go(row, column.saturating_sub(1)),
            b'\t' => self.grid.go(row, (column / TAB + 1) * TAB),
            _ => {}
        }
    }

    fn csi_dispatch(&mut self, parameters: &Params, intermediates: &[u8], ignore: bool, action: char) {
        if ignore {
            return;
        }
        let number = |index: usize| parameters.iter().nth(index).and_then(|p| p.first()).copied().unwrap_or(0);
        let count = usize::from(number(0).max(1));
        let part = match number(0) {
            0 => Some(Part::After),
            1 => Some(Part::Before),
            2 | 3 => Some(Part::Whole),
            _ => None,
        };
        let (row, column) = self.grid.cursor();
        match (intermediates, action, part) {
            (b"", 'A', _) => self.grid.go(row.saturating_sub(count), column),
            (b"", 'B', _) => self.grid.go(row + count, column),
            (b"", 'C', _) => self.grid.go(row, column + count),
            (b"", 'D', _) => self.grid.go(row, column.saturating_sub(count)),
            (b"", 'E', _) => self.grid.go(row + count, 0),
            (b"", 'F', _) => self.grid.go(row.saturating_sub(count), 0),
            (b"", 'G', _) => self.grid.go(row, count - 1),
            (b"", 'd', _) => self.grid.go(count - 1, column),
            (b"", 'H' | 'f', _) => self.grid.go(count - 1, usize::from(number(1).max(1)) - 1),
            (b"", 'J', Some(part)) => self.grid.erase(part),
            (b"", 'K', Some(part)) => self.grid.erase_row(part),
            (b"", 'm', _) => self.select(parameters.iter()),
            (b"?", 'l' | 'h', _) if number(0) == 25 => self.hidden = action == 'l',
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::String;

    fn terminal(columns: usize, rows: usize, bytes: &[u8]) -> Terminal {
        let mut terminal = Terminal::new(columns, rows);
        terminal.write(bytes);
        terminal
    }

    fn rows(terminal: &Terminal) -> std::vec::Vec<String> {
        let text = |row| terminal.grid().row(row).iter().map(|cell| cell.character).collect::<String>();
        (0..terminal.grid().rows()).map(|row| text(row).trim_end().into()).collect()
    }

    #[test]
    fn what_the_console_prints() {
        let terminal = terminal(20, 3, "Denali\r\n> li\r\x1b[Kswap: grü\u{df}\r\n> li".as_bytes());
        assert_eq!(rows(&terminal), ["Denali", "swap: grüß", "> li"]);
        assert_eq!(terminal.cursor(), Some((2, 4)));
    }

    #[test]
    fn colours() {
        let terminal = terminal(20, 1, b"\x1b[31;44ma\x1b[7mb\x1b[0;1mc\x1b[38;5;200;92md\x1b[mx\x1b[38;2;1;2;3;103mz");
        let row = terminal.grid().row(0);
        let seen: std::vec::Vec<_> =
            row[..6].iter().map(|cell| (cell.character, cell.ink.number(), cell.ground.number())).collect();
        assert_eq!(seen, [('a', 1, 4), ('b', 4, 1), ('c', 15, 0), ('d', 10, 0), ('x', 7, 0), ('z', 7, 11)]);
    }

    #[test]
    fn moves() {
        let terminal = terminal(10, 4, b"\x1b[2;3Hx\x1b[Ay\x1b[2Bz\x1b[9;99Hw\x1b[1G1\t2\x08\x083\x1b[?25l");
        assert_eq!(rows(&terminal), ["   y", "  x", "    z", "1      32w"]);
        assert_eq!(terminal.cursor(), None);
    }

    #[test]
    fn sequences_that_are_not_understood_leave_nothing() {
        let bytes = b"a\x1b]0;title\x07b\x1bPdcs\x1b\\c\x1b[>1;2qd\x1b[1;2;3;4;5;6;7;8;9;10;11;12;13;14;15;16;17;18;19;20;21;22;23;24;25;26;27;28;29;30;31;32;33;34;35Je\x1b#8f";
        assert_eq!(rows(&terminal(20, 1, bytes)), ["abcdef"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_bytes(columns in 0usize..20, rows in 0usize..9, pieces in prop::collection::vec(prop_oneof![
            prop::collection::vec(any::<u8>(), 0..20),
            "\\x1b\\[[0-9;:?]{0,9}[A-Za-z]".prop_map(String::into_bytes),
            "\\PC{0,9}".prop_map(String::into_bytes),
        ], 0..40)) {
            let mut whole = Terminal::new(columns, rows);
            let mut cut = Terminal::new(columns, rows);
            for piece in &pieces {
                for byte in piece {
                    cut.write(&[*byte]);
                }
            }
            whole.write(&pieces.concat());
            prop_assert_eq!(whole.cursor(), cut.cursor());
            for row in 0..whole.grid().rows() {
                prop_assert_eq!(whole.grid().row(row), cut.grid().row(row));
                prop_assert!(whole.grid().row(row).iter().all(|cell| !cell.character.is_control()));
            }
        }
    }
}
