//! The VM's console.

use super::{clock, doorbell, lines, registers::live};
use crate::text::TextPage;
use core::{
    fmt::{self, Write},
    future::poll_fn,
    sync::atomic::{AtomicU32, Ordering},
    task::Poll,
};
use protocol::domain::Device;

/// The console window of the VM, named by the ELF note. In the section of whole pages ([`entry!`](crate::entry)).
#[unsafe(link_section = ".sbss")]
pub static PAGE: TextPage = TextPage::new();

/// Longest time that a full ring is waited for, in nanoseconds.
const PATIENCE: u64 = 50_000_000;
/// How far the console had read when waiting for it was last in vain; plus 1, 0: never in vain.
static DEAF: AtomicU32 = AtomicU32::new(0);

/// Prints to the VM's console.
#[macro_export]
macro_rules! print {
    ($($arguments:tt)*) => { $crate::console::print(core::format_args!($($arguments)*)) };
}

/// Prints a line to the VM's console.
#[macro_export]
macro_rules! println {
    () => { $crate::console::print(core::format_args!("\n")) };
    ($($arguments:tt)*) => { $crate::console::print(core::format_args!("{}\n", core::format_args!($($arguments)*))) };
}

/// Prints formatted text; behind [`print!`].
pub fn print(text: fmt::Arguments) {
    // Formatting into the ring cannot fail.
    let _ = Output.write_fmt(text);
    doorbell::now(Device::Console);
}

struct Output;

impl Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // Parts smaller than the ring, so that each finds room after a while.
        for part in text.as_bytes().chunks(256) {
            wait_until(|| PAGE.room() >= part.len());
            PAGE.write(part);
        }
        Ok(())
    }
}

/// Whether everything printed was taken by the console.
pub(super) fn is_drained() -> bool {
    PAGE.is_drained()
}

/// Waits until everything printed was taken by the console, but not for long.
pub fn flush() {
    wait_until(|| PAGE.is_drained());
}

/// Waits for the console to make a condition true. If it does not in time, and has not read since, it is not waited for again.
fn wait_until(mut condition: impl FnMut() -> bool) {
    if condition() || DEAF.load(Ordering::Relaxed) == PAGE.progress().wrapping_add(1) {
        return;
    }
    doorbell::now(Device::Console);
    // No line may end the waiting: they are left pending for the idle loop.
    let mask = live().mask.swap(0, Ordering::Relaxed);
    let start = clock::now();
    while !condition() {
        let now = clock::now();
        if now - start > PATIENCE {
            DEAF.store(PAGE.progress().wrapping_add(1), Ordering::Relaxed);
            break;
        }
        hypercall::idle(now + 500_000);
    }
    live().mask.store(mask, Ordering::Relaxed);
}

/// Reads what was typed: waits until there is something, then takes as much as fits. For one task only.
pub async fn read(buffer: &mut [u8]) -> usize {
    lines::enable(lines::CONSOLE);
    poll_fn(|context| {
        lines::register(lines::CONSOLE, context.waker());
        match PAGE.read(buffer) {
            0 if !buffer.is_empty() => Poll::Pending,
            count => Poll::Ready(count),
        }
    })
    .await
}
