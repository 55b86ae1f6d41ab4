//! Misuse of the console.

use super::{random::Random, storming};
use hostile::Console;
use ilwaco::{clock, console, hypercall, protocol::domain::Device};

fn ring() {
    let _ = hypercall::doorbell(Device::Console);
}

/// Misuse of the console.
pub fn misuse(misuse: Console) {
    let mut random = Random::new();
    let start = clock::now();
    match misuse {
        Console::Flood => {
            while storming(start) {
                console::PAGE.write(b"this VM has a lot to say and says it again and again and again and again\n");
                ring();
            }
        }
        Console::Garbage => {
            for _ in 0..200 {
                let mut bytes = [0; 64];
                random.fill(&mut bytes);
                console::PAGE.write(&bytes);
                ring();
                hypercall::idle(clock::now() + 1_000_000);
            }
            // Clear the screen, set the title, ask the terminal who it is.
            console::PAGE.write(b"\x1b[2J\x1b]0;hostile\x07\x1b[c\x9b6n\n");
            ring();
        }
        Console::Page => {
            let page = (&raw const console::PAGE).cast::<u8>().cast_mut();
            while storming(start) {
                let mut bytes = [0; 64];
                random.fill(&mut bytes);
                // SAFETY: the console page is a static that is made of atomics; these are its indices and the first bytes.
                unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), page, bytes.len()) };
                ring();
                hypercall::idle(clock::now() + random.below(1_000_000));
            }
            // SAFETY: as above: its indices are 0 again.
            unsafe { page.write_bytes(0, 16) };
        }
    }
    console::PAGE.write(b"\n");
    console::flush();
}
