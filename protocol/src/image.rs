//! The check of a program or guest image: one code for the builder and for the loader.
//!
//! An image is a static ELF64 executable for x86-64. Its loadable segments lie within the memory it
//! is given, do not overlap, and none is both writable and executable. A guest image has a
//! [`crate::note::Note`] besides.

use crate::{ARCHITECTURE_VERSION, layout, memory::Access, note};
use alloc::vec::Vec;
use elf::{ElfBytes, abi, endian::LittleEndian};

/// Most loadable segments of an image.
pub const SEGMENTS_MAX: usize = 16;

/// Why an image was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageError {
    /// Not an ELF file, or its tables are damaged.
    NotElf,
    /// Not a static executable for x86-64.
    WrongKind,
    /// No segment to load, or more than [`SEGMENTS_MAX`].
    Segments,
    /// A segment's data lies outside the file, or it has more data than memory.
    SegmentData,
    /// A segment lies outside the memory of the program.
    SegmentAddress,
    /// Two segments share a page.
    Overlap,
    /// A segment is writable and executable.
    WritableCode,
    /// The entry point is not in an executable segment.
    Entry,
    /// A guest image without a note.
    NoNote,
    /// The note is damaged or has unknown flags.
    BadNote,
    /// The note is for another version of the virtual architecture.
    Version(u32),
    /// The note asks for too little or too much memory.
    Memory(u64),
    /// A device window is not page-aligned, too short, or outside the memory.
    Window,
}

impl core::fmt::Display for ImageError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            ImageError::NotElf => f.write_str("not an ELF file, or damaged"),
            ImageError::WrongKind => f.write_str("not a static 64-bit x86 executable"),
            ImageError::Segments => write!(f, "must have 1 to {SEGMENTS_MAX} segments to load"),
            ImageError::SegmentData => f.write_str("a segment's data lies outside the file"),
            ImageError::SegmentAddress => f.write_str("a segment lies outside the memory of the program"),
            ImageError::Overlap => f.write_str("two segments share a page"),
            ImageError::WritableCode => f.write_str("a segment is writable and executable"),
            ImageError::Entry => f.write_str("the entry point is not in an executable segment"),
            ImageError::NoNote => f.write_str("no note of the virtual architecture (section .note.denali)"),
            ImageError::BadNote => f.write_str("the note of the virtual architecture is damaged"),
            ImageError::Version(version) => {
                write!(f, "made for version {version} of the virtual architecture, this is {ARCHITECTURE_VERSION}")
            }
            ImageError::Memory(bytes) => write!(
                f,
                "asks for {bytes} bytes of memory; a VM has {} to {}, a multiple of 4096",
                layout::VM_MEMORY_MIN,
                layout::VM_MEMORY_MAX
            ),
            ImageError::Window => f.write_str("a device window is not page-aligned or lies outside the memory"),
        }
    }
}

impl core::error::Error for ImageError {}

/// A part of an image to load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// First byte in memory.
    pub address: u64,
    /// Bytes in memory; those beyond `data_length` are zero.
    pub length: u64,
    /// First byte in the file.
    pub data_offset: u64,
    /// Bytes in the file.
    pub data_length: u64,
    /// Access.
    pub access: Access,
}

/// An image that passed the check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// First instruction.
    pub entry: u64,
    /// Segments by address.
    pub segments: Vec<Segment>,
    /// The note, if there is one.
    pub note: Option<note::Note>,
}

impl Image {
    /// Checks the program of a server: memory from [`layout::IMAGE_BASE`] to [`layout::HEAP`].
    pub fn program(file: &[u8]) -> Result<Image, ImageError> {
        let image = parse(file)?;
        image.within(layout::IMAGE_BASE, layout::HEAP)?;
        Ok(image)
    }

    /// Checks a guest image for a VM of `memory` bytes (0: as the note says); returns it with its memory size.
    pub fn guest(file: &[u8], memory: u64) -> Result<(Image, u64), ImageError> {
        let image = parse(file)?;
        let note = image.note.ok_or(ImageError::NoNote)?;
        let memory = if memory == 0 { note.memory } else { memory };
        if !memory.is_multiple_of(layout::PAGE) || !(layout::VM_MEMORY_MIN..=layout::VM_MEMORY_MAX).contains(&memory) {
            return Err(ImageError::Memory(memory));
        }
        let end = layout::SPACE_BASE + memory;
        image.within(layout::IMAGE_BASE, end)?;
        window(note.nic, note.nic_length, end)?;
        window(note.disk, note.disk_length, end)?;
        window(note.console, note.console_length, end)?;
        Ok((image, memory))
    }

    fn within(&self, start: u64, end: u64) -> Result<(), ImageError> {
        let inside = |s: &Segment| s.address >= start && s.address.checked_add(s.length).is_some_and(|e| e <= end);
        if self.segments.iter().all(inside) { Ok(()) } else { Err(ImageError::SegmentAddress) }
    }
}

fn window(address: u64, length: u64, end: u64) -> Result<(), ImageError> {
    if length == 0 && address == 0 {
        return Ok(());
    }
    let aligned = address.is_multiple_of(layout::PAGE) && length.is_multiple_of(layout::PAGE);
    let inside = address >= layout::IMAGE_BASE && address.checked_add(length).is_some_and(|e| e <= end);
    if aligned && inside && length > 0 { Ok(()) } else { Err(ImageError::Window) }
}

fn parse(file: &[u8]) -> Result<Image, ImageError> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(|_| ImageError::NotElf)?;
    let header = &elf.ehdr;
    if header.class != elf::file::Class::ELF64 || header.e_machine != abi::EM_X86_64 || header.e_type != abi::ET_EXEC {
        return Err(ImageError::WrongKind);
    }
    let headers = elf.segments().ok_or(ImageError::NotElf)?;
    let mut segments = Vec::new();
    let mut found = None;
    for segment in headers.iter() {
        match segment.p_type {
            abi::PT_LOAD if segment.p_memsz > 0 => {
                let data_end = segment.p_offset.checked_add(segment.p_filesz).ok_or(ImageError::SegmentData)?;
                if data_end > file.len() as u64 || segment.p_filesz > segment.p_memsz {
                    return Err(ImageError::SegmentData);
                }
                let mut access = Access::empty();
                access.set(Access::WRITE, segment.p_flags & abi::PF_W != 0);
                access.set(Access::EXECUTE, segment.p_flags & abi::PF_X != 0);
                if access.contains(Access::WRITE | Access::EXECUTE) {
                    return Err(ImageError::WritableCode);
                }
                if segments.len() == SEGMENTS_MAX {
                    return Err(ImageError::Segments);
                }
                segments.push(Segment {
                    address: segment.p_vaddr,
                    length: segment.p_memsz,
                    data_offset: segment.p_offset,
                    data_length: segment.p_filesz,
                    access,
                });
            }
            abi::PT_INTERP | abi::PT_DYNAMIC => return Err(ImageError::WrongKind),
            abi::PT_NOTE if found.is_none() => {
                let end = segment.p_offset.checked_add(segment.p_filesz).ok_or(ImageError::BadNote)?;
                let bytes = usize::try_from(segment.p_offset).ok().zip(usize::try_from(end).ok());
                let bytes = bytes.and_then(|(start, end)| file.get(start..end)).ok_or(ImageError::BadNote)?;
                found = read_note(bytes)?;
            }
            _ => {}
        }
    }
    if segments.is_empty() {
        return Err(ImageError::Segments);
    }
    segments.sort_by_key(|segment| segment.address);
    for pair in segments.windows(2) {
        let end = pair[0].address.checked_add(pair[0].length).and_then(|e| e.checked_next_multiple_of(layout::PAGE));
        if end.ok_or(ImageError::SegmentAddress)? > pair[1].address & !(layout::PAGE - 1) {
            return Err(ImageError::Overlap);
        }
    }
    let entry = header.e_entry;
    let holds_entry =
        |s: &Segment| s.access.contains(Access::EXECUTE) && entry >= s.address && entry - s.address < s.length;
    if !segments.iter().any(holds_entry) {
        return Err(ImageError::Entry);
    }
    Ok(Image { entry, segments, note: found })
}

/// Looks for our note among the notes of one segment.
fn read_note(mut bytes: &[u8]) -> Result<Option<note::Note>, ImageError> {
    let word = |bytes: &[u8], at: usize| {
        let bytes = bytes.get(at..at + 4)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    };
    while bytes.len() >= 12 {
        let header = (word(bytes, 0), word(bytes, 4), word(bytes, 8));
        let (Some(owner), Some(length), Some(kind)) = header else {
            return Err(ImageError::BadNote);
        };
        let owner_end = owner.checked_add(12).ok_or(ImageError::BadNote)?;
        let start = owner_end.checked_next_multiple_of(4).ok_or(ImageError::BadNote)?;
        let end = start.checked_add(length).ok_or(ImageError::BadNote)?;
        let (Some(name), Some(descriptor)) = (bytes.get(12..owner_end), bytes.get(start..end)) else {
            return Err(ImageError::BadNote);
        };
        if name == &note::OWNER[..note::OWNER_LENGTH as usize] && kind == note::TYPE as usize {
            let note = note::Note::from_bytes(descriptor.try_into().map_err(|_| ImageError::BadNote)?);
            if note.version != ARCHITECTURE_VERSION {
                return Err(ImageError::Version(note.version));
            }
            return if note.flags & !note::FLAG_READY == 0 { Ok(Some(note)) } else { Err(ImageError::BadNote) };
        }
        let next = end.checked_next_multiple_of(4).ok_or(ImageError::BadNote)?;
        bytes = bytes.get(next..).unwrap_or(&[]);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    const BASE: u64 = layout::IMAGE_BASE;

    /// A small guest image: one page of code, one of data, and a note with these words.
    fn image(note: [u64; 8]) -> Vec<u8> {
        let mut file = vec![0; 0x1000];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &[2, 0, 62, 0, 1]); // executable, x86-64, version
        put(24, &BASE.to_le_bytes()); // entry
        put(32, &64u64.to_le_bytes()); // program headers
        put(52, &[64, 0, 56, 0, 3, 0]); // sizes, three headers
        // type and flags, offset, address, physical address, bytes in the file, in memory, alignment
        let headers = [
            [1 | 5 << 32, 0x400, BASE, BASE, 0x100, 0x100, 4096],
            [1 | 6 << 32, 0x600, BASE + 0x1000, BASE + 0x1000, 0x80, 0x1000, 4096],
            [4 | 4 << 32, 0x800, BASE + 0x100, BASE + 0x100, 88, 88, 8],
        ];
        for (index, header) in headers.iter().enumerate() {
            let words: Vec<u8> = header.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
            put(64 + index * 56, &words);
        }
        put(0x800, &[10, 0, 0, 0, 64, 0, 0, 0, 1, 0, 0, 0]);
        put(0x80c, &note::OWNER);
        for (index, word) in note.iter().enumerate() {
            put(0x818 + index * 8, &word.to_le_bytes());
        }
        file
    }

    const GOOD: [u64; 8] = [ARCHITECTURE_VERSION as u64, 1 << 20, BASE + 0x2000, 0x3000, 0, 0, BASE + 0x1000, 0x1000];

    #[test]
    fn a_good_image() {
        let (image, memory) = Image::guest(&image(GOOD), 0).unwrap();
        assert_eq!((image.entry, memory, image.segments.len()), (BASE, 1 << 20, 2));
        assert_eq!(image.segments[0].access, Access::EXECUTE);
        assert_eq!(image.note.unwrap().nic_length, 0x3000);
    }

    #[test]
    fn what_a_note_may_not_say() {
        let with = |index: usize, value: u64| {
            let mut note = GOOD;
            note[index] = value;
            Image::guest(&image(note), 0).map(drop)
        };
        assert_eq!(with(0, 9), Err(ImageError::Version(9)));
        assert_eq!(with(0, u64::from(ARCHITECTURE_VERSION) | 2 << 32), Err(ImageError::BadNote));
        assert_eq!(with(0, u64::from(ARCHITECTURE_VERSION) | u64::from(note::FLAG_READY) << 32), Ok(()));
        for memory in [0, 4096, 1 << 20 | 1, u64::MAX, layout::VM_MEMORY_MAX + 4096] {
            assert_eq!(with(1, memory), Err(ImageError::Memory(memory)));
        }
        for (index, value) in
            [(2, BASE + 1), (2, 0), (2, u64::MAX - 4095), (3, 1 << 20), (3, 100), (3, u64::MAX - 4095), (6, 0)]
        {
            assert_eq!(with(index, value), Err(ImageError::Window), "word {index} = {value:#x}");
        }
    }

    #[test]
    fn what_an_image_may_not_be() {
        let with = |at: usize, value: u8| {
            let mut file = image(GOOD);
            file[at] = value;
            Image::guest(&file, 0).map(drop)
        };
        assert_eq!(with(0, 0), Err(ImageError::NotElf));
        assert_eq!(with(16, 3), Err(ImageError::WrongKind));
        assert_eq!(with(18, 3), Err(ImageError::WrongKind));
        assert_eq!(with(68, 7), Err(ImageError::WritableCode));
        assert_eq!(with(68, 4), Err(ImageError::Entry));
        assert_eq!(with(64 + 8 + 2, 0x10), Err(ImageError::SegmentData));
        assert_eq!(with(64 + 56 + 16 + 1, 0x10), Err(ImageError::Overlap));
        assert_eq!(with(64 + 56 + 16 + 3, 0x10), Err(ImageError::SegmentAddress));
        assert_eq!(with(64 + 2 * 56, 0), Err(ImageError::NoNote));
        assert_eq!(with(0x808, 2), Err(ImageError::NoNote));
        assert_eq!(Image::program(&image(GOOD)).map(|image| image.entry), Ok(BASE));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Whatever is damaged, the check ends, and what it lets through keeps its promises.
        #[test]
        fn any_damage_is_survived(damage in prop::collection::vec((0usize..0x880, any::<u8>()), 1..6), length in 0usize..0x1001) {
            let mut file = image(GOOD);
            for (at, value) in damage {
                file[at] = value;
            }
            file.truncate(length.max(0x200));
            if let Ok((image, memory)) = Image::guest(&file, 0) {
                for segment in &image.segments {
                    prop_assert!(segment.address >= BASE && segment.address + segment.length <= layout::SPACE_BASE + memory);
                    prop_assert!(segment.data_offset + segment.data_length <= file.len() as u64);
                    prop_assert!(!segment.access.contains(Access::WRITE | Access::EXECUTE));
                }
            }
        }
    }
}
