//! The console server: binds [`console`] to the machine.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(test), no_main)]

extern crate alloc;

mod transfer;

use alloc::{boxed::Box, format, string::String, vec::Vec};
use console::{
    console::{Console, Visit},
    uart::{Registers, Uart},
    vms::Refusal,
};
use hypercall::Token;
use protocol::{
    abi::{NEVER, Target},
    domain::{Device, EventKind, line},
    manifest::{Resource, StartupResource},
    service::{
        VmRef,
        console::{Console as ConsoleService, Request, Response, TEXT_MAX},
        platform::{self, Platform},
    },
    text::{CONSOLE_INDICES, OUTPUT, OUTPUT_RING},
};
use server_runtime::{Answer, Caller, Client, Handler, Startup, clock, hypercall, slots};

server_runtime::entry!(main);

/// The line of the serial port's interrupt.
const SERIAL: u8 = line::HARDWARE_FIRST;
/// Bytes sent before other work gets its turn.
const BUDGET: usize = 1024;
/// Nanoseconds between looks at a busy port that has no interrupt.
const POLL_BUSY: u64 = 1_000_000;
/// Nanoseconds between looks for input where there is no interrupt; and between looks at a port that is busy though its
/// interrupt should have come.
const POLL_IDLE: u64 = 20_000_000;
/// Bytes of heap for other things than VMs: what waits for the serial line, VMs in the middle of a line, VMs to look at again.
const HEAP_KEPT: u64 = 960 << 10;
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

/// Registers of the serial port, by system calls on a port capability.
struct Ports {
    slot: u8,
    first: u16,
}

impl Registers for Ports {
    fn read(&mut self, register: u8) -> u8 {
        // A port that cannot be read is as one that is not there.
        hypercall::port_read(self.slot, self.first + u16::from(register), 1).map_or(0xff, |value| value as u8)
    }
    fn write(&mut self, register: u8, value: u8) {
        let _ = hypercall::port_write(self.slot, self.first + u16::from(register), 1, u32::from(value));
    }
}

struct Server {
    /// `(badge, name)`.
    clients: Vec<(u64, String)>,
    uart: Uart<Ports>,
    console: Console,
    /// The pool of VMs, with the right to their console windows.
    vms: Option<u8>,
    platform: Option<Client<Platform>>,
    isa_interrupt: Option<u8>,
    /// Slot of the serial port's interrupt.
    interrupt: Option<u8>,
    /// Whether the operator was told that there is none.
    told: bool,
    /// Who waits for a line.
    reader: Option<(u64, Token)>,
    /// When to look at the port though nothing happened.
    poll: u64,
    /// Whether there may be more doorbells than were taken: those raise no interrupts.
    more: bool,
    /// A VM's console page, up to the end of its output ring.
    page: Box<[u8; OUTPUT_RING + OUTPUT]>,
}

fn resource<T>(startup: &Startup, choose: impl Fn(&StartupResource) -> Option<T>) -> Option<T> {
    startup.resources.iter().find_map(choose)
}

impl Server {
    fn new(startup: &Startup) -> Server {
        let ports = resource(startup, |held| match held.resource {
            Resource::Ports { first, .. } => Some(Ports { slot: held.slot, first }),
            _ => None,
        });
        let vms = resource(startup, |held| match held.resource {
            Resource::Devices { device } if device == Device::Console as u8 => Some(held.slot),
            _ => None,
        });
        let isa_interrupt = resource(startup, |held| match held.resource {
            Resource::IsaInterrupt { number } => Some(number),
            _ => None,
        });
        let Some(ports) = ports else {
            panic!("the system file gives the console no serial port (`ports`)");
        };
        let mut server = Server {
            clients: startup.clients.iter().map(|client| (client.badge, client.name.clone())).collect(),
            uart: Uart::new(ports),
            console: Console::new((startup.heap.saturating_sub(HEAP_KEPT) / HEAP_PER_VM) as usize),
            vms,
            platform: startup.channel("platform").map(|channel| Client::new(channel.slot)),
            isa_interrupt,
            interrupt: None,
            told: false,
            reader: None,
            poll: 0,
            more: false,
            page: Box::new([0; OUTPUT_RING + OUTPUT]),
        };
        if startup.incarnation > 0 {
            server.console.log("console", &format!("restarted (restart {})", startup.incarnation));
        }
        server.take_interrupt();
        server.pump();
        server
    }

    /// Asks the platform server for the port's interrupt and binds it.
    fn take_interrupt(&mut self) {
        let (Some(number), Some(platform)) = (self.isa_interrupt, &mut self.platform) else {
            return;
        };
        let Some(slot) = slots::alloc() else {
            return;
        };
        let answer = platform.call_with(&platform::Request::IsaInterrupt { number }, Some(slot), Default::default());
        let bound = match answer {
            Ok((platform::Response::Done, true)) => hypercall::interrupt_bind(slot, SERIAL).map_err(|e| format!("{e}")),
            Ok((response, _)) => Err(format!("the platform server says {response:?}")),
            Err(error) => Err(format!("{error:?}")),
        };
        match bound {
            Ok(()) => self.interrupt = Some(slot),
            Err(why) => {
                slots::free(slot);
                if !core::mem::replace(&mut self.told, true) {
                    self.console.log("console", &format!("no interrupt {number} ({why}): the serial port is polled"));
                }
            }
        }
    }

    fn serve_port(&mut self) {
        let console = &mut self.console;
        self.uart.interrupt(|byte| console.typed(byte));
        // What came without an interrupt: polled, or before the interrupt was bound.
        while let Some(byte) = self.uart.receive() {
            console.typed(byte);
        }
        if let Some(slot) = self.interrupt {
            // Does nothing for an edge-triggered line, which this is on all but odd machines.
            let _ = hypercall::interrupt_acknowledge(slot);
        }
    }

    /// Takes the doorbells that VMs rang.
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
        let (Some(slot), Some(page)) = (self.vms, self.console.page(visit, now)) else {
            return true;
        };
        let target = Target::pool(slot, visit.at.frame, visit.at.generation);
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
        let idle = self.console.is_idle();
        self.poll = match (self.interrupt, stalled) {
            _ if self.more || !stalled && !idle => now,
            (Some(_), false) => NEVER,
            (None, true) => now + POLL_BUSY,
            (Some(_), true) | (None, false) => now + POLL_IDLE,
        };
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
            Request::Attach { vm, at, name, page } => {
                Answer::Now(match self.console.attach(vm, name, page) {
                    Ok(()) => {
                        // What it has written before this console server knew it. The page of a new VM is not in memory yet: it will ring.
                        if at != VmRef::NOWHERE {
                            self.read(Visit::new(vm, at), clock::now());
                        }
                        Response::Done
                    }
                    Err(Refusal::Full) => Response::Full,
                    Err(Refusal::BadPage) => Response::BadPage,
                })
            }
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
        if lines & 1 << line::PEER_RESTARTED != 0 && self.interrupt.is_none() {
            // An interrupt that is bound outlives the platform server; one that could not be had may be there now.
            self.take_interrupt();
        }
        self.pump();
    }

    fn deadline(&mut self) {
        self.serve_port();
        self.pump();
    }

    fn next_deadline(&self) -> u64 {
        self.poll.min(self.console.next_look().unwrap_or(NEVER))
    }
}
