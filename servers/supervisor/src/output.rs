//! Text in pieces that the console takes.

use protocol::service::console::TEXT_MAX;

/// Cuts a text into pieces of at most [`TEXT_MAX`] bytes: after a line end where there is one, else between characters.
pub fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    core::iter::from_fn(move || {
        if text.is_empty() {
            return None;
        }
        let mut end = text.floor_char_boundary(TEXT_MAX);
        if end < text.len()
            && let Some(line_end) = text[..end].rfind('\n')
        {
            end = line_end + 1;
        }
        let (piece, rest) = text.split_at(end);
        text = rest;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_stay_whole() {
        let text = "0123456789\n".repeat(200);
        assert!(pieces(&text).all(|piece| piece.ends_with('\n')));
        assert_eq!(pieces("short").collect::<Vec<_>>(), ["short"]);
        assert_eq!(pieces("").count(), 0);
    }

    proptest! {
        #[test]
        fn nothing_is_lost(text in "[aé\n]{0,5000}") {
            let parts: Vec<_> = pieces(&text).collect();
            prop_assert_eq!(&parts.concat(), &text);
            prop_assert!(parts.iter().all(|part| !part.is_empty() && part.len() <= TEXT_MAX));
        }
    }
}
