//! Bytes in, pixels out.

use crate::{
    Memory,
    canvas::{Canvas, Unsupported},
    grid::Cell,
    terminal::Terminal,
};
use alloc::{vec, vec::Vec};
use protocol::boot::Framebuffer;

/// A terminal that is shown.
#[derive(Debug)]
pub struct Screen<M> {
    memory: M,
    canvas: Canvas,
    terminal: Terminal,
    /// What the framebuffer shows, row by row.
    drawn: Vec<Cell>,
    /// Where drawing goes on.
    next_row: usize,
    changed: bool,
}

impl<M: Memory> Screen<M> {
    /// Takes a framebuffer over, with its memory, and makes it blank.
    pub fn new(framebuffer: &Framebuffer, mut memory: M) -> Result<Screen<M>, Unsupported> {
        let mut canvas = Canvas::new(framebuffer, memory.length())?;
        canvas.clear(&mut memory);
        let (columns, rows) = canvas.size();
        let drawn = vec![Cell::BLANK; columns * rows];
        Ok(Screen { memory, canvas, terminal: Terminal::new(columns, rows), drawn, next_row: 0, changed: true })
    }

    /// Makes everything blank and draws it anew: somebody else may have written to the framebuffer, or kept writes from it.
    pub fn redraw(&mut self) {
        self.canvas.clear(&mut self.memory);
        self.drawn.fill(Cell::BLANK);
        self.changed = true;
    }

    /// Takes bytes; they are shown by [`Screen::draw`].
    pub fn write(&mut self, bytes: &[u8]) {
        self.terminal.write(bytes);
        self.changed = true;
    }

    /// The terminal.
    pub const fn terminal(&self) -> &Terminal {
        &self.terminal
    }

    /// The framebuffer's memory.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Whether something is not shown yet.
    pub const fn has_changed(&self) -> bool {
        self.changed
    }

    /// Draws what has changed, up to the row in which `budget` cells are reached. Returns whether all is shown.
    pub fn draw(&mut self, budget: usize) -> bool {
        let (_, rows) = self.canvas.size();
        let mut cells = 0;
        for _ in 0..if self.changed { rows } else { 0 } {
            cells += self.draw_row(self.next_row);
            self.next_row = (self.next_row + 1) % rows;
            if cells >= budget {
                return false;
            }
        }
        self.changed = false;
        true
    }

    /// Draws what has changed in a row; how many cells.
    fn draw_row(&mut self, row: usize) -> usize {
        let (columns, _) = self.canvas.size();
        let cursor = self.terminal.cursor().filter(|(at, _)| *at == row).map(|(_, column)| column);
        let drawn = &mut self.drawn[row * columns..(row + 1) * columns];
        let wanted = self.terminal.grid().row(row).iter().enumerate();
        let wanted = wanted.map(|(column, cell)| if cursor == Some(column) { cell.inverse() } else { *cell });
        let mut cells = 0;
        // A run of changed cells that ends here begins at this column.
        let mut begin = None;
        for (column, cell) in wanted.enumerate() {
            if drawn[column] != cell {
                drawn[column] = cell;
                begin.get_or_insert(column);
            } else if let Some(begin) = begin.take() {
                self.canvas.draw(&mut self.memory, row, begin, &drawn[begin..column]);
                cells += column - begin;
            }
        }
        if let Some(begin) = begin {
            self.canvas.draw(&mut self.memory, row, begin, &drawn[begin..]);
            cells += columns - begin;
        }
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{colour::Colour, grid::Part};
    use proptest::prelude::*;
    use std::string::String;

    const VGA: Framebuffer = Framebuffer {
        address: 0,
        pitch: 330,
        width: 80,
        height: 70,
        kind: Framebuffer::PIXELS,
        bits_per_pixel: 32,
        red_position: 16,
        red_size: 8,
        green_position: 8,
        green_size: 8,
        blue_position: 0,
        blue_size: 8,
        reserved: 0,
    };

    /// Counts bytes written.
    struct Counted(Vec<u8>, usize);

    impl Memory for Counted {
        fn length(&self) -> usize {
            self.0.length()
        }
        fn write(&mut self, offset: usize, bytes: &[u8]) {
            self.0.write(offset, bytes);
            self.1 += bytes.len();
        }
    }

    fn screen() -> Screen<Counted> {
        Screen::new(&VGA, Counted(vec![0; 330 * 70], 0)).unwrap()
    }

    #[test]
    fn only_what_changes_is_drawn() {
        let mut screen = screen();
        screen.draw(usize::MAX);
        let before = screen.memory.1;
        assert!(screen.draw(usize::MAX));
        assert_eq!(screen.memory.1, before);
        screen.write(b"a");
        assert!(screen.has_changed() && screen.draw(usize::MAX) && !screen.has_changed());
        // The letter, and the cursor behind it.
        assert_eq!(screen.memory.1 - before, 2 * 7 * 16 * 4);
        screen.write(b"\r\x1b[K\ra");
        screen.draw(usize::MAX);
        assert_eq!(screen.memory.1 - before, 2 * 7 * 16 * 4);
    }

    #[test]
    fn a_small_budget_comes_to_the_same_in_the_end() {
        let text = "one\r\ntwo\r\n\x1b[31mthree\r\nfour\r\nfive";
        let (mut once, mut slowly) = (screen(), screen());
        once.write(text.as_bytes());
        assert!(once.draw(usize::MAX));
        slowly.write(text.as_bytes());
        let mut steps = 0;
        while !slowly.draw(1) {
            steps += 1;
        }
        assert!((3..20).contains(&steps), "{steps}");
        assert!(once.memory.0 == slowly.memory.0);
    }

    #[test]
    fn what_was_lost_is_drawn_again() {
        let mut screen = screen();
        screen.write(b"lost");
        screen.draw(usize::MAX);
        let whole = core::mem::take(&mut screen.memory.0);
        screen.memory.0 = vec![0x55; whole.len()];
        screen.redraw();
        assert!(screen.draw(usize::MAX));
        let differ = screen.memory.0.iter().zip(&whole).enumerate().filter(|(_, (now, then))| now != then);
        // The bytes between the lines are nobody's.
        assert!(differ.into_iter().all(|(at, _)| at % 330 >= 320));
    }

    proptest! {
        #[test]
        fn the_framebuffer_shows_the_grid(texts in prop::collection::vec("([a-f]{0,5}|\r\n|\\x1b\\[[0-3]?[KJAB]|\\x1b\\[3[1-7]m){0,9}", 0..12), budget in 1usize..99) {
            let mut screen = screen();
            for text in &texts {
                screen.write(text.as_bytes());
                screen.draw(budget);
            }
            while !screen.draw(budget) {}
            let (columns, rows) = screen.canvas.size();
            let mut expected = vec![0; 330 * 70];
            screen.canvas.clear(&mut expected);
            for row in 0..rows {
                let mut cells = screen.terminal.grid().row(row).to_vec();
                if let Some((_, column)) = screen.terminal.cursor().filter(|(at, _)| *at == row) {
                    cells[column] = cells[column].inverse();
                }
                prop_assert_eq!(cells.len(), columns);
                screen.canvas.draw(&mut expected, row, 0, &cells);
            }
            prop_assert!(expected == screen.memory.0);
        }
    }

    #[test]
    fn a_screen_is_cleared_before_anything_is_shown() {
        let screen = Screen::new(&VGA, vec![0x55; 330 * 70]).unwrap();
        let crate::colour::Rgb(red, green, blue) = Colour::BLACK.rgb();
        assert!(screen.memory()[..80 * 4].chunks(4).all(|pixel| pixel == [blue, green, red, 0]));
        let blank = |row| screen.terminal().grid().row(row).iter().map(|cell| cell.character).collect::<String>();
        assert!(blank(0).trim().is_empty() && Part::After != Part::Whole);
    }
}
