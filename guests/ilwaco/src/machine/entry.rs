//! Where a guest begins, and what its image says of itself.

use super::{executor, interrupt, random, start};
use core::future::Future;
use embassy_executor::Spawner;
use protocol::{
    ARCHITECTURE_VERSION,
    note::{ElfNote, FLAG_READY, Note},
};

/// What [`entry!`] leaves for the library, besides the note. One for each image.
#[repr(C)]
#[derive(Debug)]
pub struct Image {
    /// Lowest byte of the stack.
    pub stack: *const u8,
    /// Bytes of the stack.
    pub stack_bytes: usize,
    /// Runs the guest's `main`.
    pub run: fn() -> !,
    /// NIC window; null if there is none.
    pub nic: *const u8,
    /// Bytes of the NIC window.
    pub nic_length: usize,
    /// Disk window; null if there is none.
    pub disk: *const u8,
    /// Bytes of the disk window.
    pub disk_length: usize,
}

// SAFETY: it is only read; the addresses in it are those of statics.
unsafe impl Sync for Image {}

/// The ELF note, in a static whose addresses the linker fills in.
#[repr(transparent)]
#[derive(Debug)]
pub struct StaticNote(ElfNote<*const u8>);

// SAFETY: it is only read, and by no code of the guest.
unsafe impl Sync for StaticNote {}

impl StaticNote {
    /// A note for this version of the virtual architecture.
    pub const fn new(
        memory: u64,
        nic: (*const u8, usize),
        disk: (*const u8, usize),
        console: *const u8,
        ready: bool,
    ) -> StaticNote {
        StaticNote(ElfNote::new(Note {
            version: ARCHITECTURE_VERSION,
            flags: if ready { FLAG_READY } else { 0 },
            memory,
            nic: nic.0,
            nic_length: nic.1 as u64,
            disk: disk.0,
            disk_length: disk.1 as u64,
            console,
            console_length: if console.is_null() { 0 } else { 4096 },
        }))
    }
}

unsafe extern "Rust" {
    /// Made by [`entry!`].
    safe static ILWACO_IMAGE: Image;
}

/// The image's parameters.
pub(super) fn image() -> &'static Image {
    &ILWACO_IMAGE
}

/// First instruction of the guest: `rsp` is undefined, so its own stack comes first.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    core::arch::naked_asm!(
        "mov rsp, [rip + {image}]",
        "add rsp, [rip + {image} + 8]",
        "xor ebp, ebp",
        "call {begin}",
        "ud2",
        image = sym ILWACO_IMAGE,
        begin = sym begin,
    )
}

extern "C" fn begin() -> ! {
    interrupt::set_enabled(false);
    start::begins();
    (image().run)()
}

/// Runs `main` as the first task; the VM ends with code 0 when it returns. Behind [`entry!`].
pub fn start<F: Future<Output = ()> + 'static>(main: fn(Spawner) -> F) -> ! {
    random::start();
    executor::run(async move |spawner| {
        main(spawner).await;
        super::panic::exit(0)
    })
}

// Statics of whole pages are put into a section of their own (`.sbss`: zeros, that take no room in the image). Otherwise the linker puts the
// small ones between them, each into a page of which it is all that is used.

/// Makes a program a guest: its entry, stack, windows and ELF note.
///
/// `entry!(main, memory = BYTES [, stack = BYTES] [, nic = BUFFERS] [, disk = BUFFERS] [, console [, ready]])`
///
/// * `main`: `async fn main(spawner: ilwaco::Spawner)`. The VM ends with code 0 when it returns.
/// * `memory`: bytes of memory that the VM wants, a multiple of 4096; the system file may say otherwise.
/// * `stack`: bytes of stack; 32 KiB if left out.
/// * `nic`: the VM has a NIC with this many packet buffers of 2 KiB (3 to 63).
/// * `disk`: the VM has a disk window with this many buffers of 4 KiB (1 to 512): so many blocks can be under way. Which disks it
///   has, the system file says.
/// * `console`: the VM has a console.
/// * `ready`: the guest calls [`ready()`](crate::ready()) once it has started, and clones may be made of it.
#[macro_export]
macro_rules! entry {
    ($main:path, memory = $memory:expr $(, stack = $stack:expr)? $(, nic = $nic:expr)? $(, disk = $disk:expr)?, console, ready $(,)?) => {
        $crate::entry!(@make $main, $memory, ($($stack)?), ($($nic)?), ($($disk)?), (&raw const $crate::console::PAGE).cast(), true);
    };
    ($main:path, memory = $memory:expr $(, stack = $stack:expr)? $(, nic = $nic:expr)? $(, disk = $disk:expr)?, console $(,)?) => {
        $crate::entry!(@make $main, $memory, ($($stack)?), ($($nic)?), ($($disk)?), (&raw const $crate::console::PAGE).cast(), false);
    };
    ($main:path, memory = $memory:expr $(, stack = $stack:expr)? $(, nic = $nic:expr)? $(, disk = $disk:expr)? $(,)?) => {
        $crate::entry!(@make $main, $memory, ($($stack)?), ($($nic)?), ($($disk)?), core::ptr::null(), false);
    };
    (@make $main:path, $memory:expr, $stack:tt, $nic:tt, $disk:tt, $console:expr, $ready:expr) => {
        const _: () = {
            const STACK_BYTES: usize = $crate::entry!(@stack $stack);
            #[unsafe(link_section = ".sbss")]
            static STACK: $crate::Stack<STACK_BYTES> = $crate::Stack::new();
            const NIC: (*const u8, usize) = $crate::entry!(@nic $nic);
            const DISK: (*const u8, usize) = $crate::entry!(@disk $disk);
            #[unsafe(no_mangle)]
            static ILWACO_IMAGE: $crate::Image = $crate::Image {
                stack: (&raw const STACK).cast(),
                stack_bytes: STACK_BYTES,
                run: || $crate::start($main),
                nic: NIC.0,
                nic_length: NIC.1,
                disk: DISK.0,
                disk_length: DISK.1,
            };
            #[used]
            #[unsafe(link_section = ".note.denali")]
            static NOTE: $crate::StaticNote = $crate::StaticNote::new($memory, NIC, DISK, $console, $ready);
        };
    };
    (@stack ()) => { 32 * 1024 };
    (@stack ($bytes:expr)) => { $bytes };
    (@nic ()) => { (core::ptr::null(), 0) };
    (@nic ($buffers:expr)) => {{
        #[unsafe(link_section = ".sbss")]
        static WINDOW: $crate::Window<{ $buffers }> = $crate::Window::new();
        ((&raw const WINDOW).cast::<u8>(), size_of_val(&WINDOW))
    }};
    (@disk ()) => { (core::ptr::null(), 0) };
    (@disk ($buffers:expr)) => {{
        #[unsafe(link_section = ".sbss")]
        static WINDOW: $crate::DiskWindow<{ $buffers }> = $crate::DiskWindow::new();
        ((&raw const WINDOW).cast::<u8>(), size_of_val(&WINDOW))
    }};
}
