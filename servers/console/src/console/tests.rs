use super::*;
use crate::limit::{BURST, RATE};
use alloc::vec::Vec;

const VM: VmNumber = 9;
const AT: VmRef = VmRef { frame: 90, generation: 3 };
const HERE: Visit = Visit::new(VM, AT);

fn printed(console: &mut Console) -> String {
    String::from_utf8(core::iter::from_fn(|| console.next_byte()).collect::<Vec<_>>()).unwrap()
}

fn type_in(console: &mut Console, text: &str) {
    text.bytes().for_each(|byte| console.typed(byte));
}

fn vm_prints(console: &mut Console, written: &mut u32, text: &str, now: u64) {
    let mut ring = [0; OUTPUT];
    for byte in text.bytes() {
        ring[*written as usize % OUTPUT] = byte;
        *written += 1;
    }
    assert_eq!(console.vm_output(HERE, *written, 0, &ring, now), Some(*written));
    console.saved(VM);
}

#[test]
fn log_lines_carry_the_name_and_nothing_harmful() {
    let mut console = Console::new(10);
    console.log("swap", "ready\x1b[2J\ntwo\n");
    assert_eq!(printed(&mut console), "swap: ready.[2J\r\nswap: two\r\n");
    assert!(console.is_idle());
}

#[test]
fn the_prompt_moves_out_of_the_way_of_a_log_line() {
    let mut console = Console::new(10);
    console.write("Denali\n> ");
    assert_eq!(printed(&mut console), "Denali\r\n> ");
    type_in(&mut console, "li");
    assert_eq!(printed(&mut console), "li");
    console.log("swap", "hello");
    console.log("swap", "again");
    assert_eq!(printed(&mut console), "\r\x1b[Kswap: hello\r\nswap: again\r\n> li");
    type_in(&mut console, "st\r");
    assert_eq!(printed(&mut console), "st\r\n");
    assert_eq!(console.take_line().as_deref(), Some("list"));
    assert_eq!(console.take_line(), None);
}

#[test]
fn the_screen_shows_the_same_at_its_own_pace() {
    let on_screen = |console: &mut Console| {
        String::from_utf8(core::iter::from_fn(|| console.next_for_screen()).collect::<Vec<_>>()).unwrap()
    };
    let mut console = Console::new(10);
    console.log("swap", "before there was a screen");
    console.add_screen();
    console.said_elsewhere("init: \x1b7\nmore");
    console.write("Denali\n> ");
    type_in(&mut console, "li");
    let screen = on_screen(&mut console);
    assert_eq!(screen, "\x1b[36minit:\x1b[0m .7\r\n\x1b[36m\x1b[0mmore\r\nDenali\r\n\x1b[92m> \x1b[0mli");
    type_in(&mut console, "st\r");
    assert_eq!(on_screen(&mut console), "st\r\n");
    assert_eq!(printed(&mut console), "swap: before there was a screen\r\nDenali\r\n> list\r\n");
    assert_eq!(console.take_line().as_deref(), Some("list"));
    assert!(console.is_idle() && on_screen(&mut console).is_empty());
}

#[test]
fn editing_redraws_the_line() {
    let mut console = Console::new(10);
    console.write("> ");
    type_in(&mut console, "kill\x08\x08");
    assert_eq!(printed(&mut console), "> ki");
    type_in(&mut console, "\x7f");
    assert_eq!(printed(&mut console), "\r\x1b[K> k");
    type_in(&mut console, "\x15");
    assert_eq!(printed(&mut console), "\r\x1b[K> ");
    type_in(&mut console, "\x03");
    assert_eq!(printed(&mut console), "\r\x1b[K> ^C\r\n> ");
}

#[test]
fn lines_typed_ahead_are_kept_but_not_without_end() {
    let mut console = Console::new(10);
    for number in 0..100 {
        type_in(&mut console, &format!("{number}\r"));
    }
    let lines: Vec<_> = core::iter::from_fn(|| console.take_line()).collect();
    assert_eq!(lines.len(), LINES_AHEAD);
    assert_eq!(lines[1], "1");
}

#[test]
fn a_full_queue_says_how_much_was_dropped() {
    let mut console = Console::new(10);
    for _ in 0..10_000 {
        console.log("swap", "the same line again and again");
    }
    let text = printed(&mut console);
    let kept = text.matches("again and again").count();
    assert!(text.ends_with(&format!("console: {} lines dropped, the serial line is too slow\r\n", 10_000 - kept)));
    assert!(console.is_idle());
}

#[test]
fn vm_lines_are_whole_and_named() {
    let mut console = Console::new(10);
    console.attach(VM, "web", 0x20_3000).unwrap();
    assert_eq!(console.page(HERE, 0), Some(0x20_3000));
    let mut written = 0;
    vm_prints(&mut console, &mut written, "hel", 0);
    assert_eq!(printed(&mut console), "");
    vm_prints(&mut console, &mut written, "lo\nlogin: ", 1);
    assert_eq!(printed(&mut console), "vm web| hello\r\n");
    let due = console.next_look().unwrap();
    assert_eq!(console.look(due - 1), None);
    assert_eq!(console.look(due), Some(HERE));
    assert_eq!(printed(&mut console), "vm web| login: \r\n");
    assert_eq!(console.next_look(), None);
}

#[test]
fn a_flooding_vm_is_muted_and_its_loss_told() {
    let mut console = Console::new(10);
    console.attach(VM, "flood", 0).unwrap();
    let line = "y".repeat(99) + "\n";
    let mut written = 0;
    let mut rings = 0;
    let mut text = String::new();
    while console.page(HERE, 0).is_some() {
        vm_prints(&mut console, &mut written, &line, 0);
        rings += 1;
        text += &printed(&mut console);
    }
    assert_eq!(text.matches("yyy\r\n").count() as u64, BURST / 100);
    assert_eq!(rings, BURST.div_ceil(100));
    // It goes on writing unread, then its time has come.
    let due = console.next_look().unwrap();
    let lost = written as u64 - BURST;
    assert!(console.look(due - 1).is_none());
    assert_eq!(console.look(due), Some(HERE));
    let text = printed(&mut console);
    assert!(text.ends_with(&format!("vm flood| [{lost} bytes of output dropped]\r\n")), "{text}");
    assert!(due <= 1_000_000_000 * BURST / RATE);
}

#[test]
fn detach_prints_the_rest() {
    let mut console = Console::new(10);
    console.attach(VM, "web", 0).unwrap();
    vm_prints(&mut console, &mut 0, "panicked", 0);
    console.detach(VM);
    assert_eq!(printed(&mut console), "vm web| panicked\r\n");
    assert_eq!(console.page(HERE, 0), None);
    assert_eq!(console.look(u64::MAX), None);
}

#[test]
fn a_page_that_is_not_there_is_looked_at_again_but_not_for_ever() {
    let mut console = Console::new(10);
    console.attach(VM, "web", 0x20_3000).unwrap();
    let (mut now, mut visit) = (0, HERE);
    for _ in 0..MISSES {
        assert_eq!(console.page(visit, now), Some(0x20_3000));
        console.missed(visit, now);
        now = console.next_look().unwrap();
        visit = console.look(now).unwrap();
        assert_eq!((visit.vm, visit.at), (VM, AT));
    }
    console.missed(visit, now);
    assert_eq!(console.next_look(), None);
    // It rings where it is now.
    console.missed(HERE, now);
    let elsewhere = Visit::new(VM, VmRef { frame: 91, generation: 1 });
    assert_eq!(console.page(elsewhere, now), Some(0x20_3000));
    assert_eq!(console.waiting(VM), Some(elsewhere));
    // Another VM at the same place is not looked at because of that.
    console.attach(VM, "next", 0x20_3000).unwrap();
    assert_eq!((console.look(u64::MAX), console.next_look()), (None, None));
}

#[test]
fn what_was_taken_is_known_until_the_page_says_so() {
    let mut console = Console::new(10);
    console.attach(VM, "web", 0).unwrap();
    let mut ring = [0; OUTPUT];
    ring[..8].copy_from_slice(b"one\ntwo\n");
    assert_eq!(console.vm_output(HERE, 4, 0, &ring, 0), Some(4));
    assert_eq!(console.vm_output(HERE, 8, 0, &ring, u64::MAX), Some(8));
    assert_eq!(printed(&mut console), "vm web| one\r\nvm web| two\r\n");
    // A new console, or one that has forgotten a VM that was quiet, believes the page.
    let mut console = Console::new(10);
    console.attach(VM, "web", 0).unwrap();
    assert_eq!(console.vm_output(HERE, 8, 4, &ring, 0), Some(8));
    assert_eq!(printed(&mut console), "vm web| two\r\n");
    assert_eq!(console.vm_output(HERE, 8, 8, &ring, 0), Some(8));
    assert!(console.is_idle());
}

#[test]
fn those_whose_pages_do_not_say_what_was_taken_are_forgotten_last() {
    let mut console = Console::new(TALKS + 1);
    let ring = [b'\n'; OUTPUT];
    for vm in 1..=TALKS as u64 {
        console.attach(vm, "vm", 0).unwrap();
        console.vm_output(Visit::new(vm, AT), 1, 0, &ring, 0);
        if vm > 2 {
            console.saved(vm);
        }
    }
    assert!(console.has_room(u64::MAX) && console.talks.len() == 2);
    for vm in 3..=TALKS as u64 {
        console.vm_output(Visit::new(vm, AT), 2, 1, &ring, u64::MAX);
    }
    assert!(console.has_room(u64::MAX));
}

#[test]
fn only_so_many_are_looked_at_again() {
    let mut console = Console::new(WAITING + 10);
    for vm in 1..WAITING as u64 + 10 {
        console.attach(vm, "vm", 0).unwrap();
        console.missed(Visit::new(vm, AT), 0);
    }
    assert_eq!((console.waiting.len(), console.later.len()), (WAITING, WAITING));
    // One that prints is, in any case.
    let vm = WAITING as u64 + 9;
    console.vm_output(Visit::new(vm, AT), 3, 0, &[b'x'; OUTPUT], 0);
    assert!(console.waiting(vm).is_some());
    while console.next_look().is_some() {
        console.look(u64::MAX);
    }
    assert!(console.waiting.is_empty() && console.waiting.capacity() == 0);
}

#[test]
fn those_that_are_quiet_are_forgotten_for_those_that_print() {
    let mut console = Console::new(2 * TALKS + 1);
    let mut ring = [b'x'; OUTPUT];
    ring[9] = b'\n';
    for vm in 1..=2 * TALKS as u64 {
        console.attach(vm, &format!("vm-{vm}"), 0).unwrap();
        let room = vm <= TALKS as u64;
        assert_eq!(console.page(Visit::new(vm, AT), 0).is_some(), room, "{vm}");
        if room {
            console.vm_output(Visit::new(vm, AT), 10, 0, &ring, 0);
            console.saved(vm);
        }
        printed(&mut console);
    }
    // A few milliseconds later all of the first are as good as new.
    let due = console.next_look().unwrap();
    let mut served = 0;
    while let Some(visit) = console.look(due) {
        let vm = visit.vm;
        assert!(console.page(visit, due).is_some());
        console.vm_output(visit, 10, 0, &ring, due);
        console.saved(vm);
        assert_eq!(printed(&mut console), format!("vm vm-{vm}| xxxxxxxxx\r\n"));
        served += 1;
    }
    assert_eq!((served, console.talks.len(), console.next_look()), (TALKS, TALKS, None));
    // Who has nothing new costs nothing.
    console.vm_output(Visit::new(1, AT), 10, 10, &ring, due * 2);
    assert!(console.has_room(due * 2) && console.talks.is_empty());
}
