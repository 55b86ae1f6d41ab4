//! A site on a virtual disk: an archive in the `newc` cpio format (`find . -type f | cpio -o -H newc`, or
//! `cargo denali disk import NAME FOLDER`), at the beginning of the disk.
//!
//! The archive is read once from header to header for an index; files are read when they are asked for.

use alloc::{
    borrow::ToOwned,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;
use protocol::bundle::{self, BundleError, HEADER, Header};

/// Most files of a site, and most bytes of all their names: the index is kept in memory.
pub const FILES_MAX: usize = 4096;
/// See [`FILES_MAX`].
pub const NAMES_MAX: usize = 128 * 1024;
/// Bytes that [`Scanner::step`] may need at a position: a header and a name, padded to a page.
pub const LOOK: usize = 2 * 4096;

/// A file of the site.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct File {
    /// Path in a URL.
    path: String,
    /// Offset on the disk of its first byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// The files, by path.
#[derive(Debug, Default)]
pub struct Site {
    files: Vec<File>,
}

impl Site {
    /// The file with this path. A path that ends in a slash is that of the `index.html` there.
    pub fn find(&self, path: &str) -> Option<&File> {
        let index = path.ends_with('/').then(|| path.to_string() + "index.html");
        let path = index.as_deref().unwrap_or(path);
        self.files.binary_search_by(|file| file.path.as_str().cmp(path)).ok().map(|index| &self.files[index])
    }

    /// How many files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

/// Why the disk has no site.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreadable {
    /// It holds no archive, or a damaged one.
    Archive(BundleError),
    /// More files, or longer names, than the index has room for.
    TooMany,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Archive(BundleError::BadMagic) => f.write_str("it holds no cpio archive, or a damaged one"),
            Unreadable::Archive(BundleError::BadNumber) => f.write_str("a number in the archive is damaged"),
            Unreadable::Archive(BundleError::BadName) => {
                f.write_str("a file name in the archive is damaged or too long")
            }
            Unreadable::Archive(BundleError::Truncated | BundleError::NoTrailer) => {
                f.write_str("the archive is longer than the disk")
            }
            Unreadable::TooMany => write!(f, "more than {FILES_MAX} files, or {NAMES_MAX} bytes of names"),
        }
    }
}

/// Makes the index.
#[derive(Debug)]
pub struct Scanner {
    /// Bytes of the disk.
    length: u64,
    at: u64,
    names: usize,
    site: Site,
}

impl Scanner {
    /// For a disk of so many bytes.
    pub fn new(length: u64) -> Scanner {
        Scanner { length, at: 0, names: 0, site: Site::default() }
    }

    /// Where the next header is: give [`Scanner::step`] the bytes from there on.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Reads a header and its name; `bytes` are the [`LOOK`] bytes at the position, or all there are. Returns whether there is more.
    pub fn step(&mut self, bytes: &[u8]) -> Result<bool, Unreadable> {
        let header = Header::read(bytes).map_err(Unreadable::Archive)?;
        let bad_name = Unreadable::Archive(BundleError::BadName);
        let name = bytes.get(HEADER..).and_then(|rest| rest.get(..header.name_length)).ok_or(bad_name)?;
        let Some(name) = bundle::name(name).map_err(Unreadable::Archive)? else {
            self.site.files.sort_by(|a, b| a.path.cmp(&b.path));
            return Ok(false);
        };
        // Both numbers have at most 32 bits, so nothing overflows; the headers are aligned relative to the archive's beginning.
        let (data, next) = (header.data(0) as u64, header.next(0) as u64);
        let offset = self.at + data;
        self.at += next;
        if self.at >= self.length {
            return Err(Unreadable::Archive(BundleError::Truncated));
        }
        let name = name.strip_prefix("./").unwrap_or(name).trim_start_matches('/');
        self.names += name.len();
        if self.site.len() == FILES_MAX || self.names > NAMES_MAX {
            return Err(Unreadable::TooMany);
        }
        // Folders are in archives of `cpio` as files without contents.
        if header.length > 0 {
            let path = "/".to_owned() + name;
            self.site.files.push(File { path, offset, length: header.length as u64 });
        }
        Ok(true)
    }

    /// The index.
    pub fn finish(self) -> Site {
        self.site
    }
}

/// The content type of a file with this name.
pub fn content_type(path: &str) -> &'static str {
    let extension = path.rsplit_once('.').map_or("", |(_, extension)| extension);
    match extension {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "txt" | "md" => "text/plain; charset=utf-8",
        "json" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        "woff2" => "font/woff2",
        "mp3" => "audio/mpeg",
        "mp4" => "video/mp4",
        _ => "application/octet-stream",
    }
}

impl File {
    /// Path in a URL.
    pub fn path(&self) -> &str {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, data) in files.iter().chain([&(bundle::TRAILER, &[][..])]) {
            let zeros = "0".repeat(8);
            let mut header = format!("070701{}", zeros.repeat(6));
            header += &format!("{:08x}{}{:08x}{}", data.len(), zeros.repeat(4), name.len() + 1, zeros);
            out.extend(header.as_bytes());
            out.extend(name.as_bytes());
            out.push(0);
            out.resize(out.len().next_multiple_of(4), 0);
            out.extend(*data);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out.resize(out.len().next_multiple_of(4096), 0);
        out
    }

    fn scan(disk: &[u8]) -> Result<Site, Unreadable> {
        let mut scanner = Scanner::new(disk.len() as u64);
        for _ in 0..=disk.len() / HEADER {
            let at = scanner.position() as usize;
            if !scanner.step(&disk[at..disk.len().min(at + LOOK)])? {
                return Ok(scanner.finish());
            }
        }
        panic!("more files than there is room for");
    }

    #[test]
    fn files_are_found_where_they_are() {
        let page = vec![b'x'; 10_000];
        let disk =
            archive(&[("./index.html", b"front"), ("docs", b""), ("docs/index.html", &page), ("a.png", b"1234")]);
        let site = scan(&disk).unwrap();
        assert_eq!(site.len(), 3);
        let bytes = |path: &str| site.find(path).map(|file| &disk[file.offset as usize..][..file.length as usize]);
        assert_eq!(bytes("/"), Some(&b"front"[..]));
        assert_eq!(bytes("/index.html"), Some(&b"front"[..]));
        assert_eq!(bytes("/docs/"), Some(&page[..]));
        assert_eq!(bytes("/a.png"), Some(&b"1234"[..]));
        for path in ["", "/docs", "a.png", "/../a.png", "/a"] {
            assert_eq!(bytes(path), None, "{path}");
        }
        assert_eq!(content_type(site.find("/a.png").unwrap().path()), "image/png");
        assert_eq!(content_type("/a.png/b"), "application/octet-stream");
    }

    #[test]
    fn what_is_no_archive_is_told() {
        assert_eq!(scan(&[0; 8192]).unwrap_err().to_string(), "it holds no cpio archive, or a damaged one");
        let disk = archive(&[("a", &[1; 9000])]);
        assert_eq!(scan(&disk[..8192]).unwrap_err(), Unreadable::Archive(BundleError::Truncated));
        let many: Vec<(String, &[u8])> = (0..=FILES_MAX).map(|n| (n.to_string(), &b"x"[..])).collect();
        let many: Vec<(&str, &[u8])> = many.iter().map(|(name, data)| (name.as_str(), *data)).collect();
        assert_eq!(scan(&archive(&many)).unwrap_err(), Unreadable::TooMany);
    }

    proptest! {
        #[test]
        fn any_disk_is_harmless(at in 0usize..600, value: u8) {
            let mut disk = archive(&[("index.html", b"abc"), ("docs/x", &[7; 300])]);
            disk[at] = value;
            if let Ok(site) = scan(&disk) {
                prop_assert!(site.files.iter().all(|file| file.offset + file.length <= disk.len() as u64));
            }
        }
    }
}
