//! A guest that fills its memory with a pattern, keeps it, and says on TCP port 7 whether it is still there.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
mod guest;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("This is a guest of the isolation kernel; it runs in a virtual machine only.");
    std::process::exit(2);
}
