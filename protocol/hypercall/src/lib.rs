//! The system calls and hypercalls of [`protocol::abi`] as functions, for servers and guests alike.
//!
//! This crate holds the one `syscall` instruction of ring 3. The wrappers are safe where the kernel can
//! touch no memory but the slices given; those that change the caller's own address space are not.
#![no_std]

mod raw;

pub use raw::Registers;
/// Enters the kernel with registers of the caller's choice; for tests of the kernel and for hand-written fast paths.
pub use raw::enter as enter_raw;

use protocol::{
    abi::{Error, Lend, MESSAGE_WORDS, NEVER, Number, Reply, Request, SHORT_MESSAGE, Target, Wake},
    capability::{Description, Narrow},
    domain::{Control, DomainParameters, Event, InterruptSource, ProcessorStep, SavedDomain, Usage},
    memory::{BATCH, MapOperation, Scan, TransferOperation},
};

/// Result of a call.
pub type Result<T> = core::result::Result<T, Error>;

/// A message to send: up to 64 bytes travel in registers, longer ones are read from `bytes`.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Label.
    pub label: u8,
    /// Contents.
    pub bytes: &'a [u8],
    /// Own slot of a capability to give along.
    pub give: Option<u8>,
}

impl<'a> Outgoing<'a> {
    /// A message without a capability.
    pub const fn new(label: u8, bytes: &'a [u8]) -> Outgoing<'a> {
        Outgoing { label, bytes, give: None }
    }

    fn load(&self, number: Number, accept: Option<u8>) -> Result<Registers> {
        let length = u16::try_from(self.bytes.len()).map_err(|_| Error::TooLong)?;
        let mut request = Request::message(number, self.label, length);
        if let Some(slot) = self.give {
            request = request.give(slot);
        }
        if let Some(slot) = accept {
            request = request.accept(slot);
        }
        let mut registers = Registers { rax: request.0, ..Registers::default() };
        if self.bytes.len() <= SHORT_MESSAGE {
            for (word, chunk) in registers.words.iter_mut().zip(self.bytes.chunks(8)) {
                let mut bytes = [0; 8];
                bytes[..chunk.len()].copy_from_slice(chunk);
                *word = u64::from_le_bytes(bytes);
            }
        } else {
            registers.words[0] = self.bytes.as_ptr() as u64;
        }
        Ok(registers)
    }
}

/// A message that came: label, length, and its bytes if they came in registers.
///
/// A message longer than 64 bytes lies in the message buffer ([`set_buffer`]) until the next call.
#[derive(Clone, Copy, Debug)]
pub struct Incoming {
    /// Label.
    pub label: u8,
    /// Bytes.
    pub length: usize,
    /// Whether a capability came into the accepting slot.
    pub has_capability: bool,
    bytes: [u8; SHORT_MESSAGE],
}

impl Incoming {
    fn from(reply: Reply, words: &[u64; MESSAGE_WORDS]) -> Incoming {
        let mut bytes = [0; SHORT_MESSAGE];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        Incoming {
            label: reply.label(),
            length: usize::from(reply.length()),
            has_capability: reply.has_capability(),
            bytes,
        }
    }

    /// The bytes if the message came in registers; `None` if it lies in the message buffer.
    pub fn short(&self) -> Option<&[u8]> {
        self.bytes.get(..self.length)
    }
}

/// What [`reply_wait`] was woken by.
#[derive(Clone, Copy, Debug)]
pub enum Woken {
    /// A call or one-way message.
    Message {
        /// Token to answer with; `None` for a one-way message.
        token: Option<Token>,
        /// Badge of the client.
        badge: u64,
        /// The message.
        message: Incoming,
    },
    /// Virtual interrupts, a bit for each line. They are no longer pending.
    Interrupts(u64),
    /// The deadline has passed.
    Deadline,
}

/// Names a caller that waits for a reply. It is also the [`Target`] of the range that it lends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token(pub u64);

impl Token {
    /// The range that the caller lends, for [`transfer`].
    pub const fn lent(self) -> Target {
        Target(self.0)
    }
}

/// Enters the kernel with a request that this module has made.
#[inline(always)]
fn enter(registers: &mut Registers) {
    // SAFETY: the requests of this module name only slices and records that their callers hold for the time of the call,
    // read-only or mutable as the kernel uses them, and the message buffer that `set_buffer` was promised. Requests that
    // change the address space or write elsewhere are made by functions that are themselves unsafe and pass the duty on.
    unsafe { raw::enter(registers) }
}

fn simple(number: Number, arguments: [u64; 5]) -> Result<(u64, u64)> {
    // SAFETY: as for `enter` above.
    let [rax, rdi, rsi] = unsafe { raw::enter_simple(Request::new(number).0, arguments) };
    Reply(rax).result()?;
    Ok((rdi, rsi))
}

/// Does nothing.
#[inline]
pub fn null() {
    raw::null();
}

/// Sends a message to the domain behind `slot` and waits for its reply. A capability in the reply goes into `accept`;
/// `lend` is open to the server until it replies.
///
/// Errors: `NoCapability`, `Denied`, `Gone` (destroyed or restarted; call again to reach the new one), `TooLong`, `BadAddress`.
pub fn call(slot: u8, message: Outgoing, accept: Option<u8>, lend: Lend) -> Result<Incoming> {
    let mut registers = message.load(Number::Call, accept)?;
    registers.rdi = u64::from(slot);
    registers.r15 = lend.0;
    enter(&mut registers);
    let reply = Reply(registers.rax).result()?;
    Ok(Incoming::from(reply, &registers.words))
}

/// Delivers a message to the domain behind `slot` if it is waiting; else `Busy`.
pub fn send(slot: u8, message: Outgoing) -> Result<()> {
    let mut registers = message.load(Number::Send, None)?;
    registers.rdi = u64::from(slot);
    enter(&mut registers);
    Reply(registers.rax).result().map(drop)
}

/// Answers a caller. `Gone` if it no longer waits.
pub fn reply(token: Token, message: Outgoing) -> Result<()> {
    let mut registers = message.load(Number::Reply, None)?;
    registers.rdi = token.0;
    enter(&mut registers);
    Reply(registers.rax).result().map(drop)
}

/// Answers a caller if there is one, then waits for a message, a virtual interrupt, or `deadline` (nanoseconds since
/// kernel entry, [`NEVER`]). A caller that is gone is passed over. A capability that comes with a message goes into `accept`.
pub fn reply_wait(answer: Option<(Token, Outgoing)>, accept: Option<u8>, deadline: u64) -> Result<Woken> {
    let (token, message) = match answer {
        Some((token, message)) => (token.0, message),
        None => (0, Outgoing::new(0, &[])),
    };
    let mut registers = message.load(Number::ReplyWait, accept)?;
    registers.rdi = token;
    registers.r15 = deadline;
    enter(&mut registers);
    let reply = Reply(registers.rax).result()?;
    Ok(match reply.wake() {
        Wake::Call | Wake::Send => Woken::Message {
            token: (registers.rdi != 0).then_some(Token(registers.rdi)),
            badge: registers.r15,
            message: Incoming::from(reply, &registers.words),
        },
        Wake::Interrupts => Woken::Interrupts(registers.r15),
        Wake::Deadline => Woken::Deadline,
    })
}

/// Waits for a message, a virtual interrupt or `deadline`, answering nobody.
pub fn wait(accept: Option<u8>, deadline: u64) -> Result<Woken> {
    reply_wait(None, accept, deadline)
}

/// Waits until an enabled virtual interrupt is pending or the deadline is past (nanoseconds since kernel entry).
pub fn idle(deadline: u64) {
    ring_and_idle(0, deadline);
}

/// The same; rings doorbells before: those of the devices whose bits ([`protocol::domain::Device::bit`]) are set. A service that is not there looks at all queues when it is back.
pub fn ring_and_idle(doorbells: u64, deadline: u64) {
    let _ = simple(Number::Idle, [deadline, doorbells, 0, 0, 0]);
}

/// Ends the calling domain.
pub fn exit(code: u32) -> ! {
    loop {
        let _ = simple(Number::Exit, [u64::from(code), 0, 0, 0, 0]);
    }
}

/// Says that start-up is over; returns when the loader lets the domain go on.
pub fn ready() {
    let _ = simple(Number::Ready, [0; 5]);
}

/// Rings the doorbell of a device ([`protocol::domain::Device`]). `Gone` if no service is behind it now.
pub fn doorbell(device: protocol::domain::Device) -> Result<()> {
    simple(Number::Doorbell, [device as u64, 0, 0, 0, 0]).map(drop)
}

/// Raises the virtual interrupt line that the capability behind `target` names.
pub fn raise(target: Target) -> Result<()> {
    simple(Number::Raise, [target.0, 0, 0, 0, 0]).map(drop)
}

/// Takes events from an own queue; returns how many.
pub fn collect(queue: u8, events: &mut [Event]) -> Result<usize> {
    let arguments = [u64::from(queue), events.as_mut_ptr() as u64, events.len() as u64, 0, 0];
    simple(Number::Collect, arguments).map(|(taken, _)| taken as usize)
}

/// What a [`map`] call got done before an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapError {
    /// The error; `Again` means: call again with the rest.
    pub error: Error,
    /// Operations done whole.
    pub operations: usize,
    /// Pages done of the next one.
    pub pages: u32,
}

/// Applies up to [`protocol::memory::BATCH`] operations to the address space of `target`.
///
/// # Safety
/// If `target` is the caller itself, no page that the program uses may be unmapped, replaced or made writable by others.
pub unsafe fn map(target: Target, operations: &[MapOperation]) -> core::result::Result<(), MapError> {
    let mut registers = Registers { rax: Request::new(Number::Map).0, rdi: target.0, ..Registers::default() };
    registers.words[0] = operations.as_ptr() as u64;
    registers.words[1] = operations.len() as u64;
    enter(&mut registers);
    match Reply(registers.rax).result() {
        Ok(_) => Ok(()),
        Err(error) => Err(MapError { error, operations: registers.rdi as usize, pages: registers.words[0] as u32 }),
    }
}

/// Performs up to [`protocol::memory::BATCH`] transfers; each gets its own status. Returns how many were looked at (the
/// kernel stops early when a call has copied enough: go on with the rest).
///
/// # Safety
/// Ranges of the caller's own memory named as destinations must be memory it may write, with no reference to it alive.
pub unsafe fn transfer(operations: &mut [TransferOperation]) -> Result<usize> {
    let arguments = [operations.as_mut_ptr() as u64, operations.len() as u64, 0, 0, 0];
    simple(Number::Transfer, arguments).map(|(done, _)| done as usize)
}

/// [`transfer`], any number of transfers, and again where the kernel stopped early. Returns how many were looked at: all of them, or those
/// before a call that was refused.
///
/// # Safety
/// As for [`transfer`].
pub unsafe fn transfer_all(operations: &mut [TransferOperation]) -> usize {
    let mut done = 0;
    while let Some(left) = operations.get_mut(done..).filter(|left| !left.is_empty()) {
        let length = left.len().min(BATCH);
        // SAFETY: the caller's promise.
        match unsafe { transfer(&mut left[..length]) } {
            Ok(count) if count > 0 => done += count.min(length),
            _ => break,
        }
    }
    done
}

/// Creates a domain, stopped, with its control block in `frame` of the extent behind `slot`; returns its target by that slot.
pub fn domain_create(slot: u8, frame: u64, parameters: &DomainParameters) -> Result<Target> {
    let parameters = parameters as *const DomainParameters as u64;
    simple(Number::DomainCreate, [u64::from(slot), frame, parameters, 0, 0]).map(|(target, _)| Target(target))
}

/// Performs one control operation with its arguments.
pub fn domain_control(target: Target, control: Control, arguments: [u64; 3]) -> Result<()> {
    let [a, b, c] = arguments;
    simple(Number::DomainControl, [target.0, control as u64, a, b, c]).map(drop)
}

/// Copies the own slot `from`, narrowed, into slot `to` of `target` (overwriting what is there).
pub fn capability_copy(target: Target, to: u8, from: u8, narrow: Option<&Narrow>) -> Result<()> {
    let narrow = narrow.map_or(0, |narrow| narrow as *const Narrow as u64);
    simple(Number::CapabilityCopy, [target.0, u64::from(to), u64::from(from), narrow, 0]).map(drop)
}

/// Makes a capability to the domain `domain` (a pool target), narrowed, in slot `to` of `target`.
///
/// Its rights are those over domains of the extent that `domain` names; with CONTROL comes CALL.
pub fn capability_for_domain(target: Target, to: u8, domain: Target, narrow: Option<&Narrow>) -> Result<()> {
    let narrow = narrow.map_or(0, |narrow| narrow as *const Narrow as u64);
    simple(Number::CapabilityCopy, [target.0, u64::from(to), domain.0, narrow, 0]).map(drop)
}

/// Empties an own slot.
pub fn capability_delete(slot: u8) -> Result<()> {
    simple(Number::CapabilityDelete, [u64::from(slot), 0, 0, 0, 0]).map(drop)
}

/// Describes an own slot.
pub fn capability_info(slot: u8) -> Result<Description> {
    let mut description = Description::default();
    let pointer = &mut description as *mut Description as u64;
    simple(Number::CapabilityInfo, [u64::from(slot), pointer, 0, 0, 0])?;
    Ok(description)
}

/// Makes a hardware interrupt with the authority in `authority`, its capability in the empty own slot `to`; returns the
/// message address and data to program (0 for an I/O APIC line).
pub fn interrupt_create(authority: u8, to: u8, source: InterruptSource) -> Result<(u64, u64)> {
    simple(Number::InterruptCreate, [u64::from(authority), u64::from(to), source.to_word(), 0, 0])
}

/// Delivers the hardware interrupt in `slot` on the own line `line`.
pub fn interrupt_bind(slot: u8, line: u8) -> Result<()> {
    simple(Number::InterruptBind, [u64::from(slot), u64::from(line), 0, 0, 0]).map(drop)
}

/// Unmasks a level-triggered hardware interrupt that was handled.
pub fn interrupt_acknowledge(slot: u8) -> Result<()> {
    simple(Number::InterruptAcknowledge, [u64::from(slot), 0, 0, 0, 0]).map(drop)
}

/// Tells the kernel of an I/O APIC.
pub fn io_apic_add(authority: u8, address: u64, first_interrupt: u32) -> Result<()> {
    simple(Number::IoApicAdd, [u64::from(authority), address, u64::from(first_interrupt), 0, 0]).map(drop)
}

/// Does a step of starting the processor with this local APIC. Returns how many run domains.
pub fn processor_start(authority: u8, apic: u32, step: ProcessorStep) -> Result<usize> {
    let arguments = [u64::from(authority), u64::from(apic), step as u64, 0, 0];
    simple(Number::ProcessorStart, arguments).map(|(online, _)| online as usize)
}

/// Reads an I/O port, `width` 1, 2 or 4 bytes.
pub fn port_read(slot: u8, port: u16, width: u8) -> Result<u32> {
    simple(Number::PortIo, [u64::from(slot), u64::from(port), u64::from(width), 0, 0]).map(|(value, _)| value as u32)
}

/// Writes an I/O port.
pub fn port_write(slot: u8, port: u16, width: u8, value: u32) -> Result<()> {
    let width = u64::from(width) | protocol::abi::PORT_WRITE;
    simple(Number::PortIo, [u64::from(slot), u64::from(port), width, u64::from(value), 0]).map(drop)
}

/// Writes to the kernel's debug line, 256 bytes at a time.
pub fn debug_write(slot: u8, text: &[u8]) -> Result<()> {
    for part in text.chunks(256) {
        simple(Number::DebugWrite, [part.as_ptr() as u64, part.len() as u64, u64::from(slot), 0, 0])?;
    }
    Ok(())
}

/// Sets the page for incoming long messages.
///
/// # Safety
/// The page at `address` must be writable memory that nothing else uses: the kernel writes there during [`call`],
/// [`reply_wait`] and [`wait`].
pub unsafe fn set_buffer(address: u64) -> Result<()> {
    simple(Number::SetBuffer, [address, 0, 0, 0, 0]).map(drop)
}

/// Raises the own line [`protocol::domain::line::TIMER`] at `deadline` (nanoseconds since kernel entry; [`NEVER`] stops it).
pub fn set_timer(deadline: u64) {
    let _ = simple(Number::SetTimer, [deadline, 0, 0, 0, 0]);
}

/// Figures of a domain.
pub fn domain_usage(target: Target) -> Result<Usage> {
    let mut usage = Usage::default();
    simple(Number::DomainUsage, [target.0, &mut usage as *mut Usage as u64, 0, 0, 0])?;
    Ok(usage)
}

/// Reads the state of a domain that is held ([`Control::Hold`]).
pub fn domain_save(target: Target, state: &mut SavedDomain) -> Result<()> {
    simple(Number::DomainSave, [target.0, state as *mut SavedDomain as u64, 0, 0, 0]).map(drop)
}

/// Gives a stopped domain this state; it is held then.
pub fn domain_restore(target: Target, state: &SavedDomain) -> Result<()> {
    simple(Number::DomainRestore, [target.0, state as *const SavedDomain as u64, 0, 0, 0]).map(drop)
}

/// Looks at the pages of `target` from `address` on, one for each byte of `states` (at most [`protocol::memory::SCAN_PAGES`]), each then
/// bits of [`protocol::memory::PageState`]; and does what `action` says.
pub fn scan(target: Target, address: u64, states: &mut [u8], action: Scan) -> Result<()> {
    let arguments = [target.0, address, states.len() as u64, states.as_mut_ptr() as u64, u64::from(action.bits())];
    simple(Number::Scan, arguments).map(drop)
}

/// Waits for ever.
pub fn sleep_forever() -> ! {
    loop {
        idle(NEVER);
    }
}
