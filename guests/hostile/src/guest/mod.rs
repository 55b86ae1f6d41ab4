//! What the guest does in each mode.
//!
//! Where a mode should not end the VM, the guest checks what it can see from inside, and ends with [`BROKEN`] if
//! the kernel let something pass. It then returns to `main`, and the VM ends with code 0.

mod calls;
mod console;
mod instructions;
mod memory;
mod network;
mod random;
mod registers;
mod resources;

use hostile::{Act, Privileged};
use ilwaco::{Spawner, clock, exit, println, vm};

ilwaco::entry!(main, memory = 512 * 1024, nic = 15, console);

/// The guest got what it must not get.
const BROKEN: u32 = 1;
/// The arguments name no mode.
const NO_SUCH_MODE: u32 = 64;
/// Nanoseconds that a bounded storm lasts.
const STORM: u64 = 3_000_000_000;

async fn main(_: Spawner) {
    let arguments = vm::arguments();
    let Some(mode) = hostile::find(arguments.trim()) else {
        println!("no such mode: {arguments:?}");
        exit(NO_SUCH_MODE);
    };
    println!("hostile: {} {}", mode.name, mode.about);
    ilwaco::console::flush();
    match mode.act {
        Act::Privileged(instruction) => {
            instructions::privileged(instruction);
            // A hypervisor below may answer: it is not the kernel that lets this pass.
            if instruction != Privileged::Vmcall {
                broken("the instruction was executed");
            }
        }
        Act::Sensitive(instruction) => instructions::sensitive(instruction),
        Act::Exception(exception) => instructions::exception(exception),
        Act::Read(place) => memory::read(place),
        Act::Write(place) => memory::write(place),
        Act::Jump(place) => memory::jump(place),
        Act::Stack(place) => memory::stack(place),
        Act::Call(call) => calls::odd(call),
        Act::Hypercalls(misuse) => calls::misuse(misuse),
        Act::Registers(misuse) => registers::misuse(misuse),
        Act::Network(misuse) => network::misuse(misuse).await,
        Act::Console(misuse) => console::misuse(misuse),
        Act::Resources(misuse) => resources::misuse(misuse),
    }
    println!("hostile: {} is done", mode.name);
}

/// Ends the VM: the kernel has let something pass.
fn broken(what: &str) -> ! {
    println!("hostile: BROKEN: {what}");
    exit(BROKEN)
}

/// Whether a storm that began at `start` goes on.
fn storming(start: u64) -> bool {
    clock::now().wrapping_sub(start) < STORM
}
