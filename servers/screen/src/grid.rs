//! The cells of text.

use crate::colour::Colour;
use alloc::{vec, vec::Vec};

/// Most columns.
pub const COLUMNS_MAX: usize = 512;
/// Most rows.
pub const ROWS_MAX: usize = 256;

/// A cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cell {
    /// Its character.
    pub character: char,
    /// Colour of the character.
    pub ink: Colour,
    /// Colour behind it.
    pub ground: Colour,
}

impl Cell {
    /// A cell with nothing in it.
    pub const BLANK: Cell = Cell { character: ' ', ink: Colour::WHITE, ground: Colour::BLACK };

    /// The same with the colours exchanged.
    pub const fn inverse(self) -> Cell {
        Cell { character: self.character, ink: self.ground, ground: self.ink }
    }
}

/// What of a row or of all rows is erased.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// From the cursor to the end.
    After,
    /// From the beginning to the cursor, which is included.
    Before,
    /// All.
    Whole,
}

/// The cells and the cursor.
#[derive(Debug)]
pub struct Grid {
    columns: usize,
    rows: usize,
    /// Row by row, beginning with the row `top`: scrolling moves no cell.
    cells: Vec<Cell>,
    top: usize,
    row: usize,
    column: usize,
    /// The last column was written: the next character goes to the next row.
    wraps: bool,
}

impl Grid {
    /// An empty grid; at least one cell, at most [`COLUMNS_MAX`] times [`ROWS_MAX`].
    pub fn new(columns: usize, rows: usize) -> Grid {
        let (columns, rows) = (columns.clamp(1, COLUMNS_MAX), rows.clamp(1, ROWS_MAX));
        Grid { columns, rows, cells: vec![Cell::BLANK; columns * rows], top: 0, row: 0, column: 0, wraps: false }
    }

    /// Columns.
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// Rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Row and column of the cursor.
    pub const fn cursor(&self) -> (usize, usize) {
        (self.row, self.column)
    }

    /// The cells of a row, from the top; none beyond the last row.
    pub fn row(&self, row: usize) -> &[Cell] {
        let start = (self.top + row) % self.rows * self.columns;
        if row < self.rows { &self.cells[start..start + self.columns] } else { &[] }
    }

    fn row_mut(&mut self, row: usize) -> &mut [Cell] {
        let start = (self.top + row.min(self.rows - 1)) % self.rows * self.columns;
        &mut self.cells[start..start + self.columns]
    }

    /// Puts a character where the cursor is, and moves the cursor on.
    pub fn put(&mut self, cell: Cell) {
        if self.wraps {
            self.column = 0;
            self.line_feed();
        }
        let column = self.column;
        self.row_mut(self.row)[column] = cell;
        self.wraps = column + 1 == self.columns;
        self.column = (column + 1).min(self.columns - 1);
    }

    /// Moves the cursor one row down; in the last row, everything one row up.
    pub fn line_feed(&mut self) {
        self.wraps = false;
        if self.row + 1 < self.rows {
            self.row += 1;
        } else {
            self.top = (self.top + 1) % self.rows;
            self.row_mut(self.rows - 1).fill(Cell::BLANK);
        }
    }

    /// Moves the cursor, to the nearest cell if there is none.
    pub fn go(&mut self, row: usize, column: usize) {
        (self.row, self.column, self.wraps) = (row.min(self.rows - 1), column.min(self.columns - 1), false);
    }

    /// Erases a part of the cursor's row.
    pub fn erase_row(&mut self, part: Part) {
        let (row, column) = self.cursor();
        let cells = self.row_mut(row);
        match part {
            Part::After => cells[column..].fill(Cell::BLANK),
            Part::Before => cells[..=column].fill(Cell::BLANK),
            Part::Whole => cells.fill(Cell::BLANK),
        }
    }

    /// Erases a part of all.
    pub fn erase(&mut self, part: Part) {
        self.erase_row(part);
        let rows = match part {
            Part::After => self.row + 1..self.rows,
            Part::Before => 0..self.row,
            Part::Whole => 0..self.rows,
        };
        for row in rows {
            self.row_mut(row).fill(Cell::BLANK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::String;

    pub fn text(grid: &Grid, row: usize) -> String {
        grid.row(row).iter().map(|cell| cell.character).collect()
    }

    fn put(grid: &mut Grid, text: &str) {
        text.chars().for_each(|character| grid.put(Cell { character, ..Cell::BLANK }));
    }

    #[test]
    fn the_last_column_wraps_when_more_comes() {
        let mut grid = Grid::new(3, 2);
        put(&mut grid, "abc");
        assert_eq!((text(&grid, 0), grid.cursor()), ("abc".into(), (0, 2)));
        put(&mut grid, "d");
        assert_eq!((text(&grid, 1), grid.cursor()), ("d  ".into(), (1, 1)));
        put(&mut grid, "efg");
        assert_eq!((text(&grid, 0), text(&grid, 1)), ("def".into(), "g  ".into()));
    }

    #[test]
    fn erasing() {
        for (part, row, rows) in [
            (Part::After, "a ", ["ab", "a ", "  "]),
            (Part::Before, "  ", ["  ", "  ", "ab"]),
            (Part::Whole, "  ", ["  ", "  ", "  "]),
        ] {
            let mut grid = Grid::new(2, 3);
            put(&mut grid, "ababab");
            grid.go(1, 1);
            grid.erase_row(part);
            assert_eq!((text(&grid, 1).as_str(), text(&grid, 0).as_str(), text(&grid, 2).as_str()), (row, "ab", "ab"));
            grid.erase(part);
            assert_eq!([0, 1, 2].map(|row| text(&grid, row)), rows, "{part:?}");
        }
    }

    proptest! {
        #[test]
        fn the_cursor_stays_inside(columns in 0usize..6, rows in 0usize..6, steps in prop::collection::vec((0u8..5, 0usize..9, 0usize..9), 0..100)) {
            let mut grid = Grid::new(columns, rows);
            for (what, a, b) in steps {
                match what {
                    0 => grid.put(Cell { character: 'x', ..Cell::BLANK }),
                    1 => grid.line_feed(),
                    2 => grid.go(a, b),
                    3 => grid.erase_row([Part::After, Part::Before, Part::Whole][a % 3]),
                    _ => grid.erase([Part::After, Part::Before, Part::Whole][a % 3]),
                }
                let (row, column) = grid.cursor();
                prop_assert!(row < grid.rows() && column < grid.columns());
                prop_assert_eq!((0..grid.rows()).map(|row| grid.row(row).len()).sum::<usize>(), grid.rows() * grid.columns());
            }
        }
    }
}
