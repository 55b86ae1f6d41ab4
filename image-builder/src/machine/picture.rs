//! What a machine's screen shows: the picture that QEMU makes of it, and the text in it.
//!
//! The text is read by the font that the system's console draws with: a cell either is exactly the picture of a character in one of the
//! sixteen colours, or it is not text.

use std::collections::HashMap;
use std::path::Path;

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use protocol::boot::Framebuffer;
use screen::canvas::Canvas;
use screen::colour::Colour;
use screen::grid::Cell;

/// Bytes of a pixel: red, green, blue.
const PIXEL: usize = 3;
/// Stands for a cell that is no text.
pub const UNKNOWN: char = '\u{fffd}';

/// A picture.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Picture {
    width: usize,
    height: usize,
    /// Red, green and blue of each pixel, line by line.
    pixels: Vec<u8>,
}

impl Picture {
    /// Reads a picture in the binary "portable pixmap" format, as QEMU's `screendump` writes it.
    pub fn read(path: &Path) -> Result<Picture> {
        let bytes = std::fs::read(path).into_diagnostic().wrap_err_with(|| miette!("{}", path.display()))?;
        Picture::decode(&bytes).ok_or_else(|| miette!("{} is no picture", path.display()))
    }

    fn decode(bytes: &[u8]) -> Option<Picture> {
        let mut rest = bytes.strip_prefix(b"P6")?;
        let mut numbers = [0; 3];
        for number in &mut numbers {
            let begin = rest.iter().position(|byte| !byte.is_ascii_whitespace())?;
            let end = begin + rest[begin..].iter().position(|byte| !byte.is_ascii_digit())?;
            *number = std::str::from_utf8(&rest[begin..end]).ok()?.parse().ok()?;
            rest = &rest[end..];
        }
        let [width, height, most] = numbers;
        let pixels = rest.get(1..)?.to_vec();
        (most == 255 && pixels.len() == width * height * PIXEL).then_some(Picture { width, height, pixels })
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// The text, row by row, without the spaces at the ends.
    pub fn text(&self) -> Vec<String> {
        let Ok(canvas) = self.canvas() else { return Vec::new() };
        let Some((font, left, top)) = canvas.text() else { return Vec::new() };
        let known = Alphabet::new(&canvas, self.width, self.height);
        let (columns, rows) = canvas.size();
        let row = |row: usize| {
            let cell = |column: usize| {
                let pixels =
                    self.part(left + column * font.width(), top + row * font.height(), font.width(), font.height());
                known.0.get(&pixels).copied().unwrap_or(UNKNOWN)
            };
            (0..columns).map(cell).collect::<String>().trim_end().to_string()
        };
        (0..rows).map(row).collect()
    }

    /// What the console would draw on for a screen of this size.
    fn canvas(&self) -> Result<Canvas, screen::canvas::Unsupported> {
        Canvas::new(&framebuffer(self.width, self.height), self.pixels.len())
    }

    /// The pixels of a rectangle.
    fn part(&self, left: usize, top: usize, width: usize, height: usize) -> Vec<u8> {
        let line = |y: usize| &self.pixels[(y * self.width + left) * PIXEL..][..width * PIXEL];
        (top..top + height).flat_map(line).copied().collect()
    }
}

/// A framebuffer with the layout of [`Picture::pixels`]: red comes first.
fn framebuffer(width: usize, height: usize) -> Framebuffer {
    Framebuffer {
        pitch: (width * PIXEL) as u32,
        width: width as u32,
        height: height as u32,
        kind: Framebuffer::PIXELS,
        bits_per_pixel: 24,
        red_size: 8,
        green_position: 8,
        green_size: 8,
        blue_position: 16,
        blue_size: 8,
        ..Framebuffer::default()
    }
}

/// All characters that are looked for, by their pixels.
struct Alphabet(HashMap<Vec<u8>, char>);

impl Alphabet {
    fn new(canvas: &Canvas, width: usize, height: usize) -> Alphabet {
        let mut known = HashMap::new();
        let Some((font, left, top)) = canvas.text() else { return Alphabet(known) };
        let mut picture = Picture { width, height, pixels: vec![0; width * height * PIXEL] };
        let Ok(mut canvas) = picture.canvas() else { return Alphabet(known) };
        for character in ('!'..='~').rev().chain([' ']) {
            for number in 0..16 {
                let cell = Cell { character, ink: Colour::new(number), ..Cell::BLANK };
                for cell in [cell, cell.inverse()] {
                    canvas.draw(&mut picture.pixels, 0, 0, &[cell]);
                    // A space is any cell of one colour.
                    known.insert(picture.part(left, top, font.width(), font.height()), character);
                }
            }
        }
        Alphabet(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use screen::Screen;

    #[test]
    fn text_is_read_as_it_was_drawn() {
        for (width, height) in [(640, 480), (1024, 768), (1920, 1080)] {
            let mut screen =
                Screen::new(&framebuffer(width, height), vec![0; width * height * PIXEL]).expect("a screen");
            let first: String = ('!'..='~').take(60).collect();
            let second: String = ('!'..='~').skip(60).collect();
            screen.write(format!("{first}\r\n\x1b[36minit:\x1b[0m  {second} \u{4e16}\r\n\x1b[92m> \x1b[0m").as_bytes());
            screen.draw(usize::MAX);
            let header = format!("P6\n{width} {height}\n255\n");
            let picture = Picture::decode(&[header.as_bytes(), screen.memory()].concat()).expect("a picture");
            let text = picture.text();
            assert_eq!((&text[0], &text[1]), (&first, &format!("init:  {second} {UNKNOWN}")));
            assert_eq!((text[2].as_str(), text[3].as_str()), (">", ""));
        }
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        let good = b"P6\n1 1\n255\nabc";
        assert!(Picture::decode(good).is_some());
        for bad in [&good[..good.len() - 1], b"P5\n1 1\n255\nabc", b"P6\n1 1\n99\nabc", b"P6\n1 x\n", b"P6", b""] {
            assert!(Picture::decode(bad).is_none());
        }
    }
}
