//! Every rule for system files, by a file that breaks it and the message that this must give.
//!
//! `tests/fixtures/RULE.toml` breaks one rule; `RULE.expected` is what the user sees. With `UPDATE_EXPECTED=1`
//! in the environment the expected messages are written instead of compared: read them before committing.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use image_builder::system::{System, report::report};
use miette::{GraphicalReportHandler, GraphicalTheme};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Programs that the fixtures may name.
fn known() -> BTreeSet<String> {
    let names = ["platform", "console", "virtio-net", "swap", "vswitch", "loader", "httpd", "echo", "init"];
    names.map(String::from).into()
}

fn files(extension: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder()).expect("the fixtures are there").map(|entry| entry.expect("readable").path());
    let wanted = entries.filter(|path| path.extension().is_some_and(|e| e == extension));
    wanted.map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned()).collect()
}

/// What the user sees, on a terminal without colours that is 100 columns wide.
fn rendered(name: &str) -> String {
    let text = fs::read_to_string(folder().join(name).with_extension("toml")).expect("the fixture is there");
    // The rules look for files beside the system file.
    match System::parse(Path::new(&format!("{name}.toml")), &text, &known()) {
        Ok(system) => panic!("{name}.toml should be refused, but is\n{}", report(&system)),
        Err(problems) => {
            let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(100);
            let mut out = String::new();
            handler.render_report(&mut out, &problems).expect("writing to a string");
            out.lines().map(|line| line.trim_end().to_string() + "\n").collect()
        }
    }
}

#[test]
fn every_rule_gives_its_message() {
    let update = std::env::var_os("UPDATE_EXPECTED").is_some();
    let mut wrong = Vec::new();
    for name in files("toml") {
        let path = folder().join(&name).with_extension("expected");
        let seen = rendered(&name);
        if update {
            fs::write(&path, seen).expect("the expected message can be written");
            continue;
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        if seen != expected {
            wrong.push(format!("{name}: expected\n{expected}\nbut the message is\n{seen}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_message_is_left_without_its_file() {
    assert_eq!(files("expected"), files("toml"));
    assert!(files("toml").len() >= 30, "one file for each rule");
}

#[test]
fn every_message_names_file_and_line() {
    for name in files("toml") {
        let message = rendered(&name);
        assert!(message.contains(&format!("[{name}.toml:")), "{message}");
    }
}

#[test]
fn the_projects_own_system_files_are_possible() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf();
    let mut paths = vec![top.join("system.toml")];
    for entry in fs::read_dir(top.join("image-builder/systems")).expect("the folder is there") {
        paths.push(entry.expect("readable").path());
    }
    // Programs are named like their folders; libraries among those do not matter here.
    let folders = ["servers", "guests"].map(|folder| fs::read_dir(top.join(folder)).expect("the folder is there"));
    let known = folders.into_iter().flatten();
    let known = known.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|e| e == "toml")) {
        let text = fs::read_to_string(path).expect("readable");
        if let Err(problems) = System::parse(path, &text, &known) {
            panic!("{:?}", miette::Report::new(problems));
        }
    }
}
