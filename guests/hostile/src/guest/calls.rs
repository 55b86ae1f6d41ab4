//! Misuse of system calls.

use super::{broken, random::Random, storming};
use core::{
    arch::asm,
    sync::atomic::{AtomicU64, Ordering},
};
use hostile::{Hypercalls, OddCall};
use ilwaco::{
    clock, exit,
    hypercall::{self, Registers},
    println,
    protocol::{
        abi::{Error, Number, Reply, Request, Target},
        layout,
    },
    vm,
};

/// Calls with random arguments.
const ROUNDS: u32 = 50_000;
const NULL: u64 = Request::new(Number::Null).0;
const DIRECTION: u64 = 1 << 10;
const NESTED_TASK: u64 = 1 << 14;
const ALIGNMENT: u64 = 1 << 18;

/// Memory that calls may write, and that they read random records from.
#[repr(C, align(4096))]
struct Scratch([AtomicU64; 512]);

static SCRATCH: Scratch = Scratch([const { AtomicU64::new(0) }; 512]);

/// A system call with these flags set; returns the reply and the flags after it.
fn call_with_flags(flags: u64) -> (u64, u64) {
    let (reply, after): (u64, u64);
    // SAFETY: the call does nothing; the flags are set back before the compiler's code goes on.
    unsafe {
        asm!(
            "pushfq",
            "or qword ptr [rsp], {flags}",
            "popfq",
            "syscall",
            "pushfq",
            "pop {flags}",
            "push 0x202",
            "popfq",
            flags = inout(reg) flags => after,
            inout("rax") NULL => reply,
            out("rcx") _,
            out("r11") _,
        );
    }
    (reply, after)
}

/// A system call with this stack pointer; returns the reply.
fn call_with_stack(stack: u64) -> u64 {
    let reply: u64;
    // SAFETY: the call does nothing, and the stack pointer is set back; nothing of the guest runs meanwhile.
    unsafe {
        asm!(
            "mov r12, rsp",
            "mov rsp, {stack}",
            "syscall",
            "mov rsp, r12",
            stack = in(reg) stack,
            inout("rax") NULL => reply,
            out("rcx") _,
            out("r11") _,
            out("r12") _,
        );
    }
    reply
}

/// System calls in an odd state.
pub fn odd(call: OddCall) {
    let expect_flag = |flag| {
        for _ in 0..1000 {
            let (reply, flags) = call_with_flags(flag);
            if reply != Reply::OK.0 || flags & flag == 0 {
                broken("the call failed, or the flag was not kept");
            }
        }
    };
    let expect_stack = |stack| {
        for _ in 0..1000 {
            if call_with_stack(stack) != Reply::OK.0 {
                broken("the call failed");
            }
        }
    };
    match call {
        OddCall::Direction => expect_flag(DIRECTION),
        OddCall::NestedTask => {
            // The kernel may clear it: a task is never nested in long mode.
            for _ in 0..1000 {
                if call_with_flags(NESTED_TASK).0 != Reply::OK.0 {
                    broken("the call failed");
                }
            }
        }
        OddCall::AlignmentCheck => expect_flag(ALIGNMENT),
        OddCall::SingleStep => {
            call_with_flags(1 << 8);
            broken("a single step came back");
        }
        OddCall::KernelStack => expect_stack(0xffff_8000_0000_1000),
        OddCall::NonCanonicalStack => expect_stack(0x1234_5678_9abc_def0),
        OddCall::NoTopBit => {
            for number in 0..512 {
                let mut registers = Registers { rax: number, ..Registers::default() };
                raw(&mut registers);
                if Reply(registers.rax).result() != Err(Error::BadNumber) {
                    broken("it was taken for a call of this kernel");
                }
            }
        }
        OddCall::Interrupt80 => {
            // SAFETY: there is no such interrupt: the VM is stopped.
            unsafe { asm!("int 0x80", inout("rax") 60u64 => _, in("rdi") 0) };
            broken("it came back");
        }
    }
}

fn raw(registers: &mut Registers) {
    // SAFETY: where these calls name memory, it is `SCRATCH`, which is made of atomics, or none that the guest has; a VM has no
    // capability with which they could change its address space.
    unsafe { hypercall::enter_raw(registers) };
}

/// Which argument of a call is an address: 0 is `rdi`, the others count the words.
fn address_argument(number: Number) -> Option<usize> {
    match number {
        Number::Transfer | Number::DebugWrite | Number::SetBuffer => Some(0),
        Number::Send | Number::Call | Number::Reply | Number::ReplyWait => Some(1),
        Number::Collect | Number::Map | Number::CapabilityInfo | Number::DomainUsage => Some(1),
        Number::DomainSave | Number::DomainRestore => Some(1),
        Number::DomainCreate => Some(2),
        Number::CapabilityCopy | Number::Scan => Some(3),
        _ => None,
    }
}

fn argument(registers: &mut Registers, index: usize) -> &mut u64 {
    match index.checked_sub(1) {
        None => &mut registers.rdi,
        Some(word) => &mut registers.words[word],
    }
}

/// Addresses that no domain has.
const NOWHERE: [u64; 8] = [
    layout::SPACE_END,
    layout::SPACE_END - 4,
    0x7fff_ffff_f000,
    0x8000_0000_0000,
    0x1234_5678_9abc_def0,
    0xffff_8000_0000_0000,
    0xffff_ffff_8000_0000,
    u64::MAX - 4,
];

fn random_address(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => SCRATCH.0.as_ptr() as u64 + random.below(4096),
        1 => SCRATCH.0.as_ptr() as u64,
        // Below the end of the address space it could be an address of a VM, and then it would be a fault.
        2 => random.next() | layout::SPACE_END,
        _ => NOWHERE[random.below(NOWHERE.len() as u64) as usize],
    }
}

fn random_argument(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => 0,
        1 => random.below(64),
        2 => Target::slot(random.next() as u8).0,
        3 => Target::pool(random.next() as u8, random.below(1 << 20) as u32, random.below(4) as u32).0,
        4 => Target::caller(random.below(1 << 20) as u32, random.below(1000) as u32).0,
        5 => 1 << random.below(64),
        6 => (1u64 << random.below(64)).wrapping_sub(1),
        _ => random.next(),
    }
}

fn random_calls() {
    let mut random = Random::new();
    let mut refused = [0u32; 16];
    for _ in 0..ROUNDS {
        let Some(number) = Number::from_u8(random.below(Number::ALL.len() as u64) as u8) else { continue };
        match number {
            // These end the guest, or send it somewhere; modes of their own try them.
            Number::Exit | Number::InterruptReturn => continue,
            Number::Ready if random.below(64) != 0 => continue,
            _ => {}
        }
        for word in &SCRATCH.0 {
            if random.below(16) == 0 {
                word.store(random_argument(&mut random), Ordering::Relaxed);
            }
        }
        let mut registers = Registers { rax: random.next() & !0xff | Request::new(number).0, ..Registers::default() };
        for index in 0..9 {
            *argument(&mut registers, index) = random_argument(&mut random);
        }
        registers.r15 = random_argument(&mut random);
        if let Some(index) = address_argument(number) {
            *argument(&mut registers, index) = random_address(&mut random);
        }
        match number {
            // Not for ever.
            Number::Idle => registers.rdi = random.below(clock::now() + 1_000_000),
            Number::ReplyWait => registers.r15 = random.below(clock::now() + 1_000_000),
            _ => {}
        }
        raw(&mut registers);
        refused[usize::from(registers.rax as u8) & 15] += 1;
    }
    println!("of {ROUNDS} random calls, {} were granted, {} refused", refused[0], refused[1..].iter().sum::<u32>());
    // What a call has left behind must not hit anybody later.
    hypercall::set_timer(ilwaco::protocol::abi::NEVER);
}

/// Calls of every number there could be.
fn numbers() {
    for number in 0..=255u8 {
        if number == Number::Exit as u8 || number == Number::InterruptReturn as u8 {
            continue;
        }
        let mut registers = Registers { rax: Request::TOP | u64::from(number), ..Registers::default() };
        if number == Number::SetTimer as u8 || number == Number::Idle as u8 {
            registers.rdi = 1;
        }
        if let Some(index) = Number::from_u8(number).and_then(address_argument) {
            *argument(&mut registers, index) = SCRATCH.0.as_ptr() as u64;
        }
        raw(&mut registers);
        let unknown = Reply(registers.rax).result() == Err(Error::BadNumber);
        if Number::from_u8(number).is_none() && !unknown {
            println!("number {number}");
            broken("there is no such call, but it was answered");
        }
    }
}

/// Addresses that no domain has, in every call that takes one.
fn addresses() {
    for number in Number::ALL {
        let Some(index) = address_argument(number) else { continue };
        for address in NOWHERE {
            for length in [1, 64, 100, 4096, 65_535, u64::MAX] {
                let mut registers =
                    Registers { rax: Request::message(number, 0, length as u16).0, r15: 1, ..Registers::default() };
                for other in 0..9 {
                    *argument(&mut registers, other) = if other == 0 { 0 } else { length };
                }
                *argument(&mut registers, index) = address;
                raw(&mut registers);
                let answer = Reply(registers.rax).result();
                if number == Number::DomainUsage && answer != Err(Error::BadAddress) {
                    println!("{number:?} with {address:#x}: {answer:?}");
                    broken("an address that no domain has was taken");
                }
            }
        }
    }
}

/// Has the kernel write figures of this VM to an address.
fn write_to(address: u64) {
    let mut registers =
        Registers { rax: Request::new(Number::DomainUsage).0, rdi: Target::OWN.0, ..Registers::default() };
    registers.words[0] = address;
    raw(&mut registers);
    println!("the call was answered: {:?}", Reply(registers.rax).result());
    broken("the call came back");
}

/// Makes a call again and again for a while.
fn storm(mut call: impl FnMut(u64)) {
    let start = clock::now();
    let mut count = 0u64;
    while storming(start) {
        for _ in 0..100 {
            call(count);
            count += 1;
        }
    }
    println!("{count} calls");
}

/// Misuse of hypercalls.
pub fn misuse(misuse: Hypercalls) {
    match misuse {
        Hypercalls::Random => random_calls(),
        Hypercalls::Numbers => numbers(),
        Hypercalls::Addresses => addresses(),
        Hypercalls::IntoCode => write_to(write_to as *const () as u64 & !7),
        Hypercalls::Behind => write_to(layout::SPACE_BASE + vm::memory()),
        Hypercalls::Doorbells => storm(|count| {
            let mut registers =
                Registers { rax: Request::new(Number::Doorbell).0, rdi: count % 6, ..Registers::default() };
            raw(&mut registers);
        }),
        Hypercalls::Timers => {
            let mut random = Random::new();
            storm(|_| hypercall::set_timer(random.next() >> random.below(64)));
            hypercall::set_timer(ilwaco::protocol::abi::NEVER);
        }
        Hypercalls::Idle => storm(hypercall::idle),
        Hypercalls::Ready => (0..200).for_each(|_| hypercall::ready()),
        Hypercalls::Exit => exit(3),
        Hypercalls::Panic => panic!("as told"),
    }
}
