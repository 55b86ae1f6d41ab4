//! Domains from outside: creation, control, events, virtual interrupt lines.

/// Virtual interrupt lines. Every domain has 64.
pub mod line {
    /// The timer set with [`crate::abi::Number::SetTimer`] has run out.
    pub const TIMER: u8 = 0;
    /// VM: packets arrived or were sent. Server: events wait in queue 1 (NIC doorbells).
    pub const NIC: u8 = 1;
    /// VM: disk requests are done. Server: events wait in queue 2 (disk doorbells).
    pub const DISK: u8 = 2;
    /// VM: console input. Server: events wait in queue 3 (console doorbells).
    pub const CONSOLE: u8 = 3;
    /// VM: this VM is a new clone. Server: events wait in queue 0 (traps of the domains it handles).
    pub const TRAP: u8 = 4;
    /// VM: same line as [`TRAP`]; a VM handles no traps of others.
    pub const CLONE: u8 = 4;
    /// Server: a peer was restarted; sessions with it must be opened anew.
    pub const PEER_RESTARTED: u8 = 5;
    /// Server: first of the lines that peers raise (the manifest assigns them, up to 31).
    pub const PEER_FIRST: u8 = 8;
    /// Server: first of the lines for hardware interrupts.
    pub const HARDWARE_FIRST: u8 = 32;
    /// Server: an interrupt of a device whose line others share; the platform server raises it.
    pub const SHARED_INTERRUPT: u8 = 63;
    /// Lines of a domain.
    pub const COUNT: u8 = 64;
    /// No line.
    pub const NONE: u8 = 255;
}

/// A device of a VM. Its number is that of its doorbell, of its window and of its event queue at the service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Device {
    /// Network interface.
    Nic = 1,
    /// Disk.
    Disk = 2,
    /// Console.
    Console = 3,
}

impl Device {
    /// Its bit among doorbells that are rung together.
    pub const fn bit(self) -> u64 {
        1 << self as u8
    }
}

/// Event queues of a domain: traps, then one for each [`Device`].
pub const QUEUES: usize = 4;
/// The queue of traps.
pub const TRAP_QUEUE: u8 = 0;

/// The line that says that queue `queue` is no longer empty.
pub const fn queue_line(queue: u8) -> u8 {
    if queue == TRAP_QUEUE { line::TRAP } else { queue }
}

/// Scheduling bands, best first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum Band {
    /// Drivers.
    Driver = 0,
    /// Servers.
    Server = 1,
    /// VMs.
    Vm = 2,
}

/// Number of bands.
pub const BANDS: usize = 3;

/// Steps of [`crate::abi::Number::ProcessorStart`], in this order for each processor (Intel SDM vol. 3, 9.4.4): the kernel does not
/// wait, the caller does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ProcessorStep {
    /// Resets it. Then it needs 10 ms.
    Reset = 0,
    /// Starts it; again after 1 ms if it has not come. [`crate::abi::Error::Busy`] while another one is being started.
    Start = 1,
    /// Compares its time stamp counter with that of the first, and lets it run domains. [`crate::abi::Error::Again`] while it has not come or is not
    /// done; [`crate::abi::Error::Denied`] if the counters differ and cannot be made the same: it stays off.
    Join = 2,
    /// Gives it up.
    Abandon = 3,
}

impl ProcessorStep {
    /// The step with this code, if there is one.
    pub const fn from_u64(code: u64) -> Option<ProcessorStep> {
        Some(match code {
            0 => ProcessorStep::Reset,
            1 => ProcessorStep::Start,
            2 => ProcessorStep::Join,
            3 => ProcessorStep::Abandon,
            _ => return None,
        })
    }
}

/// A range of a domain's memory that a service may transfer from and to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Window {
    /// First byte.
    pub address: u64,
    /// Bytes.
    pub length: u64,
}

/// What a domain is created from ([`crate::abi::Number::DomainCreate`]). The domain starts stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct DomainParameters {
    /// A free frame for the root page table.
    pub root_frame: u64,
    /// Slot of the extent that it is in: a memory capability with CREATE.
    pub root_slot: u64,
    /// A number of the creator's choice, handed back in every event.
    pub tag: u64,
    /// Address of the virtual register page; 0: the domain has none.
    pub register_page: u64,
    /// [`Band`]; not better than the creator's own.
    pub band: u64,
    /// The domain that takes faults, exits and `ready`: a [`crate::abi::Target`], `OWN` for the creator.
    pub handler: u64,
    /// The services behind the doorbells of NIC, disk and console: [`crate::abi::Target`]s, 0 for none.
    pub services: [u64; 3],
    /// The windows of NIC, disk and console.
    pub windows: [Window; 3],
}

/// Operations of [`crate::abi::Number::DomainControl`]. All need [`crate::capability::Rights::CONTROL`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Control {
    /// Starts a stopped domain at `rdx` with stack pointer `r8` and `rdi` = `r9`.
    Start = 0,
    /// Lets a domain go on after a trap.
    Resume = 1,
    /// Stops a domain. A call of it is given up; callers waiting for it stay.
    Stop = 2,
    /// Makes a domain as new, for a restart in place: callers get `Gone`, slots are emptied, mappings
    /// and page tables below the root are given up. `Again` until finished.
    Reset = 3,
    /// Ends a domain for good. `Again` until finished; then its frames are free and all capabilities to it dead.
    Destroy = 4,
    /// Sets window `rdx` (1-3) to address `r8`, `r9` bytes.
    SetWindow = 5,
    /// Sets the service behind doorbell `rdx` (1-3) to the domain `r8` ([`crate::abi::Target`]).
    SetService = 6,
    /// Takes a domain aside as it is: runnable, idle or trapped. It gets nothing but pending lines until it is released.
    /// [`crate::abi::Error::Busy`] if it is in a call, if a service has not yet taken one of its doorbells, or if it traps at this moment.
    Hold = 7,
    /// Lets a held domain go on where it was. If it was trapped, its trap is put into its handler's queue once more; if it was idle and has pending
    /// lines, it wakes.
    Release = 8,
}

impl Control {
    /// The operation with this code, if there is one.
    pub const fn from_u64(code: u64) -> Option<Control> {
        Some(match code {
            0 => Control::Start,
            1 => Control::Resume,
            2 => Control::Stop,
            3 => Control::Reset,
            4 => Control::Destroy,
            5 => Control::SetWindow,
            6 => Control::SetService,
            7 => Control::Hold,
            8 => Control::Release,
            _ => return None,
        })
    }
}

/// What happened to a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum EventKind {
    /// A page fault. `code`: bit 0 the page was present, bit 1 write, bit 4 instruction fetch. The domain waits for `Resume`.
    PageFault = 1,
    /// Another processor exception. `code`: vector; `value`: error code. The domain waits.
    Exception = 2,
    /// The domain ended itself with `code`. It is stopped.
    Exit = 3,
    /// The domain said `ready`. It waits for `Resume`.
    Ready = 4,
    /// The domain rang the doorbell of this queue. It goes on.
    Doorbell = 5,
}

impl EventKind {
    /// The kind with this code, if there is one.
    pub const fn from_u32(code: u32) -> Option<EventKind> {
        Some(match code {
            1 => EventKind::PageFault,
            2 => EventKind::Exception,
            3 => EventKind::Exit,
            4 => EventKind::Ready,
            5 => EventKind::Doorbell,
            _ => return None,
        })
    }
}

/// In the `code` of a page fault: the page was present (a protection fault).
pub const FAULT_PRESENT: u32 = 1 << 0;
/// In the `code` of a page fault: a write.
pub const FAULT_WRITE: u32 = 1 << 1;
/// In the `code` of a page fault: an instruction fetch.
pub const FAULT_EXECUTE: u32 = 1 << 4;

/// An entry of an event queue ([`crate::abi::Number::Collect`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Event {
    /// Frame of the domain's control block.
    pub frame: u32,
    /// Low 26 bits of the frame's generation, for [`crate::abi::Target::pool`].
    pub generation: u32,
    /// The creator's tag.
    pub tag: u64,
    /// [`EventKind`].
    pub kind: u32,
    /// By kind.
    pub code: u32,
    /// Fault address.
    pub address: u64,
    /// Instruction pointer.
    pub instruction: u64,
    /// By kind.
    pub value: u64,
}

/// Figures of a domain ([`crate::abi::Number::DomainUsage`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Usage {
    /// Nanoseconds of processor time.
    pub cpu_time: u64,
    /// Times the domain was switched to.
    pub switches: u64,
    /// 0 stopped, 1 runnable or running, 2 waiting for a message or interrupt, 3 in a call, 4 trapped, 5 held, 6 ending.
    pub state: u64,
    /// Times it was reset.
    pub incarnation: u64,
}

/// Bytes of the floating-point state: x87, SSE and AVX in XSAVE format (Intel SDM vol. 1, 13.4).
pub const FPU_BYTES: usize = 832;

/// The state of a held domain ([`crate::abi::Number::DomainSave`]): all that makes it go on elsewhere but its memory and its services.
///
/// The kernel checks what it is given back and makes harmless what no domain can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct SavedDomain {
    /// General registers, instruction and stack pointer, flags, in the kernel's order.
    pub registers: [u64; 18],
    /// As in [`Usage::state`], what it was when it was held: 1 runnable, 2 idle, 4 trapped.
    pub state: u32,
    /// The kernel's flags of it: floating-point state in use, reward for having idled early.
    pub flags: u32,
    /// Idle: until then; [`crate::abi::NEVER`]: without end.
    pub deadline: u64,
    /// When its stop clock runs out; [`crate::abi::NEVER`]: it is not set.
    pub clock: u64,
    /// Pending lines that it was not told of.
    pub pending: u64,
    /// Its trap: kind and code, address, value.
    pub trap: [u64; 3],
    /// Processor time so far, in the kernel's ticks.
    pub cpu_ticks: u64,
    /// Times switched to.
    pub switches: u64,
    /// Windows of NIC, disk and console: address and bytes.
    pub windows: [[u64; 2]; 3],
    /// Floating-point state.
    pub fpu: [u8; FPU_BYTES],
}

impl SavedDomain {
    /// All zero: no domain can go on from it.
    pub const ZERO: SavedDomain = SavedDomain {
        registers: [0; 18],
        state: 0,
        flags: 0,
        deadline: 0,
        clock: 0,
        pending: 0,
        trap: [0; 3],
        cpu_ticks: 0,
        switches: 0,
        windows: [[0; 2]; 3],
        fpu: [0; FPU_BYTES],
    };

    /// As it lies in memory, little-endian.
    pub fn to_bytes(&self) -> [u8; size_of::<SavedDomain>()] {
        let mut bytes = [0; size_of::<SavedDomain>()];
        let [kind, address, value] = self.trap;
        let words = self.registers.into_iter().chain([
            u64::from(self.state) | u64::from(self.flags) << 32,
            self.deadline,
            self.clock,
            self.pending,
            kind,
            address,
            value,
            self.cpu_ticks,
            self.switches,
        ]);
        let words = words.chain(self.windows.into_iter().flatten());
        let (front, fpu) = bytes.split_at_mut(size_of::<SavedDomain>() - FPU_BYTES);
        for (chunk, word) in front.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        fpu.copy_from_slice(&self.fpu);
        bytes
    }

    /// From such bytes.
    pub fn from_bytes(bytes: &[u8; size_of::<SavedDomain>()]) -> SavedDomain {
        let word = |index: usize| bytes.as_chunks().0.get(index).map_or(0, |chunk| u64::from_le_bytes(*chunk));
        let mut fpu = [0; FPU_BYTES];
        fpu.copy_from_slice(&bytes[size_of::<SavedDomain>() - FPU_BYTES..]);
        SavedDomain {
            registers: core::array::from_fn(word),
            state: word(18) as u32,
            flags: (word(18) >> 32) as u32,
            deadline: word(19),
            clock: word(20),
            pending: word(21),
            trap: [word(22), word(23), word(24)],
            cpu_ticks: word(25),
            switches: word(26),
            windows: [[word(27), word(28)], [word(29), word(30)], [word(31), word(32)]],
            fpu,
        }
    }
}

/// Where a hardware interrupt comes from: `rdx` of [`crate::abi::Number::InterruptCreate`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptSource {
    /// A message-signalled interrupt; the kernel answers with the address and data to program.
    Message,
    /// A line of an I/O APIC.
    Line {
        /// Global system interrupt.
        number: u32,
        /// Level-triggered (else edge).
        level: bool,
        /// Active low (else high).
        low: bool,
    },
}

impl InterruptSource {
    /// As a register: bit 63 message, bit 33 level, bit 32 active low, bits 0-31 the global interrupt.
    pub const fn to_word(self) -> u64 {
        match self {
            InterruptSource::Message => 1 << 63,
            InterruptSource::Line { number, level, low } => number as u64 | (level as u64) << 33 | (low as u64) << 32,
        }
    }
    /// From a register.
    pub const fn from_word(word: u64) -> InterruptSource {
        if word >> 63 != 0 {
            InterruptSource::Message
        } else {
            InterruptSource::Line { number: word as u32, level: word & 1 << 33 != 0, low: word & 1 << 32 != 0 }
        }
    }
}

const _: () = assert!(size_of::<SavedDomain>() == 1096);
const _: () = assert!(size_of::<DomainParameters>() == 120 && size_of::<Event>() == 48 && size_of::<Usage>() == 32);

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn saved_domains_round_trip(bytes in prop::collection::vec(any::<u8>(), size_of::<SavedDomain>())) {
            let bytes: [u8; size_of::<SavedDomain>()] = bytes.try_into().unwrap();
            prop_assert!(SavedDomain::from_bytes(&bytes).to_bytes() == bytes);
        }
    }
}
