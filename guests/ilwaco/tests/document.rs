//! `docs/virtual-architecture.md` says what `protocol` says.

use protocol::{
    ARCHITECTURE_VERSION,
    abi::{Error, Number},
    disk, layout, nic,
    note::Note,
    registers::{KERNEL_PART, RegisterPage},
    text,
};
use std::mem::offset_of;

const DOCUMENT: &str = include_str!("../../../docs/virtual-architecture.md");
const ABI: &str = include_str!("../../../protocol/src/abi.rs");

/// The rows of the table whose head has these columns first, cells trimmed.
fn table(head: &str) -> Vec<Vec<&'static str>> {
    let mut lines = DOCUMENT.lines().skip_while(|line| !line.starts_with(head));
    assert!(lines.next().is_some(), "no table {head}");
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect();
    rows.map(cells).collect()
}

/// The calls that `protocol` marks as those of guests.
fn guest_calls() -> Vec<Number> {
    let numbers = ABI.split_once("pub enum Number {").and_then(|(_, rest)| rest.split_once("\n}")).expect("the enum").0;
    let mut marked = false;
    let mut calls = Vec::new();
    for line in numbers.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix("///") {
            marked |= comment.trim().starts_with("*guest*");
        } else if let Some((name, _)) = line.split_once(" = ") {
            let number = Number::ALL.into_iter().find(|number| format!("{number:?}") == name);
            if std::mem::take(&mut marked) {
                calls.push(number.expect("a variant"));
            }
        }
    }
    calls
}

#[test]
fn hypercalls() {
    let expected: Vec<_> =
        guest_calls().iter().map(|number| (format!("{}", *number as u8), format!("`{number:?}`"))).collect();
    assert!(expected.len() >= 8);
    let stated: Vec<_> =
        table("| number | name | arguments |").iter().map(|row| (row[0].into(), row[1].into())).collect();
    assert_eq!(stated, expected);
}

#[test]
fn errors() {
    let stated: Vec<_> = table("| error | name |").iter().map(|row| (row[0].to_string(), row[1].to_string())).collect();
    let errors = (0..=255).filter_map(|code| Some((code, Error::from_u8(code)?)));
    let expected: Vec<_> = errors.map(|(code, error)| (code.to_string(), format!("`{error:?}`"))).collect();
    assert_eq!(stated, expected);
}

#[test]
fn registers() {
    let page = RegisterPage::ZERO;
    macro_rules! fields {
        ($($field:ident)*) => {
            [$((offset_of!(RegisterPage, $field), size_of_val(&page.$field), stringify!($field))),*]
        };
    }
    let expected = fields! {
        enabled pending mask handler handler_stack saved_instruction saved_stack saved_flags delivered
        saved_rax saved_rcx saved_r11
        version clone_generation vm memory tsc_base tsc_multiplier wall_clock created seed mac prefix
        address gateway name_server name_length arguments_length name arguments disks
    };
    let expected: Vec<_> =
        expected.map(|(at, bytes, name)| (at.to_string(), bytes.to_string(), format!("`{name}`"))).into();
    let rows = table("| offset | bytes | register |");
    let stated: Vec<_> = rows.iter().map(|row| (row[0].to_string(), row[1].to_string(), row[2].to_string())).collect();
    assert_eq!(stated, expected);
    assert!(DOCUMENT.contains(&format!("The first {KERNEL_PART} bytes are the kernel's part")));
}

#[test]
fn queues() {
    let expected = [
        offset_of!(nic::Indices, sent_filled),
        offset_of!(nic::Indices, offered),
        offset_of!(nic::Indices, notify),
        offset_of!(nic::Indices, sent_taken),
        offset_of!(nic::Indices, arrived),
        offset_of!(nic::Indices, dropped),
        offset_of!(nic::Indices, refused),
        offset_of!(nic::Indices, held),
        nic::SEND_RING,
        nic::RECEIVE_RING,
        0,
        4,
        text::CONSOLE_INDICES,
        offset_of!(text::ConsolePage, input_written),
        text::OUTPUT_RING,
        text::INPUT_RING,
        offset_of!(disk::Indices, submitted),
        disk::COMPLETED,
        disk::REQUESTS,
        disk::COMPLETIONS,
    ];
    // The tables have the same head: the NIC's comes first, the console's and the disk's after it.
    let head = "| offset | bytes | what | written by |";
    let offsets = |document: &'static str| {
        let rows = document.lines().skip(2).take_while(|line| line.starts_with('|'));
        let cells = rows.map(|line| line.trim_matches('|').split('|').next().unwrap_or_default().trim());
        cells.map(|offset| offset.parse().expect("a number")).collect::<Vec<usize>>()
    };
    let tables: Vec<Vec<usize>> = DOCUMENT.match_indices(head).map(|(at, _)| offsets(&DOCUMENT[at..])).collect();
    assert_eq!(tables.concat(), expected);
    assert_eq!(tables.len(), 3);
    assert!(DOCUMENT.contains(&format!("send ring: {} entries", nic::ENTRIES)));
    assert!(DOCUMENT.contains(&format!("| requests: {} entries |", disk::ENTRIES)));
    assert!(DOCUMENT.contains(&format!("| answers: {} entries |", disk::COMPLETION_ENTRIES)));
    assert!(DOCUMENT.contains(&format!("A VM has up to {} disks", disk::DISKS)));
    assert!(DOCUMENT.contains(&format!("blocks of {} bytes", disk::BLOCK)));
}

#[test]
fn disk_requests() {
    let expected = [
        offset_of!(disk::Request, kind),
        offset_of!(disk::Request, disk),
        offset_of!(disk::Request, block),
        offset_of!(disk::Request, address),
        offset_of!(disk::Request, count),
        offset_of!(disk::Request, reserved),
    ];
    let rows = table("| offset in a request |");
    let stated: Vec<usize> = rows.iter().map(|row| row[0].parse().expect("a number")).collect();
    assert_eq!(stated, expected);
    assert!(rows[4][2].contains(&format!("1 to {}", disk::BLOCKS_MAX)));
    let kinds = [disk::Kind::Read, disk::Kind::Write, disk::Kind::Flush];
    let kinds = kinds.map(|kind| format!("{} {}", kind as u32, format!("{kind:?}").to_lowercase())).join(", ");
    assert!(rows[0][2].ends_with(&kinds), "{kinds}");
    let codes: Vec<u32> = table("| status | meaning |").iter().map(|row| row[0].parse().expect("a number")).collect();
    let known: Vec<u32> = (0..=9).filter(|code| disk::Status::from_u32(*code) as u32 == *code).collect();
    assert_eq!(codes, known);
}

#[test]
fn image_and_memory() {
    let expected = [
        offset_of!(Note, version),
        offset_of!(Note, flags),
        offset_of!(Note, memory),
        offset_of!(Note, nic),
        offset_of!(Note, nic_length),
        offset_of!(Note, disk),
        offset_of!(Note, disk_length),
        offset_of!(Note, console),
        offset_of!(Note, console_length),
    ];
    let rows = DOCUMENT.rsplit_once("| offset | bytes | what |").expect("the note's table").1;
    let offsets = rows.lines().skip(2).map_while(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok());
    assert_eq!(offsets.collect::<Vec<usize>>(), expected);
    assert!(DOCUMENT.contains(&format!("**Version {ARCHITECTURE_VERSION}.**")));
    assert_eq!((layout::SPACE_BASE, layout::IMAGE_BASE), (0x20_0000, 0x20_1000));
    assert_eq!((layout::VM_MEMORY_MIN, layout::VM_MEMORY_MAX), (64 << 10, 16 << 30));
}
