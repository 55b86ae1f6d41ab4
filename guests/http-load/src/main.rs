//! A guest that asks a web server for pages as fast as it answers, and tells how many it got: the load of `cargo denali bench smp`.
//! Argument: `server=ADDRESS`.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
mod guest;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("This is a guest of the isolation kernel; it runs in a virtual machine only.");
    std::process::exit(2);
}
