//! The processor: descriptor tables, protection bits, system call registers.

use crate::{
    physical,
    processor::{self, Own, Record},
};
use core::{
    arch::asm,
    arch::x86_64::{__cpuid, __cpuid_count},
    cell::UnsafeCell,
    mem::MaybeUninit,
};
use microkernel_logic::paging::{PAT, Table};
use x86_64::{
    PrivilegeLevel, VirtAddr,
    instructions::{
        segmentation::{CS, DS, ES, FS, GS, SS, Segment},
        tables::load_tss,
    },
    registers::{
        control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags},
        model_specific::{GsBase, KernelGsBase, LStar, Msr, SFMask, Star},
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

/// The first processor's kernel stack, behind a page that the kernel does not map, as the others' are: an overflow is an exception, not a changed
/// variable. It is larger than the others', because boot puts the whole kernel together on it.
#[repr(C, align(4096))]
struct FirstStack {
    guard: [u8; 4096],
    stack: Stack<{ 4 * STACK }>,
}

/// Bytes from the beginning of `kernel_stack` to its top.
pub const FIRST_STACK: usize = size_of::<FirstStack>();

#[unsafe(no_mangle)]
static kernel_stack: FirstStack = FirstStack { guard: [0; 4096], stack: Stack(UnsafeCell::new([0; 4 * STACK])) };

/// Address of the page that is not to be mapped.
pub fn stack_guard() -> u64 {
    kernel_stack.guard.as_ptr() as u64
}

/// What a processor needs beside its kernel stack and top-level page table.
#[repr(C, align(4096))]
pub struct Area {
    record: Record,
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
    /// For exceptions that can come at any time: debug, non-maskable interrupt, double fault and machine check.
    stacks: [Stack<EXCEPTION_STACK>; 3],
}

static FIRST: Own<MaybeUninit<Area>> = Own(UnsafeCell::new(MaybeUninit::uninit()));
static IDT: Own<InterruptDescriptorTable> = Own(UnsafeCell::new(InterruptDescriptorTable::new()));

unsafe extern "C" {
    fn syscall_entry();
    fn interrupt_stubs();
    fn nmi_entry();
    safe static top_table: Own<Table>;
}

/// The page attribute table.
const IA32_PAT: u32 = 0x277;
/// Bytes between the stubs of two vectors.
const STUB: u64 = 16;

/// Sets the first processor up. Interrupts stay off until a domain runs.
///
/// # Safety
/// To be called once, at boot.
pub unsafe fn initialise() {
    let table = top_table.0.get();
    let physical = (table as u64).wrapping_sub(physical::KERNEL_BASE);
    // SAFETY: by the caller's promise nothing else uses these statics yet.
    unsafe {
        fill_idt(&mut *IDT.0.get());
        set_up(
            FIRST.0.get().cast(),
            Record::new(0, kernel_stack.stack.top(), table, physical, has_xsave()),
            kernel_stack.stack.top(),
        );
    }
}

/// Sets this processor up.
///
/// # Safety
/// Once for each processor; the area, the stack and the page table that the record names are its own for ever.
pub unsafe fn set_up(area: *mut Area, record: Record, stack: u64) {
    // SAFETY: by the caller's promise; everything but the stacks, whose content means nothing, is written before it is used.
    let (record, gdt, tss) = unsafe {
        (&raw mut (*area).record).write(record);
        (&raw mut (*area).gdt).write(GlobalDescriptorTable::new());
        (&raw mut (*area).tss).write(TaskStateSegment::new());
        (&mut (*area).record, &mut (*area).gdt, &mut (*area).tss)
    };
    tss.privilege_stack_table[0] = VirtAddr::new(stack);
    for index in 0..3 {
        // SAFETY: within the area.
        tss.interrupt_stack_table[index] = VirtAddr::new(unsafe { (*area).stacks[index].top() });
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
    // SAFETY: filled at boot, and never written again.
    unsafe { (*IDT.0.get()).load() };
    // SAFETY: by the caller's promise.
    unsafe { processor::install(record) };
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

/// Switches on the protection that the processor has: write protection, SMEP, SMAP, UMIP; write-combining; and XSAVE, limited to
/// what a control block has room for.
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
    // SAFETY: every processor with long mode has this register; the value changes only what nothing is mapped with yet.
    unsafe { Msr::new(IA32_PAT).write(PAT) };
    if has_xsave() {
        // SAFETY: XCR0 exists since CR4.OSXSAVE; x87 and SSE always may be set, AVX where CPUID reports it.
        unsafe {
            asm!("xsetbv", in("ecx") 0, in("eax") states(), in("edx") 0, options(nomem, nostack, preserves_flags))
        };
    }
}

/// Whether the processor has XSAVE.
pub fn has_xsave() -> bool {
    __cpuid(1).ecx & 1 << 26 != 0
}

/// Floating-point states that are switched: x87, SSE, and AVX if the processor has it. They fit into 832 bytes.
pub fn states() -> u32 {
    if __cpuid(1).ecx & 1 << 28 != 0 { 0b111 } else { 0b011 }
}

/// Whether the time stamp counter runs at one speed whatever the processor does (Intel SDM vol. 3, 18.17.1).
pub fn has_invariant_tsc() -> bool {
    __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & 1 << 8 != 0
}

/// Whether the time stamp counter of one processor can be moved (the register IA32_TSC_ADJUST).
pub fn has_tsc_adjust() -> bool {
    __cpuid_count(7, 0).ebx & 1 << 1 != 0
}

/// Processors that the first one's package may have; at least 1.
pub fn package_size() -> usize {
    let mut most = if __cpuid(1).edx & 1 << 28 != 0 { __cpuid(1).ebx >> 16 & 0xff } else { 1 };
    if __cpuid(0).eax >= 0xb {
        // Threads of a core, then processors of the package (Intel SDM vol. 2, CPUID leaf 0BH).
        most = (0..2).map(|level| __cpuid_count(0xb, level).ebx & 0xffff).fold(most, u32::max);
    }
    most.max(1) as usize
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

/// The top-level page table of the first processor.
///
/// # Safety
/// No other reference to it may be alive.
pub unsafe fn top() -> &'static mut Table {
    // SAFETY: by the caller's promise; the table is a static of boot.s.
    unsafe { &mut *top_table.0.get() }
}

/// Makes the segment registers for data null.
#[cold]
pub fn reset_segments() {
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
