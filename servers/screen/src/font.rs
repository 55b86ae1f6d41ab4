//! The font: Noto Sans Mono, drawn beforehand in three sizes, with soft edges.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

/// A size of the font.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Font(RasterHeight);

/// Pixels of a line from which on the middle and the large size are used: smaller letters are hard to read on a screen with so many.
const MIDDLE_FROM: u32 = 1024;
const LARGE_FROM: u32 = 1600;

/// Stands for characters that the font does not have.
const MISSING: char = char::REPLACEMENT_CHARACTER;

impl Font {
    /// The size for a screen of this width in pixels.
    pub const fn for_width(width: u32) -> Font {
        Font(match width {
            ..MIDDLE_FROM => RasterHeight::Size16,
            MIDDLE_FROM..LARGE_FROM => RasterHeight::Size20,
            LARGE_FROM.. => RasterHeight::Size24,
        })
    }

    /// Width of every character, in pixels.
    pub const fn width(self) -> usize {
        get_raster_width(FontWeight::Regular, self.0)
    }

    /// Height of every character, in pixels.
    pub const fn height(self) -> usize {
        self.0.val()
    }

    /// How much of each pixel a character covers, 0 to 255, line by line: [`Font::width`] times [`Font::height`] bytes.
    pub fn glyph(self, character: char) -> &'static [u8] {
        let glyph = |character| get_raster(character, FontWeight::Regular, self.0);
        glyph(character).or_else(|| glyph(MISSING)).map_or(&[], |glyph| glyph.pixels())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_glyph_fills_its_cell() {
        for font in [640, 1024, 1920].map(Font::for_width) {
            for character in "Ag ~ß€\u{fffd}\u{4e16}\u{10ffff}".chars() {
                assert_eq!(font.glyph(character).len(), font.width() * font.height(), "{character:?}");
            }
            assert_ne!(font.glyph('A'), font.glyph(MISSING));
            assert_eq!(font.glyph('\u{4e16}'), font.glyph(MISSING));
            assert!(font.glyph(' ').iter().all(|covered| *covered == 0));
        }
    }
}
