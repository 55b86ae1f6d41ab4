//! What a typed line means.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

/// A command, with what it is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Lists the commands.
    Help,
    /// Lists servers.
    Servers,
    /// Lists VMs.
    Vms,
    /// Starts a VM.
    Start(String),
    /// Stops a VM.
    Stop(String),
    /// Kills a server.
    Kill(String),
    /// Starts a server that was given up.
    StartServer(String),
    /// Shows the memory of VMs.
    Memory,
    /// Lists virtual disks.
    Disks,
    /// Makes a virtual disk of so many blocks.
    DiskCreate(String, u64),
    /// Deletes a virtual disk.
    DiskDelete(String),
    /// Lists devices.
    Devices,
    /// Switches the machine off.
    PowerOff,
    /// Resets the machine.
    Reboot,
}

/// What makes a command of what follows its word.
enum Make {
    /// Nothing follows.
    Plain(fn() -> Command),
    /// A name.
    Name(&'static str, fn(String) -> Command),
    /// A name and a size.
    Sized(fn(String, u64) -> Command),
}

impl Make {
    /// What may follow, for people.
    fn usage(&self) -> &'static str {
        match self {
            Make::Plain(_) => "",
            Make::Name(what, _) => what,
            Make::Sized(_) => "NAME SIZE",
        }
    }
}

/// A word or two that begin a command, what may follow, and what it does.
struct Form {
    word: &'static str,
    make: Make,
    about: &'static str,
}

const FORMS: [Form; 14] = [
    Form { word: "help", make: Make::Plain(|| Command::Help), about: "lists the commands" },
    Form {
        word: "ps",
        make: Make::Plain(|| Command::Servers),
        about: "lists the servers: state, restarts, memory, time",
    },
    Form { word: "vms", make: Make::Plain(|| Command::Vms), about: "lists the VMs" },
    Form {
        word: "start",
        make: Make::Name("VM", Command::Start),
        about: "starts a VM of the system file, or all of a kind: start web-*",
    },
    Form {
        word: "stop",
        make: Make::Name("VM", Command::Stop),
        about: "stops a VM for good, or all of a kind: stop web-*",
    },
    Form {
        word: "kill",
        make: Make::Name("SERVER", Command::Kill),
        about: "kills a server, as if it had crashed: it is restarted by its policy",
    },
    Form {
        word: "start-server",
        make: Make::Name("SERVER", Command::StartServer),
        about: "starts a server that was given up",
    },
    Form { word: "memory", make: Make::Plain(|| Command::Memory), about: "shows memory and swap space of the VMs" },
    Form { word: "disks", make: Make::Plain(|| Command::Disks), about: "lists the virtual disks, and the room left" },
    Form {
        word: "disk create",
        make: Make::Sized(Command::DiskCreate),
        about: "makes a virtual disk, all zeros: disk create data 16 MiB",
    },
    Form {
        word: "disk delete",
        make: Make::Name("NAME", Command::DiskDelete),
        about: "deletes a virtual disk that no VM has",
    },
    Form { word: "devices", make: Make::Plain(|| Command::Devices), about: "lists the PCI devices" },
    Form { word: "poweroff", make: Make::Plain(|| Command::PowerOff), about: "switches the machine off" },
    Form { word: "reboot", make: Make::Plain(|| Command::Reboot), about: "resets the machine" },
];

/// Reads a line: `Ok(None)` if it is empty, `Err` with what is wrong and what would be right.
pub fn parse(line: &str) -> Result<Option<Command>, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let Some(word) = words.first() else {
        return Ok(None);
    };
    let begins = |form: &&Form| form.word.split(' ').enumerate().all(|(n, part)| words.get(n) == Some(&part));
    let Some(form) = FORMS.iter().find(begins) else {
        let near = |form: &&Form| form.word.starts_with(word) || word.starts_with(form.word);
        let hint = FORMS.iter().filter(near).map(|form| form.word).collect::<Vec<_>>().join(" or ");
        let hint = if hint.is_empty() { "type help".to_string() } else { format!("did you mean {hint}?") };
        return Err(format!("no such command: {} ({hint})", printable(word)));
    };
    let usage = || format!("usage: {} {}", form.word, form.make.usage());
    match (&form.make, &words[form.word.split(' ').count()..]) {
        (Make::Plain(make), []) => Ok(Some(make())),
        (Make::Plain(_), _) => Err(format!("usage: {} (nothing follows it)", form.word)),
        (Make::Name(_, make), [name]) => Ok(Some(make((*name).to_string()))),
        (Make::Name(..), []) | (Make::Sized(_), [] | [_]) => Err(usage()),
        (Make::Name(..), _) => Err(usage() + " (one name)"),
        (Make::Sized(make), [name, size @ ..]) => {
            let blocks = blocks(&size.concat()).ok_or_else(|| usage() + " (a size is like 64 KiB, 16 MiB or 1 GiB)")?;
            Ok(Some(make((*name).to_string(), blocks)))
        }
    }
}

/// The blocks of a size, which is a multiple of 4 KiB.
fn blocks(size: &str) -> Option<u64> {
    let (number, unit) = size.split_at(size.find(|c: char| !c.is_ascii_digit())?);
    let kib: u64 = match unit {
        "KiB" | "K" => 1,
        "MiB" | "M" => 1 << 10,
        "GiB" | "G" => 1 << 20,
        _ => return None,
    };
    let kib = number.parse::<u64>().ok()?.checked_mul(kib)?;
    const BLOCK_KIB: u64 = protocol::disk::BLOCK as u64 / 1024;
    (kib > 0 && kib.is_multiple_of(BLOCK_KIB)).then_some(kib / BLOCK_KIB)
}

/// A word as it may be printed: without control characters, and not longer than a name.
fn printable(word: &str) -> String {
    word.chars().filter(|character| !character.is_control()).take(64).collect()
}

/// The text of `help`.
pub fn help() -> String {
    FORMS.iter().fold(String::new(), |text, form| {
        let usage = format!("{} {}", form.word, form.make.usage());
        text + &format!("  {:21}  {}\n", usage.trim_end(), form.about)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_are_read() {
        assert_eq!(parse("  "), Ok(None));
        assert_eq!(parse("ps"), Ok(Some(Command::Servers)));
        assert_eq!(parse(" kill   virtio-net "), Ok(Some(Command::Kill("virtio-net".into()))));
        assert_eq!(parse("start-server x"), Ok(Some(Command::StartServer("x".into()))));
        assert_eq!(parse("disk create data 16 MiB"), Ok(Some(Command::DiskCreate("data".into(), 4096))));
        assert_eq!(parse("disk create data 1G"), Ok(Some(Command::DiskCreate("data".into(), 1 << 18))));
        assert_eq!(parse("disk delete data"), Ok(Some(Command::DiskDelete("data".into()))));
        assert_eq!(parse("start x"), Ok(Some(Command::Start("x".into()))));
        for form in &FORMS {
            let line = format!("{} {}", form.word, form.make.usage()).replace("SIZE", "4 KiB");
            assert!(parse(&line).unwrap().is_some(), "{line}");
            assert!(help().contains(form.about));
        }
    }

    #[test]
    fn mistakes_are_told() {
        let told = |line: &str| parse(line).unwrap_err();
        assert_eq!(told("kill"), "usage: kill SERVER");
        assert_eq!(told("kill a b"), "usage: kill SERVER (one name)");
        assert_eq!(told("ps now"), "usage: ps (nothing follows it)");
        assert_eq!(told("disk"), "no such command: disk (did you mean disks or disk create or disk delete?)");
        assert_eq!(told("disk create data"), "usage: disk create NAME SIZE");
        for size in
            ["16", "0 MiB", "6 KiB", "MiB", "1 TiB", "4 KiB more", "99999999999999999999 KiB", "99999999999999999 GiB"]
        {
            let wrong = told(&format!("disk create data {size}"));
            assert_eq!(wrong, "usage: disk create NAME SIZE (a size is like 64 KiB, 16 MiB or 1 GiB)", "{size}");
        }
        assert_eq!(told("shutdown"), "no such command: shutdown (type help)");
        assert_eq!(told("power"), "no such command: power (did you mean poweroff?)");
        assert_eq!(told("st"), "no such command: st (did you mean start or stop or start-server?)");
    }

    proptest! {
        #[test]
        fn any_line_is_harmless(line in any::<String>()) {
            if let Err(told) = parse(&line) {
                prop_assert!(told.len() < 1000);
                prop_assert!(!told.contains(|c: char| c.is_control()));
            }
        }
    }
}
