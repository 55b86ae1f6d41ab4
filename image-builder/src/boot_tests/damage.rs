//! Damaged bundles, manifests, programs and images: refused at boot, with a reason.

use std::fs;
use std::time::Duration;

use miette::{IntoDiagnostic, Result, miette};
use protocol::bundle::{self, INIT, MANIFEST};
use protocol::manifest::Manifest;

use super::BootTest;
use super::harness::Context;
use crate::build::Built;
use crate::cpio;

pub(super) const TESTS: &[BootTest] = &[
    BootTest {
        name: "damaged-bundle",
        about: "a bundle, first program or manifest that is damaged is refused with a reason",
        limit: Duration::from_secs(120),
        long: false,
        run: damaged_bundle,
    },
    BootTest {
        name: "damaged-image",
        about: "a guest image that is damaged is refused with a reason, and the other VMs start",
        limit: Duration::from_secs(120),
        long: false,
        run: damaged_image,
    },
];

/// Files of a bundle.
type Files = Vec<(String, Vec<u8>)>;

fn files(archive: &[u8]) -> Result<Files> {
    let owned = |file: bundle::File<'_>| (file.name.to_string(), file.data.to_vec());
    bundle::files(archive).map(|file| file.map(owned)).collect::<Result<_, _>>().into_diagnostic()
}

fn file<'a>(files: &'a mut Files, name: &str) -> Result<&'a mut Vec<u8>> {
    let found = files.iter_mut().find(|(file, _)| file == name);
    found.map(|(_, data)| data).ok_or_else(|| miette!("the bundle has no file `{name}`"))
}

fn archive(files: &Files) -> Vec<u8> {
    cpio::write(files.iter().map(|(name, data)| (name.as_str(), data.as_slice())))
}

fn damaged_bundle(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(None)?;
    let whole = fs::read(&built.bundle).into_diagnostic()?;

    let mut no_magic = whole.clone();
    no_magic[..6].copy_from_slice(b"070799");
    let mut no_number = whole.clone();
    no_number[54] = b'x';
    let mut bad_init = files(&whole)?;
    file(&mut bad_init, INIT)?[..4].fill(0);
    let mut bad_manifest = files(&whole)?;
    file(&mut bad_manifest, MANIFEST)?.truncate(7);
    let mut old_manifest = files(&whole)?;
    let manifest = file(&mut old_manifest, MANIFEST)?;
    let mut decoded = Manifest::decode(manifest).map_err(|error| miette!("{error}"))?;
    decoded.version += 1;
    *manifest = postcard::to_allocvec(&decoded).into_diagnostic()?;

    let cases: [(&str, Vec<u8>, &[&str]); 6] = [
        ("truncated", whole[..whole.len() / 2].to_vec(), &["truncated"]),
        ("magic number", no_magic, &["bad magic number"]),
        ("number in a header", no_number, &["bad number"]),
        ("first program", archive(&bad_init), &["bundle refused", INIT]),
        ("manifest", archive(&bad_manifest), &["manifest refused"]),
        ("version of the manifest", archive(&old_manifest), &["manifest refused", "version"]),
    ];
    for (what, damaged, words) in cases {
        let damaged = write(context, &built, &damaged)?;
        context.boot_built(&system, &damaged)?;
        context.line(0, words).map_err(|error| miette!("damaged {what}: {error}"))?;
    }
    Ok(())
}

fn damaged_image(context: &mut Context<'_>) -> Result<()> {
    let (system, built) = context.build(None)?;
    let whole = fs::read(&built.bundle).into_diagnostic()?;
    // The echo VM's image is damaged; the web servers must not notice.
    let image = system.manifest.vms.iter().find(|vm| vm.name == "echo").map(|vm| vm.image.clone());
    let image = image.ok_or_else(|| miette!("the default system has no VM `echo`"))?;

    let mut machine = files(&whole)?;
    file(&mut machine, &image)?[18] = 0xb7; // AArch64
    let mut entry = files(&whole)?;
    file(&mut entry, &image)?[24..32].fill(0xff);
    let mut note = files(&whole)?;
    let bytes = file(&mut note, &image)?;
    let owner = protocol::note::OWNER;
    let at = bytes
        .windows(owner.len())
        .position(|window| window == owner)
        .ok_or_else(|| miette!("the image has no note"))?;
    bytes[at + owner.len()] = 99;

    let cases: [(&str, Files, &[&str]); 3] = [
        ("machine type", machine, &["echo", "not a static 64-bit x86 executable"]),
        ("entry point", entry, &["echo", "entry point"]),
        ("note", note, &["echo", "version 99"]),
    ];
    for (what, files, words) in cases {
        let damaged = write(context, &built, &archive(&files))?;
        context.boot_built(&system, &damaged)?;
        context.line(0, words).map_err(|error| miette!("damaged {what}: {error}"))?;
        context.page("httpd-1", "/")?;
        context.page("httpd-2", "/")?;
        context.healthy()?;
    }
    Ok(())
}

/// The system with another bundle.
fn write(context: &Context<'_>, built: &Built, bundle: &[u8]) -> Result<Built> {
    let path = context.folder().join("bundle.cpio");
    // The file may be in use by the machine before: a new one takes its name.
    let fresh = path.with_extension("new");
    fs::write(&fresh, bundle).and_then(|()| fs::rename(&fresh, &path)).into_diagnostic()?;
    Ok(Built { bundle: path, ..built.clone() })
}
