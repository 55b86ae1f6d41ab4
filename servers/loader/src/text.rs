//! Why a VM stopped, in words for the operator: one line, without the VM's name.

use alloc::{format, string::String};
use protocol::{
    layout::{PAGE, SPACE_BASE},
    service::pager::Stop,
};

/// Names of the processor's exceptions by vector (Intel SDM vol. 3, 7.3; AMD APM vol. 2, 8.2).
pub const EXCEPTIONS: [&str; 32] = [
    "divide error",
    "debug exception",
    "non-maskable interrupt",
    "breakpoint",
    "overflow",
    "bound range exceeded",
    "invalid opcode",
    "device not available",
    "double fault",
    "coprocessor segment overrun",
    "invalid task state segment",
    "segment not present",
    "stack segment fault",
    "general protection fault",
    "page fault",
    "reserved exception 15",
    "x87 floating-point exception",
    "alignment check",
    "machine check",
    "SIMD floating-point exception",
    "virtualization exception",
    "control protection exception",
    "reserved exception 22",
    "reserved exception 23",
    "reserved exception 24",
    "reserved exception 25",
    "reserved exception 26",
    "reserved exception 27",
    "hypervisor injection exception",
    "VMM communication exception",
    "security exception",
    "reserved exception 31",
];

/// Vector of the general protection fault.
const GENERAL_PROTECTION: u32 = 13;
/// In an error code that names a selector: it names an entry of the interrupt table.
const ERROR_INTERRUPT: u64 = 1 << 1;

/// Why a VM with `memory` bytes is no longer there. `Ready` is no such reason and has a text only for completeness.
pub fn stop(stop: &Stop, memory: u64) -> String {
    match stop {
        Stop::Exit(code) => format!("ended with code {code}"),
        Stop::Ready => String::from("ready"),
        Stop::BadAccess { address, instruction, write, execute } => {
            let inside = address.checked_sub(SPACE_BASE).is_some_and(|offset| offset < memory);
            let (what, why) = match (write, execute, inside) {
                (true, _, false) => ("write to", "outside its memory"),
                (true, _, true) => ("write to", "which is read-only"),
                (_, true, false) => ("jump to", "outside its memory"),
                (_, true, true) => ("jump to", "which is not code"),
                (_, _, false) => ("read from", "outside its memory"),
                (_, _, true) => ("read from", "which it may not read"),
            };
            let null = if *address < PAGE { " (a null pointer?)" } else { "" };
            if *execute && address == instruction {
                format!("stopped: {what} {address:#x}, {why}{null}")
            } else {
                format!("stopped: {what} {address:#x}, {why}{null}, by instruction {instruction:#x}")
            }
        }
        Stop::Exception { vector, error, instruction } => {
            let unknown = "unknown exception";
            let name = EXCEPTIONS.get(*vector as usize).copied().unwrap_or(unknown);
            let known = if name == unknown { format!("{unknown} {vector}") } else { String::from(name) };
            format!("stopped: {known} at {instruction:#x}{}", detail(*vector, *error))
        }
        Stop::Pager(reason) => format!("stopped: {reason}"),
    }
}

/// The same for a list that says of itself that the VM stopped.
pub fn reason(text: &str) -> &str {
    text.strip_prefix("stopped: ").or_else(|| text.strip_prefix("stopped ")).unwrap_or(text)
}

/// What an error code says.
fn detail(vector: u32, error: u64) -> String {
    match (vector, error) {
        (GENERAL_PROTECTION, 0) => {
            String::from(" (privileged instruction or bad segment, or an address that is not canonical)")
        }
        (GENERAL_PROTECTION, error) if error & ERROR_INTERRUPT != 0 => {
            format!(" (software interrupt {:#x})", error >> 3 & 0xff)
        }
        (_, 0) => String::new(),
        (_, error) => format!(" (error code {error:#x})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::BTreeSet, string::ToString};

    const MEMORY: u64 = 1 << 20;

    fn access(address: u64, write: bool, execute: bool) -> String {
        stop(&Stop::BadAccess { address, instruction: 0x20_1234, write, execute }, MEMORY)
    }

    #[test]
    fn bad_accesses() {
        let far = 0xffff_8000_0000_0000;
        assert_eq!(
            access(far, true, false),
            "stopped: write to 0xffff800000000000, outside its memory, by instruction 0x201234"
        );
        assert_eq!(
            access(far, false, true),
            "stopped: jump to 0xffff800000000000, outside its memory, by instruction 0x201234"
        );
        assert_eq!(
            access(8, false, false),
            "stopped: read from 0x8, outside its memory (a null pointer?), by instruction 0x201234"
        );
        assert_eq!(
            access(SPACE_BASE + MEMORY, true, false),
            "stopped: write to 0x300000, outside its memory, by instruction 0x201234"
        );
        assert_eq!(
            access(SPACE_BASE + MEMORY - 1, true, false),
            "stopped: write to 0x2fffff, which is read-only, by instruction 0x201234"
        );
        let jump = Stop::BadAccess { address: 0x20_0000, instruction: 0x20_0000, write: false, execute: true };
        assert_eq!(stop(&jump, MEMORY), "stopped: jump to 0x200000, which is not code");
    }

    #[test]
    fn exceptions() {
        let text = |vector, error| stop(&Stop::Exception { vector, error, instruction: 0x20_1a2c }, MEMORY);
        assert!(
            text(13, 0)
                .starts_with("stopped: general protection fault at 0x201a2c (privileged instruction or bad segment")
        );
        assert_eq!(text(13, 0x402), "stopped: general protection fault at 0x201a2c (software interrupt 0x80)");
        assert_eq!(text(13, 0x18), "stopped: general protection fault at 0x201a2c (error code 0x18)");
        assert_eq!(text(6, 0), "stopped: invalid opcode at 0x201a2c");
        assert_eq!(text(77, 0), "stopped: unknown exception 77 at 0x201a2c");
        let names: BTreeSet<_> = EXCEPTIONS.iter().collect();
        assert_eq!(names.len(), 32);
    }

    #[test]
    fn ends() {
        assert_eq!(stop(&Stop::Exit(3), MEMORY), "ended with code 3");
        let reasons = ["stopped: read", "stopped by the operator", "ended with code 3"].map(reason);
        assert_eq!(reasons, ["read", "by the operator", "ended with code 3"]);
        assert_eq!(stop(&Stop::Pager("why".to_string()), MEMORY), "stopped: why");
    }

    proptest! {
        #[test]
        fn every_stop_is_one_short_line(address: u64, instruction: u64, write: bool, execute: bool, vector: u32, error: u64) {
            let stops =
                [Stop::BadAccess { address, instruction, write, execute }, Stop::Exception { vector, error, instruction }];
            for text in stops.map(|s| stop(&s, MEMORY)) {
                prop_assert!(!text.contains('\n') && text.len() < 200);
            }
        }
    }
}
