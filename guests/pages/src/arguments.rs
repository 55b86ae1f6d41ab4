//! The guest's arguments: `pages=1024 seed=7 entropy=100`, each of which can be left out.

/// What the system file asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arguments {
    /// Pages to fill.
    pub pages: u32,
    /// Seed of what is in them.
    pub seed: u64,
    /// Percent of each page that nothing can compress.
    pub entropy: u8,
}

impl Arguments {
    /// What is meant if nothing is said.
    pub const DEFAULT: Arguments = Arguments { pages: 16, seed: 0, entropy: 100 };

    /// Reads them; the word that makes no sense.
    pub fn parse(text: &str) -> Result<Arguments, &str> {
        let mut arguments = Arguments::DEFAULT;
        for word in text.split_whitespace() {
            let (key, value) = word.split_once('=').ok_or(word)?;
            match key {
                "pages" => arguments.pages = value.parse().map_err(|_| word)?,
                "seed" => arguments.seed = value.parse().map_err(|_| word)?,
                "entropy" => arguments.entropy = value.parse().ok().filter(|percent| *percent <= 100).ok_or(word)?,
                _ => return Err(word),
            }
        }
        Ok(arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn are_read_or_refused() {
        assert_eq!(Arguments::parse(""), Ok(Arguments::DEFAULT));
        let all = Arguments { pages: 1024, seed: 7, entropy: 40 };
        assert_eq!(Arguments::parse(" pages=1024  seed=7 entropy=40"), Ok(all));
        for wrong in ["pages", "pages=x", "seed=-1", "entropy=101", "page=3"] {
            assert_eq!(Arguments::parse(wrong), Err(wrong));
        }
    }
}
