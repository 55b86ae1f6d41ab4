//! The console: log lines and VM output above, the operator's line at the bottom.
//!
//! Everything printed is whole lines, but for the bottom line: what [`Console::write`] left without an end (the
//! prompt) and what was typed after it. It is erased when another line has to be printed, and drawn again when
//! nothing more waits. All of it goes to the serial line and to the screen, each at its own pace.

use crate::{
    editor::{Edit, Editor},
    head::Head,
    output::Class,
    talk::Talk,
    text::sanitise,
    vms::{Refusal, Vms},
};
use alloc::{
    collections::{BinaryHeap, VecDeque},
    format,
    string::String,
};
use core::cmp::Reverse;
use hashbrown::{HashMap, hash_map::Entry};
use protocol::{
    service::{VmNumber, VmRef, place},
    text::OUTPUT,
};

/// Lines typed ahead of who reads them.
pub const LINES_AHEAD: usize = 16;
/// Bytes of the prompt.
pub const PROMPT_MAX: usize = 256;
/// Nanoseconds after which a VM's line is printed though it has not ended.
pub const LINE_DELAY: u64 = 250_000_000;
/// Nanoseconds after which a VM is looked at again whose page could not be read.
const LOOK_AGAIN: u64 = 250_000_000;
/// Times that it is looked at so.
const MISSES: u8 = 20;
/// VMs that can print at the same time; others wait.
const TALKS: usize = 1024;
/// Others that are looked at again, at a time; what is beyond has to ring again.
const WAITING: usize = 2048;

/// A VM whose page is to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Visit {
    /// The VM.
    pub vm: VmNumber,
    /// Where it was when it rang.
    pub at: VmRef,
    /// Times in a row that its page could not be read.
    misses: u8,
}

impl Visit {
    /// Of a VM that has rung there.
    pub const fn new(vm: VmNumber, at: VmRef) -> Visit {
        Visit { vm, at, misses: 0 }
    }
}

const BELL: &str = "\x07";

/// The console.
#[derive(Debug)]
pub struct Console {
    /// The serial line.
    serial: Head,
    /// The screen, if there is one.
    screen: Option<Head>,
    editor: Editor,
    prompt: String,
    lines: VecDeque<String>,
    vms: Vms,
    /// Those that print, by place.
    talks: HashMap<u32, Talk>,
    /// VMs to look at again, by place, with the time; and all times, of which some may be those of VMs that are gone.
    waiting: HashMap<u32, (u64, Visit)>,
    later: BinaryHeap<Reverse<(u64, u32)>>,
}

impl Console {
    /// A console for VMs at places below `vms`.
    pub fn new(vms: usize) -> Console {
        Console {
            serial: Head::default(),
            screen: None,
            editor: Editor::default(),
            prompt: String::new(),
            lines: VecDeque::new(),
            vms: Vms::new(vms),
            talks: HashMap::new(),
            waiting: HashMap::new(),
            later: BinaryHeap::new(),
        }
    }

    /// From now on there is a screen, which shows what is printed from now on.
    pub fn add_screen(&mut self) {
        self.screen = Some(Head::coloured());
    }

    /// The next byte for the serial line.
    pub fn next_byte(&mut self) -> Option<u8> {
        self.serial.next_byte(&self.prompt, self.editor.line())
    }

    /// The next byte for the screen.
    pub fn next_for_screen(&mut self) -> Option<u8> {
        self.screen.as_mut()?.next_byte(&self.prompt, self.editor.line())
    }

    /// Whether all that can be printed on the serial line was taken.
    pub fn is_idle(&self) -> bool {
        self.serial.is_idle(!self.prompt.is_empty() || !self.editor.line().is_empty())
    }

    fn heads(&mut self) -> impl Iterator<Item = &mut Head> {
        core::iter::once(&mut self.serial).chain(&mut self.screen)
    }

    fn erase_bottom(&mut self) {
        self.heads().for_each(Head::erase_bottom);
    }

    /// Queues whole lines, `count` of them.
    fn print(&mut self, class: Class, lines: &str, count: u64) {
        self.heads().for_each(|head| head.print(class, lines, count));
    }

    /// Prints lines on the screen alone: what the kernel and `init` have said on the serial line themselves.
    pub fn said_elsewhere(&mut self, text: &str) {
        let Some(screen) = &mut self.screen else { return };
        for line in text.lines() {
            let mut whole = String::new();
            sanitise(line.as_bytes(), &mut whole);
            whole.push('\n');
            screen.print(Class::Server, &whole, 1);
        }
    }

    /// Prints a server's lines, each with its name before it.
    pub fn log(&mut self, name: &str, text: &str) {
        for line in text.trim_end_matches('\n').split('\n') {
            let mut whole = format!("{name}: ");
            sanitise(line.as_bytes(), &mut whole);
            whole.push('\n');
            self.print(Class::Server, &whole, 1);
        }
    }

    /// Prints the operator's text as it is. What comes after the last line end is the prompt.
    pub fn write(&mut self, text: &str) {
        self.erase_bottom();
        self.prompt.push_str(text);
        let mut end = self.prompt.rfind('\n').map_or(0, |at| at + 1);
        if self.prompt.len() - end > PROMPT_MAX {
            self.prompt.push('\n');
            end = self.prompt.len();
        }
        let prompt = self.prompt.split_off(end);
        let lines = core::mem::replace(&mut self.prompt, prompt);
        if !lines.is_empty() {
            self.print(Class::Operator, &lines, 1);
        }
    }

    /// Takes a byte that the operator typed.
    pub fn typed(&mut self, byte: u8) {
        match self.editor.typed(byte) {
            Edit::Nothing => {}
            Edit::Added(byte) => self.heads().for_each(|head| head.echo(byte)),
            Edit::Shortened => self.erase_bottom(),
            Edit::Full => self.show(BELL),
            Edit::Cancelled => {
                self.erase_bottom();
                self.show(&format!("{}^C\n", self.prompt));
            }
            Edit::Entered(line) => {
                let prompt = core::mem::take(&mut self.prompt);
                self.heads().for_each(|head| head.entered(&prompt, &line));
                if self.lines.len() < LINES_AHEAD {
                    self.lines.push_back(line);
                } else {
                    self.show(BELL);
                }
            }
        }
    }

    /// Shows what answers the operator. If it does not fit, the operator has other things to look at.
    fn show(&mut self, text: &str) {
        for head in self.heads() {
            let _ = head.show(text);
        }
    }

    /// The next line that the operator has entered.
    pub fn take_line(&mut self) -> Option<String> {
        self.lines.pop_front()
    }

    /// Puts a line back that could not be handed over.
    pub fn put_line_back(&mut self, line: String) {
        self.lines.push_front(line);
    }

    /// Gives a VM a console.
    pub fn attach(&mut self, vm: VmNumber, name: &str, page: u64) -> Result<(), Refusal> {
        self.talks.remove(&place(vm));
        self.waiting.remove(&place(vm));
        self.vms.attach(vm, name, page)
    }

    /// Takes a VM's console away; what it was in the middle of is printed.
    pub fn detach(&mut self, vm: VmNumber) {
        let Some(name) = self.vms.detach(vm) else { return };
        self.waiting.remove(&place(vm));
        if let Some(mut talk) = self.talks.remove(&place(vm)) {
            talk.flush(|line| self.vm_line(&name, line));
            self.vm_lost(&name, talk.lost);
        }
    }

    /// The address of the console page to read; `None` if the VM is unknown, or has used up its allowance: then it is looked at later.
    pub fn page(&mut self, visit: Visit, now: u64) -> Option<u64> {
        let page = self.vms.page(visit.vm)?;
        if let Some((_, waiting)) = self.waiting.get_mut(&place(visit.vm)) {
            *waiting = visit;
        }
        let later = match self.talks.get_mut(&place(visit.vm)) {
            Some(talk) => talk.bucket.muted_until(now),
            None => (!self.has_room(now)).then(|| now.saturating_add(LOOK_AGAIN)),
        };
        if let Some(time) = later {
            self.look_later(visit, time);
        }
        later.is_none().then_some(page)
    }

    /// Whether another VM can begin to print.
    fn has_room(&mut self, now: u64) -> bool {
        if self.talks.len() >= TALKS {
            self.talks.retain(|_, talk| talk.unsaved || !talk.is_over(now));
        }
        if self.talks.len() >= TALKS {
            // Some have left memory before their pages said what was taken. If they come back they say it again.
            self.talks.retain(|_, talk| !talk.is_over(now));
        }
        self.talks.len() < TALKS
    }

    /// A VM's page could not be read: it is not in memory, or the VM has left. What is in it waits until the VM rings again, but it
    /// is looked at a few times more: the page may be there soon.
    pub fn missed(&mut self, visit: Visit, now: u64) {
        if visit.misses < MISSES {
            self.look_later(Visit { misses: visit.misses + 1, ..visit }, now.saturating_add(LOOK_AGAIN));
        }
    }

    /// Takes the output in a VM's page. `read`: what its page says was taken; if the VM has printed a moment ago, our own count of that is
    /// believed instead. Returns the index `read` to write back ([`Console::saved`]), or `None` if the VM is unknown.
    pub fn vm_output(&mut self, visit: Visit, written: u32, read: u32, ring: &[u8; OUTPUT], now: u64) -> Option<u32> {
        let name = self.vms.name(visit.vm)?;
        if self.talks.get(&place(visit.vm)).map_or(read, |talk| talk.read) == written {
            return Some(written);
        }
        let talk = self.talks.entry(place(visit.vm)).or_insert_with(|| Talk::new(read, now));
        let mut text = String::new();
        let mut lines = 0;
        talk.take(written, ring, now, |line| {
            vm_line(&name, line, &mut text);
            lines += 1;
        });
        let later = match talk.bucket.muted_until(now) {
            Some(until) => Some(until),
            None if talk.has_begun_line() => Some(now.saturating_add(LINE_DELAY)),
            None if talk.lost > 0 => Some(now),
            None => None,
        };
        if lines > 0 {
            self.print(Class::Vm, &text, lines);
        }
        if let Some(time) = later {
            self.look_later(Visit::new(visit.vm, visit.at), time);
        }
        Some(written)
    }

    /// The page of a VM says how much of its output was taken.
    pub fn saved(&mut self, vm: VmNumber) {
        if let Some(talk) = self.talks.get_mut(&place(vm)) {
            talk.unsaved = false;
        }
    }

    fn vm_line(&mut self, name: &str, line: &[u8]) {
        let mut text = String::new();
        vm_line(name, line, &mut text);
        self.print(Class::Vm, &text, 1);
    }

    fn vm_lost(&mut self, name: &str, lost: u64) {
        if lost > 0 {
            self.print(Class::Server, &format!("vm {name}| [{lost} bytes of output dropped]\n"), 1);
        }
    }

    fn look_later(&mut self, visit: Visit, time: u64) {
        let room = self.waiting.len() < WAITING || self.talks.contains_key(&place(visit.vm));
        if let Entry::Vacant(entry) = self.waiting.entry(place(visit.vm))
            && room
        {
            entry.insert((time, visit));
            self.later.push(Reverse((time, place(visit.vm))));
        }
    }

    /// When [`Console::look`] has something to do, in nanoseconds since kernel entry.
    pub fn next_look(&self) -> Option<u64> {
        self.later.peek().map(|Reverse((time, _))| *time)
    }

    /// A VM that was put off, whether or not its time has come.
    pub fn waiting(&self, vm: VmNumber) -> Option<Visit> {
        self.waiting.get(&place(vm)).map(|(_, visit)| *visit).filter(|visit| visit.vm == vm)
    }

    /// Looks at the first VM that was put off, if its time has come: says what it lost, prints the line it is in the
    /// middle of. Returns it if its page is to be read now.
    pub fn look(&mut self, now: u64) -> Option<Visit> {
        self.later.peek().filter(|Reverse((time, _))| *time <= now)?;
        let Reverse((time, at)) = self.later.pop()?;
        let visit = self.waiting.get(&at).filter(|(due, _)| *due == time).map(|(_, visit)| *visit)?;
        self.waiting.remove(&at);
        if self.waiting.is_empty() {
            // After a storm both would stay as large as that was.
            self.waiting.shrink_to_fit();
            self.later = BinaryHeap::new();
        }
        let Some(talk) = self.talks.get_mut(&at) else { return Some(visit) };
        if let Some(until) = talk.bucket.muted_until(now) {
            self.look_later(visit, until);
            return None;
        }
        let lost = core::mem::take(&mut talk.lost);
        let mut begun = None;
        talk.flush(|line| begun = Some(line.to_vec()));
        let name = self.vms.name(visit.vm)?;
        if let Some(line) = begun {
            self.vm_line(&name, &line);
        }
        self.vm_lost(&name, lost);
        Some(visit)
    }
}

/// Appends a VM's line to `text`.
fn vm_line(name: &str, line: &[u8], text: &mut String) {
    text.push_str("vm ");
    text.push_str(name);
    text.push_str("| ");
    sanitise(line, text);
    text.push('\n');
}

#[cfg(test)]
mod tests;
