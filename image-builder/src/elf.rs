//! Making programs smaller for the bundle.

/// Offsets of the fields of an ELF64 header that speak of sections, and their lengths.
const SECTION_FIELDS: [(usize, usize); 3] = [(40, 8), (60, 2), (62, 2)];
const HEADER: usize = 64;

/// The program without its section table, symbols and debugging information: what the program headers
/// name is all that a loader reads. `None` if it is not an ELF64 file.
pub fn without_sections(file: &[u8]) -> Option<Vec<u8>> {
    let number = |at: usize, bytes: usize| {
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(file.get(at..at.checked_add(bytes)?)?);
        usize::try_from(u64::from_le_bytes(value)).ok()
    };
    if file.len() < HEADER || !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let mut end = table.checked_add(size * count)?.max(HEADER);
    for index in 0..count {
        let at = table.checked_add(index * size)?;
        let (offset, length) = (number(at.checked_add(8)?, 8)?, number(at.checked_add(32)?, 8)?);
        end = end.max(offset.checked_add(length)?);
    }
    let mut stripped = file.get(..end)?.to_vec();
    for (at, bytes) in SECTION_FIELDS {
        stripped[at..at + bytes].fill(0);
    }
    Some(stripped)
}

#[cfg(test)]
pub mod tests {
    //! Small programs made by hand, for the tests of this module and others.

    use super::*;
    use protocol::note::{self, Note};
    use protocol::{ARCHITECTURE_VERSION, layout};

    /// A program of one executable segment at the image base; with a note it is a guest image.
    pub fn program(note: Option<Note>) -> Vec<u8> {
        let note = note.map(note_bytes).unwrap_or_default();
        let headers = 1 + usize::from(!note.is_empty());
        let code_at = HEADER + 56 * headers;
        let note_at = code_at + 4;
        let mut file = Vec::new();
        file.extend(b"\x7fELF\x02\x01\x01");
        file.resize(16, 0);
        file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        file.extend((layout::IMAGE_BASE + code_at as u64).to_le_bytes());
        file.extend(64u64.to_le_bytes());
        file.extend(1000u64.to_le_bytes()); // a section table
        file.extend([0, 0, 0, 0, 64, 0, 56, 0, headers as u8, 0, 64, 0, 3, 0, 1, 0]);
        let mut header = |kind: u32, flags: u32, offset: usize, address: u64, length: usize| {
            file.extend(kind.to_le_bytes());
            file.extend(flags.to_le_bytes());
            for value in [offset as u64, address, address, length as u64, length as u64, 4096] {
                file.extend(value.to_le_bytes());
            }
        };
        header(1, 5, 0, layout::IMAGE_BASE, note_at);
        if !note.is_empty() {
            header(4, 4, note_at, 0, note.len());
        }
        file.extend([0xcc, 0xcc, 0xcc, 0xcc]);
        file.extend(note);
        file.extend([0x55; 2000]); // sections that nobody loads
        file
    }

    /// A note that asks for this much memory.
    pub fn note(memory: u64) -> Note {
        Note { version: ARCHITECTURE_VERSION, memory, ..Note::default() }
    }

    fn note_bytes(note: Note) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [note::OWNER_LENGTH, 64, note::TYPE] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(note::OWNER);
        bytes.extend(note.version.to_le_bytes());
        bytes.extend(note.flags.to_le_bytes());
        for word in
            [note.memory, note.nic, note.nic_length, note.disk, note.disk_length, note.console, note.console_length]
        {
            bytes.extend(word.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_program_loses_what_no_loader_reads() {
        let file = program(Some(note(1 << 20)));
        let stripped = without_sections(&file).expect("an ELF file");
        assert!(stripped.len() + 2000 <= file.len());
        assert_eq!(&stripped[40..48], &[0; 8], "no section table");
        let (image, memory) = protocol::image::Image::guest(&stripped, 0).expect("still a guest image");
        assert_eq!(memory, 1 << 20);
        assert_eq!(protocol::image::Image::guest(&file, 0).map(|(image, _)| image.segments), Ok(image.segments));
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert_eq!(without_sections(b"#!/bin/sh"), None);
        let mut file = program(None);
        file[56] = 0xff;
        assert_eq!(without_sections(&file), None, "program headers beyond the end");
        file.truncate(70);
        assert_eq!(without_sections(&file), None);
    }
}
