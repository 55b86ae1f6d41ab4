//! The virtual disks in the image of a disk, while no machine uses it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use protocol::service::block_driver::Partition;
use vdisk::store::BLOCK;
use vdisk::store::offline::{Blocks, Fault, Offline};

use super::disk::Image;

/// The bytes of an image by whose locks QEMU tells others that it uses it (`block/file-posix.c`: 100 and 200, a byte for each permission).
const LOCKED: (i64, i64) = (100, 200);

/// The `vdisk` partition of an image.
#[derive(Debug)]
pub struct OnImage {
    file: File,
    start: u64,
    blocks: u64,
}

impl Blocks for OnImage {
    type Error = io::Error;

    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn read(&mut self, block: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, self.start + block * BLOCK as u64)
    }

    fn write(&mut self, block: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.start + block * BLOCK as u64)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The virtual disks of an image.
pub type VirtualDisks = Offline<OnImage>;

/// Opens the store in an image; no machine can use the image meanwhile.
pub fn open(image: &Image) -> Result<VirtualDisks> {
    let path = image.path();
    let place = image.partitions()?.into_iter().find(|(kind, ..)| *kind == Partition::Vdisk);
    let (_, start, bytes) = place.ok_or_else(|| miette!("{} has no partition for virtual disks", path.display()))?;
    let file = OpenOptions::new().read(true).write(true).open(path).into_diagnostic()?;
    lock(&file).map_err(|_| {
        let help = "end it first; the operator's prompt has `disks`, `disk create` and `disk delete`";
        miette!(help = help, "a machine is using {}", path.display())
    })?;
    let opened = Offline::open(OnImage { file, start, blocks: bytes / BLOCK as u64 });
    opened.map_err(failed).wrap_err_with(|| miette!("the virtual disks in {}", path.display()))
}

/// A fault as an error.
pub fn failed(fault: Fault<io::Error>) -> miette::Report {
    miette!("{fault}")
}

/// Takes the locks that QEMU takes, all of them; an error if it has some. They last as long as the file is open.
fn lock(file: &File) -> nix::Result<()> {
    let (first, last) = LOCKED;
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: first,
        l_len: last - first + 64,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole)).map(drop)
}

/// Makes a disk of a file, or of a folder as a `newc` archive of its files.
pub fn import(disks: &mut VirtualDisks, name: &str, from: &Path) -> Result<u64> {
    let unreadable = || miette!("{} cannot be read", from.display());
    if from.is_dir() {
        let archive = super::archive::of_folder(from)?;
        let blocks = (archive.len() as u64).div_ceil(BLOCK as u64);
        let fill = |block: u64, bytes: &mut [u8]| {
            let rest = archive.get(block as usize * BLOCK..).unwrap_or_default();
            let length = rest.len().min(bytes.len());
            bytes[..length].copy_from_slice(&rest[..length]);
            bytes[length..].fill(0);
            Ok(())
        };
        disks.create_with(name, blocks, fill).map_err(failed)?;
        return Ok(blocks);
    }
    let file = File::open(from).into_diagnostic().wrap_err_with(unreadable)?;
    let length = file.metadata().into_diagnostic().wrap_err_with(unreadable)?.len();
    if length == 0 {
        return Err(miette!("{} is empty", from.display()));
    }
    let blocks = length.div_ceil(BLOCK as u64);
    let fill = |block: u64, bytes: &mut [u8]| {
        let start = block * BLOCK as u64;
        let inside = (length.saturating_sub(start)).min(bytes.len() as u64) as usize;
        bytes[inside..].fill(0);
        file.read_exact_at(&mut bytes[..inside], start)
    };
    disks.create_with(name, blocks, fill).map_err(failed)?;
    Ok(blocks)
}

/// Writes a disk to a file, which must not be there yet; blocks of zeros take no room.
pub fn export(disks: &mut VirtualDisks, name: &str, to: &Path) -> Result<u64> {
    if disks.store().table.get(name).is_none() {
        return Err(failed(Fault::NotFound(name.into())));
    }
    let file = File::create_new(to).into_diagnostic().wrap_err_with(|| miette!("{} cannot be made", to.display()))?;
    let mut at = 0u64;
    let write = |bytes: &[u8]| {
        for block in bytes.chunks(BLOCK) {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, at)?;
            }
            at += block.len() as u64;
        }
        Ok(())
    };
    disks.read(name, write).map_err(failed)?;
    file.set_len(at).into_diagnostic()?;
    Ok(at / BLOCK as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::disk::Existing;
    use crate::system::disks::DiskPlan;
    use crate::system::types::Size;

    fn image(folder: &Path) -> Image {
        let partitions = vec![(Partition::Vdisk, Size(4 << 20))];
        let plan = DiskPlan { name: "disk".into(), size: Size(8 << 20), partitions };
        Image::ensure(folder, &plan, Existing::Keep).expect("it can be made")
    }

    #[test]
    fn what_is_imported_is_exported() {
        let folder = tempfile::tempdir().expect("a folder");
        let image = image(folder.path());
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let bytes: Vec<u8> = (0..1_000_003u32).map(|n| (n / 7) as u8).collect();
        std::fs::write(&from, &bytes).expect("it can be written");
        assert_eq!(import(&mut open(&image).expect("new"), "data", &from).expect("there is room"), 245);
        let mut disks = open(&image).expect("there");
        assert_eq!(disks.store().table.space(), (1024 - 128, 1024 - 128 - 245));
        assert_eq!(export(&mut disks, "data", &to).expect("there"), 245);
        let seen = std::fs::read(&to).expect("there");
        assert_eq!((&seen[..bytes.len()], seen.len()), (&bytes[..], 245 * BLOCK));
        assert!(seen[bytes.len()..].iter().all(|byte| *byte == 0));
        export(&mut disks, "data", &to).expect_err("the file is there");
        import(&mut disks, "data", &from).expect_err("the disk is there");
        export(&mut disks, "other", &folder.path().join("other")).expect_err("no such disk");
        assert!(!folder.path().join("other").exists());
        import(&mut disks, "big", &folder.path().join("none")).expect_err("no such file");
    }

    #[test]
    fn a_folder_becomes_an_archive() {
        let folder = tempfile::tempdir().expect("a folder");
        let image = image(folder.path());
        let site = folder.path().join("site");
        std::fs::create_dir_all(site.join("pictures")).expect("a folder");
        std::fs::write(site.join("index.html"), "hello").expect("a file");
        std::fs::write(site.join("pictures/a.png"), vec![7; 9000]).expect("a file");
        import(&mut open(&image).expect("new"), "site", &site).expect("there is room");
        let out = folder.path().join("out");
        export(&mut open(&image).expect("there"), "site", &out).expect("there");
        let archive = std::fs::read(out).expect("there");
        let files: Vec<_> = protocol::bundle::files(&archive).map(|file| file.expect("an archive")).collect();
        let seen: Vec<_> = files.iter().map(|file| (file.name, file.data.len())).collect();
        assert_eq!(seen, [("index.html", 5), ("pictures/a.png", 9000)]);
    }

    #[test]
    fn an_image_in_use_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let image = image(folder.path());
        let first = open(&image).expect("nobody uses it");
        let error = open(&image).expect_err("it is in use");
        assert!(error.to_string().contains("a machine is using"), "{error}");
        drop(first);
        open(&image).expect("nobody uses it any more");
    }
}
