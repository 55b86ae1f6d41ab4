//! The virtual register page: the registers that a VM has beyond those of the processor.
//!
//! It is the first page of a VM's memory ([`crate::layout::SPACE_BASE`]), shared by the VM and the
//! kernel, so that reading the time or masking interrupts needs no trap. (Denali, section 3: virtual
//! registers; interrupt enable flag, CPU speed, memory size, current time.) The VM may write all of
//! it and thereby harm only itself: the kernel reads nothing but the first five words, trusts none of
//! them, and keeps its own record of what is pending.

/// Size of the kernel's part, in bytes.
pub const KERNEL_PART: usize = 128;
/// Bytes of arguments.
pub const ARGUMENTS: usize = 512;
/// Bytes of the name.
pub const NAME: usize = 64;

/// A disk of the VM, as its registers tell it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct DiskRegister {
    /// Blocks of 4 KiB; 0: the VM has no such disk.
    pub blocks: u64,
    /// Bit 0: it cannot be written.
    pub flags: u64,
}

/// In [`DiskRegister::flags`]: the disk cannot be written.
pub const DISK_READ_ONLY: u64 = 1;

/// The page. `kernel → VM` and so on say who writes a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct RegisterPage {
    // -- the kernel's part: 128 bytes --
    /// VM → kernel: not 0 if virtual interrupts may be delivered to `handler`. Cleared by the kernel on delivery.
    pub enabled: u64,
    /// kernel ↔ VM: lines that are pending. The kernel sets bits before the VM runs; the VM clears them (atomically).
    pub pending: u64,
    /// VM → kernel: lines that wake the VM and are delivered.
    pub mask: u64,
    /// VM → kernel: address of the interrupt handler; 0: the VM polls.
    pub handler: u64,
    /// VM → kernel: stack pointer for the handler; 0: the interrupted stack, 128 bytes (the red zone) below its pointer.
    pub handler_stack: u64,
    /// kernel → VM: where the VM was interrupted; `InterruptReturn` continues there.
    pub saved_instruction: u64,
    /// kernel → VM: its stack pointer then.
    pub saved_stack: u64,
    /// kernel → VM: its flags then.
    pub saved_flags: u64,
    /// kernel → VM: virtual interrupts delivered to `handler` so far.
    pub delivered: u64,
    /// kernel → VM: its `rax` then. This and the next two are the registers that a hypercall loses, so that
    /// `InterruptReturn`, which restores them, loses nothing.
    pub saved_rax: u64,
    /// kernel → VM: its `rcx` then.
    pub saved_rcx: u64,
    /// kernel → VM: its `r11` then.
    pub saved_r11: u64,
    /// Unused; the kernel's part may grow.
    pub reserved: [u64; 4],

    // -- written by the loader at creation, before the VM runs --
    /// [`crate::ARCHITECTURE_VERSION`].
    pub version: u32,
    /// Clones made from this VM's template when this one was made; 0: not a clone.
    pub clone_generation: u32,
    /// Number of the VM, unique on the machine since boot.
    pub vm: u64,
    /// Bytes of memory, this page included.
    pub memory: u64,
    /// TSC at kernel entry: time 0.
    pub tsc_base: u64,
    /// Nanoseconds = (TSC - `tsc_base`) × `tsc_multiplier` >> 32.
    pub tsc_multiplier: u64,
    /// Nanoseconds since 1970-01-01 UTC at time 0; 0: unknown.
    pub wall_clock: u64,
    /// Time at which the VM was created, in nanoseconds.
    pub created: u64,
    /// Fresh random bytes, never the same in two VMs.
    pub seed: [u8; 32],
    /// MAC address of the NIC.
    pub mac: [u8; 6],
    /// Prefix length of the network; 0: no address is configured.
    pub prefix: u8,
    /// Unused.
    pub reserved2: u8,
    /// IPv4 address.
    pub address: [u8; 4],
    /// IPv4 address of the gateway.
    pub gateway: [u8; 4],
    /// IPv4 address of the name server.
    pub name_server: [u8; 4],
    /// Bytes used of `name`.
    pub name_length: u16,
    /// Bytes used of `arguments`.
    pub arguments_length: u16,
    /// Name of the VM, UTF-8.
    pub name: [u8; NAME],
    /// Arguments of the VM from the system file, UTF-8.
    pub arguments: [u8; ARGUMENTS],
    /// The VM's disks.
    pub disks: [DiskRegister; crate::disk::DISKS],
}

impl RegisterPage {
    /// All zero.
    pub const ZERO: RegisterPage = RegisterPage {
        enabled: 0,
        pending: 0,
        mask: 0,
        handler: 0,
        handler_stack: 0,
        saved_instruction: 0,
        saved_stack: 0,
        saved_flags: 0,
        delivered: 0,
        saved_rax: 0,
        saved_rcx: 0,
        saved_r11: 0,
        reserved: [0; 4],
        version: crate::ARCHITECTURE_VERSION,
        clone_generation: 0,
        vm: 0,
        memory: 0,
        tsc_base: 0,
        tsc_multiplier: 0,
        wall_clock: 0,
        created: 0,
        seed: [0; 32],
        mac: [0; 6],
        prefix: 0,
        reserved2: 0,
        address: [0; 4],
        gateway: [0; 4],
        name_server: [0; 4],
        name_length: 0,
        arguments_length: 0,
        name: [0; NAME],
        arguments: [0; ARGUMENTS],
        disks: [DiskRegister { blocks: 0, flags: 0 }; crate::disk::DISKS],
    };
}

/// Nanoseconds since kernel entry for a TSC value. The multiplication is done in 128 bits.
pub const fn nanoseconds(tsc: u64, tsc_base: u64, tsc_multiplier: u64) -> u64 {
    ((tsc.wrapping_sub(tsc_base) as u128 * tsc_multiplier as u128) >> 32) as u64
}

const _: () = assert!(size_of::<RegisterPage>() == 4096);
const _: () = assert!(core::mem::offset_of!(RegisterPage, version) == KERNEL_PART);
