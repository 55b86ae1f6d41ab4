//! The bootable image, on what a PC boots from.

use std::fs;
use std::time::Duration;

use miette::{IntoDiagnostic, Result, miette};

use super::BootTest;
use super::harness::{Context, Firmware};
use crate::machine::qemu::{Boot, Chipset, Medium};

const LIMIT: Duration = Duration::from_secs(120);

pub(super) const TESTS: &[BootTest] = &[
    BootTest {
        name: "image-bios",
        about: "the image is small and always the same; from a USB stick, a BIOS boots it and a web server answers",
        limit: LIMIT,
        long: false,
        run: bios,
    },
    BootTest {
        name: "image-uefi",
        about: "the same image on a USB stick boots by UEFI",
        limit: LIMIT,
        long: false,
        run: |context| boots(context, Chipset::Q35, Medium::Usb, Firmware::Uefi),
    },
    BootTest {
        name: "image-cd",
        about: "the same image as a CD boots by BIOS, on an older PC, and by UEFI",
        limit: LIMIT,
        long: false,
        run: cd,
    },
    BootTest {
        name: "image-disk",
        about: "the same image on a disk boots by BIOS, on an older PC, and by UEFI",
        limit: LIMIT,
        long: false,
        run: disk,
    },
    BootTest {
        name: "bochs",
        about: "the same image as a CD boots in Bochs, an emulated PC of other make, and its web servers answer by an Intel card that loads no address",
        limit: Duration::from_secs(300),
        long: false,
        run: bochs,
    },
];

/// Most bytes of the default system's image.
const LARGEST: u64 = 16 << 20;

fn bios(context: &mut Context<'_>) -> Result<()> {
    let (_, built) = context.build(None)?;
    let mut image = || -> Result<Vec<u8>> {
        let Boot::Image { file, .. } = context.image_of(&built, Medium::Usb, Firmware::Bios)? else {
            return Err(miette!("an image is not booted as one"));
        };
        fs::read(file).into_diagnostic()
    };
    let (first, second) = (image()?, image()?);
    if first.len() as u64 > LARGEST {
        return Err(miette!("the image has {} KiB, more than {}", first.len() >> 10, LARGEST >> 10));
    }
    if first != second {
        let place = first.iter().zip(&second).position(|(a, b)| a != b);
        return Err(miette!("two images of the same system differ, at byte {place:?}"));
    }
    boots(context, Chipset::Q35, Medium::Usb, Firmware::Bios)
}

fn cd(context: &mut Context<'_>) -> Result<()> {
    boots(context, Chipset::Pc, Medium::Cd, Firmware::Bios)?;
    boots(context, Chipset::Q35, Medium::Cd, Firmware::Uefi)
}

fn disk(context: &mut Context<'_>) -> Result<()> {
    boots(context, Chipset::Pc, Medium::Disk, Firmware::Bios)?;
    boots(context, Chipset::Q35, Medium::Disk, Firmware::Uefi)
}

/// Bochs has an e1000, and no disk that the system knows.
fn bochs(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(None)?;
    context.boot_bochs(&system, &built)?;
    context.line(0, &["servers started"])?;
    every_web_server_answers(context)
}

/// Boots the default system's image: every web server answers.
fn boots(context: &mut Context<'_>, chipset: Chipset, medium: Medium, firmware: Firmware) -> Result<()> {
    let (system, built) = context.build(None)?;
    let boot = context.image_of(&built, medium, firmware)?;
    context.boot_changed(&system, &built, |_, machine| {
        (machine.boot, machine.chipset) = (boot, chipset);
        Ok(())
    })?;
    every_web_server_answers(context)
}

fn every_web_server_answers(context: &mut Context<'_>) -> Result<()> {
    let servers: Vec<_> = context.services().iter().filter(|r| r.service.http).map(|r| r.vm.clone()).collect();
    for vm in servers {
        context.page(&vm, "/")?;
    }
    context.healthy()
}
