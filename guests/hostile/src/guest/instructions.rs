//! Instructions that a guest has no business with.

use core::arch::asm;
use hostile::{Exception, Privileged, Sensitive};
use ilwaco::println;

/// A selector of ring 0 in most kernels: the first of the global descriptor table.
const KERNEL_SELECTOR: u16 = 8;
const INTERRUPT_FLAG: u64 = 1 << 9;

/// Executes a privileged instruction. Returns if the processor let it pass.
pub fn privileged(instruction: Privileged) {
    let mut scratch = [0u64; 2];
    let place = scratch.as_mut_ptr();
    // SAFETY: none of these is allowed in ring 3: each stops the VM. Should one pass, this guest is what suffers, and it reports it.
    unsafe {
        match instruction {
            Privileged::Cli => asm!("cli"),
            Privileged::Sti => asm!("sti"),
            Privileged::Hlt => asm!("hlt"),
            Privileged::In => asm!("in al, dx", in("dx") 0x3f8u16, out("al") _),
            Privileged::Out => asm!("out dx, al", in("dx") 0x3f8u16, in("al") b'!'),
            Privileged::Ins => asm!("insb", in("dx") 0x3f8u16, inout("rdi") place => _),
            Privileged::Lgdt => asm!("lgdt [{}]", in(reg) place),
            Privileged::Lidt => asm!("lidt [{}]", in(reg) place),
            Privileged::Lldt => asm!("lldt ax", in("ax") 0u16),
            Privileged::Ltr => asm!("ltr ax", in("ax") 0x28u16),
            Privileged::ReadCr0 => asm!("mov rax, cr0", out("rax") _),
            Privileged::WriteCr0 => asm!("mov cr0, rax", in("rax") 1u64),
            Privileged::WriteCr3 => asm!("mov cr3, rax", in("rax") 0u64),
            Privileged::WriteCr4 => asm!("mov cr4, rax", in("rax") 0x20u64),
            Privileged::WriteCr8 => asm!("mov cr8, rax", in("rax") 0u64),
            Privileged::WriteDr7 => asm!("mov dr7, rax", in("rax") 0x401u64),
            Privileged::Rdmsr => asm!("rdmsr", in("ecx") 0xc000_0082u32, out("eax") _, out("edx") _),
            Privileged::Wrmsr => asm!("wrmsr", in("ecx") 0xc000_0082u32, in("eax") 0, in("edx") 0),
            Privileged::Rdpmc => asm!("rdpmc", in("ecx") 0, out("eax") _, out("edx") _),
            Privileged::Invlpg => asm!("invlpg [{}]", in(reg) place),
            Privileged::Invd => asm!("invd"),
            Privileged::Wbinvd => asm!("wbinvd"),
            Privileged::Clts => asm!("clts"),
            Privileged::Lmsw => asm!("lmsw ax", in("ax") 1u16),
            Privileged::Swapgs => asm!("swapgs"),
            Privileged::Sysret => {
                asm!("lea rcx, [rip + 2f]", "mov r11, 0x202", "sysretq", "2:", out("rcx") _, out("r11") _)
            }
            Privileged::Sysexit => asm!(".byte 0x48, 0x0f, 0x35", inout("rcx") place => _, inout("rdx") 0u64 => _),
            Privileged::Sysenter => asm!("sysenter"),
            Privileged::Xsetbv => asm!("xsetbv", in("ecx") 0, in("eax") 1, in("edx") 0),
            Privileged::Monitor => asm!(".byte 0x0f, 0x01, 0xc8", in("rax") place, in("ecx") 0, in("edx") 0),
            Privileged::Vmcall => asm!(".byte 0x0f, 0x01, 0xc1"),
            Privileged::IretKernel => asm!(
                "mov {old}, rsp",
                "push 0",
                "push {old}",
                "pushfq",
                "push {selector}",
                "lea {place}, [rip + 2f]",
                "push {place}",
                "iretq",
                "2:",
                "mov rsp, {old}",
                old = out(reg) _,
                place = out(reg) _,
                selector = in(reg) u64::from(KERNEL_SELECTOR),
            ),
            Privileged::FarCallKernel => asm!(
                "lea ecx, [rip + 2f]",
                "mov [rax], ecx",
                "mov [rax + 4], dx",
                ".byte 0xff, 0x18",
                "2:",
                in("rax") place, in("dx") KERNEL_SELECTOR, out("rcx") _,
            ),
            Privileged::FarJumpKernel => asm!(
                "lea ecx, [rip + 2f]",
                "mov [rax], ecx",
                "mov [rax + 4], dx",
                ".byte 0xff, 0x28",
                "2:",
                in("rax") place, in("dx") KERNEL_SELECTOR, out("rcx") _,
            ),
            Privileged::FarReturnKernel => asm!(
                "mov {old}, rsp",
                "push {selector}",
                "lea {place}, [rip + 2f]",
                "push {place}",
                ".byte 0x48, 0xcb",
                "2:",
                "mov rsp, {old}",
                old = out(reg) _,
                place = out(reg) _,
                selector = in(reg) u64::from(KERNEL_SELECTOR),
            ),
            Privileged::LoadKernelSegment => asm!("mov fs, ax", in("ax") KERNEL_SELECTOR),
        }
    }
}

fn flags() -> u64 {
    let flags: u64;
    // SAFETY: reads the flags by way of the own stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
    flags
}

fn code_selector() -> u16 {
    let selector: u32;
    // SAFETY: reads a segment register.
    unsafe { asm!("mov {:e}, cs", out(reg) selector) };
    selector as u16
}

/// Executes a sensitive instruction and reports what it did.
pub fn sensitive(instruction: Sensitive) {
    let mut table = [0u8; 10];
    let base = |table: &[u8; 10]| {
        let (limit, base) = table.split_at(2);
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        (word(limit), word(base))
    };
    let (kernel, own) = (u32::from(KERNEL_SELECTOR), u32::from(code_selector()));
    let word: u64;
    // SAFETY: ring 3 may execute these; they read registers, or load segment registers with what they hold or with null, which
    // 64-bit code does not notice. The far transfers go to the next instruction with the own code segment.
    unsafe {
        match instruction {
            Sensitive::Sgdt => {
                asm!("sgdt [{}]", in(reg) table.as_mut_ptr());
                let (limit, base) = base(&table);
                println!("sensitive SGDT: base {base:#x} limit {limit:#x}");
            }
            Sensitive::Sidt => {
                asm!("sidt [{}]", in(reg) table.as_mut_ptr());
                let (limit, base) = base(&table);
                println!("sensitive SIDT: base {base:#x} limit {limit:#x}");
            }
            Sensitive::Sldt => {
                asm!("sldt eax", out("rax") word);
                println!("sensitive SLDT: selector {word:#x}");
            }
            Sensitive::Smsw => {
                asm!("smsw eax", out("rax") word);
                println!("sensitive SMSW: {word:#x}");
            }
            Sensitive::Str => {
                asm!("str eax", out("rax") word);
                println!("sensitive STR: selector {word:#x}");
            }
            Sensitive::Pushf => {
                println!("sensitive PUSHF: {:#x}", flags());
            }
            Sensitive::Popf => {
                let before = flags();
                asm!("push {}", "popfq", in(reg) before ^ (INTERRUPT_FLAG | 0x3000));
                let after = flags();
                asm!("push {}", "popfq", in(reg) before);
                println!("sensitive POPF: {before:#x} became {after:#x}");
                if (before ^ after) & (INTERRUPT_FLAG | 0x3000) != 0 {
                    super::broken("it changed the interrupt flag or the I/O privilege");
                }
            }
            Sensitive::Lar => {
                let (of_kernel, of_own): (u32, u32);
                asm!("xor {0:e}, {0:e}", "lar {0:e}, {1:e}", out(reg) of_kernel, in(reg) kernel);
                asm!("xor {0:e}, {0:e}", "lar {0:e}, {1:e}", out(reg) of_own, in(reg) own);
                println!("sensitive LAR: selector {kernel:#x} has {of_kernel:#x}, {own:#x} has {of_own:#x}");
            }
            Sensitive::Lsl => {
                let (of_kernel, of_own): (u32, u32);
                asm!("xor {0:e}, {0:e}", "lsl {0:e}, {1:e}", out(reg) of_kernel, in(reg) kernel);
                asm!("xor {0:e}, {0:e}", "lsl {0:e}, {1:e}", out(reg) of_own, in(reg) own);
                println!("sensitive LSL: selector {kernel:#x} has {of_kernel:#x}, {own:#x} has {of_own:#x}");
            }
            Sensitive::Verr => {
                let (of_kernel, of_own): (u8, u8);
                asm!("verr {1:x}", "setz {0}", out(reg_byte) of_kernel, in(reg) kernel);
                asm!("verr {1:x}", "setz {0}", out(reg_byte) of_own, in(reg) own);
                println!("sensitive VERR: selector {kernel:#x} gives {of_kernel}, {own:#x} gives {of_own}");
            }
            Sensitive::Verw => {
                let (of_kernel, of_own): (u8, u8);
                asm!("verw {1:x}", "setz {0}", out(reg_byte) of_kernel, in(reg) kernel);
                asm!("verw {1:x}", "setz {0}", out(reg_byte) of_own, in(reg) own);
                println!("sensitive VERW: selector {kernel:#x} gives {of_kernel}, {own:#x} gives {of_own}");
            }
            Sensitive::Pop => {
                asm!("push 0", ".byte 0x0f, 0xa1");
                println!("sensitive POP: loaded FS with 0");
            }
            Sensitive::Push => {
                asm!(".byte 0x0f, 0xa0", "pop {}", out(reg) word);
                println!("sensitive PUSH: FS is {word:#x}");
            }
            Sensitive::Call => {
                asm!(
                    "lea ecx, [rip + 2f]",
                    "mov [rax], ecx",
                    "mov [rax + 4], dx",
                    ".byte 0xff, 0x18",
                    "jmp 3f",
                    "2:",
                    ".byte 0xcb",
                    "3:",
                    in("rax") table.as_mut_ptr(), in("dx") own as u16, out("rcx") _,
                );
                println!("sensitive CALL: called through selector {own:#x} and came back");
            }
            Sensitive::Jmp => {
                asm!(
                    "lea ecx, [rip + 2f]",
                    "mov [rax], ecx",
                    "mov [rax + 4], dx",
                    ".byte 0xff, 0x28",
                    "2:",
                    in("rax") table.as_mut_ptr(), in("dx") own as u16, out("rcx") _,
                );
                println!("sensitive JMP: jumped through selector {own:#x}");
            }
            Sensitive::Int => {
                asm!("int 0x20");
                super::broken("a software interrupt came back");
            }
            Sensitive::Ret => {
                asm!(
                    "push {selector}",
                    "lea {place}, [rip + 2f]",
                    "push {place}",
                    ".byte 0x48, 0xcb",
                    "2:",
                    selector = in(reg) u64::from(own),
                    place = out(reg) _,
                );
                println!("sensitive RET: returned through selector {own:#x}");
            }
            Sensitive::Mov => {
                asm!("mov eax, ss", out("rax") word);
                asm!("mov fs, eax", in("eax") 0);
                println!("sensitive MOV: SS is {word:#x}, loaded FS with 0");
            }
        }
    }
}

/// Causes a processor exception.
pub fn exception(exception: Exception) {
    // SAFETY: each stops the VM, or does nothing to it but set a flag or a control register of its own that is set back.
    unsafe {
        match exception {
            Exception::Divide => {
                asm!("div {:e}", in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _);
                super::broken("a division by zero went well");
            }
            Exception::Breakpoint => {
                asm!("int3");
                super::broken("a breakpoint came back");
            }
            Exception::DebugTrap => {
                asm!(".byte 0xf1");
                super::broken("a debug trap came back");
            }
            Exception::SingleStep => {
                asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "nop");
                super::broken("a single step came back");
            }
            Exception::InvalidOpcode => asm!("ud2", options(noreturn)),
            Exception::Alignment => {
                let words = [0u64; 2];
                asm!(
                    "pushfq",
                    "or qword ptr [rsp], 0x40000",
                    "popfq",
                    "mov {0}, [{0} + 1]",
                    "pushfq",
                    "and qword ptr [rsp], ~0x40000",
                    "popfq",
                    inout(reg) words.as_ptr() => _,
                );
            }
            Exception::X87 => {
                let mut control = 0u16;
                asm!(
                    "fninit",
                    "fnstcw [{0}]",
                    "and word ptr [{0}], 0xfffb",
                    "fldcw [{0}]",
                    "fld1",
                    "fldz",
                    "fdivp st(1), st",
                    "fwait",
                    "fninit",
                    in(reg) &mut control,
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                    out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                );
            }
            Exception::Simd => {
                let mut control = 0u32;
                asm!(
                    "stmxcsr [{0}]",
                    "and dword ptr [{0}], 0xfffffdff",
                    "ldmxcsr [{0}]",
                    "xorps {1}, {1}",
                    "mov {2:e}, 0x3f800000",
                    "movd {3}, {2:e}",
                    "divss {3}, {1}",
                    "or dword ptr [{0}], 0x1f80",
                    "ldmxcsr [{0}]",
                    in(reg) &mut control, out(xmm_reg) _, out(reg) _, out(xmm_reg) _,
                );
            }
        }
    }
}
