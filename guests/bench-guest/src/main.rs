//! A guest that measures from inside what the virtual architecture costs, and prints it on its console; with the argument `disk`, the throughput of its
//! virtual disk. With `touch`, `hog` and `wake` it is what the builder measures the pager with (`swap.rs`); with `compute` it only computes (`compute.rs`).
//!
//! The unit is that of the time-stamp counter: instructions in a machine that counts them (`-icount shift=0`), else
//! cycles. Each result is one line, `BENCH name value unit better key=value...`; the last line is `BENCH guest-done`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod compute;
#[cfg(target_os = "none")]
mod disk;
#[cfg(target_os = "none")]
mod guest;
#[cfg(target_os = "none")]
mod swap;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("This is a guest of the isolation kernel; it runs in a virtual machine only.");
    std::process::exit(2);
}
