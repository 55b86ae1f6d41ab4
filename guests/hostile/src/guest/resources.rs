//! Use of the processor and of memory.

extern crate alloc;

use super::{broken, storming};
use alloc::vec::Vec;
use core::arch::asm;
use hostile::Resources;
use ilwaco::{
    clock, println,
    protocol::abi::{Number, Request},
    vm,
};

/// Touches every page that the guest may write.
fn memory() {
    let mut pages = 0;
    // The heap takes memory page by page up to the end: this leaves it nothing.
    let mut kept: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut page: Vec<u8> = Vec::new();
        if page.try_reserve_exact(4096).is_err() || kept.try_reserve(1).is_err() {
            break;
        }
        page.resize(4096, 0xa5);
        pages += 1;
        kept.push(page);
    }
    if kept.iter().flatten().any(|byte| *byte != 0xa5) {
        broken("memory has changed by itself");
    }
    println!("{pages} pages were written, {} KiB of heap", vm::heap_used() / 1024);
}

/// Allocates ever larger blocks, down to none.
fn heap() {
    let mut size = vm::memory() as usize * 2;
    let mut kept = Vec::new();
    while size > 0 {
        let mut block: Vec<u8> = Vec::new();
        if kept.try_reserve(1).is_ok() && block.try_reserve_exact(size).is_ok() {
            block.resize(size, 1);
            kept.push(block);
        } else {
            size /= 2;
        }
    }
    println!("{} blocks, {} KiB of heap", kept.len(), vm::heap_used() / 1024);
}

/// Fills the SSE registers with numbers of this VM, lets others run, and looks.
fn floating_point() {
    let start = clock::now();
    let mut rounds = 0u64;
    while storming(start) {
        let mut before = [[0u64; 2]; 16];
        for (index, register) in before.iter_mut().enumerate() {
            *register = [vm::id() << 32 | index as u64, rounds << 8 | index as u64];
        }
        let mut after = [[0u64; 2]; 16];
        // SAFETY: loads, idles until a time that is past (others run), computes for a while (the time slice ends), stores.
        unsafe {
            asm!(
                "movups xmm0, [{from}]", "movups xmm1, [{from} + 16]", "movups xmm2, [{from} + 32]",
                "movups xmm3, [{from} + 48]", "movups xmm4, [{from} + 64]", "movups xmm5, [{from} + 80]",
                "movups xmm6, [{from} + 96]", "movups xmm7, [{from} + 112]", "movups xmm8, [{from} + 128]",
                "movups xmm9, [{from} + 144]", "movups xmm10, [{from} + 160]", "movups xmm11, [{from} + 176]",
                "movups xmm12, [{from} + 192]", "movups xmm13, [{from} + 208]", "movups xmm14, [{from} + 224]",
                "movups xmm15, [{from} + 240]",
                "syscall",
                "2:",
                "dec {count}",
                "jnz 2b",
                "movups [{to}], xmm0", "movups [{to} + 16], xmm1", "movups [{to} + 32], xmm2",
                "movups [{to} + 48], xmm3", "movups [{to} + 64], xmm4", "movups [{to} + 80], xmm5",
                "movups [{to} + 96], xmm6", "movups [{to} + 112], xmm7", "movups [{to} + 128], xmm8",
                "movups [{to} + 144], xmm9", "movups [{to} + 160], xmm10", "movups [{to} + 176], xmm11",
                "movups [{to} + 192], xmm12", "movups [{to} + 208], xmm13", "movups [{to} + 224], xmm14",
                "movups [{to} + 240], xmm15",
                from = in(reg) before.as_ptr(),
                to = in(reg) after.as_mut_ptr(),
                count = inout(reg) 1_000_000u64 => _,
                inout("rax") Request::new(Number::Idle).0 => _,
                inout("rdi") 1u64 => _,
                out("rcx") _, out("r11") _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            );
        }
        if before != after {
            println!("{before:x?} became {after:x?}");
            broken("the floating-point registers have changed");
        }
        rounds += 1;
    }
    println!("looked {rounds} times");
}

/// Use of the processor and of memory.
pub fn misuse(misuse: Resources) {
    match misuse {
        Resources::Loop => loop {
            core::hint::spin_loop();
        },
        Resources::Memory => memory(),
        Resources::Heap => heap(),
        Resources::FloatingPoint => floating_point(),
    }
}
