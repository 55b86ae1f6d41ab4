//! A guest that serves the files built into its image, and shows the virtual machine it runs in.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod guest;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("This is a guest of the isolation kernel; it runs in a virtual machine only.");
    std::process::exit(2);
}
