//! The ways of misbehaving that the guest `hostile` knows, and what must come of each.
//!
//! This table is used twice: by the guest, which does what it is told in its arguments, and by the tests
//! that boot the system, which check from outside that the guest alone suffers.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod modes;

pub use modes::MODES;

/// A way of misbehaving. The VM's arguments are its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mode {
    /// Name.
    pub name: &'static str,
    /// What the guest does.
    pub about: &'static str,
    /// The same, for the guest.
    pub act: Act,
    /// What must come of it.
    pub expected: Expected,
}

/// What must come of a mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// The VM is stopped for one of these reasons.
    Stopped(&'static [Reason]),
    /// The VM ends itself with code 0: what it did had no bad consequence, which it has checked itself as far as it can.
    Ends,
    /// Either: it depends on the processor.
    EndsOrStopped(&'static [Reason]),
    /// The VM ends itself with this code.
    EndsWith(u32),
    /// The VM goes on for ever.
    GoesOn,
}

/// Why a VM is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// It read what it may not read.
    Read,
    /// It wrote what it may not write.
    Write,
    /// It jumped where there is no code.
    Jump,
    /// It faults again and again where it may do what it does. Older QEMU takes what far transfers read and write on
    /// the stack for accesses of the kernel, and so finds SMAP in their way.
    Endless,
    /// Processor exception 0.
    DivideError,
    /// Processor exception 1.
    Debug,
    /// Processor exception 3.
    Breakpoint,
    /// Processor exception 6.
    InvalidOpcode,
    /// Processor exception 11.
    SegmentNotPresent,
    /// Processor exception 12.
    StackFault,
    /// Processor exception 13.
    GeneralProtection,
    /// Processor exception 16.
    X87,
    /// Processor exception 17.
    Alignment,
    /// Processor exception 19.
    Simd,
}

impl Reason {
    /// The words by which the console names it.
    pub const fn words(self) -> &'static str {
        match self {
            Reason::Read => "stopped: read from",
            Reason::Write => "stopped: write to",
            Reason::Jump => "stopped: jump to",
            Reason::Endless => "keeps faulting at",
            Reason::DivideError => "stopped: divide error",
            Reason::Debug => "stopped: debug exception",
            Reason::Breakpoint => "stopped: breakpoint",
            Reason::InvalidOpcode => "stopped: invalid opcode",
            Reason::SegmentNotPresent => "stopped: segment not present",
            Reason::StackFault => "stopped: stack segment fault",
            Reason::GeneralProtection => "stopped: general protection fault",
            Reason::X87 => "stopped: x87 floating-point exception",
            Reason::Alignment => "stopped: alignment check",
            Reason::Simd => "stopped: SIMD floating-point exception",
        }
    }
}

impl Expected {
    /// Whether the VM comes to an end.
    pub fn is_end(self) -> bool {
        self != Expected::GoesOn
    }

    /// Whether this line of the console, about the end of the VM, is what must come of the mode.
    pub fn is_met_by(self, line: &str) -> bool {
        let ended = |code: u32| {
            line.split_once("ended with code ").is_some_and(|(_, rest)| {
                let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
                digits.parse() == Ok(code)
            })
        };
        let stopped = |reasons: &[Reason]| reasons.iter().any(|reason| line.contains(reason.words()));
        match self {
            Expected::Stopped(reasons) => stopped(reasons),
            Expected::Ends => ended(0),
            Expected::EndsOrStopped(reasons) => ended(0) || stopped(reasons),
            Expected::EndsWith(code) => ended(code),
            Expected::GoesOn => false,
        }
    }
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// Executes a privileged instruction.
    Privileged(Privileged),
    /// Executes one of the sensitive instructions of Robin and Irvine and reports what it did.
    Sensitive(Sensitive),
    /// Causes a processor exception.
    Exception(Exception),
    /// Reads.
    Read(Place),
    /// Writes.
    Write(Place),
    /// Jumps.
    Jump(Place),
    /// Faults with the stack pointer at a place where there is no stack.
    Stack(Place),
    /// Makes system calls in an odd state of the processor.
    Call(OddCall),
    /// Misuses hypercalls.
    Hypercalls(Hypercalls),
    /// Misuses the virtual register page.
    Registers(Registers),
    /// Misuses the NIC.
    Network(Network),
    /// Misuses the console.
    Console(Console),
    /// Uses the processor and the memory.
    Resources(Resources),
}

/// Privileged instructions.
#[allow(missing_docs)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privileged {
    Cli,
    Sti,
    Hlt,
    In,
    Out,
    Ins,
    Lgdt,
    Lidt,
    Lldt,
    Ltr,
    ReadCr0,
    WriteCr0,
    WriteCr3,
    WriteCr4,
    WriteCr8,
    WriteDr7,
    Rdmsr,
    Wrmsr,
    Rdpmc,
    Invlpg,
    Invd,
    Wbinvd,
    Clts,
    Lmsw,
    Swapgs,
    Sysret,
    Sysexit,
    Sysenter,
    Xsetbv,
    Monitor,
    Vmcall,
    IretKernel,
    FarCallKernel,
    FarJumpKernel,
    FarReturnKernel,
    LoadKernelSegment,
}

/// The sensitive, unprivileged instructions of the x86 (Robin and Irvine, 2000): those that keep a processor without
/// hardware support from being virtualised. The paper counts VERR and VERW as one, which makes 17.
#[allow(missing_docs)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sensitive {
    Sgdt,
    Sidt,
    Sldt,
    Smsw,
    Pushf,
    Popf,
    Lar,
    Lsl,
    Verr,
    Verw,
    Pop,
    Push,
    Call,
    Jmp,
    Int,
    Ret,
    Str,
    Mov,
}

/// Processor exceptions.
#[allow(missing_docs)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exception {
    Divide,
    Breakpoint,
    DebugTrap,
    SingleStep,
    InvalidOpcode,
    Alignment,
    X87,
    Simd,
}

/// Addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// 0.
    Null,
    /// In the part of the address space below a VM's memory.
    Low,
    /// The first address behind the VM's memory.
    Behind,
    /// The last address of the lower half.
    LowerEnd,
    /// Where kernels keep all physical memory.
    Kernel,
    /// The last page of the address space.
    KernelEnd,
    /// Not canonical.
    NonCanonical,
    /// The guest's own code.
    Code,
    /// The guest's own constants.
    Constants,
    /// The virtual register page.
    Registers,
    /// The guest's stack.
    Data,
    /// The last two bytes of the VM's memory, where a `syscall` instruction was written.
    LastBytes,
}

/// System calls in an odd state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OddCall {
    /// With the direction flag set.
    Direction,
    /// With the nested-task flag set.
    NestedTask,
    /// With the alignment-check flag set, which on the kernel's side lifts SMAP.
    AlignmentCheck,
    /// While single-stepping.
    SingleStep,
    /// With a stack pointer into the kernel.
    KernelStack,
    /// With a stack pointer that is not canonical.
    NonCanonicalStack,
    /// Without the top bit in `rax`.
    NoTopBit,
    /// By `int 0x80`.
    Interrupt80,
}

/// Misuses of hypercalls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hypercalls {
    /// Every call with random arguments.
    Random,
    /// Every number from 0 to 255.
    Numbers,
    /// Every call that takes an address, with addresses of the kernel and others that nobody has.
    Addresses,
    /// A call that writes into the guest's own code.
    IntoCode,
    /// A call that writes behind the VM's memory.
    Behind,
    /// Doorbells of all devices and more, as fast as can be.
    Doorbells,
    /// Timers at all times, as fast as can be.
    Timers,
    /// Idling with a deadline that is past, as fast as can be.
    Idle,
    /// Saying `ready` again and again.
    Ready,
    /// Ending at once.
    Exit,
    /// A panic.
    Panic,
}

/// Misuses of the register page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Registers {
    /// Random bytes all over it.
    Scribble,
    /// An interrupt handler in the kernel.
    HandlerKernel,
    /// An interrupt handler at an address that is not canonical.
    HandlerNonCanonical,
    /// An interrupt handler in data.
    HandlerData,
    /// A stack for the interrupt handler in the kernel.
    HandlerStackKernel,
    /// A return from an interrupt to an address that is not canonical.
    ReturnNonCanonical,
    /// A return from an interrupt to the kernel.
    ReturnKernel,
    /// A return from an interrupt with all flags set that a user may not set.
    ReturnFlags,
}

/// Misuses of the NIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    /// Broadcasts, as fast as can be, for ever.
    Flood,
    /// Frames with the addresses of others.
    Forge,
    /// Frames of random bytes and lengths.
    Garbage,
    /// Random bytes all over the queue page.
    Queues,
    /// Offering buffers and never looking at what comes.
    Deaf,
}

/// Misuses of the console.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Console {
    /// Text as fast as can be.
    Flood,
    /// Control characters and bytes that are not UTF-8.
    Garbage,
    /// Random bytes all over the page.
    Page,
}

/// Use of the processor and of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resources {
    /// An endless loop.
    Loop,
    /// Touches every page of its memory.
    Memory,
    /// Allocates until there is no more.
    Heap,
    /// Fills the floating-point registers and checks that they stay as they are.
    FloatingPoint,
}

/// The mode with this name.
pub fn find(name: &str) -> Option<&'static Mode> {
    MODES.iter().find(|mode| mode.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_fit_into_arguments_and_vm_names() {
        let names: BTreeSet<_> = MODES.iter().map(|mode| mode.name).collect();
        assert_eq!(names.len(), MODES.len());
        for mode in MODES {
            let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            let name = mode.name.strip_prefix("sensitive=").map(str::to_ascii_lowercase);
            assert!(name.as_deref().unwrap_or(mode.name).chars().all(fine), "{}", mode.name);
            assert!(!mode.about.is_empty() && mode.name.len() < 40);
            assert_eq!(find(mode.name), Some(mode));
        }
        assert_eq!(find("polite"), None);
    }

    #[test]
    fn no_two_modes_do_the_same() {
        for (index, mode) in MODES.iter().enumerate() {
            assert!(MODES[..index].iter().all(|other| other.act != mode.act), "{}", mode.name);
        }
    }

    #[test]
    fn all_sensitive_instructions_are_there() {
        let count = MODES.iter().filter(|mode| mode.name.starts_with("sensitive=")).count();
        assert_eq!(count, 18);
    }

    #[test]
    fn ends_are_recognised() {
        let stop = Expected::Stopped(&[Reason::GeneralProtection]);
        assert!(stop.is_met_by("loader: VM hostile-1 stopped: general protection fault at 0x201000"));
        assert!(!stop.is_met_by("loader: VM hostile-1 stopped: invalid opcode at 0x201000"));
        assert!(!stop.is_met_by("loader: VM hostile-1 ended with code 0"));
        assert!(Expected::Ends.is_met_by("VM x ended with code 0"));
        assert!(!Expected::Ends.is_met_by("VM x ended with code 10"));
        assert!(Expected::EndsWith(101).is_met_by("VM x ended with code 101 after 3 s"));
        assert!(!Expected::GoesOn.is_met_by("VM x ended with code 0") && !Expected::GoesOn.is_end());
        let either = Expected::EndsOrStopped(&[Reason::Simd]);
        assert!(
            either.is_met_by("x ended with code 0") && either.is_met_by("x stopped: SIMD floating-point exception")
        );
    }
}
