//! The `syscall` instruction.

use protocol::abi::{MESSAGE_WORDS, Number, Request};

/// The registers that a call takes and returns ([`protocol::abi`]).
#[derive(Clone, Copy, Default, Debug)]
pub struct Registers {
    /// Request in, reply out.
    pub rax: u64,
    /// Slot, token or first argument.
    pub rdi: u64,
    /// `rsi rdx r8 r9 r10 r12 r13 r14`: message words, or arguments from the second on.
    pub words: [u64; MESSAGE_WORDS],
    /// Lent range, deadline, badge or interrupts.
    pub r15: u64,
}

/// Enters the kernel.
///
/// # Safety
/// The kernel reads and writes memory of this program at the addresses that the request names. They must be valid for
/// that; a request that changes the caller's own address space must leave everything that the program uses in place.
#[inline(always)]
pub unsafe fn enter(registers: &mut Registers) {
    let [rsi, rdx, r8, r9, r10, r12, r13, r14] = &mut registers.words;
    // SAFETY: the kernel changes only the registers named here, `rcx` and `r11`, and memory of this program at
    // addresses in the request, for which the caller vouches. It uses no stack of ours.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") registers.rax,
            inlateout("rdi") registers.rdi,
            inlateout("rsi") *rsi,
            inlateout("rdx") *rdx,
            inlateout("r8") *r8,
            inlateout("r9") *r9,
            inlateout("r10") *r10,
            inlateout("r12") *r12,
            inlateout("r13") *r13,
            inlateout("r14") *r14,
            inlateout("r15") registers.r15,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
}

/// Enters the kernel for a call without a message: five arguments in `rdi rsi rdx r8 r9`, results in `rax rdi rsi`.
///
/// # Safety
/// As for [`enter`].
#[inline(always)]
pub unsafe fn enter_simple(request: u64, arguments: [u64; 5]) -> [u64; 3] {
    let [mut rdi, mut rsi, rdx, r8, r9] = arguments;
    let mut rax = request;
    // SAFETY: such a call leaves every register alone but its results, `rcx` and `r11`; the rest is as in `enter`.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") rax,
            inlateout("rdi") rdi,
            inlateout("rsi") rsi,
            in("rdx") rdx,
            in("r8") r8,
            in("r9") r9,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    [rax, rdi, rsi]
}

/// Does nothing in the kernel.
#[inline(always)]
pub fn null() {
    // SAFETY: this call reads no memory and changes no register but its result, `rcx` and `r11`.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") Request::new(Number::Null).0 => _,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack, nomem),
        );
    }
}
