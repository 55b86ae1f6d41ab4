//! The bundle: the one module that a boot loader hands to the kernel.
//!
//! A `cpio` archive in the `newc` format, uncompressed. Its first file is [`INIT`], an ELF program that
//! the kernel starts; the second is [`MANIFEST`]; the others are programs of servers and images of
//! guests under the names that the manifest uses. The data of every file begins at a multiple of 4
//! bytes, as the format has it. Everything in it is checked where it is used: a damaged bundle is
//! refused with a reason.

/// Name of the first file.
pub const INIT: &str = "init";
/// Name of the second file: a [`crate::manifest::Manifest`] in postcard.
pub const MANIFEST: &str = "manifest";
/// Magic number of a `newc` header.
pub const MAGIC: &[u8; 6] = b"070701";
/// Bytes of a `newc` header.
pub const HEADER: usize = 110;
/// Name of the file that ends an archive.
pub const TRAILER: &str = "TRAILER!!!";

/// Why a bundle was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BundleError {
    /// The archive ends in the middle of a header, name or file.
    Truncated,
    /// A header does not begin with the magic number.
    BadMagic,
    /// A number in a header is not hexadecimal.
    BadNumber,
    /// A name is empty, too long, or not UTF-8.
    BadName,
    /// The archive has no trailer.
    NoTrailer,
}

impl core::fmt::Display for BundleError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            BundleError::Truncated => "the bundle is truncated",
            BundleError::BadMagic => "a file header in the bundle is damaged (bad magic number)",
            BundleError::BadNumber => "a file header in the bundle is damaged (bad number)",
            BundleError::BadName => "a file name in the bundle is damaged",
            BundleError::NoTrailer => "the bundle has no end mark",
        })
    }
}

impl core::error::Error for BundleError {}

/// A file in a bundle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct File<'a> {
    /// Name.
    pub name: &'a str,
    /// Offset of the data in the bundle.
    pub offset: usize,
    /// Contents.
    pub data: &'a [u8],
}

/// The files of a bundle, in order. Ends after the trailer or the first error.
#[derive(Clone, Debug)]
pub struct Files<'a> {
    bundle: &'a [u8],
    at: Option<usize>,
}

/// The files of `bundle`.
pub const fn files(bundle: &[u8]) -> Files<'_> {
    Files { bundle, at: Some(0) }
}

/// The file called `name`: `Ok(None)` if a whole archive has none.
pub fn find<'a>(bundle: &'a [u8], name: &str) -> Result<Option<File<'a>>, BundleError> {
    for file in files(bundle) {
        let file = file?;
        if file.name == name {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

fn number(digits: &[u8]) -> Result<usize, BundleError> {
    digits.iter().try_fold(0usize, |sum, digit| {
        let digit = (*digit as char).to_digit(16).ok_or(BundleError::BadNumber)?;
        Ok(sum << 4 | digit as usize)
    })
}

fn slice(bundle: &[u8], at: usize, length: usize) -> Result<&[u8], BundleError> {
    let end = at.checked_add(length).ok_or(BundleError::Truncated)?;
    bundle.get(at..end).ok_or(BundleError::Truncated)
}

/// The header of a file, for those who read an archive piece by piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Bytes of the name, which follows the header, with the NULs behind it.
    pub name_length: usize,
    /// Bytes of the data.
    pub length: usize,
}

impl Header {
    /// From the [`HEADER`] bytes of a header.
    pub fn read(header: &[u8]) -> Result<Header, BundleError> {
        let header = slice(header, 0, HEADER)?;
        if !header.starts_with(MAGIC) {
            return Err(BundleError::BadMagic);
        }
        Ok(Header { name_length: number(&header[94..102])?, length: number(&header[54..62])? })
    }

    /// Where the data of a file begins whose header is at `at`.
    pub const fn data(&self, at: usize) -> usize {
        (at + HEADER + self.name_length).next_multiple_of(4)
    }

    /// Where the next header is.
    pub const fn next(&self, at: usize) -> usize {
        (self.data(at) + self.length).next_multiple_of(4)
    }
}

/// The name in the bytes behind a header; `None` if it is that of the trailer.
pub fn name(bytes: &[u8]) -> Result<Option<&str>, BundleError> {
    // The name may be followed by any number of NULs that align the data.
    let end = bytes.iter().position(|byte| *byte == 0).ok_or(BundleError::BadName)?;
    let name = core::str::from_utf8(&bytes[..end]).map_err(|_| BundleError::BadName)?;
    match name {
        "" => Err(BundleError::BadName),
        TRAILER => Ok(None),
        name => Ok(Some(name)),
    }
}

impl<'a> Files<'a> {
    fn read(&mut self, at: usize) -> Result<Option<File<'a>>, BundleError> {
        if at >= self.bundle.len() {
            return Err(BundleError::NoTrailer);
        }
        let header = Header::read(slice(self.bundle, at, HEADER)?)?;
        let Some(name) = name(slice(self.bundle, at + HEADER, header.name_length)?)? else {
            return Ok(None);
        };
        let offset = header.data(at);
        let data = slice(self.bundle, offset, header.length)?;
        self.at = Some(header.next(at));
        Ok(Some(File { name, offset, data }))
    }
}

impl<'a> Iterator for Files<'a> {
    type Item = Result<File<'a>, BundleError>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at.take()?;
        self.read(at).transpose()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::{format, vec::Vec};

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, data) in files.iter().chain([&(TRAILER, &[][..])]) {
            let length = name.len() + 1;
            let zeros = "0".repeat(8);
            let mut header = format!("070701{}", zeros.repeat(6));
            header += &format!("{:08x}{}{:08x}{}", data.len(), zeros.repeat(4), length, zeros);
            out.extend(header.as_bytes());
            out.extend(name.as_bytes());
            out.push(0);
            out.resize(out.len().next_multiple_of(4), 0);
            out.extend(*data);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    #[test]
    fn reads_files_in_order() {
        let bundle = archive(&[("init", b"abc"), ("manifest", b""), ("httpd", b"12345")]);
        let names: Vec<_> = files(&bundle).map(|file| file.unwrap().name).collect();
        assert_eq!(names, ["init", "manifest", "httpd"]);
        assert_eq!(find(&bundle, "httpd").unwrap().unwrap().data, b"12345");
        assert_eq!(find(&bundle, "none"), Ok(None));
    }

    #[test]
    fn every_truncation_is_refused() {
        let bundle = archive(&[("init", b"abc"), ("manifest", b"x")]);
        for length in 0..bundle.len() - 4 {
            assert!(files(&bundle[..length]).any(|file| file.is_err()), "length {length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            for _ in files(&bytes) {}
        }

        #[test]
        fn any_damage_is_harmless(at in 0usize..300, value: u8) {
            let mut bundle = archive(&[("init", b"abc"), ("manifest", b"x")]);
            let at = at % bundle.len();
            bundle[at] = value;
            for _ in files(&bundle) {}
        }
    }
}
