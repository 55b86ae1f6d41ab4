//! A PS/2 keyboard at an i8042 controller, or what the firmware lets look like one.
//!
//! The controller is set up step by step. Each step that waits for an answer has a time limit, and nothing waits in a loop: a controller
//! that is broken, or half there, costs a look every millisecond until the limits are over, and is then used as it is. The
//! controller translates to scancode set 1, as firmware leaves it, because emulations of a keyboard know nothing else.

use core::fmt;
use pc_keyboard::{
    DecodedKey, EventDecoder, HandleControl, KeyCode, KeyState, ScancodeSet, ScancodeSet1,
    layouts::{
        AnyLayout, Azerty, Colemak, DVP104Key, De105Key, Dvorak104Key, FiSe105Key, Jis109Key, No105Key, Uk105Key,
        Us104Key,
    },
};

/// Access to the two ports of the controller.
pub trait Ports {
    /// Reads the status, port 0x64.
    fn status(&mut self) -> u8;
    /// Writes a command, port 0x64.
    fn command(&mut self, command: u8);
    /// Reads a byte, port 0x60.
    fn read(&mut self) -> u8;
    /// Writes a byte, port 0x60.
    fn write(&mut self, byte: u8);
}

/// Status: a byte can be read.
const OUTPUT_FULL: u8 = 1 << 0;
/// Status: the controller has not taken what was last written.
const INPUT_FULL: u8 = 1 << 1;
/// Status: the byte is from the mouse.
const FROM_MOUSE: u8 = 1 << 5;
/// What is read where there is no controller.
const NOTHING: u8 = 0xff;

/// Configuration: interrupt for the keyboard; interrupt for the mouse; the keyboard's clock is off; translation to set 1.
const KEYBOARD_INTERRUPT: u8 = 1 << 0;
const MOUSE_INTERRUPT: u8 = 1 << 1;
const KEYBOARD_OFF: u8 = 1 << 4;
const TRANSLATION: u8 = 1 << 6;

/// Bytes taken at one look: more than any controller holds.
const AT_ONCE: usize = 64;
/// Nanoseconds for an answer. A self-test resets some controllers, and takes them a third of a second.
const PATIENCE: u64 = 500_000_000;
/// Nanoseconds between looks while the controller is set up, and while it has no interrupt.
const LOOK_SETTING_UP: u64 = 1_000_000;
const LOOK_POLLED: u64 = 20_000_000;

/// What the set-up does, in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    DisableKeyboard,
    DisableMouse,
    /// Drops what was typed before.
    Flush,
    SelfTest,
    ReadConfiguration,
    WriteConfiguration,
    TestInterface,
    EnableKeyboard,
    EnableScanning,
    /// Keys are taken.
    Done,
    /// There is no controller.
    Absent,
}

impl Step {
    const fn next(self) -> Step {
        match self {
            Step::DisableKeyboard => Step::DisableMouse,
            Step::DisableMouse => Step::Flush,
            Step::Flush => Step::SelfTest,
            Step::SelfTest => Step::ReadConfiguration,
            Step::ReadConfiguration => Step::WriteConfiguration,
            Step::WriteConfiguration => Step::TestInterface,
            Step::TestInterface => Step::EnableKeyboard,
            Step::EnableKeyboard => Step::EnableScanning,
            Step::EnableScanning | Step::Done => Step::Done,
            Step::Absent => Step::Absent,
        }
    }

    /// What is sent: a command for the controller, a byte for the keyboard or as the command's argument.
    const fn sends(self) -> (Option<u8>, bool) {
        match self {
            Step::DisableKeyboard => (Some(0xad), false),
            Step::DisableMouse => (Some(0xa7), false),
            Step::SelfTest => (Some(0xaa), false),
            Step::ReadConfiguration => (Some(0x20), false),
            Step::WriteConfiguration => (Some(0x60), true),
            Step::TestInterface => (Some(0xab), false),
            Step::EnableKeyboard => (Some(0xae), false),
            Step::EnableScanning => (None, true),
            Step::Flush | Step::Done | Step::Absent => (None, false),
        }
    }

    const fn is_answered(self) -> bool {
        matches!(self, Step::SelfTest | Step::ReadConfiguration | Step::TestInterface | Step::EnableScanning)
    }
}

/// Sent to the keyboard: report keys.
const ENABLE_SCANNING: u8 = 0xf4;

/// How far a step has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    /// The command is to be sent.
    Command,
    /// The byte is to be sent.
    Byte,
    /// The answer is awaited.
    Answer,
}

/// What there is to say once the controller is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// A keyboard.
    Keyboard,
    /// There is no controller.
    Nothing,
    /// The controller did not answer a test, or answered it so; it is used nevertheless.
    Doubtful(Trouble),
}

/// What was wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// It does not take commands.
    Busy,
    /// It did not answer its self-test.
    NoSelfTest,
    /// It said so when it tested itself.
    SelfTest(u8),
    /// Its configuration cannot be read.
    NoConfiguration,
    /// It said so when it tested the line to the keyboard.
    Interface(u8),
    /// No keyboard answers.
    NoKeyboard,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Keyboard => write!(f, "PS/2 keyboard"),
            Found::Nothing => write!(f, "no PS/2 keyboard controller"),
            Found::Doubtful(trouble) => {
                write!(f, "PS/2 keyboard controller: ")?;
                match trouble {
                    Trouble::Busy => write!(f, "it takes no commands"),
                    Trouble::NoSelfTest => write!(f, "no answer to the self-test"),
                    Trouble::SelfTest(code) => write!(f, "its self-test fails (code {code:#04x})"),
                    Trouble::NoConfiguration => write!(f, "its configuration cannot be read"),
                    Trouble::Interface(code) => write!(f, "its line to the keyboard is broken (code {code:#04x})"),
                    Trouble::NoKeyboard => write!(f, "no keyboard answers"),
                }
            }
        }
    }
}

/// The names of the keymaps, and what they stand for.
fn layout(name: &str) -> Option<AnyLayout> {
    Some(match name {
        "us" => AnyLayout::Us104Key(Us104Key),
        "uk" => AnyLayout::Uk105Key(Uk105Key),
        "de" => AnyLayout::De105Key(De105Key),
        "fr" => AnyLayout::Azerty(Azerty),
        "no" => AnyLayout::No105Key(No105Key),
        "se" | "fi" => AnyLayout::FiSe105Key(FiSe105Key),
        "jp" => AnyLayout::Jis109Key(Jis109Key),
        "colemak" => AnyLayout::Colemak(Colemak),
        "dvorak" => AnyLayout::Dvorak104Key(Dvorak104Key),
        "programmer-dvorak" => AnyLayout::DVP104Key(DVP104Key),
        _ => return None,
    })
}

/// Whether there is a keymap of this name.
pub fn is_keymap(name: &str) -> bool {
    layout(name).is_some()
}

/// The keyboard.
pub struct Keyboard<P> {
    ports: P,
    step: Step,
    progress: Progress,
    /// When the current step is given up; `None`: it has not begun.
    until: Option<u64>,
    configuration: Option<u8>,
    trouble: Option<Trouble>,
    found: Option<Found>,
    /// When it was last looked at.
    looked: u64,
    scancodes: ScancodeSet1,
    keys: EventDecoder<AnyLayout>,
}

impl<P: Ports> Keyboard<P> {
    /// A keyboard with this keymap (`us` if there is none of this name). Nothing is done yet.
    pub fn new(mut ports: P, keymap: &str) -> Keyboard<P> {
        let layout = layout(keymap).unwrap_or(AnyLayout::Us104Key(Us104Key));
        let absent = ports.status() == NOTHING;
        Keyboard {
            ports,
            step: if absent { Step::Absent } else { Step::DisableKeyboard },
            progress: Progress::Command,
            until: None,
            configuration: None,
            trouble: None,
            found: absent.then_some(Found::Nothing),
            looked: 0,
            scancodes: ScancodeSet1::new(),
            keys: EventDecoder::new(layout, HandleControl::MapLettersToUnicode),
        }
    }

    /// What was found, once, when that is known.
    pub fn take_found(&mut self) -> Option<Found> {
        self.found.take()
    }

    /// When to look again though no interrupt came; `None`: not at all. `interrupt`: whether it has one.
    pub fn next_look(&self, interrupt: bool) -> Option<u64> {
        match self.step {
            Step::Absent => None,
            Step::Done if interrupt => None,
            Step::Done => Some(self.looked.saturating_add(LOOK_POLLED)),
            _ => Some(self.looked.saturating_add(LOOK_SETTING_UP)),
        }
    }

    /// Goes on with the set-up, or takes what was typed, as a terminal sends it.
    pub fn look(&mut self, now: u64, mut typed: impl FnMut(u8)) {
        self.looked = now;
        for _ in 0..AT_ONCE {
            let moved = match self.step {
                Step::Absent => false,
                Step::Done => self.receive(&mut typed),
                _ => self.advance(now),
            };
            if !moved {
                return;
            }
        }
    }

    /// A byte from the keyboard.
    fn byte(&mut self) -> Option<u8> {
        for _ in 0..AT_ONCE {
            let status = self.ports.status();
            if status == NOTHING || status & OUTPUT_FULL == 0 {
                return None;
            }
            let byte = self.ports.read();
            if status & FROM_MOUSE == 0 {
                return Some(byte);
            }
        }
        None
    }

    fn receive(&mut self, typed: &mut impl FnMut(u8)) -> bool {
        let Some(code) = self.byte() else { return false };
        if let Ok(Some(event)) = self.scancodes.advance_state(code) {
            let pressed = event.state != KeyState::Up;
            if let Some(key) = self.keys.process_keyevent(event).filter(|_| pressed) {
                send(key, typed);
            }
        }
        true
    }

    /// Does one thing of the set-up. `false` if there is nothing to do now.
    fn advance(&mut self, now: u64) -> bool {
        let until = *self.until.get_or_insert(now.saturating_add(PATIENCE));
        let late = now >= until;
        let (command, byte) = self.step.sends();
        match self.progress {
            _ if self.step == Step::Flush => {
                for _ in 0..AT_ONCE {
                    if self.byte().is_none() {
                        break;
                    }
                }
            }
            Progress::Command | Progress::Byte if self.ports.status() & INPUT_FULL != 0 => {
                if late {
                    self.finish(Some(Trouble::Busy));
                }
                return late;
            }
            Progress::Command => {
                if let Some(command) = command {
                    self.ports.command(command);
                }
                self.progress = if byte { Progress::Byte } else { Progress::Answer };
                return true;
            }
            Progress::Byte => {
                self.ports.write(match (self.step, self.configuration) {
                    (Step::WriteConfiguration, Some(old)) => {
                        (old | KEYBOARD_INTERRUPT | TRANSLATION) & !(MOUSE_INTERRUPT | KEYBOARD_OFF)
                    }
                    _ => ENABLE_SCANNING,
                });
                self.progress = Progress::Answer;
                return true;
            }
            Progress::Answer if self.step.is_answered() => match self.byte() {
                Some(answer) => self.answered(answer),
                None if late => self.answered_nothing(),
                None => return false,
            },
            Progress::Answer => {}
        }
        let mut next = self.step.next();
        if next == Step::WriteConfiguration && self.configuration.is_none() {
            // Nothing to write: the controller stays as the firmware has set it up.
            next = next.next();
        }
        (self.step, self.progress, self.until) = (next, Progress::Command, None);
        if next == Step::Done {
            self.finish(None);
        }
        true
    }

    fn answered(&mut self, answer: u8) {
        match self.step {
            Step::SelfTest if answer != 0x55 => self.note(Trouble::SelfTest(answer)),
            Step::ReadConfiguration => self.configuration = Some(answer),
            Step::TestInterface if answer != 0 => self.note(Trouble::Interface(answer)),
            _ => {}
        }
    }

    fn answered_nothing(&mut self) {
        match self.step {
            Step::SelfTest => self.note(Trouble::NoSelfTest),
            Step::ReadConfiguration => self.note(Trouble::NoConfiguration),
            Step::EnableScanning => self.note(Trouble::NoKeyboard),
            _ => {}
        }
    }

    /// Keeps the first thing that is wrong.
    fn note(&mut self, trouble: Trouble) {
        self.trouble.get_or_insert(trouble);
    }

    fn finish(&mut self, trouble: Option<Trouble>) {
        if let Some(trouble) = trouble {
            self.note(trouble);
        }
        (self.step, self.until) = (Step::Done, None);
        self.found = Some(self.trouble.map_or(Found::Keyboard, Found::Doubtful));
    }
}

/// Sends a key as a terminal does.
fn send(key: DecodedKey, typed: &mut impl FnMut(u8)) {
    let sequence: &[u8] = match key {
        DecodedKey::Unicode('\n') => b"\r",
        DecodedKey::Unicode('\u{7f}') | DecodedKey::RawKey(KeyCode::Delete) => b"\x1b[3~",
        DecodedKey::Unicode(character) => {
            character.encode_utf8(&mut [0; 4]).bytes().for_each(typed);
            return;
        }
        DecodedKey::RawKey(KeyCode::ArrowUp) => b"\x1b[A",
        DecodedKey::RawKey(KeyCode::ArrowDown) => b"\x1b[B",
        DecodedKey::RawKey(KeyCode::ArrowRight) => b"\x1b[C",
        DecodedKey::RawKey(KeyCode::ArrowLeft) => b"\x1b[D",
        DecodedKey::RawKey(KeyCode::Home) => b"\x1b[H",
        DecodedKey::RawKey(KeyCode::End) => b"\x1b[F",
        DecodedKey::RawKey(KeyCode::Insert) => b"\x1b[2~",
        DecodedKey::RawKey(KeyCode::PageUp) => b"\x1b[5~",
        DecodedKey::RawKey(KeyCode::PageDown) => b"\x1b[6~",
        DecodedKey::RawKey(_) => b"",
    };
    sequence.iter().copied().for_each(typed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{collections::VecDeque, string::String, vec::Vec};
    use proptest::prelude::*;

    /// A controller with a keyboard.
    struct Model {
        output: VecDeque<u8>,
        /// Where the next byte goes: the command that it belongs to.
        argument: Option<u8>,
        configuration: u8,
        self_test: Option<u8>,
        interface: Option<u8>,
        keyboard: bool,
        busy: bool,
        missing: bool,
        commands: Vec<u8>,
    }

    impl Default for Model {
        fn default() -> Model {
            Model {
                output: [0x1e, 0x9e].into(),
                argument: None,
                configuration: 0x33,
                self_test: Some(0x55),
                interface: Some(0),
                keyboard: true,
                busy: false,
                missing: false,
                commands: Vec::new(),
            }
        }
    }

    impl Ports for Model {
        fn status(&mut self) -> u8 {
            match self.missing {
                true => 0xff,
                false => u8::from(!self.output.is_empty()) | u8::from(self.busy) << 1,
            }
        }
        fn command(&mut self, command: u8) {
            assert!(!self.busy);
            self.commands.push(command);
            match command {
                0xaa => self.output.extend(self.self_test),
                0xab => self.output.extend(self.interface),
                0x20 => self.output.push_back(self.configuration),
                0x60 => self.argument = Some(command),
                _ => {}
            }
        }
        fn read(&mut self) -> u8 {
            self.output.pop_front().unwrap_or(0)
        }
        fn write(&mut self, byte: u8) {
            match self.argument.take() {
                Some(_) => self.configuration = byte,
                None if self.keyboard && byte == ENABLE_SCANNING => self.output.push_back(0xfa),
                None => {}
            }
        }
    }

    fn ready(model: Model, keymap: &str) -> (Keyboard<Model>, Found, u64) {
        let mut keyboard = Keyboard::new(model, keymap);
        let mut now = 0;
        loop {
            keyboard.look(now, |byte| panic!("{byte:#x} was typed before the set-up"));
            if let Some(found) = keyboard.take_found() {
                assert_eq!(keyboard.take_found(), None);
                return (keyboard, found, now);
            }
            now = keyboard.next_look(true).unwrap();
        }
    }

    fn typed(keyboard: &mut Keyboard<Model>, codes: &[u8]) -> String {
        keyboard.ports.output.extend(codes);
        let mut bytes = Vec::new();
        while !keyboard.ports.output.is_empty() {
            keyboard.look(0, |byte| bytes.push(byte));
        }
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_controller_is_tested_and_set_up() {
        let (keyboard, found, time) = ready(Model::default(), "us");
        assert_eq!((found, time), (Found::Keyboard, 0));
        assert_eq!(keyboard.ports.commands, [0xad, 0xa7, 0xaa, 0x20, 0x60, 0xab, 0xae]);
        assert_eq!(keyboard.ports.configuration, 0x61);
        assert_eq!((keyboard.next_look(true), keyboard.next_look(false)), (None, Some(LOOK_POLLED)));
    }

    #[test]
    fn what_is_wrong_is_said_and_the_rest_is_used() {
        let found = |model: Model| {
            let (mut keyboard, found, time) = ready(model, "us");
            keyboard.ports.busy = false;
            assert_eq!(typed(&mut keyboard, &[0x1e, 0x9e]), "a");
            assert!(time <= 4 * PATIENCE);
            found
        };
        let doubtful = Found::Doubtful;
        assert_eq!(found(Model { busy: true, output: VecDeque::new(), ..Model::default() }), doubtful(Trouble::Busy));
        assert_eq!(found(Model { self_test: Some(0xfc), ..Model::default() }), doubtful(Trouble::SelfTest(0xfc)));
        assert_eq!(found(Model { self_test: None, ..Model::default() }), doubtful(Trouble::NoSelfTest));
        assert_eq!(found(Model { interface: Some(2), ..Model::default() }), doubtful(Trouble::Interface(2)));
        assert_eq!(found(Model { keyboard: false, ..Model::default() }), doubtful(Trouble::NoKeyboard));
    }

    #[test]
    fn a_machine_without_a_controller_is_left_in_peace() {
        let (mut keyboard, found, _) = ready(Model { missing: true, ..Model::default() }, "us");
        assert_eq!((found, keyboard.next_look(false)), (Found::Nothing, None));
        keyboard.look(0, |_| unreachable!());
        assert!(keyboard.ports.commands.is_empty() && keyboard.ports.output.len() == 2);
    }

    #[test]
    fn keys_become_what_a_terminal_sends() {
        let (mut keyboard, ..) = ready(Model::default(), "us");
        // vms, shift-a, caps-a caps, ctrl-u, enter, backspace.
        assert_eq!(typed(&mut keyboard, &[0x2f, 0xaf, 0x32, 0xb2, 0x1f, 0x9f]), "vms");
        assert_eq!(typed(&mut keyboard, &[0x2a, 0x1e, 0x9e, 0xaa, 0x1e, 0x9e]), "Aa");
        assert_eq!(typed(&mut keyboard, &[0x3a, 0xba, 0x1e, 0x9e, 0x3a, 0xba, 0x1e, 0x9e]), "Aa");
        assert_eq!(typed(&mut keyboard, &[0x1d, 0x16, 0x96, 0x2e, 0xae, 0x9d, 0x2e]), "\x15\x03c");
        assert_eq!(typed(&mut keyboard, &[0x1c, 0x9c, 0x0e, 0x8e, 0xe0, 0x1c, 0xe0, 0x9c]), "\r\x08\r");
        assert_eq!(
            typed(&mut keyboard, &[0xe0, 0x48, 0xe0, 0xc8, 0xe0, 0x53, 0xe0, 0xd3, 0x3b, 0xbb]),
            "\x1b[A\x1b[3~"
        );
        // A key that is held repeats.
        assert_eq!(typed(&mut keyboard, &[0x1e, 0x1e, 0x1e, 0x9e]), "aaa");
    }

    #[test]
    fn keymaps() {
        assert_eq!(typed(&mut ready(Model::default(), "de").0, &[0x15, 0x95, 0x1a, 0x9a]), "zü");
        assert_eq!(typed(&mut ready(Model::default(), "no such").0, &[0x15, 0x95]), "y");
        assert!(KEYMAPS.into_iter().all(is_keymap) && !is_keymap("US"));
    }

    const KEYMAPS: [&str; 11] =
        ["us", "uk", "de", "fr", "no", "se", "fi", "jp", "colemak", "dvorak", "programmer-dvorak"];

    proptest! {
        #[test]
        fn any_codes_are_harmless(codes: Vec<u8>, keymap in prop::sample::select(&KEYMAPS[..])) {
            let (mut keyboard, ..) = ready(Model::default(), keymap);
            typed(&mut keyboard, &codes);
            // Whatever was held down is let go; then it works as ever.
            typed(&mut keyboard, &[0xaa, 0xb6, 0x9d, 0xb8, 0xe0, 0x9d, 0xe0, 0xb8]);
            prop_assert!(!typed(&mut keyboard, &[0x2e, 0xae]).is_empty());
        }

        #[test]
        fn any_controller_comes_to_an_end(bytes: Vec<u8>, statuses in prop::collection::vec(any::<u8>(), 1..50)) {
            struct Mad<'a>(std::iter::Cycle<std::slice::Iter<'a, u8>>, std::iter::Cycle<std::slice::Iter<'a, u8>>);
            impl Ports for Mad<'_> {
                fn status(&mut self) -> u8 {
                    self.0.next().copied().unwrap_or(0xff)
                }
                fn command(&mut self, _: u8) {}
                fn read(&mut self) -> u8 {
                    self.1.next().copied().unwrap_or(0)
                }
                fn write(&mut self, _: u8) {}
            }
            let mut keyboard = Keyboard::new(Mad(statuses.iter().cycle(), bytes.iter().cycle()), "us");
            let mut now = 0;
            while keyboard.take_found().is_none() {
                keyboard.look(now, |_| {});
                now += LOOK_SETTING_UP * 50;
                prop_assert!(now < 12 * PATIENCE);
            }
        }
    }
}
