//! A guest that misbehaves as its arguments say. `src/modes.rs` is the table of what it can do.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod guest;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "This is a guest of the isolation kernel; it runs in a virtual machine only. Its modes (the VM's arguments):"
    );
    for mode in hostile::MODES {
        eprintln!("  {:24} {}", mode.name, mode.about);
    }
    std::process::exit(2);
}
