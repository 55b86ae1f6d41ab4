//! A guest that asks web servers for pages. With the argument `server=ADDRESS` as fast as it answers, and it tells how many it got: the load of
//! `cargo denali bench smp`. With `first=ADDRESS+COUNT` once each of so many servers from that address on, and it tells how long their first answer took:
//! for `cargo denali bench scale`.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
mod first;
#[cfg(target_os = "none")]
mod guest;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("This is a guest of the isolation kernel; it runs in a virtual machine only.");
    std::process::exit(2);
}
