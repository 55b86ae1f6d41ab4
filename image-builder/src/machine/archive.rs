//! A folder as a `newc` archive: what the web server serves from a virtual disk.

use std::fs;
use std::path::Path;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::cpio;

/// The files of a folder and of those in it, by name.
pub fn of_folder(folder: &Path) -> Result<Vec<u8>> {
    let mut files = Vec::new();
    collect(folder, "", &mut files)?;
    if files.is_empty() {
        return Err(miette!("{} has no files", folder.display()));
    }
    files.sort();
    Ok(cpio::write(files.iter().map(|(name, data)| (name.as_str(), data.as_slice()))))
}

fn collect(folder: &Path, prefix: &str, files: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let failed = || miette!("{} cannot be read", folder.display());
    for entry in fs::read_dir(folder).into_diagnostic().wrap_err_with(failed)? {
        let path = entry.into_diagnostic().wrap_err_with(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| miette!("{} has a name that is no UTF-8", path.display()))?;
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            collect(&path, &format!("{name}/"), files)?;
        } else {
            let data =
                fs::read(&path).into_diagnostic().wrap_err_with(|| miette!("{} cannot be read", path.display()))?;
            if data.len() as u64 > cpio::FILE_MAX {
                return Err(miette!("{} is longer than an archive can hold", path.display()));
            }
            files.push((name, data));
        }
    }
    Ok(())
}
