//! A guest that sends back what it is sent, on TCP and UDP port 7 (RFC 862).
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
mod guest;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("This is a guest of the isolation kernel; it runs in a virtual machine only.");
    std::process::exit(2);
}
