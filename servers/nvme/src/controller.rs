//! The controller: stopping and starting it, admin commands.

use crate::{
    command::{Command, Completion, Opcode, Status},
    error::Error,
    identify,
    queue::Queue,
    registers::*,
};
use block_driver::{Dma, pci::hardware::Hardware};
use protocol::layout::PAGE;

/// Nanoseconds that an admin command may take. Each is one that needs no work of the medium.
const ADMIN_TIMEOUT: u64 = 10_000_000_000;
/// Entries of the admin queues. One command is under way at a time.
const ADMIN_ENTRIES: usize = 16;
/// Most entries of the I/O queues, and so one more than requests under way.
const ENTRIES_MOST: usize = 128;
/// Number of the I/O queues.
pub const IO: u16 = 1;
/// Number of the admin queues.
const ADMIN: u16 = 0;
/// The only namespace that is used.
pub const NAMESPACE: u32 = 1;
/// Feature: number of queues (5.21.1.7).
const NUMBER_OF_QUEUES: u32 = 0x07;
/// In the creation of a queue: it is contiguous.
const CONTIGUOUS: u32 = 1;
/// In the creation of a completion queue: it interrupts, by vector 0.
const INTERRUPTS: u32 = 1 << 1;

const PAGE_BYTES: usize = PAGE as usize;
/// Where in the memory for the device each thing lies, all at page boundaries.
const ADMIN_SUBMISSION: usize = 0;
const ADMIN_COMPLETION: usize = ADMIN_SUBMISSION + PAGE_BYTES;
const DATA: usize = ADMIN_COMPLETION + PAGE_BYTES;
const IO_SUBMISSION: usize = DATA + PAGE_BYTES;
const IO_COMPLETION: usize = IO_SUBMISSION + Queue::bytes(ENTRIES_MOST)[0].next_multiple_of(PAGE_BYTES);
/// What is left for the driver of the disk.
pub const REST: usize = IO_COMPLETION + Queue::bytes(ENTRIES_MOST)[1].next_multiple_of(PAGE_BYTES);
const _: () = assert!(Queue::bytes(ADMIN_ENTRIES)[0] <= PAGE_BYTES && identify::LENGTH == PAGE_BYTES);

/// A controller.
#[derive(Debug)]
pub struct Controller<H> {
    /// Its registers.
    pub hardware: H,
    capabilities: Capabilities,
    memory: Dma,
    admin: Queue,
    /// Number of the next admin command.
    next: u16,
}

impl<H: Hardware> Controller<H> {
    /// The controller with these registers, `length` bytes. Nothing is written to it. `memory` begins with [`REST`] bytes for this.
    pub fn new(hardware: H, length: usize, memory: Dma) -> Result<Controller<H>, Error> {
        if memory.memory.length() < REST {
            return Err(Error::Memory(memory.memory.length(), REST));
        }
        if hardware.read(CSTS) == GONE {
            return Err(Error::Gone);
        }
        let capabilities = Capabilities::read(&hardware);
        if !capabilities.has_nvm() {
            return Err(Error::NoNvm);
        }
        if capabilities.page_least() != PAGE {
            return Err(Error::PageSize(capabilities.page_least()));
        }
        if capabilities.queue_entries() < 2 {
            return Err(Error::QueueEntries(capabilities.queue_entries()));
        }
        if capabilities.registers() > length {
            return Err(Error::Doorbells);
        }
        let admin = Self::queue_in(&memory, ADMIN, capabilities);
        Ok(Controller { hardware, capabilities, memory, admin, next: 0 })
    }

    fn queue_in(memory: &Dma, number: u16, capabilities: Capabilities) -> Queue {
        let (entries, submission, completion) = match number {
            ADMIN => (ADMIN_ENTRIES, ADMIN_SUBMISSION, ADMIN_COMPLETION),
            _ => (entries(capabilities), IO_SUBMISSION, IO_COMPLETION),
        };
        let [commands, completions] = Queue::bytes(entries);
        let (submission, completion) = (memory.part(submission, commands), memory.part(completion, completions));
        Queue::new(number, entries, submission, completion, capabilities.doorbell_stride())
    }

    /// Most commands that can be under way in the I/O queues.
    pub const fn commands(&self) -> usize {
        // A queue with all entries in use would look empty.
        entries(self.capabilities) - 1
    }

    /// Stops it: it forgets all commands and touches no memory.
    pub fn stop(&mut self) -> Result<(), Error> {
        let timeout = self.capabilities.timeout();
        let status = self.hardware.read(CSTS);
        if status == GONE {
            return Err(Error::Gone);
        }
        let configuration = self.hardware.read(CC);
        if configuration & CC_ENABLE != 0 && status & (CSTS_READY | CSTS_FATAL) == 0 {
            // Somebody has just enabled it, and it must not be disabled before it is ready (3.1.5). If it never is, it is disabled all the same.
            self.hardware.wait(timeout, |hardware| hardware.read(CSTS) & (CSTS_READY | CSTS_FATAL) != 0);
        }
        self.hardware.write(CC, configuration & !CC_ENABLE);
        match self.wait_ready(0, timeout)? {
            true => Ok(()),
            false => Err(Error::NeverStops(timeout / 1_000_000)),
        }
    }

    /// Starts it anew with empty admin queues. It was stopped.
    pub fn start(&mut self) -> Result<(), Error> {
        self.admin = Self::queue_in(&self.memory, ADMIN, self.capabilities);
        let timeout = self.capabilities.timeout();
        let entries = ADMIN_ENTRIES as u32 - 1;
        self.hardware.write(AQA, entries << 16 | entries);
        self.write_long(ASQ, self.admin.submission());
        self.write_long(ACQ, self.admin.completion());
        self.hardware.write(CC, CC_SETTINGS);
        self.hardware.write(CC, CC_SETTINGS | CC_ENABLE);
        match self.wait_ready(CSTS_READY, timeout)? {
            true if self.hardware.read(CSTS) & CSTS_FATAL == 0 => Ok(()),
            true => Err(Error::Fatal),
            false => Err(Error::NeverReady(timeout / 1_000_000)),
        }
    }

    /// Waits until the status says so. Returns whether it does.
    fn wait_ready(&mut self, ready: u32, timeout: u64) -> Result<bool, Error> {
        let mut status = 0;
        let came = self.hardware.wait(timeout, |hardware| {
            status = hardware.read(CSTS);
            status == GONE || status & CSTS_READY == ready || ready != 0 && status & CSTS_FATAL != 0
        });
        match status {
            GONE => Err(Error::Gone),
            _ => Ok(came),
        }
    }

    fn write_long(&mut self, register: usize, value: u64) {
        self.hardware.write(register, value as u32);
        self.hardware.write(register + 4, (value >> 32) as u32);
    }

    /// Carries out an admin command and waits for it. Returns its result.
    fn admin(&mut self, command: Command) -> Result<u32, Error> {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.admin.push(id, &command);
        self.admin.ring(&mut self.hardware);
        let (admin, mut answer) = (&mut self.admin, None);
        self.hardware.wait(ADMIN_TIMEOUT, |hardware| {
            answer = admin.pop();
            answer.is_some() || hardware.read(CSTS) == GONE
        });
        self.admin.ring_head(&mut self.hardware);
        match answer {
            Some(Completion { id: other, queue, .. }) if (other, queue) != (id, ADMIN) => Err(Error::Nonsense),
            Some(Completion { status: Status::OK, result, .. }) => Ok(result),
            Some(Completion { status, .. }) => Err(Error::Refused(command.opcode, status)),
            None if self.hardware.read(CSTS) == GONE => Err(Error::Gone),
            None => Err(Error::NoAnswer(command.opcode)),
        }
    }

    fn identify(&mut self, what: u32, namespace: u32) -> Result<[u8; identify::LENGTH], Error> {
        let page = self.memory.part(DATA, identify::LENGTH);
        page.memory.zero(0, identify::LENGTH);
        let command = Command::admin(Opcode::Identify, page.physical, [what, 0, 0]);
        self.admin(Command { namespace, ..command })?;
        let mut data = [0; identify::LENGTH];
        page.memory.copy_out(0, &mut data);
        Ok(data)
    }

    /// What the controller says of itself.
    pub fn identify_controller(&mut self) -> Result<identify::Controller, Error> {
        let data = self.identify(identify::CONTROLLER, 0)?;
        Ok(identify::Controller::parse(&data, self.capabilities))
    }

    /// What it says of its namespace.
    pub fn identify_namespace(&mut self) -> Result<identify::Namespace, Error> {
        match self.identify(identify::NAMESPACE, NAMESPACE) {
            Ok(data) => identify::Namespace::parse(&data),
            // Generic: invalid namespace or format; invalid field.
            Err(Error::Refused(_, Status(0x0b) | Status::INVALID_FIELD)) => Err(Error::NoNamespace),
            Err(error) => Err(error),
        }
    }

    /// Makes the I/O queues, which interrupt by vector 0.
    pub fn create_queues(&mut self) -> Result<Queue, Error> {
        // One pair: both numbers count from 0.
        self.admin(Command::admin(Opcode::SetFeatures, 0, [NUMBER_OF_QUEUES, 0, 0]))?;
        let queue = Self::queue_in(&self.memory, IO, self.capabilities);
        let size = (entries(self.capabilities) as u32 - 1) << 16 | u32::from(IO);
        let completion = [size, CONTIGUOUS | INTERRUPTS, 0];
        self.admin(Command::admin(Opcode::CreateCompletionQueue, queue.completion(), completion))?;
        let submission = [size, CONTIGUOUS | u32::from(IO) << 16, 0];
        self.admin(Command::admin(Opcode::CreateSubmissionQueue, queue.submission(), submission))?;
        Ok(queue)
    }
}

const fn entries(capabilities: Capabilities) -> usize {
    let most = capabilities.queue_entries();
    if most < ENTRIES_MOST { most } else { ENTRIES_MOST }
}
