# Ways into the kernel from a domain, and the one way back.
#
# A domain's registers are saved straight into its control block (microkernel_logic::block::Registers):
#    0 rsi   8 rdx  16 r8   24 r9   32 r10  40 r12  48 r13  56 r14
#   64 rax  72 rdi  80 r15  88 rbx  96 rbp 104 rcx 112 r11 120 rsp 128 rip 136 rflags
#  144 flags (bit 0: restore all registers by iretq)
# %gs, in the kernel, points to the processor's own record (processor.rs):
#    0 the control block of the running domain   8 scratch   16 top of the kernel stack
# Interrupts are off in the kernel, so nothing comes in between; NMI, double fault, machine check and debug
# exceptions have stacks of their own.

.section .text

# The registers that neither way in nor way out treats specially, to and from the control block at \block.
.macro save block
    movq %rsi, 0(\block)
    movq %rdx, 8(\block)
    movq %r8, 16(\block)
    movq %r9, 24(\block)
    movq %r10, 32(\block)
    movq %r12, 40(\block)
    movq %r13, 48(\block)
    movq %r14, 56(\block)
    movq %rdi, 72(\block)
    movq %r15, 80(\block)
    movq %rbx, 88(\block)
    movq %rbp, 96(\block)
.endm

.macro restore block
    movq 0(\block), %rsi
    movq 8(\block), %rdx
    movq 16(\block), %r8
    movq 24(\block), %r9
    movq 32(\block), %r10
    movq 40(\block), %r12
    movq 48(\block), %r13
    movq 56(\block), %r14
    movq 72(\block), %rdi
    movq 80(\block), %r15
    movq 88(\block), %rbx
    movq 96(\block), %rbp
.endm

# syscall: %rcx = where to return to, %r11 = flags.
.balign 64
.global syscall_entry
.type syscall_entry, @function
syscall_entry:
    swapgs
    movq %rsp, %gs:8
    movq %gs:0, %rsp                    # the control block
    save %rsp
    movq %rax, 64(%rsp)
    movq %rcx, 128(%rsp)
    movq %r11, 136(%rsp)
    movq %gs:8, %rcx
    movq %rcx, 120(%rsp)
    movq %gs:16, %rsp
    call system_call
    # %rax = the control block of the domain to run

.global resume
.type resume, @function
resume:
    testb $1, 144(%rax)
    jnz 1f
    restore %rax
    movq 120(%rax), %rsp
    movq 128(%rax), %rcx
    movq 136(%rax), %r11
    movq 64(%rax), %rax
    swapgs
    sysretq

1:  andb $0xfe, 144(%rax)
    pushq $0x1b                         # ss: data, ring 3
    pushq 120(%rax)
    pushq 136(%rax)
    pushq $0x23                         # cs: code, ring 3
    pushq 128(%rax)
    restore %rax
    movq 104(%rax), %rcx
    movq 112(%rax), %r11
    movq 64(%rax), %rax
    swapgs
    iretq

# One stub for each vector: the processor pushes an error code for some exceptions, we push 0 for the others.
.balign 16
.global interrupt_stubs
interrupt_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    .else
    pushq $0
    .endif
    pushq $vector
    jmp interrupt_common
    .set vector, vector + 1
.endr

# Stack: vector, error code, rip, cs, rflags, rsp, ss.
.balign 16
interrupt_common:
    testb $3, 24(%rsp)
    jz 2f
    swapgs
    pushq %rax
    movq %gs:0, %rax                    # the control block
    save %rax
    movq %rcx, 104(%rax)
    movq %r11, 112(%rax)
    popq 64(%rax)
    popq %rdi                           # vector
    popq %rsi                           # error code
    popq 128(%rax)
    addq $8, %rsp
    popq 136(%rax)
    popq 120(%rax)
    orb $1, 144(%rax)
    cld
    movq %gs:16, %rsp
    call interrupt
    jmp resume

# From ring 0: a hardware interrupt ends the sleep of an idle processor, which has nothing to keep; a debug exception
# (a breakpoint on the stack switch before syscall) is passed over; anything else is an error of the kernel.
2:  cmpq $32, (%rsp)
    jb 3f
    popq %rdi
    xorl %esi, %esi
    cld
    movq %gs:16, %rsp
    call interrupt
    jmp resume
3:  cmpq $1, (%rsp)
    jne 4f
    addq $16, %rsp
    iretq
4:  movq %rsp, %rdi
    cld
    andq $-16, %rsp
    call kernel_exception
    ud2

# A non-maskable interrupt carries nothing for us, unless the kernel has stopped on another processor: then it stops here, too.
.balign 16
.global nmi_entry
nmi_entry:
    cmpb $0, stopped(%rip)
    jne 6f
    iretq
6:  cli
    hlt
    jmp 6b

# Sleeps until an interrupt comes; never returns here.
.balign 16
.global sleep
sleep:
    movq %gs:16, %rsp
5:  sti
    hlt
    cli
    jmp 5b
