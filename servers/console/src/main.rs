//! The console server: binds [`console`] to the machine.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]

extern crate alloc;

mod terminals;
mod transfer;

use alloc::{boxed::Box, format, string::String, vec::Vec};
use console::{
    console::{Console, Visit},
    keyboard::Keyboard,
    uart::Uart,
    vms::Refusal,
};
use hypercall::Token;
use protocol::{
    abi::NEVER,
    boot::Framebuffer,
    domain::{Device, EventKind, line},
    manifest::{Resource, StartupResource},
    service::{
        VmRef,
        console::{Attached, Attachment, Console as ConsoleService, Request, Response, TEXT_MAX},
        platform::{self, Platform},
    },
    text::{CONSOLE_INDICES, OUTPUT, OUTPUT_RING},
};
use screen::canvas::Unsupported;
use server_runtime::{Answer, Caller, Client, Handler, Startup, clock, hypercall, pool::Pool, slots};
use terminals::{Controller, Journals, Ports, Screen, keyboard, screen, serial};

server_runtime::entry!(main);

/// The lines of the interrupts of serial port and keyboard.
const SERIAL: u8 = line::HARDWARE_FIRST;
const KEYBOARD: u8 = line::HARDWARE_FIRST + 1;
/// The keyboard's interrupt on every PC.
const KEYBOARD_ISA: u8 = 1;
/// Bytes sent before other work gets its turn.
const BUDGET: usize = 1024;
/// Nanoseconds between looks at a busy port that has no interrupt.
const POLL_BUSY: u64 = 1_000_000;
/// Nanoseconds between looks for input where there is no interrupt; and between looks at a port that is busy though its
/// interrupt should have come.
const POLL_IDLE: u64 = 20_000_000;
/// Bytes of heap for other things than VMs: what waits for the serial line, VMs in the middle of a line, VMs to look at again.
const HEAP_KEPT: u64 = 960 << 10;
/// Bytes of heap for a screen: what waits for it, and a line of pixels; and for each of its cells, what it is to show and what it shows.
const HEAP_PER_SCREEN: u64 = 96 << 10;
const HEAP_PER_CELL: u64 = 16;
/// Deaths after which the console does without a screen: if it is the drawing that kills it, the serial line must go on.
const DEATHS_WITH_SCREEN: u32 = 3;
/// Bytes of heap for each VM that may be attached.
const HEAP_PER_VM: u64 = 16;
/// Events taken at a time, and how many times before other work gets its turn.
const EVENTS: usize = 32;
const COLLECTS: usize = 32;
/// VMs looked at that were put off, before other work gets its turn.
const LOOKS: usize = 64;

fn main(startup: Startup) -> ! {
    let server = Server::new(&startup);
    server_runtime::run::<ConsoleService, _>(server)
}

struct Server {
    /// `(badge, name)`.
    clients: Vec<(u64, String)>,
    uart: Uart<Ports>,
    keyboard: Option<Keyboard<Controller>>,
    screen: Option<Screen>,
    journals: Journals,
    console: Console,
    /// The pool of VMs, with the right to their console windows.
    vms: Pool,
    platform: Option<Client<Platform>>,
    serial_interrupt: Interrupt,
    keyboard_interrupt: Interrupt,
    /// Who waits for a line.
    reader: Option<(u64, Token)>,
    /// When to look at the port though nothing happened.
    poll: u64,
    /// Whether there may be more doorbells than were taken: those raise no interrupts.
    more: bool,
    /// A VM's console page, up to the end of its output ring.
    page: Box<[u8; OUTPUT_RING + OUTPUT]>,
}

/// An interrupt of the legacy PC.
struct Interrupt {
    /// Whose it is, for people.
    of: &'static str,
    /// Its number, if the system file gives it.
    number: Option<u8>,
    line: u8,
    /// Slot of its capability, once it is bound.
    slot: Option<u8>,
    /// Whether the operator was told that there is none.
    told: bool,
}

impl Interrupt {
    fn acknowledge(&self) {
        if let Some(slot) = self.slot {
            // Does nothing for an edge-triggered line, which this is on all but odd machines.
            let _ = hypercall::interrupt_acknowledge(slot);
        }
    }
}

fn resource<T>(startup: &Startup, choose: impl Fn(&StartupResource) -> Option<T>) -> Option<T> {
    startup.resources.iter().find_map(choose)
}

impl Server {
    fn new(startup: &Startup) -> Server {
        let vms = Pool::of(startup, &Resource::Devices { device: Device::Console as u8 });
        let interrupt = |of, line, keyboard| {
            let number = resource(startup, |held| match held.resource {
                Resource::IsaInterrupt { number } if (number == KEYBOARD_ISA) == keyboard => Some(number),
                _ => None,
            });
            Interrupt { of, number, line, slot: None, told: false }
        };
        let uart = serial(startup);
        let mut journals = Journals::new(startup);
        // The platform server finds out how much memory the graphics card has by moving it away for a moment, in which nothing can be
        // drawn. It answers when it has done so.
        let has_screen = startup.framebuffer != Framebuffer::default();
        let said = if has_screen { journals.ask(clock::now()) } else { String::new() };
        let screen = match startup.incarnation {
            ..DEATHS_WITH_SCREEN => screen(startup),
            _ => Err(Unsupported::None),
        };
        let cells = screen.as_ref().map_or(0, |screen| screen.size().0 * screen.size().1) as u64;
        let kept = HEAP_KEPT + if cells > 0 { HEAP_PER_SCREEN + cells * HEAP_PER_CELL } else { 0 };
        let (keyboard, unknown_keymap) = keyboard(startup);
        let mut server = Server {
            clients: startup.clients.iter().map(|client| (client.badge, client.name.clone())).collect(),
            uart,
            keyboard,
            screen: None,
            journals,
            console: Console::new((startup.heap.saturating_sub(kept) / HEAP_PER_VM) as usize),
            vms,
            platform: startup.channel("platform").map(|channel| Client::new(channel.slot)),
            serial_interrupt: interrupt("serial port", SERIAL, false),
            keyboard_interrupt: interrupt("keyboard", KEYBOARD, true),
            reader: None,
            poll: 0,
            more: false,
            page: Box::new([0; OUTPUT_RING + OUTPUT]),
        };
        let refused = match screen {
            Ok(screen) => {
                server.take_screen(screen, &startup.framebuffer, &said);
                None
            }
            Err(Unsupported::None) => None,
            Err(why) => Some(why),
        };
        let mut log = |text: String| server.console.log("console", &text);
        if startup.incarnation > 0 {
            log(format!("restarted (restart {})", startup.incarnation));
        }
        if startup.incarnation >= DEATHS_WITH_SCREEN && startup.framebuffer != Framebuffer::default() {
            log(format!("after {DEATHS_WITH_SCREEN} restarts it does without the screen"));
        }
        if let Some(why) = refused {
            log(format!("the screen cannot be used: {why}"));
        }
        if let Some(name) = unknown_keymap {
            log(format!("there is no keymap {name:?}: it is `us`"));
        }
        server.take_interrupts();
        server.pump();
        server
    }

    /// Shows on the screen what was said before, and from now on what is printed.
    fn take_screen(&mut self, screen: Screen, framebuffer: &Framebuffer, said: &str) {
        self.console.add_screen();
        self.console.said_elsewhere(said);
        let (columns, rows) = screen.size();
        let unit = if framebuffer.kind == Framebuffer::TEXT { "characters" } else { "pixels" };
        let Framebuffer { width, height, .. } = framebuffer;
        self.console.log("console", &format!("screen of {width} x {height} {unit}, text of {columns} x {rows}"));
        self.screen = Some(screen);
    }

    /// Asks the platform server for the interrupts that are not bound yet, and binds them.
    fn take_interrupts(&mut self) {
        let Server { platform: Some(platform), console, .. } = self else { return };
        for interrupt in [&mut self.serial_interrupt, &mut self.keyboard_interrupt] {
            let (Some(number), None) = (interrupt.number, interrupt.slot) else { continue };
            let Some(slot) = slots::alloc() else { return };
            let answer =
                platform.call_with(&platform::Request::IsaInterrupt { number }, Some(slot), Default::default());
            let bound = match answer {
                Ok((platform::Response::Done, true)) => {
                    hypercall::interrupt_bind(slot, interrupt.line).map_err(|e| format!("{e}"))
                }
                Ok((response, _)) => Err(format!("the platform server says {response:?}")),
                Err(error) => Err(format!("{error:?}")),
            };
            match bound {
                Ok(()) => interrupt.slot = Some(slot),
                Err(why) => {
                    slots::free(slot);
                    if !core::mem::replace(&mut interrupt.told, true) {
                        let of = interrupt.of;
                        console.log("console", &format!("no interrupt {number} ({why}): the {of} is polled"));
                    }
                }
            }
        }
    }

    fn serve_port(&mut self) {
        let console = &mut self.console;
        self.uart.interrupt(|byte| console.typed(byte));
        // What came without an interrupt: polled, or before the interrupt was bound.
        for byte in core::iter::from_fn(|| self.uart.receive()).take(BUDGET) {
            console.typed(byte);
        }
        self.serial_interrupt.acknowledge();
    }

    fn serve_keyboard(&mut self) {
        let Server { keyboard: Some(keyboard), console, .. } = self else { return };
        keyboard.look(clock::now(), |byte| console.typed(byte));
        self.keyboard_interrupt.acknowledge();
        if let Some(found) = keyboard.take_found() {
            console.log("console", &format!("{found}"));
        }
    }

    /// Takes the doorbells that VMs rang.
    fn attach(&mut self, vm: &Attachment<'_>) -> Attached {
        match self.console.attach(vm.vm, vm.name, vm.page) {
            Ok(()) => {
                // What it has written before this console server knew it. A new VM has not: it will ring.
                if vm.at != VmRef::NOWHERE {
                    self.read(Visit::new(vm.vm, vm.at), clock::now());
                }
                Attached::Done
            }
            Err(Refusal::Full) => Attached::Full,
            Err(Refusal::BadPage) => Attached::BadPage,
        }
    }

    fn collect(&mut self) {
        let mut events = [protocol::domain::Event::default(); EVENTS];
        for _ in 0..COLLECTS {
            let Ok(count @ 1..) = hypercall::collect(Device::Console as u8, &mut events) else {
                self.more = false;
                return;
            };
            for event in &events[..count] {
                if event.kind == EventKind::Doorbell as u32 {
                    let at = VmRef { frame: event.frame, generation: event.generation };
                    self.visit(Visit::new(event.tag, at));
                }
            }
        }
        self.more = true;
    }

    /// Reads a VM's page and prints what is new in it; if that cannot be done now, and may be soon, later.
    fn visit(&mut self, visit: Visit) {
        let now = clock::now();
        if !self.read(visit, now) {
            self.console.missed(visit, now);
        }
    }

    /// Reads a VM's page and prints what is new in it. `false` if the page is not in memory.
    fn read(&mut self, visit: Visit, now: u64) -> bool {
        let Some(page) = self.console.page(visit, now).filter(|_| !self.vms.is_empty()) else {
            return true;
        };
        let target = self.vms.target(visit.at);
        // A VM that has just rung has just written to its page, so it is there. If it is not there any more, nobody is asked to
        // bring it: the pager is a client of the console, and calls go upward only.
        if transfer::read(target, page, &mut self.page[..]).is_err() {
            return false;
        }
        let word = |offset: usize| self.page[offset..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let (written, read) = (word(0), word(CONSOLE_INDICES));
        let Some(ring) = self.page[OUTPUT_RING..].first_chunk() else {
            return true;
        };
        // The VM only loses room in its own ring if this cannot be written.
        if let Some(read) = self.console.vm_output(visit, written, read, ring, now)
            && transfer::write(target, page + CONSOLE_INDICES as u64, &read.to_le_bytes()).is_ok()
        {
            self.console.saved(visit.vm);
        }
        true
    }

    /// Sends what waits, answers who waits for a line, and decides when to look again.
    fn pump(&mut self) {
        let now = clock::now();
        if self.more {
            self.collect();
        }
        for _ in 0..LOOKS {
            let Some(visit) = self.console.look(now) else { break };
            self.visit(visit);
        }
        if let Some((_, token)) = self.reader
            && let Some(line) = self.console.take_line()
        {
            self.reader = None;
            let response = Response::Line(line);
            if let (Err(_), Response::Line(line)) =
                (server_runtime::respond::<ConsoleService>(token, &response, None), response)
            {
                self.console.put_line_back(line);
            }
        }
        let console = &mut self.console;
        let stalled = self.uart.send(BUDGET, || console.next_byte());
        let idle = console.is_idle();
        self.poll = match (self.serial_interrupt.slot, stalled) {
            _ if self.more || !stalled && !idle => now,
            (Some(_), false) => NEVER,
            (None, true) => now + POLL_BUSY,
            (Some(_), true) | (None, false) => now + POLL_IDLE,
        };
        if let Some(screen) = &mut self.screen {
            self.journals.print(console, now, false);
            screen.show(console, now);
            self.poll = self.poll.min(screen.next_draw().unwrap_or(NEVER)).min(self.journals.next_look());
        }
        if let Some(keyboard) = &self.keyboard {
            let has_interrupt = self.keyboard_interrupt.slot.is_some();
            self.poll = self.poll.min(keyboard.next_look(has_interrupt).unwrap_or(NEVER));
        }
    }
}

impl Handler<ConsoleService> for Server {
    fn request(&mut self, from: Caller, request: Request<'_>) -> Answer<Response> {
        let answer = match request {
            Request::Log(text) | Request::Write(text) if text.len() > TEXT_MAX => Answer::Now(Response::TooLong),
            Request::Log(text) => {
                let known = self.clients.iter().find(|(badge, _)| *badge == from.badge);
                let name = known.map_or("init", |(_, name)| name.as_str());
                self.console.log(name, text);
                Answer::Now(Response::Done)
            }
            Request::Write(text) => {
                self.console.write(text);
                Answer::Now(Response::Done)
            }
            Request::ReadLine => match (self.reader, from.token) {
                (Some(_), _) => Answer::Now(Response::Taken),
                (None, None) => Answer::Now(Response::Done),
                (None, Some(token)) => match self.console.take_line() {
                    Some(line) => Answer::Now(Response::Line(line)),
                    None => {
                        self.reader = Some((from.badge, token));
                        Answer::Later
                    }
                },
            },
            Request::Attach(vms) => Answer::Now(Response::Attached(vms.iter().map(|vm| self.attach(vm)).collect())),
            Request::Detach(vm) => {
                // Its last words may still be in its page: it has rung for them.
                self.collect();
                if let Some(visit) = self.console.waiting(vm) {
                    self.read(visit, clock::now());
                }
                self.console.detach(vm);
                Answer::Now(Response::Done)
            }
        };
        self.pump();
        answer
    }

    fn connected(&mut self, badge: u64) {
        if self.reader.is_some_and(|(reader, _)| reader == badge) {
            self.reader = None;
        }
    }

    fn interrupts(&mut self, lines: u64) {
        if lines & 1 << SERIAL != 0 {
            self.serve_port();
        }
        if lines & 1 << line::CONSOLE != 0 {
            self.collect();
        }
        if lines & 1 << KEYBOARD != 0 {
            self.serve_keyboard();
        }
        if lines & 1 << line::PEER_RESTARTED != 0 {
            // An interrupt that is bound outlives the platform server; one that could not be had may be there now.
            self.take_interrupts();
            if let Some(screen) = &mut self.screen {
                // `init` has said why it was restarted. If it was the platform server, it has looked at the graphics card again, too, and
                // is done with that when it answers.
                self.journals.print(&mut self.console, clock::now(), true);
                screen.redraw();
            }
        }
        self.pump();
    }

    fn deadline(&mut self) {
        self.serve_port();
        self.serve_keyboard();
        self.pump();
    }

    fn next_deadline(&self) -> u64 {
        self.poll.min(self.console.next_look().unwrap_or(NEVER))
    }
}
