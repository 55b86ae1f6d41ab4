//! Where things lie in the address space of a server and of a VM.
//!
//! Every domain has the lowest 512 GiB of addresses; the kernel owns the rest.
//!
//! | address | server | VM |
//! |---|---|---|
//! | `0` to `0xf_ffff` | never mapped | never mapped |
//! | [`STARTUP`] | startup page, read-only | not mapped |
//! | [`SPACE_BASE`] | not mapped | virtual register page; the VM's memory begins |
//! | [`IMAGE_BASE`] | program | program, then the rest of the VM's memory |
//! | [`HEAP`] | heap | |
//! | [`STACK_TOP`] | stack, downwards, guard page below | |
//! | [`MAPPINGS`] | bundle, packet memory, device registers | |

/// Bytes of a page and of a frame.
pub const PAGE: u64 = 4096;
/// First address that no domain may use.
pub const SPACE_END: u64 = 1 << 39;
/// The startup page of a server ([`crate::boot::BootInfo`] for `init`, [`crate::manifest::Startup`] for the others).
pub const STARTUP: u64 = 0x10_0000;
/// First address of a VM's memory: its virtual register page.
pub const SPACE_BASE: u64 = 0x20_0000;
/// Where programs are linked.
pub const IMAGE_BASE: u64 = 0x20_1000;
/// First address of a server's heap.
pub const HEAP: u64 = 0x4000_0000;
/// First address above a server's stack.
pub const STACK_TOP: u64 = 0x7000_0000;
/// Bytes of a server's stack.
pub const STACK_SIZE: u64 = 64 * 1024;
/// From here on a server maps what it is given.
pub const MAPPINGS: u64 = 0x8000_0000;
/// Most extents of the pool.
pub const POOL_EXTENTS: usize = 4;
/// Frames of the pool whose records one page table of the pager maps, at no more than 32 bytes for each: the pager gets page tables for all of
/// the pool from `init`, out of its own memory.
pub const POOL_FRAMES_PER_TABLE: u64 = 512 * PAGE / 32;

/// Smallest memory of a VM, virtual register page included.
pub const VM_MEMORY_MIN: u64 = 64 * 1024;
/// Largest memory of a VM.
pub const VM_MEMORY_MAX: u64 = 16 << 30;
