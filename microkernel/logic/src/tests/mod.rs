//! Tests that drive the whole kernel by system calls, on the model of the hardware.

mod devices;
mod faults;
mod fuzz;
mod interrupts;
mod ipc;
mod lifecycle;
mod memory;
mod processors;
mod suspend;

use crate::{
    Frame, Kernel, Machine, NO_FRAME,
    block::{Registers, State},
    capability::Capability,
    frames::{FrameEntry, FrameKind, FrameTable},
    model::Model,
};
use protocol::{
    abi::{Error, Number, Reply, Request},
    capability::{Kind, Rights},
    layout::PAGE,
    memory::Access,
};
use std::{boxed::Box, vec};

/// Frames of memory of the model.
const FRAMES: u32 = 1024;
/// Where every test domain has [`PAGES`] pages of its own.
const BASE: u64 = 0x20_0000;
const PAGES: u64 = 4;
/// Slot of every test server: all memory, every right.
const ALL: u8 = 60;

/// A kernel with domains.
struct World {
    kernel: Kernel<Model>,
    next: Frame,
}

impl World {
    fn new() -> World {
        World::with_frames(FRAMES)
    }

    /// A larger one, of which servers hold the first [`FRAMES`] frames.
    fn with_frames(count: u32) -> World {
        let entries = Box::leak(vec![FrameEntry::default(); count as usize].into_boxed_slice());
        let mut frames = FrameTable::new(entries);
        frames.declare(1, count - 1, FrameKind::Free);
        World { kernel: Kernel::new(Model::default(), frames), next: 1 }
    }

    fn frame(&mut self) -> Frame {
        self.next += 1;
        self.next - 1
    }

    fn memory() -> Capability {
        let rights = Rights::all().difference(Rights::DEVICE | Rights::CALL);
        Capability::new(Kind::Memory, rights, 0, FRAMES)
    }

    /// A started domain with a few pages; a server holds all memory.
    fn domain(&mut self, band: u8, vm: bool) -> Frame {
        let (frame, root) = (self.frame(), self.frame());
        self.kernel.create_domain(frame, root, band).unwrap();
        for page in 0..PAGES {
            let memory = self.frame();
            let address = BASE + page * PAGE;
            while !self.kernel.map_at_boot(root, address, memory, Access::WRITE).unwrap() {
                let table = self.frame();
                self.kernel.add_table_at_boot(root, address, table).unwrap();
            }
        }
        let block = self.kernel.machine.block_mut(frame);
        if vm {
            block.register_page = BASE;
        } else {
            block.slots[usize::from(ALL)] = World::memory();
        }
        self.kernel.start_domain(frame, 0x20_1000, 0, 0).unwrap();
        frame
    }

    fn server(&mut self) -> Frame {
        self.domain(1, false)
    }

    fn vm(&mut self) -> Frame {
        self.domain(2, true)
    }

    /// Gives `client` a capability to `server` in `slot`.
    fn connect(&mut self, client: Frame, slot: u8, server: Frame, badge: u64, line: u8) {
        let generation = self.kernel.frames.generation(server);
        let mut capability =
            Capability::new(Kind::Domain, Rights::CALL | Rights::RAISE | Rights::WINDOW | Rights::CONTROL, server, 0);
        capability.generation = generation;
        capability.incarnation = self.kernel.machine.block(server).incarnation;
        (capability.badge, capability.line) = (badge, line);
        self.kernel.machine.block_mut(client).slots[usize::from(slot)] = capability;
    }

    /// Puts a runnable domain on the processor.
    fn run(&mut self, frame: Frame) {
        assert_eq!(self.state(frame), State::Runnable, "{frame} can run");
        let current = self.kernel.running();
        if current == frame {
            return;
        }
        if current != NO_FRAME {
            let scheduler = &mut self.kernel.cpu.scheduler;
            scheduler.add(&mut self.kernel.machine, current, false);
        }
        let scheduler = &mut self.kernel.cpu.scheduler;
        scheduler.remove(&mut self.kernel.machine, frame);
        self.kernel.cpu.current = frame;
        self.kernel.cpu.slice_end = self.kernel.machine.now + crate::scheduler::SLICE;
        self.kernel.cpu.reschedule = false;
    }

    /// `frame` executes a system call; its registers afterwards are those it will see when it runs next.
    fn enter(&mut self, frame: Frame, request: Request, rdi: u64, words: &[u64], r15: u64) -> Registers {
        self.run(frame);
        let registers = &mut self.kernel.machine.block_mut(frame).registers;
        (registers.rax, registers.rdi, registers.r15) = (request.0, rdi, r15);
        registers.words[..words.len()].copy_from_slice(words);
        self.kernel.system_call();
        *self.registers(frame)
    }

    fn simple(&mut self, frame: Frame, number: Number, rdi: u64, words: &[u64]) -> Result<Registers, Error> {
        let registers = self.enter(frame, Request::new(number), rdi, words, 0);
        Reply(registers.rax).result().map(|_| registers)
    }

    fn registers(&self, frame: Frame) -> &Registers {
        &self.kernel.machine.block(frame).registers
    }

    fn state(&self, frame: Frame) -> State {
        self.kernel.machine.block(frame).state()
    }

    /// Writes into a domain's memory.
    fn poke(&mut self, frame: Frame, address: u64, bytes: &[u8]) {
        let root = self.kernel.machine.block(frame).root;
        let range = crate::paging::UserRange::new(address, bytes.len() as u64).unwrap();
        self.kernel.write_user(root, range, bytes).unwrap();
    }

    /// Reads a domain's memory.
    fn peek(&self, frame: Frame, address: u64, length: usize) -> std::vec::Vec<u8> {
        let root = self.kernel.machine.block(frame).root;
        let mut bytes = vec![0; length];
        let range = crate::paging::UserRange::new(address, length as u64).unwrap();
        self.kernel.read_user(root, range, &mut bytes).unwrap();
        bytes
    }

    fn peek_u64(&self, frame: Frame, address: u64) -> u64 {
        u64::from_le_bytes(self.peek(frame, address, 8).try_into().unwrap())
    }
}

/// The bytes of words.
fn bytes(words: &[u64]) -> std::vec::Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
