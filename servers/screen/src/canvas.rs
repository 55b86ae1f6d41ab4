//! Where cells lie in the framebuffer, and what bytes show them there.

use crate::{
    Memory,
    colour::{Colour, Rgb},
    font::Font,
    grid::{COLUMNS_MAX, Cell, ROWS_MAX},
};
use alloc::{vec, vec::Vec};
use core::fmt;
use protocol::boot::Framebuffer;

/// Steps from the ground to the ink at the edge of a letter.
const SHADES: u8 = 15;
/// Pixels around the text, if the screen has many.
const MARGIN: usize = 8;
/// Pixels of a line from which on it is many.
const MARGIN_FROM: usize = 640;

/// Why a screen cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unsupported {
    /// The boot loader handed none over.
    None,
    /// It is of a kind that is not known.
    Kind(u32),
    /// So many bits for a pixel or a character are not known.
    Depth(u8),
    /// The fields of the colours do not fit into a pixel.
    Colours,
    /// Its lines overlap, or it is longer than its memory, or has not even room for one character.
    Size,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsupported::None => write!(f, "there is none"),
            Unsupported::Kind(kind) => write!(f, "its kind {kind} is not known"),
            Unsupported::Depth(bits) => write!(f, "{bits} bits for a pixel"),
            Unsupported::Colours => write!(f, "its colours lie outside of its pixels"),
            Unsupported::Size => write!(f, "its size is impossible"),
        }
    }
}

/// A screen's picture in its framebuffer.
#[derive(Debug)]
pub struct Canvas {
    kind: Kind,
    /// Bytes from one line to the next.
    pitch: usize,
    /// Columns and rows of cells.
    size: (usize, usize),
    /// Bytes of one line of a run of cells.
    line: Vec<u8>,
}

#[derive(Debug)]
enum Kind {
    Pixels(Pixels),
    /// Each cell is a character and an attribute.
    Text,
}

#[derive(Debug)]
struct Pixels {
    /// Pixels of a line, and lines.
    size: (usize, usize),
    /// Pixels from the edges to the text.
    margin: (usize, usize),
    /// Bytes of a pixel.
    bytes: usize,
    /// Lowest bit and bits of red, green and blue.
    fields: [(u8, u8); 3],
    font: Font,
    /// The colours of the cell that was drawn last, and the pixels from the ground to the ink.
    shades: ((Colour, Colour), [u32; SHADES as usize + 1]),
}

impl Canvas {
    /// The canvas of a framebuffer with `length` bytes of memory.
    pub fn new(framebuffer: &Framebuffer, length: usize) -> Result<Canvas, Unsupported> {
        let (pitch, width, height) =
            (framebuffer.pitch as usize, framebuffer.width as usize, framebuffer.height as usize);
        let bytes = match (framebuffer.kind, framebuffer.bits_per_pixel) {
            (Framebuffer::NONE, _) => return Err(Unsupported::None),
            (Framebuffer::PIXELS, 15 | 16) => 2,
            (Framebuffer::PIXELS, bits @ (24 | 32)) => usize::from(bits / 8),
            // Some loaders count the bits of the character alone, or leave the field 0.
            (Framebuffer::TEXT, 0 | 8 | 16) => 2,
            (Framebuffer::PIXELS | Framebuffer::TEXT, bits) => return Err(Unsupported::Depth(bits)),
            (kind, _) => return Err(Unsupported::Kind(kind)),
        };
        let line = width.checked_mul(bytes).filter(|line| (1..=pitch).contains(line)).ok_or(Unsupported::Size)?;
        let end = height.checked_sub(1).and_then(|above| above.checked_mul(pitch)?.checked_add(line));
        if end.is_none_or(|end| end > length) {
            return Err(Unsupported::Size);
        }
        if framebuffer.kind == Framebuffer::TEXT {
            let size = (width.min(COLUMNS_MAX), height.min(ROWS_MAX));
            return Ok(Canvas { kind: Kind::Text, pitch, size, line: vec![0; size.0 * 2] });
        }
        let fields = [
            (framebuffer.red_position, framebuffer.red_size),
            (framebuffer.green_position, framebuffer.green_size),
            (framebuffer.blue_position, framebuffer.blue_size),
        ];
        if fields.iter().any(|(position, size)| usize::from(*position) + usize::from(*size) > bytes * 8 || *size > 16) {
            return Err(Unsupported::Colours);
        }
        let font = Font::for_width(framebuffer.width);
        let border = if width >= MARGIN_FROM { 2 * MARGIN } else { 0 };
        let cells = |pixels: usize, cell: usize, most: usize| {
            let count = (pixels.saturating_sub(border) / cell).min(most);
            (count, pixels.saturating_sub(count * cell) / 2)
        };
        let ((columns, left), (rows, top)) =
            (cells(width, font.width(), COLUMNS_MAX), cells(height, font.height(), ROWS_MAX));
        if columns == 0 || rows == 0 {
            return Err(Unsupported::Size);
        }
        let mut pixels = Pixels {
            size: (width, height),
            margin: (left, top),
            bytes,
            fields,
            font,
            shades: ((Colour::BLACK, Colour::BLACK), [0; SHADES as usize + 1]),
        };
        pixels.choose(Cell::BLANK);
        Ok(Canvas { kind: Kind::Pixels(pixels), pitch, size: (columns, rows), line: vec![0; width * bytes] })
    }

    /// Columns and rows of cells.
    pub const fn size(&self) -> (usize, usize) {
        self.size
    }

    /// The font, and the pixel in the upper left corner of the text; `None` in text mode.
    pub const fn text(&self) -> Option<(Font, usize, usize)> {
        match &self.kind {
            Kind::Pixels(pixels) => Some((pixels.font, pixels.margin.0, pixels.margin.1)),
            Kind::Text => None,
        }
    }

    /// Makes everything blank.
    pub fn clear(&mut self, memory: &mut impl Memory) {
        match &mut self.kind {
            Kind::Pixels(pixels) => {
                pixels.choose(Cell::BLANK);
                let ground = pixels.shades.1[0].to_le_bytes();
                for pixel in self.line.chunks_exact_mut(pixels.bytes) {
                    pixel.copy_from_slice(&ground[..pixels.bytes]);
                }
                for line in 0..pixels.size.1 {
                    memory.write(line * self.pitch, &self.line);
                }
            }
            Kind::Text => {
                for row in 0..self.size.1 {
                    self.line.chunks_exact_mut(2).for_each(|cell| cell.copy_from_slice(&in_text_mode(Cell::BLANK)));
                    memory.write(row * self.pitch, &self.line);
                }
            }
        }
    }

    /// Draws cells of one row, beginning at a column. What lies outside is not drawn.
    pub fn draw(&mut self, memory: &mut impl Memory, row: usize, column: usize, cells: &[Cell]) {
        let cells = &cells[..cells.len().min(self.size.0.saturating_sub(column))];
        if row >= self.size.1 || cells.is_empty() {
            return;
        }
        match &mut self.kind {
            Kind::Pixels(pixels) => pixels.draw(memory, self.pitch, &mut self.line, (row, column), cells),
            Kind::Text => {
                let line = &mut self.line[..cells.len() * 2];
                for (bytes, cell) in line.chunks_exact_mut(2).zip(cells) {
                    bytes.copy_from_slice(&in_text_mode(*cell));
                }
                memory.write(row * self.pitch + column * 2, line);
            }
        }
    }
}

impl Pixels {
    /// Works the shades of a cell's colours out, unless they are those of the cell before.
    fn choose(&mut self, cell: Cell) {
        let colours = (cell.ink, cell.ground);
        if self.shades.0 != colours {
            let shade = |step: u8| self.pixel(cell.ground.rgb().towards(cell.ink.rgb(), step, SHADES));
            self.shades = (colours, core::array::from_fn(|step| shade(step as u8)));
        }
    }

    /// The pixel of a colour.
    fn pixel(&self, Rgb(red, green, blue): Rgb) -> u32 {
        let field = |value: u8, (position, size): (u8, u8)| {
            let most = (1u32 << size) - 1;
            ((u32::from(value) * most + 127) / 255).checked_shl(u32::from(position)).unwrap_or(0)
        };
        field(red, self.fields[0]) | field(green, self.fields[1]) | field(blue, self.fields[2])
    }

    fn draw(
        &mut self,
        memory: &mut impl Memory,
        pitch: usize,
        line: &mut [u8],
        (row, column): (usize, usize),
        cells: &[Cell],
    ) {
        let (width, height) = (self.font.width(), self.font.height());
        let start = (self.margin.1 + row * height) * pitch + (self.margin.0 + column * width) * self.bytes;
        let line = &mut line[..cells.len() * width * self.bytes];
        for y in 0..height {
            let mut pixels = line.chunks_exact_mut(self.bytes);
            for cell in cells {
                self.choose(*cell);
                let glyph = self.font.glyph(cell.character);
                for (covered, pixel) in glyph[y * width..][..width].iter().zip(&mut pixels) {
                    let shade = self.shades.1[usize::from(*covered >> 4)];
                    pixel.copy_from_slice(&shade.to_le_bytes()[..self.bytes]);
                }
            }
            memory.write(start + y * pitch, line);
        }
    }
}

/// A cell as text mode has it: a character of code page 437, and the colours. There the bits of red and blue are exchanged.
fn in_text_mode(cell: Cell) -> [u8; 2] {
    let character = match cell.character {
        ' '..='~' => cell.character as u8,
        'ä' => 0x84,
        'ö' => 0x94,
        'ü' => 0x81,
        'ß' => 0xe1,
        'é' => 0x82,
        'è' => 0x8a,
        'à' => 0x85,
        '·' => 0xfa,
        '°' => 0xf8,
        _ => b'?',
    };
    let colour = |colour: Colour| {
        let number = colour.number();
        number & 0b1010 | (number & 1) << 2 | number >> 2 & 1
    };
    // The highest bit of the ground may mean that the character blinks.
    [character, (colour(cell.ground) & 7) << 4 | colour(cell.ink)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Memory that notes what was written, and panics for what lies outside.
    fn framebuffer(bits: u8, width: u32, height: u32, pitch: u32) -> Framebuffer {
        let (red, green, blue) = match bits {
            15 => ((10, 5), (5, 5), (0, 5)),
            16 => ((11, 5), (5, 6), (0, 5)),
            _ => ((16, 8), (8, 8), (0, 8)),
        };
        Framebuffer {
            pitch,
            width,
            height,
            kind: Framebuffer::PIXELS,
            bits_per_pixel: bits,
            red_position: red.0,
            red_size: red.1,
            green_position: green.0,
            green_size: green.1,
            blue_position: blue.0,
            blue_size: blue.1,
            ..Framebuffer::default()
        }
    }

    fn drawn(framebuffer: &Framebuffer) -> Vec<u8> {
        let mut memory = vec![0xee; framebuffer.pitch as usize * framebuffer.height as usize];
        let mut canvas = Canvas::new(framebuffer, memory.len()).unwrap();
        canvas.clear(&mut memory);
        canvas.draw(&mut memory, 0, 1, &[Cell { character: 'W', ink: Colour::new(15), ground: Colour::new(4) }]);
        memory
    }

    /// The pixel at a place, as 8 bits each of red, green and blue.
    fn rgb(framebuffer: &Framebuffer, memory: &[u8], x: usize, y: usize) -> [u8; 3] {
        let bytes = usize::from(framebuffer.bits_per_pixel).div_ceil(8);
        let mut pixel = [0; 4];
        pixel[..bytes].copy_from_slice(&memory[y * framebuffer.pitch as usize + x * bytes..][..bytes]);
        let pixel = u32::from_le_bytes(pixel);
        let field = |position: u8, size: u8| ((pixel >> position & ((1 << size) - 1)) * 255 / ((1 << size) - 1)) as u8;
        [
            field(framebuffer.red_position, framebuffer.red_size),
            field(framebuffer.green_position, framebuffer.green_size),
            field(framebuffer.blue_position, framebuffer.blue_size),
        ]
    }

    #[test]
    fn all_depths_show_the_same_picture() {
        let exact = framebuffer(32, 99, 40, 99 * 4 + 12);
        let picture = drawn(&exact);
        for bits in [15, 16, 24] {
            let other = framebuffer(bits, 99, 40, 99 * u32::from(bits).div_ceil(8) + 7);
            let memory = drawn(&other);
            let tolerance = if bits == 24 { 0 } else { 9 };
            for (x, y) in (0..40).flat_map(|y| (0..99).map(move |x| (x, y))) {
                let (one, two) = (rgb(&exact, &picture, x, y), rgb(&other, &memory, x, y));
                assert!(one.iter().zip(two).all(|(a, b)| a.abs_diff(b) <= tolerance), "{bits}: {one:?} {two:?}");
            }
            // Nothing between the lines.
            let line = 99 * usize::from(bits).div_ceil(8);
            assert!(memory.chunks(other.pitch as usize).all(|pitch| pitch[line..].iter().all(|byte| *byte == 0xee)));
        }
    }

    #[test]
    fn letters_have_ink_and_ground() {
        let framebuffer = framebuffer(32, 99, 40, 400);
        let memory = drawn(&framebuffer);
        let font = Font::for_width(99);
        let Rgb(r, g, b) = Colour::new(4).rgb();
        let left = 99 % font.width() / 2;
        let cell: Vec<_> = (0..font.height())
            .flat_map(|y| (0..font.width()).map(move |x| (x, y)))
            .map(|(x, y)| rgb(&framebuffer, &memory, left + font.width() + x, 40 % font.height() / 2 + y))
            .collect();
        assert!(cell.contains(&[r, g, b]));
        let Rgb(r, g, b) = Colour::new(15).rgb();
        assert!(cell.iter().any(|pixel| pixel.iter().zip([r, g, b]).all(|(a, b)| a.abs_diff(b) < 0x30)));
    }

    #[test]
    fn text_mode() {
        let text = Framebuffer { kind: Framebuffer::TEXT, pitch: 160, width: 80, height: 25, ..Framebuffer::default() };
        let mut memory = vec![0; 160 * 25];
        let mut canvas = Canvas::new(&text, memory.len()).unwrap();
        assert_eq!(canvas.size(), (80, 25));
        canvas.clear(&mut memory);
        canvas.draw(&mut memory, 24, 79, &[Cell { character: '€', ink: Colour::new(1), ground: Colour::new(6) }; 9]);
        assert_eq!((&memory[..2], &memory[160 * 25 - 2..]), (&[b' ', 7][..], &[b'?', 0x34][..]));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = framebuffer(32, 64, 32, 256);
        let refused = |bad: Framebuffer| Canvas::new(&bad, 256 * 32).unwrap_err();
        assert!(Canvas::new(&good, 256 * 32).is_ok());
        assert_eq!(refused(Framebuffer::default()), Unsupported::None);
        assert_eq!(refused(Framebuffer { kind: 9, ..good }), Unsupported::Kind(9));
        assert_eq!(refused(Framebuffer { bits_per_pixel: 8, ..good }), Unsupported::Depth(8));
        assert_eq!(refused(Framebuffer { red_position: 25, ..good }), Unsupported::Colours);
        assert_eq!(refused(Framebuffer { blue_size: 200, ..good }), Unsupported::Colours);
        for (pitch, width, height) in [
            (255, 64, 32),
            (256, 64, 33),
            (256, 0, 32),
            (256, 64, 0),
            (256, 6, 32),
            (256, 64, 15),
            (u32::MAX, u32::MAX, u32::MAX),
        ] {
            assert_eq!(refused(Framebuffer { pitch, width, height, ..good }), Unsupported::Size);
        }
    }

    proptest! {
        #[test]
        fn nothing_is_written_outside(
            kind in 0u32..4, bits in prop_oneof![Just(15u8), Just(16), Just(24), Just(32), any::<u8>()],
            pitch in prop_oneof![0u32..9000, any::<u32>()], width in prop_oneof![0u32..3000, any::<u32>()],
            height in prop_oneof![0u32..99, any::<u32>()], fields: [u8; 6], small: bool, length in 0usize..500_000,
            row in 0usize..9, column in 0usize..600, cells in 0usize..600,
        ) {
            let fields = if small { fields.map(|field| field % 17) } else { fields };
            let [red_position, red_size, green_position, green_size, blue_position, blue_size] = fields;
            let framebuffer = Framebuffer {
                address: 0, pitch, width, height, kind, bits_per_pixel: bits, red_position, red_size, green_position,
                green_size, blue_position, blue_size, reserved: 0,
            };
            // The memory panics for what lies outside of it.
            let mut memory = vec![0; length];
            if let Ok(mut canvas) = Canvas::new(&framebuffer, length) {
                canvas.clear(&mut memory);
                canvas.draw(&mut memory, row, column, &vec![Cell { character: 'x', ..Cell::BLANK }; cells]);
                let (columns, rows) = canvas.size();
                canvas.draw(&mut memory, rows - 1, columns - 1, &[Cell::BLANK]);
            }
        }
    }
}
