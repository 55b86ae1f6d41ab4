//! System calls and hypercalls: one instruction, one register convention.
//!
//! A domain enters the kernel with `syscall`. `rax` holds the [`Request`] word; its top bit is
//! always set, so that other meanings of `syscall` can be reflected to a library OS one day. The
//! kernel returns a [`Reply`] word in `rax`. `rcx` and `r11` are lost (the processor uses them);
//! every register not named as a result keeps its value.
//!
//! | register | simple calls | `call`, `send` | `reply`, `reply_wait` |
//! |---|---|---|---|
//! | `rdi` | argument 0, result 0 | slot | reply token (0: none); out: token |
//! | `rsi rdx r8 r9 r10 r12 r13 r14` | arguments 1.. (results: `rsi`) | message words 0-7 | message words 0-7 |
//! | `r15` | - | lent range ([`Lend`]) | deadline; out: badge or interrupts |
//!
//! A message of up to [`SHORT_MESSAGE`] bytes travels in the eight word registers. A longer one, up
//! to [`LONG_MESSAGE`] bytes, lies in the sender's memory at the address in word 0 and is copied once
//! into the receiver's message buffer ([`Number::SetBuffer`]).

/// Bytes of a message that travel in registers.
pub const SHORT_MESSAGE: usize = 64;
/// Bytes of the longest message: one page.
pub const LONG_MESSAGE: usize = 4096;
/// Words of a message in registers.
pub const MESSAGE_WORDS: usize = 8;
/// A deadline that never comes. Deadlines are nanoseconds since the kernel was entered.
pub const NEVER: u64 = u64::MAX;

/// What is asked of the kernel.
///
/// Calls marked *guest* are the hypercalls of the virtual architecture; every domain may use them.
/// The others act on capabilities, of which a VM holds none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Number {
    /// *guest* Does nothing. Cost of entering and leaving the kernel.
    Null = 0,
    /// *guest* Sends a message to the domain behind a slot and waits for its reply.
    Call = 1,
    /// Answers one caller (if the token is not 0), then waits for a message, a virtual interrupt or the deadline.
    ReplyWait = 2,
    /// Answers one caller and goes on.
    Reply = 3,
    /// Delivers a message to a domain that is waiting, expecting no reply; [`Error::Busy`] if it is not waiting. Never blocks.
    Send = 4,
    /// *guest* Rings the doorbells of the devices whose bits ([`crate::domain::Device::bit`]) are set in `rsi`, then waits until an enabled virtual interrupt is pending or the deadline in
    /// `rdi` is past.
    Idle = 5,
    /// *guest* Ends the calling domain with the code in `rdi`.
    Exit = 6,
    /// *guest* Says that start-up is over: a good moment for a snapshot.
    Ready = 7,
    /// *guest* Tells the service behind device `rdi` ([`crate::domain::Device`]) to look at its queue.
    Doorbell = 8,
    /// *guest* Returns from a virtual interrupt handler: restores the saved registers and enables interrupts.
    InterruptReturn = 9,
    /// Raises a virtual interrupt. `rdi`: [`Target`]. The line is the one named in the capability.
    Raise = 10,
    /// Takes up to `rdx` events from queue `rdi` into the array of [`crate::domain::Event`] at `rsi`. Out: `rdi` events taken.
    Collect = 11,
    /// Applies `rdx` [`crate::memory::MapOperation`]s at `rsi` to the domain `rdi` ([`Target`]). Out: `rdi` operations done whole, `rsi` pages done of the next.
    Map = 12,
    /// Performs `rsi` [`crate::memory::TransferOperation`]s at `rdi`, each with its own status. Out: `rdi` operations looked at.
    Transfer = 13,
    /// Creates a domain in frame `rsi` of the memory slot `rdi` from [`crate::domain::DomainParameters`] at `rdx`. Out: `rdi` its [`Target`] by that slot.
    DomainCreate = 14,
    /// Performs [`crate::domain::Control`] `rsi` on the domain `rdi` ([`Target`]) with arguments `rdx r8 r9`.
    DomainControl = 15,
    /// Copies slot `rdx` of the caller, narrowed by [`crate::capability::Narrow`] at `r8` (0: as it is), into slot `rsi` of the domain `rdi` ([`Target`], or own).
    /// With a pool [`Target`] in `rdx`, a capability to that domain is made: with the rights over domains of the extent, and CALL if CONTROL is among them.
    CapabilityCopy = 16,
    /// Empties the own slot `rdi`.
    CapabilityDelete = 17,
    /// Describes the own slot `rdi` into the [`crate::capability::Description`] at `rsi`.
    CapabilityInfo = 18,
    /// Makes a hardware interrupt and puts its capability into the own slot `rsi`. `rdi`: slot of the interrupt authority,
    /// `rdx`: [`crate::domain::InterruptSource`] word. Out: `rdi` MSI address, `rsi` MSI data.
    InterruptCreate = 19,
    /// Delivers the hardware interrupt in slot `rdi` as virtual interrupt line `rsi` of the caller.
    InterruptBind = 20,
    /// Unmasks the level-triggered hardware interrupt in slot `rdi` after it was handled.
    InterruptAcknowledge = 21,
    /// Tells the kernel of an I/O APIC. `rdi`: slot of the interrupt authority, `rsi`: physical address, `rdx`: first global interrupt.
    IoApicAdd = 22,
    /// Reads or writes an I/O port. `rdi`: slot of a port range, `rsi`: port, `rdx`: width in bytes (1, 2, 4) | [`PORT_WRITE`], `r8`: value. Out: `rdi` value read.
    PortIo = 23,
    /// Writes `rsi` bytes (at most 256) at `rdi` to the kernel's debug line. Needs a debug capability in slot `rdx`.
    DebugWrite = 24,
    /// Sets the page-aligned address `rdi` of the own buffer for long messages.
    SetBuffer = 25,
    /// *guest* Sets the own stop clock: raises line [`crate::domain::line::TIMER`] at the deadline `rdi`.
    SetTimer = 26,
    /// Reads figures of the domain `rdi` ([`Target`]) into [`crate::domain::Usage`] at `rsi`.
    DomainUsage = 27,
    /// Writes the state of the held domain `rdi` ([`Target`], CONTROL) to the [`crate::domain::SavedDomain`] at `rsi`. [`Error::Busy`] if it is not held.
    DomainSave = 28,
    /// Gives the stopped domain `rdi` ([`Target`], CONTROL) the state in the [`crate::domain::SavedDomain`] at `rsi`; it is held then.
    DomainRestore = 29,
    /// Looks at `rdx` pages (at most [`crate::memory::SCAN_PAGES`]) from address `rsi` on of the domain `rdi` ([`Target`], CONTROL) and writes a
    /// byte of [`crate::memory::PageState`] for each to `r8`; then does what [`crate::memory::Scan`] in `r9` says. No use of a page between the look and that is lost.
    Scan = 30,
    /// Does [`crate::domain::ProcessorStep`] `rdx` with the processor whose local APIC has the number `rsi`. `rdi`: slot of the interrupt authority. Out: `rdi`
    /// processors that run domains. [`Error::Occupied`] if it runs already, [`Error::Exhausted`] if nothing is set aside for so many,
    /// [`Error::BadArgument`] if no command reaches a local APIC with this number (from 255 on without x2APIC mode).
    ProcessorStart = 31,
}

impl Number {
    /// All numbers, in order.
    pub const ALL: [Number; 32] = {
        use Number::*;
        [
            Null,
            Call,
            ReplyWait,
            Reply,
            Send,
            Idle,
            Exit,
            Ready,
            Doorbell,
            InterruptReturn,
            Raise,
            Collect,
            Map,
            Transfer,
            DomainCreate,
            DomainControl,
            CapabilityCopy,
            CapabilityDelete,
            CapabilityInfo,
            InterruptCreate,
            InterruptBind,
            InterruptAcknowledge,
            IoApicAdd,
            PortIo,
            DebugWrite,
            SetBuffer,
            SetTimer,
            DomainUsage,
            DomainSave,
            DomainRestore,
            Scan,
            ProcessorStart,
        ]
    };

    /// The call with this number, if there is one.
    pub const fn from_u8(number: u8) -> Option<Number> {
        if (number as usize) < Self::ALL.len() { Some(Self::ALL[number as usize]) } else { None }
    }
}

/// In `rdx` of [`Number::PortIo`]: write, not read.
pub const PORT_WRITE: u64 = 1 << 8;

/// Why a call was refused. Errors are recoverable; nothing was done unless the call says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Error {
    /// No such call.
    BadNumber = 1,
    /// An argument is outside its range.
    BadArgument = 2,
    /// An address is not in the domain's memory, or not mapped with the needed rights.
    BadAddress = 3,
    /// The slot is empty or holds a capability of another kind.
    NoCapability = 4,
    /// The capability lacks the right.
    Denied = 5,
    /// The peer was destroyed or restarted. After a restart the next call reaches the new one.
    Gone = 6,
    /// The peer is not waiting now.
    Busy = 7,
    /// A page of the other domain is not in memory; ask its pager to bring it.
    NotPresent = 8,
    /// The frame, slot or page is in use.
    Occupied = 9,
    /// A page table is missing at this address; supply one.
    NoTable = 10,
    /// The message does not fit.
    TooLong = 11,
    /// A part of a long operation was done; call again to continue.
    Again = 12,
    /// Out of vectors or another fixed resource of the machine.
    Exhausted = 13,
}

impl Error {
    /// The error with this code, if there is one.
    pub const fn from_u8(code: u8) -> Option<Error> {
        Some(match code {
            1 => Error::BadNumber,
            2 => Error::BadArgument,
            3 => Error::BadAddress,
            4 => Error::NoCapability,
            5 => Error::Denied,
            6 => Error::Gone,
            7 => Error::Busy,
            8 => Error::NotPresent,
            9 => Error::Occupied,
            10 => Error::NoTable,
            11 => Error::TooLong,
            12 => Error::Again,
            13 => Error::Exhausted,
            _ => return None,
        })
    }
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Error::BadNumber => "no such call",
            Error::BadArgument => "argument out of range",
            Error::BadAddress => "bad address",
            Error::NoCapability => "no such capability",
            Error::Denied => "capability lacks the right",
            Error::Gone => "peer is gone",
            Error::Busy => "peer is busy",
            Error::NotPresent => "page not in memory",
            Error::Occupied => "in use",
            Error::NoTable => "page table missing",
            Error::TooLong => "message too long",
            Error::Again => "not finished, call again",
            Error::Exhausted => "out of a machine resource",
        })
    }
}

impl core::error::Error for Error {}

/// The word in `rax` on entry.
///
/// | bits | meaning |
/// |---|---|
/// | 0-7 | [`Number`] |
/// | 8-15 | label of the message |
/// | 16-31 | length of the message in bytes |
/// | 32-39 | own slot + 1 whose capability goes with the message; 0: none |
/// | 40-47 | own slot + 1 that takes a capability coming with the answer; 0: none is accepted |
/// | 63 | always 1 |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request(pub u64);

impl Request {
    /// Set in every request.
    pub const TOP: u64 = 1 << 63;

    /// A request without a message.
    pub const fn new(number: Number) -> Request {
        Request(Self::TOP | number as u64)
    }

    /// A request with a message of `length` bytes.
    pub const fn message(number: Number, label: u8, length: u16) -> Request {
        Request(Self::TOP | number as u64 | (label as u64) << 8 | (length as u64) << 16)
    }

    /// Sends the capability in the own slot `slot` along.
    #[must_use]
    pub const fn give(self, slot: u8) -> Request {
        Request(self.0 | (slot as u64 + 1) << 32)
    }

    /// Takes a capability that comes with the answer into the own slot `slot`, which must be empty.
    #[must_use]
    pub const fn accept(self, slot: u8) -> Request {
        Request(self.0 | (slot as u64 + 1) << 40)
    }

    /// The low byte, the [`Number`].
    pub const fn number(self) -> u8 {
        self.0 as u8
    }
    /// The label of the message.
    pub const fn label(self) -> u8 {
        (self.0 >> 8) as u8
    }
    /// The length of the message in bytes.
    pub const fn length(self) -> u16 {
        (self.0 >> 16) as u16
    }
    /// The slot given along, if any.
    pub const fn given(self) -> Option<u8> {
        ((self.0 >> 32) as u8).checked_sub(1)
    }
    /// The slot that accepts, if any.
    pub const fn accepting(self) -> Option<u8> {
        ((self.0 >> 40) as u8).checked_sub(1)
    }
}

/// Why a waiting server was woken: bits 40-47 of a [`Reply`] to [`Number::ReplyWait`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Wake {
    /// A call; the token in `rdi` answers it.
    Call = 0,
    /// A one-way message.
    Send = 1,
    /// Virtual interrupts; the lines are in `r15`.
    Interrupts = 2,
    /// The deadline has passed.
    Deadline = 3,
}

/// The word in `rax` on return.
///
/// | bits | meaning |
/// |---|---|
/// | 0-7 | 0 or [`Error`] |
/// | 8-15 | label of the message |
/// | 16-31 | length of the message in bytes |
/// | 32 | a capability came with the message and is in the accepting slot |
/// | 40-47 | [`Wake`] |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reply(pub u64);

impl Reply {
    /// Success without a message.
    pub const OK: Reply = Reply(0);

    /// A refusal.
    pub const fn error(error: Error) -> Reply {
        Reply(error as u64)
    }
    /// A message of `length` bytes.
    pub const fn message(label: u8, length: u16, wake: Wake) -> Reply {
        Reply((label as u64) << 8 | (length as u64) << 16 | (wake as u64) << 40)
    }
    /// The same with the mark that a capability came along.
    #[must_use]
    pub const fn with_capability(self) -> Reply {
        Reply(self.0 | 1 << 32)
    }
    /// `Err` if the call was refused.
    pub const fn result(self) -> Result<Reply, Error> {
        match Error::from_u8(self.0 as u8) {
            Some(error) => Err(error),
            None => Ok(self),
        }
    }
    /// The label of the message.
    pub const fn label(self) -> u8 {
        (self.0 >> 8) as u8
    }
    /// The length of the message in bytes.
    pub const fn length(self) -> u16 {
        (self.0 >> 16) as u16
    }
    /// Whether a capability came along.
    pub const fn has_capability(self) -> bool {
        self.0 & 1 << 32 != 0
    }
    /// Why the server was woken.
    pub const fn wake(self) -> Wake {
        match (self.0 >> 40) as u8 {
            0 => Wake::Call,
            1 => Wake::Send,
            2 => Wake::Interrupts,
            _ => Wake::Deadline,
        }
    }
}

/// Names the domain, extent or caller that a call acts on.
///
/// | kind (bits 60-63) | meaning | bits |
/// |---|---|---|
/// | 0 own | the calling domain itself | the whole word is 0 |
/// | 1 slot | the domain, or the extent, behind a slot | 48-59 slot |
/// | 2 pool | the domain whose control block lies in this frame of the extent behind a slot | 0-27 frame, 28-53 generation, 54-59 slot |
/// | 3 caller | the range lent by a caller that waits for our reply: the reply token itself | 0-31 frame, 32-59 sequence |
/// | 4 zero | in transfers: a source of zero bytes | |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target(pub u64);

/// A [`Target`] taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetKind {
    /// The calling domain.
    Own,
    /// What a slot of the caller names.
    Slot(u8),
    /// A domain in an extent.
    Pool {
        /// Slot of the extent.
        slot: u8,
        /// Frame number of the control block.
        frame: u32,
        /// Low [`Target::GENERATION_BITS`] bits of the generation of that frame.
        generation: u32,
    },
    /// A caller waiting for a reply.
    Caller {
        /// Frame number of the caller's control block.
        frame: u32,
        /// The call's sequence number, 28 bits.
        sequence: u32,
    },
    /// Zero bytes.
    Zero,
}

impl Target {
    /// The calling domain.
    pub const OWN: Target = Target(0);
    /// A source of zero bytes.
    pub const ZERO: Target = Target(4 << 60);
    /// Bits of a generation that a pool target carries: a frame must hold so many domains after one another before an old name of one
    /// could be taken for another.
    pub const GENERATION_BITS: u32 = 26;
    /// Those bits.
    pub const GENERATION_MASK: u32 = (1 << Self::GENERATION_BITS) - 1;
    /// Bits of a call's sequence number that a token carries.
    pub const SEQUENCE_MASK: u32 = (1 << 28) - 1;

    /// The domain or extent behind a slot.
    pub const fn slot(slot: u8) -> Target {
        Target(1 << 60 | (slot as u64) << 48)
    }
    /// The domain with its control block in `frame` of the extent behind `slot`.
    pub const fn pool(slot: u8, frame: u32, generation: u32) -> Target {
        let generation = (generation & Self::GENERATION_MASK) as u64;
        Target(2 << 60 | (slot as u64 & 63) << 54 | generation << 28 | frame as u64 & ((1 << 28) - 1))
    }
    /// The caller with this control block and call.
    pub const fn caller(frame: u32, sequence: u32) -> Target {
        Target(3 << 60 | ((sequence & Self::SEQUENCE_MASK) as u64) << 32 | frame as u64)
    }
    /// Takes the word apart; `None` if its kind is unknown.
    pub const fn kind(self) -> Option<TargetKind> {
        let slot = (self.0 >> 48) as u8;
        Some(match self.0 >> 60 {
            0 if self.0 == 0 => TargetKind::Own,
            1 => TargetKind::Slot(slot),
            2 => TargetKind::Pool {
                slot: (self.0 >> 54) as u8 & 63,
                frame: self.0 as u32 & ((1 << 28) - 1),
                generation: (self.0 >> 28) as u32 & Self::GENERATION_MASK,
            },
            3 => TargetKind::Caller { frame: self.0 as u32, sequence: (self.0 >> 32) as u32 & Self::SEQUENCE_MASK },
            4 => TargetKind::Zero,
            _ => return None,
        })
    }
}

/// A page-aligned range that a caller lends to the server for the time of one call, in `r15`.
///
/// Bits 0-11 are the number of pages (0: nothing is lent), the rest is the address. The server may
/// transfer from and to it until it replies ([`TargetKind::Caller`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lend(pub u64);

impl Lend {
    /// Nothing is lent.
    pub const NONE: Lend = Lend(0);
    /// Most pages that can be lent: just under 16 MiB.
    pub const MAX_PAGES: u64 = 4095;

    /// `pages` pages from the page-aligned `address`; `None` if it is not aligned or too long.
    pub const fn new(address: u64, pages: u64) -> Option<Lend> {
        if address & 4095 != 0 || pages > Self::MAX_PAGES { None } else { Some(Lend(address | pages)) }
    }
    /// First byte.
    pub const fn address(self) -> u64 {
        self.0 & !4095
    }
    /// Length in bytes.
    pub const fn length(self) -> u64 {
        (self.0 & 4095) * 4096
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_round_trip() {
        for (index, number) in Number::ALL.iter().enumerate() {
            assert_eq!(*number as usize, index);
            assert_eq!(Number::from_u8(index as u8), Some(*number));
        }
        assert_eq!(Number::from_u8(Number::ALL.len() as u8), None);
    }

    #[test]
    fn errors_round_trip() {
        let known = (0..=255).filter_map(Error::from_u8).inspect(|e| assert_eq!(Error::from_u8(*e as u8), Some(*e)));
        assert_eq!(known.count(), 13);
    }

    proptest! {
        #[test]
        fn targets_round_trip(slot in 0u8..64, frame: u32, generation: u32, sequence: u32) {
            prop_assert_eq!(Target::slot(slot).kind(), Some(TargetKind::Slot(slot)));
            let pool = TargetKind::Pool { slot, frame: frame >> 4, generation: generation & Target::GENERATION_MASK };
            prop_assert_eq!(Target::pool(slot, frame >> 4, generation).kind(), Some(pool));
            prop_assert_eq!(
                Target::caller(frame, sequence).kind(),
                Some(TargetKind::Caller { frame, sequence: sequence & Target::SEQUENCE_MASK })
            );
        }

        #[test]
        fn requests_round_trip(label: u8, length: u16, give in 0u8..255, accept in 0u8..255) {
            let request = Request::message(Number::Call, label, length).give(give).accept(accept);
            prop_assert_eq!(request.number(), Number::Call as u8);
            prop_assert_eq!((request.label(), request.length()), (label, length));
            prop_assert_eq!((request.given(), request.accepting()), (Some(give), Some(accept)));
        }

        #[test]
        fn any_target_word_is_harmless(word: u64) {
            let _ = Target(word).kind();
            let _ = Reply(word).result();
        }
    }
}
