//! The other processors: which there are, from the MADT, and starting them.

use alloc::vec::Vec;
use core::fmt::Arguments;
use protocol::{abi::Error, domain::ProcessorStep};

/// Processors taken from a table.
pub const PROCESSORS_MAX: usize = 256;
/// Nanoseconds that a processor needs after its reset (Intel SDM vol. 3, 9.4.4.1).
const RESET_TIME: u64 = 10_000_000;
/// Nanoseconds after which one that has not come is started once more, as some need it, and between looks.
const START_TIME: u64 = 1_000_000;
/// Nanoseconds after which it is given up.
const PATIENCE: u64 = 2_000_000_000;

const ENTRY_LOCAL_APIC: u8 = 0;
const ENTRY_LOCAL_X2APIC: u8 = 9;
/// In the flags of an entry: the processor can be used. One that may be plugged in later cannot yet.
const ENABLED: u32 = 1;
/// Number of a local APIC that is none.
const NO_APIC: u32 = 0xff;

/// Numbers of the local APICs of all processors that can be used, from the entries of a MADT: what follows its 44 bytes of header. A damaged
/// entry ends the list.
pub fn from_madt(mut entries: &[u8]) -> Vec<u32> {
    let mut found = Vec::new();
    while let [kind, length, ..] = *entries {
        let Some((entry, rest)) = entries.split_at_checked(usize::from(length).max(2)) else { break };
        entries = rest;
        let word = |offset: usize| {
            entry.get(offset..).and_then(|bytes| bytes.first_chunk()).map(|bytes| u32::from_le_bytes(*bytes))
        };
        let (apic, flags) = match kind {
            ENTRY_LOCAL_APIC => (entry.get(3).map(|id| u32::from(*id)).filter(|id| *id != NO_APIC), word(4)),
            ENTRY_LOCAL_X2APIC => (word(4), word(8)),
            _ => continue,
        };
        let (Some(apic), Some(flags)) = (apic, flags) else { break };
        if flags & ENABLED != 0 && !found.contains(&apic) && found.len() < PROCESSORS_MAX {
            found.push(apic);
        }
    }
    found
}

/// What starting processors needs.
pub trait Starter {
    /// Does a step; returns how many run.
    fn step(&mut self, apic: u32, step: ProcessorStep) -> Result<usize, Error>;
    /// Nanoseconds since some moment.
    fn now(&self) -> u64;
    /// Waits for so many nanoseconds.
    fn wait(&mut self, nanoseconds: u64);
    /// Tells the operator.
    fn log(&self, text: Arguments<'_>);
}

/// Processors that were reset and are to be started.
#[derive(Default, Debug)]
pub struct Waiting {
    apics: Vec<u32>,
    /// When they can be.
    ready: u64,
}

/// Resets all processors but those that run.
pub fn reset(starter: &mut impl Starter, apics: &[u32]) -> Waiting {
    let mut waiting = Waiting::default();
    for apic in apics.iter().copied() {
        match starter.step(apic, ProcessorStep::Reset) {
            Ok(_) => waiting.apics.push(apic),
            Err(Error::Occupied) => {}
            Err(error) => starter.log(format_args!("processor with APIC {apic}: {error}")),
        }
    }
    waiting.ready = starter.now() + RESET_TIME;
    waiting
}

/// Starts them, one after the other. One that does not come is told of, and left off. Returns how many run, if any was started.
pub fn start(starter: &mut impl Starter, waiting: Waiting) -> Option<usize> {
    let mut online = None;
    if !waiting.apics.is_empty() {
        let now = starter.now();
        starter.wait(waiting.ready.saturating_sub(now));
    }
    for apic in waiting.apics {
        match start_one(starter, apic) {
            Ok(running) => online = Some(running),
            Err(error) => {
                let why = match error {
                    Error::Again => "it does not come",
                    Error::Denied => "its clock differs from that of the first",
                    Error::Exhausted => "the kernel has set nothing aside for so many",
                    _ => "it cannot be started",
                };
                starter.log(format_args!("processor with APIC {apic} stays off: {why}"));
                // What it has not taken part in yet it must not come to later.
                let _ = starter.step(apic, ProcessorStep::Abandon);
            }
        }
    }
    online
}

fn start_one(starter: &mut impl Starter, apic: u32) -> Result<usize, Error> {
    let end = starter.now() + PATIENCE;
    starter.step(apic, ProcessorStep::Start)?;
    let mut again = true;
    loop {
        match starter.step(apic, ProcessorStep::Join) {
            Err(Error::Again) if starter.now() < end => starter.wait(START_TIME),
            result => return result,
        }
        if core::mem::take(&mut again) {
            match starter.step(apic, ProcessorStep::Start) {
                // It has come meanwhile.
                Ok(_) | Err(Error::Occupied) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::BTreeMap, string::String, string::ToString};

    #[test]
    fn reads_what_there_is() {
        let madt = [
            0, 8, 0, 0, 1, 0, 0, 0, // usable
            0, 8, 1, 2, 1, 0, 0, 0, // usable
            0, 8, 2, 4, 0, 0, 0, 0, // not there
            0, 8, 3, 6, 2, 0, 0, 0, // may be plugged in
            1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0, // I/O APIC
            9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, // x2APIC 256
            9, 16, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, // the second one again
            0, 8, 9, 0xff, 1, 0, 0, 0, // none
        ];
        assert_eq!(from_madt(&madt), [0, 2, 256]);
        assert_eq!(from_madt(&madt[..madt.len() - 3]), [0, 2, 256]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_bounded(bytes: Vec<u8>) {
            prop_assert!(from_madt(&bytes).len() <= PROCESSORS_MAX);
        }
    }

    /// Processors that come after so many looks; `None`: never.
    struct Mock {
        comes: BTreeMap<u32, Option<u32>>,
        steps: Vec<(u32, ProcessorStep)>,
        online: usize,
        now: u64,
        logged: core::cell::RefCell<Vec<String>>,
    }

    impl Starter for Mock {
        fn step(&mut self, apic: u32, step: ProcessorStep) -> Result<usize, Error> {
            let started = self.steps.contains(&(apic, step)) && step == ProcessorStep::Start;
            self.steps.push((apic, step));
            // The kernel does not start again what has come.
            if apic == 0 || started && self.comes[&apic].is_some() {
                return Err(Error::Occupied);
            }
            match (step, self.comes.get_mut(&apic).unwrap()) {
                (ProcessorStep::Join, Some(0)) => self.online += 1,
                (ProcessorStep::Join, Some(looks)) => {
                    *looks -= 1;
                    return Err(Error::Again);
                }
                (ProcessorStep::Join, None) => return Err(Error::Again),
                _ => {}
            }
            Ok(self.online)
        }
        fn now(&self) -> u64 {
            self.now
        }
        fn wait(&mut self, nanoseconds: u64) {
            self.now += nanoseconds;
        }
        fn log(&self, text: Arguments<'_>) {
            self.logged.borrow_mut().push(text.to_string());
        }
    }

    #[test]
    fn who_does_not_come_is_given_up() {
        let comes = BTreeMap::from([(1, Some(3)), (2, None), (3, Some(0))]);
        let mut mock = Mock { comes, steps: Vec::new(), online: 1, now: 5, logged: Default::default() };
        let waiting = reset(&mut mock, &[0, 1, 2, 3]);
        assert_eq!(start(&mut mock, waiting), Some(3));
        assert!(mock.now >= PATIENCE + RESET_TIME);
        assert_eq!(*mock.logged.borrow(), ["processor with APIC 2 stays off: it does not come"]);
        let abandoned: Vec<_> = mock.steps.iter().filter(|step| step.1 == ProcessorStep::Abandon).collect();
        assert_eq!(abandoned, [&(2, ProcessorStep::Abandon)]);
        let starts = |apic| mock.steps.iter().filter(|step| **step == (apic, ProcessorStep::Start)).count();
        assert_eq!((starts(0), starts(1), starts(2), starts(3)), (0, 2, 2, 1));
    }

    #[test]
    fn a_lone_processor_waits_for_nobody() {
        let mut mock =
            Mock { comes: BTreeMap::new(), steps: Vec::new(), online: 1, now: 5, logged: Default::default() };
        let waiting = reset(&mut mock, &[0]);
        assert_eq!((start(&mut mock, waiting), mock.now), (None, 5));
    }
}
