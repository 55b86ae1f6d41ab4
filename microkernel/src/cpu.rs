//! The processor: descriptor tables, protection bits, system call registers, and its own record.

use crate::physical;
use core::{
    arch::asm,
    arch::x86_64::{__cpuid, __cpuid_count},
    cell::UnsafeCell,
};
use microkernel_logic::{
    Frame, NO_FRAME,
    block::{ControlBlock, FLAG_FPU},
    paging::{Entry, Table},
};
use x86_64::{
    PrivilegeLevel, VirtAddr,
    instructions::{
        segmentation::{CS, DS, ES, FS, GS, SS, Segment},
        tables::load_tss,
    },
    registers::{
        control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags},
        model_specific::{GsBase, KernelGsBase, LStar, SFMask, Star},
        rflags::RFlags,
        segmentation::SegmentSelector,
    },
    structures::{
        gdt::{Descriptor, GlobalDescriptorTable},
        idt::InterruptDescriptorTable,
        tss::TaskStateSegment,
    },
};

/// Bytes of the kernel stack.
pub const STACK: usize = 32 * 1024;
/// Bytes of the stacks for exceptions that can come at any time.
const EXCEPTION_STACK: usize = 4096;

/// A stack.
#[repr(C, align(16))]
struct Stack<const N: usize>(UnsafeCell<[u8; N]>);

// SAFETY: a stack is used only by the processor that it was given to, through its stack pointer.
unsafe impl<const N: usize> Sync for Stack<N> {}

impl<const N: usize> Stack<N> {
    fn top(&self) -> u64 {
        self.0.get() as u64 + N as u64
    }
}

#[unsafe(no_mangle)]
static kernel_stack: Stack<STACK> = Stack(UnsafeCell::new([0; STACK]));
static EXCEPTION_STACKS: [Stack<EXCEPTION_STACK>; 3] = [const { Stack(UnsafeCell::new([0; EXCEPTION_STACK])) }; 3];

/// What the entry code finds at `%gs`; it knows the offsets.
#[repr(C)]
struct Record {
    block: *mut ControlBlock,
    scratch: u64,
    stack: u64,
}

/// A static that is written once at boot, before anything else could read it, and then belongs to the processor.
#[repr(transparent)]
struct Own<T>(UnsafeCell<T>);

// SAFETY: see the type: there is one processor, and `initialise` runs once on it before interrupts are on.
unsafe impl<T> Sync for Own<T> {}

static RECORD: Own<Record> = Own(UnsafeCell::new(Record { block: core::ptr::null_mut(), scratch: 0, stack: 0 }));
static GDT: Own<GlobalDescriptorTable> = Own(UnsafeCell::new(GlobalDescriptorTable::new()));
static TSS: Own<TaskStateSegment> = Own(UnsafeCell::new(TaskStateSegment::new()));
static IDT: Own<InterruptDescriptorTable> = Own(UnsafeCell::new(InterruptDescriptorTable::new()));

unsafe extern "C" {
    fn syscall_entry();
    fn interrupt_stubs();
    fn nmi_entry();
    safe static top_table: Own<Table>;
}

/// Bytes between the stubs of two vectors.
const STUB: u64 = 16;

/// Sets the processor up. Interrupts stay off until a domain runs.
///
/// # Safety
/// To be called once, at boot.
pub unsafe fn initialise() {
    // SAFETY: by the caller's promise nothing else uses these statics yet, and they are never moved or freed.
    let (record, gdt, tss, idt) =
        unsafe { (&mut *RECORD.0.get(), &mut *GDT.0.get(), &mut *TSS.0.get(), &mut *IDT.0.get()) };
    record.stack = kernel_stack.top();
    tss.privilege_stack_table[0] = VirtAddr::new(kernel_stack.top());
    for (index, stack) in EXCEPTION_STACKS.iter().enumerate() {
        tss.interrupt_stack_table[index] = VirtAddr::new(stack.top());
    }

    // The order is what `syscall` and `sysret` want (Intel SDM vol. 3, 5.8.8), and what entry.s knows.
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    let user_data = gdt.append(Descriptor::user_data_segment());
    let user_code = gdt.append(Descriptor::user_code_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    gdt.load();
    // SAFETY: the selectors name the descriptors just made.
    unsafe {
        CS::set_reg(code);
        SS::set_reg(data);
        load_tss(task);
    }
    reset_segments();
    fill_idt(idt);
    idt.load();

    GsBase::write(VirtAddr::from_ptr(record));
    KernelGsBase::write(VirtAddr::zero());
    let selectors = Star::write(user_code, user_data, code, data);
    selectors.expect("the descriptors are in the order that syscall wants");
    LStar::write(VirtAddr::new(syscall_entry as *const () as u64));
    SFMask::write(RFlags::from_bits_truncate(0x0004_7700));
    // SAFETY: switches on what the tables above are made for.
    unsafe {
        Efer::update(|flags| *flags |= EferFlags::SYSTEM_CALL_EXTENSIONS | EferFlags::NO_EXECUTE_ENABLE);
        protect();
    }
}

fn fill_idt(idt: &mut InterruptDescriptorTable) {
    let stub = |vector: u64| VirtAddr::new(interrupt_stubs as *const () as u64 + vector * STUB);
    // SAFETY (all of the handlers below): the stubs save and restore all that they change, and end with `iretq`.
    for vector in 32..=255u8 {
        // SAFETY: see above.
        unsafe { idt[vector].set_handler_addr(stub(u64::from(vector))) };
    }
    macro_rules! exceptions {
        ($($field:ident = $vector:literal),*) => {
            // SAFETY: see above.
            unsafe { $( idt.$field.set_handler_addr(stub($vector)); )* }
        };
    }
    exceptions!(
        divide_error = 0,
        breakpoint = 3,
        overflow = 4,
        bound_range_exceeded = 5,
        invalid_opcode = 6,
        device_not_available = 7,
        invalid_tss = 10,
        segment_not_present = 11,
        stack_segment_fault = 12,
        general_protection_fault = 13,
        page_fault = 14,
        x87_floating_point = 16,
        alignment_check = 17,
        simd_floating_point = 19,
        virtualization = 20,
        cp_protection_exception = 21,
        hv_injection_exception = 28,
        vmm_communication_exception = 29,
        security_exception = 30
    );
    // Debug exceptions can come on the first instruction of the system call entry, the others at any time: stacks of their own.
    // SAFETY: see above; the stack indices are those filled in the task state segment.
    unsafe {
        idt.debug.set_handler_addr(stub(1)).set_stack_index(0);
        idt.non_maskable_interrupt.set_handler_addr(VirtAddr::new(nmi_entry as *const () as u64)).set_stack_index(1);
        idt.double_fault.set_handler_addr(stub(8)).set_stack_index(2);
        idt.machine_check.set_handler_addr(stub(18)).set_stack_index(2);
        // A domain may execute these two: they are its own exceptions.
        idt.breakpoint.set_handler_addr(stub(3)).set_privilege_level(PrivilegeLevel::Ring3);
        idt.overflow.set_handler_addr(stub(4)).set_privilege_level(PrivilegeLevel::Ring3);
    }
}

/// Switches on the protection that the processor has: write protection, SMEP, SMAP, UMIP; and XSAVE, limited to what a
/// control block has room for.
///
/// # Safety
/// The kernel must be ready for it: no mapping of its own is reachable from ring 3.
unsafe fn protect() {
    let features = __cpuid_count(7, 0);
    let mut cr4 = Cr4::read() | Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE | Cr4Flags::MACHINE_CHECK_EXCEPTION;
    cr4.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, features.ebx & 1 << 7 != 0);
    cr4.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, features.ebx & 1 << 20 != 0);
    cr4.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, features.ecx & 1 << 2 != 0);
    cr4.set(Cr4Flags::OSXSAVE, has_xsave());
    cr4.remove(Cr4Flags::FSGSBASE | Cr4Flags::PERFORMANCE_MONITOR_COUNTER | Cr4Flags::TIMESTAMP_DISABLE);
    // SAFETY: only protection and extended states are switched on, and only those that CPUID reports.
    unsafe {
        Cr4::write(cr4);
        Cr0::update(|flags| {
            *flags |= Cr0Flags::WRITE_PROTECT
                | Cr0Flags::MONITOR_COPROCESSOR
                | Cr0Flags::NUMERIC_ERROR
                | Cr0Flags::TASK_SWITCHED;
            flags.remove(Cr0Flags::EMULATE_COPROCESSOR);
        });
    }
    if has_xsave() {
        // SAFETY: XCR0 exists since CR4.OSXSAVE; x87 and SSE always may be set, AVX where CPUID reports it.
        unsafe {
            asm!("xsetbv", in("ecx") 0, in("eax") states(), in("edx") 0, options(nomem, nostack, preserves_flags))
        };
    }
}

/// Whether the processor has XSAVE.
fn has_xsave() -> bool {
    __cpuid(1).ecx & 1 << 26 != 0
}

/// Floating-point states that are switched: x87, SSE, and AVX if the processor has it. They fit into 832 bytes.
pub fn states() -> u32 {
    if __cpuid(1).ecx & 1 << 28 != 0 { 0b111 } else { 0b011 }
}

/// What the processor protects with, for the boot message.
pub fn protections() -> impl core::fmt::Display {
    struct Protections(Cr4Flags);
    impl core::fmt::Display for Protections {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            f.write_str("write protection, no-execute")?;
            for (flag, name) in [
                (Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, ", SMEP"),
                (Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, ", SMAP"),
                (Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, ", UMIP"),
            ] {
                if self.0.contains(flag) {
                    f.write_str(name)?;
                }
            }
            Ok(())
        }
    }
    Protections(Cr4::read())
}

/// The control block of the running domain, as the entry code knows it.
#[inline(always)]
pub fn current() -> *mut ControlBlock {
    let block;
    // SAFETY: in the kernel %gs points to this processor's record, whose first word this is.
    unsafe { asm!("mov {}, gs:[0]", out(reg) block, options(nostack, preserves_flags, readonly)) };
    block
}

/// Makes `block` the running domain's for the entry code.
#[inline]
pub fn set_current(block: *mut ControlBlock) {
    // SAFETY: in the kernel %gs points to this processor's record, whose first word this is.
    unsafe { asm!("mov gs:[0], {}", in(reg) block, options(nostack, preserves_flags)) };
}

/// The top-level page table of this processor.
///
/// # Safety
/// No other reference to it may be alive.
pub unsafe fn top() -> &'static mut Table {
    // SAFETY: by the caller's promise; the table is a static of boot.s.
    unsafe { &mut *top_table.0.get() }
}

/// The processor's state that follows the running domain.
#[derive(Default)]
pub struct Loaded {
    xsave: bool,
    /// Whether CR0.TS is set: the first floating-point instruction faults.
    fpu_off: bool,
}

impl Loaded {
    /// As [`initialise`] leaves it.
    pub fn new() -> Loaded {
        Loaded { xsave: has_xsave(), fpu_off: true }
    }

    /// Saves the floating-point state of `previous` and loads that and the address space of `next`.
    #[inline(always)]
    pub fn switch(&mut self, previous: Frame, next: Frame) {
        if previous != NO_FRAME {
            // SAFETY: the logic names domains that exist, and holds no reference to their blocks during a switch.
            let block = unsafe { &mut *physical::block(previous) };
            if block.flags & FLAG_FPU != 0 {
                self.save(block);
            }
        }
        let mut entry = Entry::EMPTY;
        let mut fpu = false;
        if next != NO_FRAME {
            // SAFETY: as above.
            let block = unsafe { &mut *physical::block(next) };
            entry = Entry::table(block.root);
            fpu = block.flags & FLAG_FPU != 0;
            set_current(block);
        }
        // SAFETY: nothing holds a reference to the top-level table; its first entry is the domain's half alone, so the kernel
        // stays mapped. Writing CR3 makes the processor forget the former domain's translations.
        unsafe {
            (&raw mut (*top_table.0.get())[0]).write_volatile(entry);
            let top = (top_table.0.get() as u64).wrapping_sub(physical::KERNEL_BASE);
            asm!("mov cr3, {0}", in(reg) top, options(nostack, preserves_flags));
        }
        if fpu {
            self.load(next);
        } else if !self.fpu_off {
            self.fpu_off = true;
            // SAFETY: makes the next floating-point instruction fault, nothing else.
            unsafe { Cr0::update(|flags| *flags |= Cr0Flags::TASK_SWITCHED) };
        }
        reset_changed_segments();
    }

    fn save(&self, block: &mut ControlBlock) {
        let area = block.fpu.0.as_mut_ptr();
        // SAFETY: the area is 64-aligned and as large as the enabled states need; the unit is on, for the domain has used it.
        unsafe {
            if self.xsave {
                asm!("xsave64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack, preserves_flags));
            } else {
                asm!("fxsave64 [{}]", in(reg) area, options(nostack, preserves_flags));
            }
        }
    }

    /// Gives the running domain its floating-point state.
    pub fn load(&mut self, domain: Frame) {
        if self.fpu_off {
            self.fpu_off = false;
            // SAFETY: clears CR0.TS, which makes floating-point instructions possible.
            unsafe { asm!("clts", options(nomem, nostack, preserves_flags)) };
        }
        // SAFETY: the area holds what `save` wrote there, the initial state, or what `Fpu::make_valid` made valid.
        unsafe {
            let area = (*physical::block(domain)).fpu.0.as_ptr();
            if self.xsave {
                asm!("xrstor64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack, preserves_flags));
            } else {
                asm!("fxrstor64 [{}]", in(reg) area, options(nostack, preserves_flags));
            }
        }
    }
}

/// If the domain that ran has loaded segment registers, makes them null again: they must tell the next one nothing.
#[inline]
fn reset_changed_segments() {
    let changed: u32;
    // SAFETY: reads four registers.
    unsafe {
        asm!(
            "mov {0:e}, ds", "mov {1:e}, es", "or {0:e}, {1:e}", "mov {1:e}, fs", "or {0:e}, {1:e}",
            "mov {1:e}, gs", "or {0:e}, {1:e}",
            out(reg) changed, out(reg) _, options(nomem, nostack),
        );
    }
    if changed & 0xffff != 0 {
        reset_segments();
    }
}

#[cold]
fn reset_segments() {
    let null = SegmentSelector::NULL;
    let base = GsBase::read();
    // SAFETY: null selectors are valid in long mode; the base of %gs is put back at once, with interrupts off.
    unsafe {
        DS::set_reg(null);
        ES::set_reg(null);
        FS::set_reg(null);
        GS::set_reg(null);
    }
    GsBase::write(base);
}
