//! Which accelerator QEMU uses.
//!
//! KVM only where it is real: some machines have a `/dev/kvm` although their processor shows no
//! `vmx` or `svm`; virtual machines there run far slower than under emulation.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::path::Path;

/// How QEMU executes guest instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// QEMU's own translator.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accelerator::Kvm => "KVM",
            Accelerator::Tcg => "TCG",
        })
    }
}

/// What was found on this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Findings {
    /// The virtualisation flag of the processor, `vmx` or `svm`.
    pub flag: Option<&'static str>,
    /// Whether `/dev/kvm` opens for reading and writing; the reason if not.
    pub device: Result<(), String>,
}

impl Findings {
    /// Looks at this machine.
    pub fn gather() -> Findings {
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let device = OpenOptions::new().read(true).write(true).open(Path::new("/dev/kvm"));
        Findings { flag: virtualisation_flag(&flags), device: device.map(drop).map_err(|e| e.to_string()) }
    }
}

/// The virtualisation flag named in the text of `/proc/cpuinfo`.
fn virtualisation_flag(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().filter_map(|line| line.strip_prefix("flags")?.split_once(':'));
    let mut words = flags.flat_map(|(_, words)| words.split_whitespace());
    words.find_map(|word| ["vmx", "svm"].into_iter().find(|flag| *flag == word))
}

/// The accelerator to use, and why.
pub fn choose(findings: &Findings) -> (Accelerator, String) {
    match (findings.flag, &findings.device) {
        (Some(flag), Ok(())) => (Accelerator::Kvm, format!("the processor has {flag} and /dev/kvm opens")),
        (Some(flag), Err(error)) => {
            (Accelerator::Tcg, format!("the processor has {flag}, but /dev/kvm does not open: {error}"))
        }
        (None, _) => (Accelerator::Tcg, "/proc/cpuinfo shows neither vmx nor svm".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_the_flag_and_the_device() {
        let ok = |flag| choose(&Findings { flag, device: Ok(()) }).0;
        assert_eq!(ok(Some("vmx")), Accelerator::Kvm);
        assert_eq!(ok(None), Accelerator::Tcg, "a /dev/kvm without vmx or svm crawls");
        let closed = Findings { flag: Some("svm"), device: Err("permission denied".into()) };
        let (accelerator, reason) = choose(&closed);
        assert_eq!(accelerator, Accelerator::Tcg);
        assert!(reason.contains("permission denied"));
    }

    #[test]
    fn flag_is_a_whole_word_on_a_flags_line() {
        assert_eq!(virtualisation_flag("flags\t\t: fpu vme svm sse\n"), Some("svm"));
        assert_eq!(virtualisation_flag("flags\t\t: fpu vmxx\nvmx flags\t: vnmi\n"), None);
    }
}
