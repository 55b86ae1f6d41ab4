//! The firmware's tables: found by the root pointer, checked, and copied (ACPI 6.5, 5.2).
//!
//! Nothing in them is believed: a table with an impossible length or a wrong checksum is left out, with a line for the log.

use alloc::{
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};

/// Bytes of the longest table that is read.
const TABLE_MAX: usize = 1 << 20;
/// Bytes of all tables that are kept.
const ALL_MAX: usize = 3 << 19;
/// Tables that a root table may name.
const ENTRIES_MAX: usize = 256;
/// Bytes of the header of every table.
pub const HEADER: usize = 36;
/// Bytes of the root pointer of ACPI 1.0, and of later ones.
const POINTER: (usize, usize) = (20, 36);
/// What a root pointer begins with; it is at a multiple of so many bytes.
const POINTER_SIGNATURE: &[u8] = b"RSD PTR ";
const POINTER_ALIGNMENT: usize = 16;
/// First byte and bytes of the area in which a BIOS keeps the root pointer.
const BIOS_AREA: (u64, usize) = (0xe_0000, 0x2_0000);
/// Where a BIOS keeps the segment of its extended data area, which may have the root pointer in its first kilobyte.
const EXTENDED_AREA: u64 = 0x40e;
/// Tables that are of use here; others are not even copied.
const WANTED: [&[u8; 4]; 5] = [b"FACP", b"APIC", b"MCFG", b"DMAR", b"SSDT"];

/// Reads physical memory that is not handed out as memory.
pub trait Physical {
    /// Copies from `address` on; `false` if that cannot be read.
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool;
}

/// The tables that were found good.
#[derive(Default, Debug)]
pub struct Tables {
    tables: Vec<Vec<u8>>,
    /// What was wrong with others; for the log.
    pub problems: Vec<String>,
}

impl Tables {
    /// Finds the tables. `pointer`: physical address of the root pointer; 0: unknown, to be searched for as on a BIOS machine.
    pub fn find(memory: &impl Physical, pointer: u64) -> Result<Tables, String> {
        let (root, width) = match pointer {
            0 => search(memory).ok_or("there is no root pointer")?,
            address => pointer_at(memory, address).ok_or("the root pointer is damaged")?,
        };
        let mut tables = Tables::default();
        let mut left = ALL_MAX;
        let root = table(memory, root, &mut left).map_err(|wrong| format!("root table: {wrong}"))?;
        for entry in root[HEADER..].chunks_exact(width).take(ENTRIES_MAX) {
            let mut address = [0; 8];
            address[..width].copy_from_slice(entry);
            let address = u64::from_le_bytes(address);
            let mut signature = [0; 4];
            if memory.read(address, &mut signature) && WANTED.contains(&&signature) {
                tables.add(memory, address, &mut left);
            }
        }
        let definitions = tables.get(b"FACP").and_then(|fadt| match u64_at(fadt, 140) {
            None | Some(0) => u32_at(fadt, 40).map(u64::from),
            wide => wide,
        });
        if let Some(address) = definitions.filter(|address| *address != 0) {
            tables.add(memory, address, &mut left);
        }
        Ok(tables)
    }

    fn add(&mut self, memory: &impl Physical, address: u64, left: &mut usize) {
        match table(memory, address, left) {
            Ok(bytes) => self.tables.push(bytes),
            Err(wrong) => self.problems.push(format!("table at {address:#x}: {wrong}")),
        }
    }

    /// The first table with a signature, whole.
    pub fn get(&self, signature: &[u8; 4]) -> Option<&[u8]> {
        self.all(signature).next()
    }

    /// All tables with a signature.
    pub fn all<'a>(&'a self, signature: &[u8; 4]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let signature = *signature;
        self.tables.iter().map(Vec::as_slice).filter(move |table| table.starts_with(&signature))
    }
}

/// The address of the root table and the bytes of its entries.
type Root = (u64, usize);

fn pointer_at(memory: &impl Physical, address: u64) -> Option<Root> {
    let mut bytes = [0; POINTER.1];
    // The longer one may reach into a page that cannot be read.
    if !memory.read(address, &mut bytes) {
        memory.read(address, &mut bytes[..POINTER.0]).then_some(())?;
    }
    pointer(&bytes)
}

fn pointer(bytes: &[u8]) -> Option<Root> {
    let sound = |length: usize| bytes.get(..length).is_some_and(|bytes| sum(bytes) == 0);
    if !bytes.starts_with(POINTER_SIGNATURE) || !sound(POINTER.0) {
        return None;
    }
    let wide = (bytes[15] >= 2 && sound(POINTER.1)).then(|| u64_at(bytes, 24)).flatten().filter(|root| *root != 0);
    match wide {
        Some(root) => Some((root, 8)),
        None => u32_at(bytes, 16).filter(|root| *root != 0).map(|root| (u64::from(root), 4)),
    }
}

fn search(memory: &impl Physical) -> Option<Root> {
    let mut segment = [0; 2];
    let extended = memory.read(EXTENDED_AREA, &mut segment).then(|| u64::from(u16::from_le_bytes(segment)) << 4);
    let areas = extended.map(|address| (address, 1024)).into_iter().chain([BIOS_AREA]);
    areas.filter(|(address, _)| *address != 0).find_map(|(address, length)| {
        let mut bytes = vec![0; length];
        memory.read(address, &mut bytes).then_some(())?;
        (0..length).step_by(POINTER_ALIGNMENT).find_map(|at| pointer(&bytes[at..]))
    })
}

/// Copies a table and checks it.
fn table(memory: &impl Physical, address: u64, left: &mut usize) -> Result<Vec<u8>, String> {
    let mut header = [0; HEADER];
    if address == 0 || !memory.read(address, &mut header) {
        return Err("it cannot be read".to_string());
    }
    let name = header[..4].escape_ascii();
    let length = u32_at(&header, 4).unwrap_or(0) as usize;
    if !(HEADER..=TABLE_MAX).contains(&length) {
        return Err(format!("{name}: a length of {length} bytes"));
    }
    *left = left.checked_sub(length).ok_or_else(|| format!("{name}: more than {ALL_MAX} bytes of tables"))?;
    let mut bytes = vec![0; length];
    if !memory.read(address, &mut bytes) {
        return Err(format!("{name}: its {length} bytes cannot be read"));
    }
    if sum(&bytes) != 0 {
        return Err(format!("{name}: the checksum is wrong"));
    }
    Ok(bytes)
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// A little-endian number in a table; `None` if the table ends before it.
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

/// As [`u16_at`].
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

/// As [`u16_at`].
pub fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Memory with some bytes in it.
    #[derive(Default)]
    pub struct Memory(pub BTreeMap<u64, Vec<u8>>);

    impl Physical for Memory {
        fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
            let Some((start, from)) = self.0.range(..=address).next_back() else { return false };
            let Ok(offset) = usize::try_from(address - start) else { return false };
            let part = from.get(offset..).and_then(|from| from.get(..bytes.len()));
            part.map(|part| bytes.copy_from_slice(part)).is_some()
        }
    }

    /// A table of these contents, with a header that is right.
    pub fn sealed(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let mut table = vec![0; HEADER];
        table[..4].copy_from_slice(signature);
        table[4..8].copy_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
        table.extend(body);
        table[9] = 0u8.wrapping_sub(sum(&table));
        table
    }

    fn root_pointer(root: u32) -> Vec<u8> {
        let mut pointer = vec![0; POINTER.1];
        pointer[..8].copy_from_slice(POINTER_SIGNATURE);
        pointer[16..20].copy_from_slice(&root.to_le_bytes());
        pointer[8] = 0u8.wrapping_sub(sum(&pointer[..POINTER.0]));
        pointer
    }

    fn memory(tables: &[(u32, Vec<u8>)]) -> Memory {
        let entries: Vec<u8> = tables.iter().flat_map(|(address, _)| address.to_le_bytes()).collect();
        let mut memory = Memory::default();
        let mut area = vec![0; BIOS_AREA.1];
        area[0x4560..][..POINTER.1].copy_from_slice(&root_pointer(0x1000));
        memory.0.insert(BIOS_AREA.0, area);
        memory.0.insert(0x1000, sealed(b"RSDT", &entries));
        memory.0.extend(tables.iter().map(|(address, table)| (u64::from(*address), table.clone())));
        memory
    }

    #[test]
    fn finds_what_is_sound() {
        let mut fadt = vec![0; 80];
        fadt[4..8].copy_from_slice(&0x9000u32.to_le_bytes());
        let mut damaged = sealed(b"MCFG", &[1, 2, 3]);
        damaged[38] ^= 1;
        let mut long = sealed(b"DMAR", &[]);
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let tables = [
            (0x2000, sealed(b"FACP", &fadt)),
            (0x3000, damaged),
            (0x4000, long),
            (0x5000, sealed(b"SSDT", b"a")),
            (0x6000, sealed(b"SSDT", b"b")),
            (0x7000, sealed(b"HPET", b"c")),
        ];
        let mut memory = memory(&tables);
        memory.0.insert(0x9000, sealed(b"DSDT", b"d"));
        for pointer in [0, BIOS_AREA.0 + 0x4560] {
            let tables = Tables::find(&memory, pointer).unwrap();
            assert_eq!(tables.get(b"DSDT").map(|table| &table[HEADER..]), Some(&b"d"[..]));
            assert_eq!(tables.all(b"SSDT").count(), 2);
            assert!(tables.get(b"MCFG").is_none() && tables.get(b"HPET").is_none());
            assert_eq!(
                tables.problems,
                ["table at 0x3000: MCFG: the checksum is wrong", "table at 0x4000: DMAR: a length of 4294967295 bytes"]
            );
        }
        assert!(Tables::find(&memory, 0x5000).is_err());
        assert!(Tables::find(&Memory::default(), 0).is_err());
    }

    #[test]
    fn tables_without_end_are_bounded() {
        let large = sealed(b"SSDT", &vec![0; TABLE_MAX - HEADER]);
        let tables = Tables::find(&memory(&[(0x10_0000, large.clone()), (0x30_0000, large)]), 0).unwrap();
        assert_eq!((tables.all(b"SSDT").count(), tables.problems.len()), (1, 1));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200), root in 0u32..0x2000) {
            let mut memory = memory(&[(0x2000, sealed(b"FACP", &bytes)), (0x3000, bytes.clone())]);
            memory.0.insert(0x1000 + u64::from(root), bytes);
            let _ = Tables::find(&memory, 0);
        }
    }
}
