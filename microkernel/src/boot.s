# Two doors into the kernel. Both loaders enter in 32-bit protected mode with paging off and %ebx = physical address of
# a table about the machine:
#
# * PVH (`qemu -kernel`, Firecracker): the hvm_start_info structure (Xen, docs/misc/pvh);
# * Multiboot2 (GRUB, on BIOS and UEFI): the boot information, and %eax = 0x36d76289 (Multiboot2 Specification 2.0, 3.3).
#
# Makes the first page tables, goes to long mode and up to where the kernel is linked, and calls
# kernel_main(table, tsc, loader), where loader is %eax of a Multiboot2 loader and 0 of PVH.
#
# First page tables: 4 GiB by 2 MiB pages, seen at 0 (until the kernel runs above), at the base of
# the physical map (entry 256) and, its first 1 GiB, at the kernel's base (entry 511).

.set KERNEL_BASE, 0xffffffff80000000
.set PAGE_FLAGS, 0x83                   # present, writable, 2 MiB
.set TABLE_FLAGS, 0x03                  # present, writable

.section .note.pvh, "a", @note
    .balign 4
    .long 4                             # owner: "Xen\0"
    .long 4                             # descriptor: one 32-bit address
    .long 18                            # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

# The loader looks for it in the first 32 KiB of the file.
.section .multiboot2, "a", @progbits
    .balign 8
multiboot2_header:
    .long 0xe85250d6                    # magic number
    .long 0                             # protected mode of i386
    .long multiboot2_header_end - multiboot2_header
    .long -(0xe85250d6 + multiboot2_header_end - multiboot2_header)
    .balign 8                           # information that is needed: the memory map
    .short 1, 0
    .long 12
    .long 6
    .balign 8                           # the entry: that of the ELF header is PVH's
    .short 3, 0
    .long 12
    .long multiboot2_start
    .balign 8                           # the console may stay in text mode, if need be
    .short 4, 1
    .long 12
    .long 2
    .balign 8                           # a screen, of this size if there is a choice
    .short 5, 1
    .long 20
    .long 1024, 768, 32
    .balign 8                           # modules on page boundaries
    .short 6, 0
    .long 8
    .balign 8                           # the end
    .short 0, 0
    .long 8
multiboot2_header_end:

.section .boot, "awx", @progbits
.code32
.global pvh_start
.type pvh_start, @function
pvh_start:
    xorl %eax, %eax
multiboot2_start:
    cli
    cld
    movl %eax, boot_loader
    rdtsc
    movl %eax, boot_tsc
    movl %edx, boot_tsc + 4
    movl %ebx, boot_start_info

    # Four page directories of 512 pages of 2 MiB.
    movl $(boot_directories - KERNEL_BASE), %edi
    movl $PAGE_FLAGS, %eax
    movl $2048, %ecx
1:  movl %eax, (%edi)
    movl $0, 4(%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 1b

    # The table above them, entries 0 to 3; entry 510 of the table for the kernel's base is the first directory.
    movl $(boot_directories - KERNEL_BASE + TABLE_FLAGS), %eax
    movl %eax, boot_high_pointers - KERNEL_BASE + 510 * 8
    movl $(boot_pointers - KERNEL_BASE), %edi
    movl $4, %ecx
2:  movl %eax, (%edi)
    addl $0x1000, %eax
    addl $8, %edi
    loop 2b

    movl $(boot_pointers - KERNEL_BASE + TABLE_FLAGS), %eax
    movl %eax, top_table - KERNEL_BASE
    movl %eax, top_table - KERNEL_BASE + 256 * 8
    movl $(boot_high_pointers - KERNEL_BASE + TABLE_FLAGS), %eax
    movl %eax, top_table - KERNEL_BASE + 511 * 8

    movl $(top_table - KERNEL_BASE), %eax
    movl %eax, %cr3
    movl $0x20, %eax                    # physical address extension, and nothing that firmware had switched on
    movl %eax, %cr4
    movl $0xc0000080, %ecx              # EFER
    rdmsr
    orl $0x901, %eax                    # system calls, long mode, no-execute
    wrmsr
    movl %cr0, %eax
    orl $0x80010001, %eax               # paging, write protection in ring 0, protected mode
    andl $0xfffffffb, %eax              # no floating-point emulation
    movl %eax, %cr0

    lgdt boot_gdt_pointer
    ljmp $0x08, $boot_long_mode

.code64
boot_long_mode:
    xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movl boot_start_info, %edi
    movq boot_tsc, %rsi
    movl boot_loader, %edx
    movabsq $boot_high, %rax
    jmp *%rax

.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff            # 64-bit code, ring 0
boot_gdt_pointer:
    .word . - boot_gdt - 1
    .long boot_gdt
boot_start_info:
    .long 0
boot_loader:
    .long 0
boot_tsc:
    .quad 0

.section .text
boot_high:
    movabsq $(kernel_stack + {STACK}), %rsp
    xorl %ebp, %ebp
    pushq $0                            # the end for whoever unwinds the stack
    pushq $0
    call kernel_main
    ud2

.section .bss
.balign 4096
.global top_table
top_table:          .skip 4096
.global boot_pointers
boot_pointers:      .skip 4096
boot_high_pointers: .skip 4096
boot_directories:   .skip 4096 * 4
