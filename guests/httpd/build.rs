//! Makes a table of the files in `www/`, and of two objects of the sizes that benchmarks ask for.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

/// Sizes of the objects for benchmarks, in bytes: the median object of the web in the days of the original system, and a large one.
const OBJECTS: [usize; 2] = [2_258, 100_000];

fn main() {
    println!("cargo::rerun-if-changed=www");
    println!("cargo::rerun-if-changed=build.rs");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("www");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let mut files = BTreeMap::new();
    collect(&root, "", &mut files);
    for size in OBJECTS {
        let file = out.join(format!("object-{size}"));
        fs::write(&file, object(size)).expect("the build folder can be written");
        files.insert(format!("/objects/{size}"), (file, "text/plain; charset=utf-8".to_owned()));
    }
    // A binary search looks for paths in this table: a BTreeMap is in order.
    let mut table = String::from("&[\n");
    for (path, (file, kind)) in files {
        let bytes = fs::read(&file).expect("a file that was just listed can be read");
        let tag = format!("\"{:016x}\"", fnv(&bytes));
        let file = file.to_str().expect("paths are UTF-8");
        writeln!(
            table,
            "    File {{ path: {path:?}, content_type: {kind:?}, tag: {tag:?}, bytes: include_bytes!({file:?}) }},"
        )
        .expect("writing to a string cannot fail");
    }
    table.push_str("]\n");
    fs::write(out.join("files.rs"), table).expect("the build folder can be written");
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, (PathBuf, String)>) {
    for entry in fs::read_dir(folder).expect("www/ is there") {
        let entry = entry.expect("www/ can be read");
        let name = entry.file_name().into_string().expect("names in www/ are UTF-8");
        if name.starts_with('.') {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            collect(&path, &format!("{prefix}/{name}"), files);
            continue;
        }
        let kind = mime_guess::from_path(&path).first_or_octet_stream();
        let kind = if kind.type_() == "text" { format!("{kind}; charset=utf-8") } else { kind.to_string() };
        // `index.html` answers for its folder.
        let url = if name == "index.html" { format!("{prefix}/") } else { format!("{prefix}/{name}") };
        files.insert(url, (path, kind));
    }
}

/// Text of exactly `size` bytes.
fn object(size: usize) -> Vec<u8> {
    let mut text = String::new();
    let mut line = 0;
    while text.len() < size {
        line += 1;
        writeln!(text, "line {line:5} of an object of {size} bytes").expect("writing to a string cannot fail");
    }
    let mut bytes = text.into_bytes();
    bytes.truncate(size);
    if let Some(last) = bytes.last_mut() {
        *last = b'\n';
    }
    bytes
}

/// FNV-1a: names the contents of a file for caches.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
