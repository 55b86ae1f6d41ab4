//! What a typed line means.

use alloc::{
    format,
    string::{String, ToString},
};

/// A command, with the name it is about.
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
    /// Lists devices.
    Devices,
    /// Ends the machine.
    PowerOff,
}

/// A word that begins a command, what may follow it, and what it does.
struct Form {
    word: &'static str,
    argument: Option<&'static str>,
    about: &'static str,
    make: fn(String) -> Command,
}

const FORMS: [Form; 10] = [
    Form { word: "help", argument: None, about: "lists the commands", make: |_| Command::Help },
    Form {
        word: "ps",
        argument: None,
        about: "lists the servers: state, restarts, memory, time",
        make: |_| Command::Servers,
    },
    Form { word: "vms", argument: None, about: "lists the VMs", make: |_| Command::Vms },
    Form { word: "start", argument: Some("VM"), about: "starts a VM of the system file", make: Command::Start },
    Form { word: "stop", argument: Some("VM"), about: "stops a VM for good", make: Command::Stop },
    Form {
        word: "kill",
        argument: Some("SERVER"),
        about: "kills a server, as if it had crashed: it is restarted by its policy",
        make: Command::Kill,
    },
    Form {
        word: "start-server",
        argument: Some("SERVER"),
        about: "starts a server that was given up",
        make: Command::StartServer,
    },
    Form { word: "memory", argument: None, about: "shows the memory of the VMs' pool", make: |_| Command::Memory },
    Form { word: "devices", argument: None, about: "lists the PCI devices", make: |_| Command::Devices },
    Form { word: "poweroff", argument: None, about: "ends the machine", make: |_| Command::PowerOff },
];

/// Reads a line: `Ok(None)` if it is empty, `Err` with what is wrong and what would be right.
pub fn parse(line: &str) -> Result<Option<Command>, String> {
    let mut words = line.split_whitespace();
    let Some(word) = words.next() else {
        return Ok(None);
    };
    let Some(form) = FORMS.iter().find(|form| form.word == word) else {
        let hint = FORMS
            .iter()
            .filter(|form| form.word.starts_with(word) || word.starts_with(form.word))
            .map(|form| form.word);
        let hint = hint.collect::<alloc::vec::Vec<_>>().join(" or ");
        let hint = if hint.is_empty() { "type help".to_string() } else { format!("did you mean {hint}?") };
        return Err(format!("no such command: {} ({hint})", printable(word)));
    };
    let argument = match (form.argument, words.next()) {
        (Some(what), None) => return Err(format!("usage: {word} {what}")),
        (None, Some(_)) => return Err(format!("usage: {word} (nothing follows it)")),
        (_, argument) => argument.unwrap_or_default().to_string(),
    };
    match (form.argument, words.next()) {
        (Some(what), Some(_)) => Err(format!("usage: {word} {what} (one name)")),
        _ => Ok(Some((form.make)(argument))),
    }
}

/// A word as it may be printed: without control characters, and not longer than a name.
fn printable(word: &str) -> String {
    word.chars().filter(|character| !character.is_control()).take(64).collect()
}

/// The text of `help`.
pub fn help() -> String {
    FORMS.iter().fold(String::new(), |text, form| {
        let usage = match form.argument {
            Some(argument) => format!("{} {argument}", form.word),
            None => form.word.to_string(),
        };
        text + &format!("  {usage:20}  {}\n", form.about)
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
        assert_eq!(parse("start x"), Ok(Some(Command::Start("x".into()))));
        for form in &FORMS {
            let line = format!("{} {}", form.word, form.argument.unwrap_or_default());
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
        assert_eq!(told("reboot"), "no such command: reboot (type help)");
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
