//! The control block: all that the kernel keeps of a domain, in one frame that its creator donated.
//!
//! Only integers, so that every content of the frame is a valid value. Fields that form a state machine are
//! read through typed accessors.

use crate::{Frame, NO_FRAME, capability::Capability, lists::Link};
use protocol::{
    abi::MESSAGE_WORDS,
    capability::SLOTS,
    domain::{FPU_BYTES, QUEUES, Window},
};

/// The registers of a domain that is not running. The message words come first, in the order of
/// [`protocol::abi`]; the entry code in `microkernel` knows these offsets.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// `rsi rdx r8 r9 r10 r12 r13 r14`
    pub words: [u64; MESSAGE_WORDS],
    /// Request in, reply out.
    pub rax: u64,
    /// Slot, token, first argument.
    pub rdi: u64,
    /// Lend, deadline, badge.
    pub r15: u64,
    /// Not used by calls.
    pub rbx: u64,
    /// Not used by calls.
    pub rbp: u64,
    /// Lost by `syscall`.
    pub rcx: u64,
    /// Lost by `syscall`.
    pub r11: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
}

/// What a domain is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// Not started, or stopped.
    Stopped = 0,
    /// In a run queue, or running.
    Runnable = 1,
    /// In `idle`.
    Idle = 2,
    /// In `reply_wait`, waiting for a message.
    Receiving = 3,
    /// In `call`, in the queue of callers of `partner`.
    Calling = 4,
    /// In `call`, taken by `partner`, waiting for its reply.
    Awaiting = 5,
    /// Its trap is being handled.
    Trapped = 6,
    /// Being reset.
    Resetting = 7,
    /// Being destroyed.
    Dying = 8,
    /// Taken aside as it was.
    Held = 9,
}

/// Flag: return to the domain with all registers restored, not by the short way out of a system call. The entry code sets it for
/// whoever did not come by a system call.
pub const FLAG_FULL_RESTORE: u8 = 1;
/// Flag: the domain has used the floating-point unit; its state is switched.
pub const FLAG_FPU: u8 = 2;
/// Flag: the domain went idle before its slice was over: it goes to the front of its queue when it wakes.
pub const FLAG_REWARD: u8 = 4;
/// It woke, and was not preempted since: what it does is probably short.
pub const FLAG_WOKE: u8 = 8;

/// A domain that an event goes to.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct DomainRef {
    /// Frame of its control block; [`NO_FRAME`]: nobody.
    pub frame: Frame,
    /// Generation of that frame.
    pub generation: u32,
}

impl DomainRef {
    /// Nobody.
    pub const NOBODY: DomainRef = DomainRef { frame: NO_FRAME, generation: 0 };
}

impl ListHead {
    /// An empty list.
    pub const EMPTY: ListHead = ListHead { first: NO_FRAME, last: NO_FRAME };
}

impl Registers {
    /// All zero.
    pub const ZERO: Registers = Registers {
        words: [0; MESSAGE_WORDS],
        rax: 0,
        rdi: 0,
        r15: 0,
        rbx: 0,
        rbp: 0,
        rcx: 0,
        r11: 0,
        rsp: 0,
        rip: 0,
        rflags: 0,
    };
}

/// A list of control blocks.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ListHead {
    /// First, or [`NO_FRAME`].
    pub first: Frame,
    /// Last, or [`NO_FRAME`].
    pub last: Frame,
}

/// A node of the timer tree. A domain has two: the deadline of its wait, and its own stop clock.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TimerNode {
    /// Nanoseconds since kernel entry; 0: not in the tree.
    pub deadline: u64,
    /// Smaller deadlines.
    pub left: u32,
    /// Larger deadlines.
    pub right: u32,
}

/// The last trap of a domain, for its handler.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Trap {
    /// [`protocol::domain::EventKind`].
    pub kind: u32,
    /// By kind.
    pub code: u32,
    /// Fault address.
    pub address: u64,
    /// By kind.
    pub value: u64,
}

/// The control block.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct ControlBlock {
    /// Registers; must stay first.
    pub registers: Registers,
    /// [`FLAG_FULL_RESTORE`] and so on; the entry code knows its offset.
    pub flags: u8,
    state: u8,
    /// Scheduling band.
    pub band: u8,
    /// Bit `q`: this domain is in event queue `q` of `services[q]`.
    pub queued: u8,
    /// Root page table.
    pub root: Frame,
    /// This frame's own number.
    pub frame: Frame,
    /// Generation of this frame.
    pub generation: u32,
    /// Times it was reset.
    pub incarnation: u32,
    /// Sequence number of its last call.
    pub sequence: u32,
    /// The server that it calls.
    pub partner: Frame,
    /// Where it stands in a run queue, or among the callers or clients of `partner`.
    pub link: Link,
    /// Domains that call and wait to be taken.
    pub callers: ListHead,
    /// Domains that were taken and wait for a reply.
    pub clients: ListHead,
    /// Lines raised and not yet delivered.
    pub pending: u64,
    /// Request word of a call or wait in progress.
    pub request: u64,
    /// Badge of a call in progress.
    pub badge: u64,
    /// Range lent in a call in progress.
    pub lend: u64,
    /// Address of the buffer for long messages; 0: none.
    pub buffer: u64,
    /// Address of the virtual register page; 0: none.
    pub register_page: u64,
    /// The creator's number for it.
    pub tag: u64,
    /// Who takes its traps (0) and doorbells (1-3).
    pub services: [DomainRef; QUEUES],
    /// Where it stands in their queues.
    pub event_links: [Link; QUEUES],
    /// Its own event queues.
    pub queues: [ListHead; QUEUES],
    /// Its last trap.
    pub trap: Trap,
    /// Windows of NIC, disk and console.
    pub windows: [Window; 3],
    /// Timers: wait, stop clock.
    pub timers: [TimerNode; 2],
    /// Nanoseconds left of its time slice while it does not run; 0: it gets a whole one.
    pub slice_left: u64,
    /// When it last went idle.
    pub idle_since: u64,
    /// Ticks of processor time.
    pub cpu_ticks: u64,
    /// Times switched to.
    pub switches: u64,
    /// The processor that runs it, in whose queue it waits, or that ran it last.
    pub processor: u8,
    /// The processors whose timers its two are, while they are set.
    pub timer_processors: [u8; 2],
    /// When it is held: the [`State`] that it had.
    pub held_from: u8,
    /// When it is held: the deadline of its wait; [`protocol::abi::NEVER`]: none.
    pub held_deadline: u64,
    /// Capabilities.
    pub slots: [Capability; SLOTS],
    /// Floating-point state.
    pub fpu: Fpu,
}

/// The floating-point state, aligned as XSAVE wants it.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Fpu(pub [u8; FPU_BYTES]);

const _: () = assert!(size_of::<ControlBlock>() == 4096);

impl Fpu {
    /// The state of a processor that has used nothing: x87 control word 0x37f, MXCSR 0x1f80, no component in use.
    pub const INITIAL: Fpu = {
        let mut bytes = [0; FPU_BYTES];
        (bytes[0], bytes[1]) = (0x7f, 0x03);
        (bytes[24], bytes[25]) = (0x80, 0x1f);
        Fpu(bytes)
    };

    /// Makes of any bytes a state that the processor loads without a fault (Intel SDM vol. 1, 13.8.1): only known components in the standard
    /// format, the rest of the header and the reserved bits of MXCSR zero.
    pub fn make_valid(&mut self, components: u64) {
        let Fpu(bytes) = self;
        let mut header = [0; 64];
        header[..8].copy_from_slice(&bytes[512..520]);
        header[0] &= components as u8;
        header[1..].fill(0);
        bytes[512..576].copy_from_slice(&header);
        // The upper half of MXCSR is reserved on every processor with SSE2.
        (bytes[26], bytes[27]) = (0, 0);
    }
}

impl ControlBlock {
    /// What the domain is doing.
    #[inline]
    pub fn state(&self) -> State {
        match self.state {
            1 => State::Runnable,
            2 => State::Idle,
            3 => State::Receiving,
            4 => State::Calling,
            5 => State::Awaiting,
            6 => State::Trapped,
            7 => State::Resetting,
            8 => State::Dying,
            9 => State::Held,
            _ => State::Stopped,
        }
    }

    /// Changes what the domain is doing.
    #[inline]
    pub fn set_state(&mut self, state: State) {
        self.state = state as u8;
    }

    /// Whether it is a VM: has a virtual register page, and faults where others get errors.
    #[inline]
    pub fn is_vm(&self) -> bool {
        self.register_page != 0
    }

    /// A stopped domain that has nothing.
    pub const EMPTY: ControlBlock = ControlBlock {
        registers: Registers::ZERO,
        flags: 0,
        state: 0,
        band: 0,
        queued: 0,
        root: NO_FRAME,
        frame: NO_FRAME,
        generation: 0,
        incarnation: 0,
        sequence: 0,
        partner: NO_FRAME,
        link: Link { next: NO_FRAME, previous: NO_FRAME },
        callers: ListHead::EMPTY,
        clients: ListHead::EMPTY,
        pending: 0,
        request: 0,
        badge: 0,
        lend: 0,
        buffer: 0,
        register_page: 0,
        tag: 0,
        services: [DomainRef::NOBODY; QUEUES],
        event_links: [Link { next: NO_FRAME, previous: NO_FRAME }; QUEUES],
        queues: [ListHead::EMPTY; QUEUES],
        trap: Trap { kind: 0, code: 0, address: 0, value: 0 },
        windows: [Window { address: 0, length: 0 }; 3],
        timers: [TimerNode { deadline: 0, left: 0, right: 0 }; 2],
        slice_left: 0,
        idle_since: 0,
        cpu_ticks: 0,
        switches: 0,
        processor: 0,
        timer_processors: [0; 2],
        held_from: 0,
        held_deadline: 0,
        slots: [Capability::EMPTY; SLOTS],
        fpu: Fpu::INITIAL,
    };
}
