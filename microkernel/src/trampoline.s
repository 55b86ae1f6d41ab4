# Where another processor starts: real mode, %cs = the page / 16, somewhere below 1 MiB. bring_up.rs copies this there and fills
# in what is 0 here. Straight to long mode (Intel SDM vol. 3, 10.8.5), on the first page tables, which see low memory where it is.

.section .rodata
.balign 16
.global trampoline, trampoline_end, trampoline_descriptors, trampoline_descriptors_at, trampoline_long
.global trampoline_far, trampoline_top, trampoline_stack, trampoline_entry
.code16
trampoline:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    movl (trampoline_top - trampoline), %eax
    movl %eax, %cr3
    movl $0x20, %eax                    # physical address extension
    movl %eax, %cr4
    movl $0xc0000080, %ecx              # EFER
    rdmsr
    orl $0x901, %eax                    # system calls, long mode, no-execute
    wrmsr
    lgdtl (trampoline_descriptors_pointer - trampoline)
    movl %cr0, %eax
    orl $0x80010001, %eax               # paging, write protection in ring 0, protected mode
    andl $0x9ffffffb, %eax              # caches on, no floating-point emulation
    movl %eax, %cr0
    ljmpl *(trampoline_far - trampoline)

.code64
trampoline_long:
    xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    xchgq %rax, trampoline_stack(%rip)  # only one comes through
    testq %rax, %rax
    jz 1f
    movq %rax, %rsp
    xorl %ebp, %ebp
    movq trampoline_entry(%rip), %rax
    callq *%rax
1:  cli
    hlt
    jmp 1b

.balign 8
trampoline_descriptors:
    .quad 0
    .quad 0x00af9b000000ffff            # 64-bit code, ring 0
trampoline_descriptors_pointer:
    .word . - trampoline_descriptors - 1
trampoline_descriptors_at:
    .long 0
trampoline_far:
    .long 0
    .word 0x08
.balign 8
trampoline_top:
    .quad 0
trampoline_stack:
    .quad 0
trampoline_entry:
    .quad 0
trampoline_end:
