//! The files built into the image, from `www/` and the build script.

/// A file.
#[derive(Clone, Copy, Debug)]
pub struct File {
    /// Path in a URL.
    pub path: &'static str,
    /// Content type.
    pub content_type: &'static str,
    /// Names the contents, for caches; with its quotation marks.
    pub tag: &'static str,
    /// Contents.
    pub bytes: &'static [u8],
}

/// All files, by path.
static FILES: &[File] = include!(concat!(env!("OUT_DIR"), "/files.rs"));

/// The file with this path.
pub fn find(path: &str) -> Option<&'static File> {
    FILES.binary_search_by(|file| file.path.cmp(path)).ok().map(|index| &FILES[index])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_found() {
        assert!(FILES.windows(2).all(|pair| pair[0].path < pair[1].path));
        for file in FILES {
            assert_eq!(find(file.path).unwrap().bytes, file.bytes);
        }
        for path in ["", "/nothing", "/../Cargo.toml", "//", "/index.html", "/objects", "/objects/"] {
            assert!(find(path).is_none(), "{path}");
        }
    }

    #[test]
    fn the_objects_have_their_sizes() {
        assert_eq!(find("/objects/2258").unwrap().bytes.len(), 2_258);
        assert_eq!(find("/objects/100000").unwrap().bytes.len(), 100_000);
    }

    #[test]
    fn types_are_those_of_the_names() {
        assert_eq!(find("/").unwrap().content_type, "text/html; charset=utf-8");
        assert_eq!(find("/style.css").unwrap().content_type, "text/css; charset=utf-8");
        assert_eq!(find("/favicon.svg").unwrap().content_type, "image/svg+xml");
    }

    #[test]
    fn tags_are_quoted_and_differ() {
        for file in FILES {
            assert!(file.tag.len() == 18 && file.tag.starts_with('"') && file.tag.ends_with('"'));
        }
        assert_ne!(find("/objects/2258").unwrap().tag, find("/objects/100000").unwrap().tag);
    }
}
