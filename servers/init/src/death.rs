//! Why a server died, for people.

use core::fmt;
use protocol::{
    domain::{Event, EventKind, FAULT_EXECUTE, FAULT_WRITE},
    layout::{PAGE, STACK_SIZE, STACK_TOP},
};

/// Exit code of a server that panicked.
const PANIC: u32 = 101;

/// Why a server died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Death {
    /// The event that its trap made.
    Trap(Event),
    /// The operator killed it.
    Killed,
    /// It could not be set up again.
    NotStarted,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = match self {
            Death::Killed => return f.write_str("killed"),
            Death::NotStarted => return f.write_str("could not be set up"),
            Death::Trap(event) => event,
        };
        match EventKind::from_u32(event.kind) {
            Some(EventKind::PageFault) => {
                let what = match event.code {
                    code if code & FAULT_EXECUTE != 0 => "execute",
                    code if code & FAULT_WRITE != 0 => "write",
                    _ => "read",
                };
                write!(f, "page fault at {:#x} ({what}) by instruction {:#x}", event.address, event.instruction)?;
                let guard = STACK_TOP - STACK_SIZE - PAGE..STACK_TOP - STACK_SIZE;
                if guard.contains(&event.address) { f.write_str(": stack overflow") } else { Ok(()) }
            }
            Some(EventKind::Exception) => {
                write!(
                    f,
                    "{} (error {:#x}) by instruction {:#x}",
                    Exception(event.code),
                    event.value,
                    event.instruction
                )
            }
            Some(EventKind::Exit) if event.code == PANIC => f.write_str("panicked (exit code 101)"),
            Some(EventKind::Exit) => write!(f, "exit with code {}", event.code),
            Some(EventKind::Ready | EventKind::Doorbell) | None => write!(f, "unknown event {}", event.kind),
        }
    }
}

/// A processor exception by its vector.
struct Exception(u32);

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "division error",
            1 => "debug exception",
            3 => "breakpoint",
            4 => "overflow",
            5 => "bound range exceeded",
            6 => "invalid instruction",
            7 => "no floating point unit",
            12 => "stack fault",
            13 => "general protection fault",
            16 => "floating point error",
            17 => "misaligned access",
            19 => "SIMD floating point error",
            vector => return write!(f, "exception {vector}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trap(kind: EventKind, code: u32, address: u64) -> String {
        let event = Event { kind: kind as u32, code, address, instruction: 0x20_1234, value: 0x18, ..Event::default() };
        Death::Trap(event).to_string()
    }

    #[test]
    fn says_what_an_author_needs() {
        assert_eq!(trap(EventKind::PageFault, 0, 0x10), "page fault at 0x10 (read) by instruction 0x201234");
        assert_eq!(trap(EventKind::PageFault, 3, 0x10), "page fault at 0x10 (write) by instruction 0x201234");
        assert_eq!(trap(EventKind::PageFault, 16, 0x10), "page fault at 0x10 (execute) by instruction 0x201234");
        assert!(trap(EventKind::PageFault, 2, STACK_TOP - STACK_SIZE - 8).ends_with(": stack overflow"));
        assert_eq!(trap(EventKind::Exception, 13, 0), "general protection fault (error 0x18) by instruction 0x201234");
        assert_eq!(trap(EventKind::Exception, 77, 0), "exception 77 (error 0x18) by instruction 0x201234");
        assert_eq!(trap(EventKind::Exit, 101, 0), "panicked (exit code 101)");
        assert_eq!(trap(EventKind::Exit, 3, 0), "exit with code 3");
        assert_eq!(Death::Killed.to_string(), "killed");
    }
}
