//! Writing `newc` cpio archives, the container of the boot bundle.
//!
//! Nothing in the headers differs from build to build: times, owners and inode numbers are fixed. The
//! data of every file starts on a page boundary of the archive, so that a program's pages can be
//! mapped where they lie. The alignment is made of NUL bytes after the file's name, which readers of
//! cpio archives skip. The reader is [`protocol::bundle`], the same code that runs on the machine.

use protocol::bundle::{HEADER, MAGIC, TRAILER};

/// The data of every file starts at a multiple of this.
pub const ALIGNMENT: usize = protocol::layout::PAGE as usize;
/// Most bytes of a file: what the format can express.
pub const FILE_MAX: u64 = u32::MAX as u64;

/// The archive with these files (name, contents) in this order.
///
/// # Panics
/// If a file is longer than [`FILE_MAX`].
pub fn write<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let mut archive = Vec::new();
    for (index, (name, data)) in files.into_iter().enumerate() {
        let name_end = archive.len() + HEADER + name.len() + 1;
        let data_start = name_end.next_multiple_of(ALIGNMENT);
        let name_size = data_start - archive.len() - HEADER;
        header(&mut archive, index + 1, 0o100_444, data.len(), name_size);
        archive.extend_from_slice(name.as_bytes());
        archive.resize(data_start, 0);
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    header(&mut archive, 0, 0, 0, TRAILER.len() + 1);
    archive.extend_from_slice(TRAILER.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(ALIGNMENT), 0);
    archive
}

fn header(archive: &mut Vec<u8>, inode: usize, mode: u32, size: usize, name_size: usize) {
    let number = |value: usize| u32::try_from(value).expect("cpio holds files of up to 4 GiB");
    archive.extend_from_slice(MAGIC);
    // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name size, checksum
    let fields = [number(inode), mode, 0, 0, u32::from(mode != 0), 0, number(size), 0, 0, 0, 0, number(name_size), 0];
    for field in fields {
        archive.extend_from_slice(format!("{field:08X}").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::bundle;

    const FILES: [(&str, &[u8]); 3] =
        [("init", b"first"), ("manifest", b""), ("a-rather-long-name-of-a-guest", &[7; 5000])];

    #[test]
    fn what_is_written_is_read_back() {
        let archive = write(FILES);
        let files: Result<Vec<_>, _> = bundle::files(&archive).collect();
        let files = files.expect("the archive is whole");
        let read: Vec<_> = files.iter().map(|file| (file.name, file.data)).collect();
        assert_eq!(read, FILES);
        assert!(files.iter().all(|file| file.offset % ALIGNMENT == 0), "data lies on page boundaries");
    }

    #[test]
    fn the_archive_depends_on_nothing_else() {
        assert_eq!(write(FILES), write(FILES));
        assert_eq!(write(FILES).len() % ALIGNMENT, 0);
    }

    #[test]
    fn headers_are_those_that_other_tools_write() {
        let archive = write([("x", &b"abc"[..])]);
        let expected = "070701\
            00000001" // inode
            .to_owned() + "00008124" // a regular file that all may read
            + "00000000" + "00000000" // root
            + "00000001" // one link
            + "00000000" // 1970
            + "00000003" // bytes
            + "00000000" + "00000000" + "00000000" + "00000000" // devices
            + "00000F92" // name with its padding: 4096 - 110
            + "00000000";
        assert_eq!(std::str::from_utf8(&archive[..HEADER]), Ok(expected.as_str()));
    }
}
