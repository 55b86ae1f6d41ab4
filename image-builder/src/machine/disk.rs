//! Disk images: made with a partition table, kept, checked, and read or written partition by partition.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types::{OperatingSystem, Type};
use miette::{IntoDiagnostic, Result, WrapErr, miette};
use protocol::service::block_driver::Partition;

use crate::system::disks::{ALIGNMENT, DiskPlan};
use crate::system::types::Size;

/// Bytes of a sector.
const SECTOR: u64 = 512;

/// The image of a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    path: PathBuf,
}

/// What to do with an image that is there already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Existing {
    /// Use it, if it is what the system file says.
    Keep,
    /// Make it anew.
    Replace,
}

fn kind(partition: Partition) -> Result<Type> {
    let guid = partition.guid().parse().map_err(|error| miette!("{error}"))?;
    Ok(Type { guid, os: OperatingSystem::Custom("Denali".into()) })
}

impl Image {
    /// Where the image of a disk lies in a folder.
    pub fn path_in(folder: &Path, plan: &DiskPlan) -> PathBuf {
        folder.join(format!("{}.img", plan.name))
    }

    /// The image of a disk in a folder: made if it is not there.
    pub fn ensure(folder: &Path, plan: &DiskPlan, existing: Existing) -> Result<Image> {
        let image = Image { path: Self::path_in(folder, plan) };
        if existing == Existing::Keep && image.path.exists() {
            image.check(plan)?;
        } else {
            image.create(plan)?;
        }
        Ok(image)
    }

    /// An image that is there.
    pub fn at(path: &Path) -> Image {
        Image { path: path.to_path_buf() }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self, what: &str) -> miette::Report {
        miette!("the disk image {} cannot be {what}", self.path.display())
    }

    /// Makes it: sparse, with a partition table. It appears whole or not at all.
    fn create(&self, plan: &DiskPlan) -> Result<()> {
        let new = self.path.with_extension("new");
        let failed = || self.failed("made");
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).into_diagnostic().wrap_err_with(failed)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&new)
            .into_diagnostic()
            .wrap_err_with(failed)?;
        file.set_len(plan.size.0).into_diagnostic().wrap_err_with(failed)?;
        // A size that does not fit into 32 bits of sectors is written as the most that does.
        let sectors = u32::try_from(plan.size.0 / SECTOR - 1).unwrap_or(u32::MAX);
        ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(&mut file).into_diagnostic().wrap_err_with(failed)?;
        let config = GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
        let mut table = config.create_from_device(file, None).into_diagnostic().wrap_err_with(failed)?;
        table.update_partitions(BTreeMap::new()).into_diagnostic().wrap_err_with(failed)?;
        for (partition, size) in &plan.partitions {
            let name = format!("{} {}", plan.name, partition.name());
            table
                .add_partition(&name, size.0, kind(*partition)?, 0, Some(ALIGNMENT / SECTOR))
                .into_diagnostic()
                .wrap_err_with(failed)?;
        }
        table.write().into_diagnostic().wrap_err_with(failed)?;
        std::fs::rename(&new, &self.path).into_diagnostic().wrap_err_with(failed)
    }

    /// Whether it is what the system file says; an error with advice if it is not.
    fn check(&self, plan: &DiskPlan) -> Result<()> {
        let wrong = |what: String| {
            let help = "`--new-disks` makes new, empty disks; what is on the old ones is lost then";
            miette!(help = help, "the disk image {} {what}", self.path.display())
        };
        let length = self.length()?;
        if length != plan.size.0 {
            return Err(wrong(format!("has {length} bytes; the system file says {} ({})", plan.size.0, plan.size)));
        }
        let found = self.partitions().map_err(|error| wrong(format!("has no partition table: {error}")))?;
        let sizes: Vec<_> = found.iter().map(|(kind, _, length)| (*kind, Size(*length))).collect();
        if sizes != plan.partitions {
            let text = |partitions: &[(Partition, Size)]| match partitions {
                [] => "nothing".to_string(),
                _ => {
                    let each = partitions.iter().map(|(kind, size)| format!("{} {size}", kind.name()));
                    each.collect::<Vec<_>>().join(", ")
                }
            };
            return Err(wrong(format!("holds {}; the system file says {}", text(&sizes), text(&plan.partitions))));
        }
        Ok(())
    }

    fn length(&self) -> Result<u64> {
        let metadata = std::fs::metadata(&self.path).into_diagnostic().wrap_err_with(|| self.failed("read"))?;
        Ok(metadata.len())
    }

    /// Our partitions: kind, first byte, bytes.
    pub fn partitions(&self) -> Result<Vec<(Partition, u64, u64)>> {
        let table = GptConfig::new().open(&self.path).into_diagnostic()?;
        let ours = |guid: &str| Partition::ALL.into_iter().find(|kind| kind.guid().eq_ignore_ascii_case(guid));
        let place = |entry: &gpt::partition::Partition| {
            let kind = ours(&entry.part_type_guid.guid.to_string())?;
            Some((kind, entry.first_lba * SECTOR, (entry.last_lba + 1 - entry.first_lba) * SECTOR))
        };
        Ok(table.partitions().values().filter(|entry| entry.is_used()).filter_map(place).collect())
    }

    fn place(&self, kind: Partition, offset: u64, length: usize) -> Result<u64> {
        let found = self.partitions()?.into_iter().find(|(other, ..)| *other == kind);
        let (_, start, bytes) =
            found.ok_or_else(|| miette!("{} has no {} partition", self.path.display(), kind.name()))?;
        let end = offset.checked_add(length as u64).filter(|end| *end <= bytes);
        end.map(|_| start + offset).ok_or_else(|| miette!("{length} bytes at {offset} leave the {}", kind.name()))
    }

    /// Reads bytes at an offset of a partition.
    pub fn read(&self, kind: Partition, offset: u64, length: usize) -> Result<Vec<u8>> {
        let at = self.place(kind, offset, length)?;
        let mut bytes = vec![0; length];
        let file = File::open(&self.path).into_diagnostic()?;
        file.read_exact_at(&mut bytes, at).into_diagnostic().wrap_err_with(|| self.failed("read"))?;
        Ok(bytes)
    }

    /// Writes bytes at an offset of a partition. No machine may be using the image, but for one that is paused and is to find what was
    /// written: QEMU reads through the same cache of the host.
    pub fn write(&self, kind: Partition, offset: u64, bytes: &[u8]) -> Result<()> {
        let at = self.place(kind, offset, bytes.len())?;
        let file = OpenOptions::new().write(true).open(&self.path).into_diagnostic()?;
        file.write_all_at(bytes, at).into_diagnostic().wrap_err_with(|| self.failed("written"))
    }

    /// Offset in the whole image of a partition's first byte, in sectors of 512 bytes: what `blkdebug` counts in.
    pub fn first_sector(&self, kind: Partition) -> Result<u64> {
        Ok(self.place(kind, 0, 0)? / SECTOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn plan(size: u64, partitions: &[(Partition, u64)]) -> DiskPlan {
        let partitions = partitions.iter().map(|(kind, mib)| (*kind, Size(mib << 20))).collect();
        DiskPlan { name: "disk".into(), size: Size(size << 20), partitions }
    }

    #[test]
    fn an_image_is_sparse_kept_and_checked() {
        let folder = tempfile::tempdir().expect("a folder");
        let usual = plan(1024, &[(Partition::Swap, 512), (Partition::Vdisk, 256)]);
        let image = Image::ensure(folder.path(), &usual, Existing::Keep).expect("it can be made");
        let metadata = std::fs::metadata(image.path()).expect("it is there");
        assert_eq!(metadata.len(), 1 << 30);
        assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
        let mib = 1 << 20;
        let expected = [(Partition::Swap, mib, 512 * mib), (Partition::Vdisk, 513 * mib, 256 * mib)];
        assert_eq!(image.partitions().expect("a table"), expected);

        image.write(Partition::Vdisk, 4096, b"kept").expect("there is room");
        let again = Image::ensure(folder.path(), &usual, Existing::Keep).expect("it is right");
        assert_eq!(again.read(Partition::Vdisk, 4096, 4).expect("there"), b"kept");
        assert_eq!(again.read(Partition::Swap, 0, 4).expect("there"), [0; 4]);
        again.read(Partition::Vdisk, 256 * mib - 2, 4).expect_err("beyond the end");
        again.read(Partition::Scratch, 0, 1).expect_err("no such partition");

        for (other, words) in [
            (plan(512, &[(Partition::Swap, 256)]), "1073741824 bytes"),
            (
                plan(1024, &[(Partition::Swap, 512)]),
                "holds swap 512 MiB, vdisk 256 MiB; the system file says swap 512 MiB",
            ),
        ] {
            let error = Image::ensure(folder.path(), &other, Existing::Keep).expect_err("it is another one");
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.help().is_some_and(|help| help.to_string().contains("--new-disks")));
        }
        let fresh = Image::ensure(folder.path(), &usual, Existing::Replace).expect("it can be made");
        assert_eq!(fresh.read(Partition::Vdisk, 4096, 4).expect("there"), [0; 4]);
    }

    #[test]
    fn a_file_without_a_table_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let usual = plan(16, &[(Partition::Scratch, 8)]);
        let path = Image::path_in(folder.path(), &usual);
        std::fs::write(&path, vec![0; 16 << 20]).expect("it can be written");
        let error = Image::ensure(folder.path(), &usual, Existing::Keep).expect_err("it is no disk");
        assert!(error.to_string().contains("no partition table"), "{error}");
    }
}
