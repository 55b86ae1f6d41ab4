//! UEFI firmware for machines that boot an image.

use std::path::Path;

use miette::{Result, miette};

use super::qemu::Uefi;
use crate::toolchain::{self, Installing};

/// The Debian package.
const PACKAGE: &str = "ovmf";
/// Program and variables, as the package's releases have named them.
const FILES: [(&str, &str); 2] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
];

/// The firmware, if this host has it.
pub fn find() -> Option<Uefi> {
    let there = |file: &str| Path::new(file).is_file();
    let (code, variables) = FILES.into_iter().find(|(code, variables)| there(code) && there(variables))?;
    Some(Uefi { code: code.into(), variables: variables.into() })
}

/// The firmware, installed if need be.
pub fn ensure(installing: Installing) -> Result<Uefi> {
    if let Some(found) = find() {
        return Ok(found);
    }
    toolchain::ensure_things(&[(FILES[0].0, PACKAGE)], installing)?;
    find().ok_or_else(|| miette!("package {PACKAGE} is installed, but has no firmware where it should be"))
}
