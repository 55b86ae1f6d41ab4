//! The bootable image: one file for a USB stick, a disk or a CD, for BIOS and UEFI.
//!
//! It is an ISO 9660 file system with the microkernel, the bundle and two programs of the GRUB boot loader, one for each kind of
//! firmware. What makes it bootable from everything is around it: a boot record and a GUID partition table in front (stick and
//! disk), an El Torito catalogue (CD), and a small FAT file system that UEFI firmware looks into. GRUB finds its own image by
//! the file system's date, which stands for what is in it; so the same input gives the same bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crc::{CRC_64_XZ, Crc};
use miette::{IntoDiagnostic, Result, WrapErr, miette};
use tempfile::TempDir;

use crate::build::Built;
use crate::elf;
use crate::process;
use crate::toolchain::{self, Installing};
use crate::ui::Step;

/// Boot record of sticks and disks.
const BOOT_RECORD: &str = "/usr/lib/grub/i386-pc/boot_hybrid.img";
/// Programs, and files that stand for all of their package, with the Debian packages that have them.
pub const NEEDED: [(&str, &str); 7] = [
    ("grub-mkimage", "grub-common"),
    (BOOT_RECORD, "grub-pc-bin"),
    ("/usr/lib/grub/x86_64-efi/moddep.lst", "grub-efi-amd64-bin"),
    ("xorriso", "xorriso"),
    ("mformat", "mtools"),
    ("mmd", "mtools"),
    ("mcopy", "mtools"),
];

/// What GRUB needs to find the image, load from it and set a mode; then what only one firmware's GRUB needs.
const MODULES: [&str; 8] = ["iso9660", "part_gpt", "part_msdos", "search", "multiboot2", "serial", "terminal", "boot"];
const BIOS_MODULES: [&str; 3] = ["biosdisk", "vbe", "vga"];
const UEFI_MODULES: [&str; 3] = ["fat", "efi_gop", "efi_uga"];

/// Date of all files: nobody wants to know, and it must not change.
const FILE_DATE: &str = "2000010100000000";
/// The same in seconds since 1970, for programs that know the convention.
const EPOCH: &str = "946684800";

/// Makes sure that everything is there that makes images.
pub fn ensure_tools(installing: Installing) -> Result<()> {
    toolchain::ensure_things(&NEEDED, installing)
}

/// Makes the image of a system that was built. The answer is its size in bytes.
pub fn make(built: &Built, to: &Path) -> Result<u64> {
    if to.exists() && !to.is_file() {
        let help = "the image is made as a file; `dd` copies it to a stick";
        return Err(miette!(help = help, "{} is no file", to.display()));
    }
    let step = Step::start("Making the image");
    match Making::start().and_then(|making| making.image(built, to)) {
        Ok(bytes) => {
            step.done(&format!("{} KiB: BIOS and UEFI; USB stick, disk or CD", bytes >> 10));
            Ok(bytes)
        }
        Err(error) => {
            step.failed();
            Err(error)
        }
    }
}

/// A folder to make an image in.
struct Making {
    folder: TempDir,
}

impl Making {
    fn start() -> Result<Making> {
        Ok(Making { folder: TempDir::with_prefix("denali-image-").into_diagnostic()? })
    }

    fn image(&self, built: &Built, to: &Path) -> Result<u64> {
        let kernel = elf::without_sections(&read(&built.kernel)?)
            .ok_or_else(|| miette!("{} is no ELF program", built.kernel.display()))?;
        let bundle = read(&built.bundle)?;
        let date = date(&[&kernel, &bundle]);
        let tree = self.path("tree");
        let boot = tree.join("boot");
        fs::create_dir_all(&boot).into_diagnostic()?;
        write(&boot.join("microkernel"), &kernel)?;
        write(&boot.join("bundle.cpio"), &bundle)?;
        write(&self.path("grub.cfg"), commands(&uuid(&date)).as_bytes())?;
        self.grub("i386-pc-eltorito", &BIOS_MODULES, &boot.join("bios.img"))?;
        self.grub("x86_64-efi", &UEFI_MODULES, &self.path("BOOTX64.EFI"))?;
        self.uefi(&boot.join("uefi.img"))?;
        self.iso(&tree, &date)?;

        // Written beside it and renamed: a full disk leaves no half image, and a machine keeps the one that it has open.
        let fresh = to.with_extension("new");
        let failed = || miette!("{} cannot be written", to.display());
        let bytes = fs::copy(self.path("image"), &fresh).into_diagnostic().wrap_err_with(failed)?;
        fs::rename(&fresh, to).into_diagnostic().wrap_err_with(failed)?;
        Ok(bytes)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// GRUB for one kind of firmware, in one file with all its modules.
    fn grub(&self, format: &str, modules: &[&str], to: &Path) -> Result<()> {
        let mut command = Command::new("grub-mkimage");
        command.args(["--format", format, "--prefix", "/boot", "--config"]).arg(self.path("grub.cfg"));
        run(command.arg("--output").arg(to).args(MODULES).args(modules))
    }

    /// The file system for UEFI firmware, of the size and kind of a 2.88 MB floppy disk, which all firmware reads.
    fn uefi(&self, to: &Path) -> Result<()> {
        run(Command::new("mformat").arg("-i").arg(to).args(["-C", "-f", "2880", "-N", "0", "::"]))?;
        run(Command::new("mmd").arg("-i").arg(to).args(["::/EFI", "::/EFI/BOOT"]))?;
        run(Command::new("mcopy").arg("-i").arg(to).arg(self.path("BOOTX64.EFI")).arg("::/EFI/BOOT/"))
    }

    fn iso(&self, tree: &Path, date: &str) -> Result<()> {
        let mut command = Command::new("xorriso");
        command.args(["-as", "mkisofs", "-quiet", "-r", "-volid", "DENALI"]);
        command.arg(format!("--modification-date={date}")).args(["--set_all_file_dates", FILE_DATE]);
        command.args(["-b", "boot/bios.img", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]);
        command.args(["--grub2-boot-info", "--grub2-mbr", BOOT_RECORD, "--protective-msdos-label"]);
        command.args(["--efi-boot", "boot/uefi.img", "-efi-boot-part", "--efi-boot-image"]);
        run(command.arg("-o").arg(self.path("image")).arg(tree))
    }
}

/// What GRUB does. Without a serial port it says so on the screen, and goes on.
fn commands(uuid: &str) -> String {
    format!(
        "serial --unit=0 --speed=115200\n\
         terminal_output --append serial\n\
         search --no-floppy --fs-uuid --set=root {uuid}\n\
         set gfxpayload=1024x768x32,1024x768,auto\n\
         multiboot2 /boot/microkernel\n\
         module2 /boot/bundle.cpio\n\
         boot\n"
    )
}

/// A date made of what is in an image: year to hundredth of a second, 16 digits.
fn date(content: &[&[u8]]) -> String {
    let crc = Crc::<u64>::new(&CRC_64_XZ);
    let mut digest = crc.digest();
    content.iter().for_each(|part| digest.update(part));
    let mut rest = digest.finalize();
    let mut one_of = |count: u64| {
        let chosen = rest % count;
        rest /= count;
        chosen
    };
    let (year, month, day) = (2000 + one_of(100), 1 + one_of(12), 1 + one_of(28));
    let (hour, minute, second, hundredth) = (one_of(24), one_of(60), one_of(60), one_of(100));
    format!("{year}{month:02}{day:02}{hour:02}{minute:02}{second:02}{hundredth:02}")
}

/// The date as GRUB writes it.
fn uuid(date: &str) -> String {
    let (year, rest) = date.split_at(4);
    let pairs = rest.as_bytes().chunks(2).map(|pair| format!("-{}", String::from_utf8_lossy(pair)));
    year.to_string() + &pairs.collect::<String>()
}

/// Runs a program that says nothing unless it fails.
fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut own = Command::new(command.get_program());
    own.args(command.get_args()).envs([("SOURCE_DATE_EPOCH", EPOCH), ("TZ", "UTC"), ("LC_ALL", "C")]);
    let outcome = process::run(own, None)?;
    if outcome.status.success() {
        return Ok(());
    }
    Err(miette!("`{name}` failed ({}):\n{}{}", outcome.status, outcome.output, outcome.errors.trim_end()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).into_diagnostic().wrap_err_with(|| miette!("{} cannot be read", path.display()))
}

fn write(path: &Path, data: &[u8]) -> Result<()> {
    fs::write(path, data).into_diagnostic().wrap_err_with(|| miette!("{} cannot be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_stands_for_the_content_and_is_one() {
        let dates: Vec<String> = (0..200u8).map(|byte| date(&[&[byte], b"rest"])).collect();
        assert_eq!(dates[7], date(&[&[7], b"rest"]));
        assert!(dates.windows(2).all(|pair| pair[0] != pair[1]));
        for date in dates {
            let number = |at: usize| date[at..at + 2].parse::<u32>().expect("digits");
            assert!(date.len() == 16 && date.starts_with("20"), "{date}");
            assert!((1..=12).contains(&number(4)) && (1..=28).contains(&number(6)), "{date}");
            assert!(number(8) < 24 && number(10) < 60 && number(12) < 60, "{date}");
        }
        assert_eq!(uuid("2026010203040506"), "2026-01-02-03-04-05-06");
    }

    #[test]
    fn a_device_is_not_replaced_by_a_file() {
        let built = Built { kernel: "k".into(), bundle: "b".into(), folder: "f".into() };
        let error = make(&built, Path::new("/dev/null")).expect_err("it is a device");
        assert!(error.to_string().contains("is no file"), "{error}");
    }
}
