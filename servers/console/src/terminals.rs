//! The terminals of the machine: serial port, keyboard and screen, as the system file gives them.

use alloc::{string::String, vec::Vec};
use console::{
    console::Console,
    keyboard::{self, Keyboard},
    text::whole_lines,
    uart::{Registers, Uart},
};
use protocol::{
    boot::Framebuffer,
    layout::PAGE,
    manifest::{Resource, StartupResource},
};
use screen::canvas::Unsupported;
use server_runtime::{Startup, hypercall, journal, memory::resource, mmio::Region};

/// Ports of the keyboard's controller: data, and status and command.
const KEYBOARD_DATA: u16 = 0x60;
const KEYBOARD_STATUS: u16 = 0x64;
/// Ports of a serial port.
const SERIAL_PORTS: u16 = 8;
/// Cells drawn before other work gets its turn.
const CELLS: usize = 4096;
/// Nanoseconds from the end of drawing to the next time: what comes faster is drawn together.
const PAUSE: u64 = 20_000_000;
/// Bytes handed to the screen at a time.
const CHUNK: usize = 256;
/// Answers asked for at a time from a server with a journal: more than one holds.
const ANSWERS: usize = 4;
/// Nanoseconds between looks at the journals.
const JOURNAL_PAUSE: u64 = 1_000_000_000;

/// Registers by system calls on a port capability. A port that cannot be read is as one that is not there.
pub struct Ports {
    slot: u8,
    first: u16,
}

impl Ports {
    fn read(&self, offset: u16) -> u8 {
        hypercall::port_read(self.slot, self.first + offset, 1).map_or(0xff, |value| value as u8)
    }
    fn write(&self, offset: u16, value: u8) {
        let _ = hypercall::port_write(self.slot, self.first + offset, 1, u32::from(value));
    }
}

impl Registers for Ports {
    fn read(&mut self, register: u8) -> u8 {
        Ports::read(self, u16::from(register))
    }
    fn write(&mut self, register: u8, value: u8) {
        Ports::write(self, u16::from(register), value);
    }
}

/// The ports of the keyboard's controller.
pub struct Controller {
    data: Ports,
    status: Ports,
}

impl keyboard::Ports for Controller {
    fn status(&mut self) -> u8 {
        self.status.read(0)
    }
    fn command(&mut self, command: u8) {
        self.status.write(0, command);
    }
    fn read(&mut self) -> u8 {
        self.data.read(0)
    }
    fn write(&mut self, byte: u8) {
        self.data.write(0, byte);
    }
}

/// The ports that the system file gives, chosen by number and count.
fn ports(startup: &Startup, choose: impl Fn(u16, u16) -> bool) -> Option<Ports> {
    startup.resources.iter().find_map(|StartupResource { resource, slot, .. }| match resource {
        Resource::Ports { first, count } if choose(*first, *count) => Some(Ports { slot: *slot, first: *first }),
        _ => None,
    })
}

/// The serial port. Panics if the system file gives none.
pub fn serial(startup: &Startup) -> Uart<Ports> {
    match ports(startup, |_, count| count == SERIAL_PORTS) {
        Some(ports) => Uart::new(ports),
        None => panic!("the system file gives the console no serial port (`ports`)"),
    }
}

/// The keyboard, if the system file gives its ports; and what is wrong with the keymap.
pub fn keyboard(startup: &Startup) -> (Option<Keyboard<Controller>>, Option<String>) {
    let port = |number| ports(startup, move |first, count| (first, count) == (number, 1));
    let (Some(data), Some(status)) = (port(KEYBOARD_DATA), port(KEYBOARD_STATUS)) else { return (None, None) };
    let keymap = startup.option("keymap").unwrap_or("us");
    let unknown = (!keyboard::is_keymap(keymap)).then(|| keymap.into());
    (Some(Keyboard::new(Controller { data, status }, keymap)), unknown)
}

/// The framebuffer's memory.
struct Video(Region);

impl screen::Memory for Video {
    fn length(&self) -> usize {
        self.0.length()
    }
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.0.copy_in(offset, bytes);
    }
}

/// The screen, and when it is drawn.
pub struct Screen {
    screen: screen::Screen<Video>,
    next_draw: u64,
}

/// The screen, if there is one.
pub fn screen(startup: &Startup) -> Result<Screen, Unsupported> {
    let Framebuffer { address, .. } = startup.framebuffer;
    let mapped = startup.resources.iter().position(|held| held.resource == Resource::Screen && held.count > 0);
    let region = mapped.and_then(resource).ok_or(Unsupported::None)?;
    let offset = (address % PAGE) as usize;
    let memory = Video(region.part(offset, region.length() - offset));
    Ok(Screen { screen: screen::Screen::new(&startup.framebuffer, memory)?, next_draw: 0 })
}

impl Screen {
    /// Columns and rows.
    pub fn size(&self) -> (usize, usize) {
        let grid = self.screen.terminal().grid();
        (grid.columns(), grid.rows())
    }

    /// Draws everything anew.
    pub fn redraw(&mut self) {
        self.screen.redraw();
    }

    /// Takes what the console has for the screen, and draws it when its time has come.
    pub fn show(&mut self, console: &mut Console, now: u64) {
        loop {
            let mut chunk = [0; CHUNK];
            let mut length = 0;
            for (to, byte) in chunk.iter_mut().zip(core::iter::from_fn(|| console.next_for_screen())) {
                *to = byte;
                length += 1;
            }
            if length == 0 {
                break;
            }
            self.screen.write(&chunk[..length]);
        }
        if now >= self.next_draw && self.screen.has_changed() && self.screen.draw(CELLS) {
            self.next_draw = now.saturating_add(PAUSE);
        }
    }

    /// When to call [`Screen::show`] though nothing new is to be shown.
    pub fn next_draw(&self) -> Option<u64> {
        self.screen.has_changed().then_some(self.next_draw)
    }
}

/// What the servers say that have no console, and so speak on the kernel's debug line: shown on the screen, too.
pub struct Journals {
    sources: Vec<Source>,
    next_look: u64,
}

struct Source {
    slot: u8,
    /// Bytes of its journal that were read.
    next: u64,
    /// A line that has not ended.
    begun: String,
}

impl Journals {
    /// Those of the servers that the console calls.
    pub fn new(startup: &Startup) -> Journals {
        let mut channels: Vec<_> = startup.channels.iter().collect();
        // `init` has said its first lines before any server runs.
        channels.sort_by_key(|channel| channel.name != "init");
        let sources = channels.iter().map(|channel| Source { slot: channel.slot, next: 0, begun: String::new() });
        Journals { sources: sources.collect(), next_look: 0 }
    }

    /// Prints what is new, if it is time to look or it is wanted at once.
    pub fn print(&mut self, console: &mut Console, now: u64, at_once: bool) {
        if now >= self.next_look || at_once {
            console.said_elsewhere(&self.ask(now));
        }
    }

    /// Asks for what is new: whole lines.
    pub fn ask(&mut self, now: u64) -> String {
        let mut lines = String::new();
        self.next_look = now.saturating_add(JOURNAL_PAUSE);
        for source in &mut self.sources {
            for _ in 0..ANSWERS {
                let Some((next, text)) = journal::ask(source.slot, source.next) else { break };
                source.next = next;
                if text.is_empty() {
                    break;
                }
                lines.push_str(&whole_lines(&mut source.begun, &text));
            }
        }
        lines
    }

    /// When to look again.
    pub fn next_look(&self) -> u64 {
        self.next_look
    }
}
