//! The sixteen colours of a terminal, chosen to be read for hours on a dark ground.

/// A colour: red, green, blue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rgb(pub u8, pub u8, pub u8);

impl Rgb {
    /// The colour on the way from `self` (0) to `other` (`steps`).
    pub fn towards(self, other: Rgb, step: u8, steps: u8) -> Rgb {
        let mix = |from: u8, to: u8| {
            let (from, to, step, steps) = (u32::from(from), u32::from(to), u32::from(step), u32::from(steps.max(1)));
            ((from * steps.saturating_sub(step) + to * step.min(steps) + steps / 2) / steps).min(255) as u8
        };
        Rgb(mix(self.0, other.0), mix(self.1, other.1), mix(self.2, other.2))
    }
}

/// One of the sixteen colours, by its number as in `ESC [ 30 m` to `37` (0-7) and `90` to `97` (8-15).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Colour(u8);

impl Colour {
    /// The ground.
    pub const BLACK: Colour = Colour(0);
    /// Text.
    pub const WHITE: Colour = Colour(7);

    /// The colour with this number; numbers go on from the beginning after 15.
    pub const fn new(number: u8) -> Colour {
        Colour(number & 15)
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The bright one of the first eight.
    pub const fn bright(self) -> Colour {
        Colour(self.0 | 8)
    }

    /// How it looks.
    pub const fn rgb(self) -> Rgb {
        PALETTE[self.0 as usize & 15]
    }
}

const PALETTE: [Rgb; 16] = [
    Rgb(0x12, 0x16, 0x1c),
    Rgb(0xd9, 0x6c, 0x6c),
    Rgb(0x8f, 0xb8, 0x7a),
    Rgb(0xd6, 0xb0, 0x6a),
    Rgb(0x79, 0xa6, 0xd2),
    Rgb(0xb0, 0x90, 0xc8),
    Rgb(0x74, 0xb3, 0xb0),
    Rgb(0xc8, 0xcd, 0xd3),
    Rgb(0x6b, 0x75, 0x82),
    Rgb(0xf0, 0x8a, 0x8a),
    Rgb(0xb0, 0xd8, 0x9a),
    Rgb(0xf0, 0xcc, 0x88),
    Rgb(0x9c, 0xc4, 0xec),
    Rgb(0xcc, 0xb0, 0xe0),
    Rgb(0x94, 0xd2, 0xce),
    Rgb(0xf4, 0xf6, 0xf8),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixing_begins_and_ends_at_the_colours() {
        let (from, to) = (Rgb(0, 255, 10), Rgb(255, 0, 10));
        assert_eq!((from.towards(to, 0, 15), from.towards(to, 15, 15)), (from, to));
        assert_eq!(from.towards(to, 7, 14), Rgb(128, 128, 10));
        assert_eq!(from.towards(to, 200, 15), to);
    }

    #[test]
    fn text_can_be_read() {
        let brightness = |colour: Colour| {
            let Rgb(r, g, b) = colour.rgb();
            u32::from(r) * 3 + u32::from(g) * 6 + u32::from(b)
        };
        for number in 1..16 {
            assert!(brightness(Colour::new(number)) > brightness(Colour::BLACK) + 700, "{number}");
        }
    }
}
